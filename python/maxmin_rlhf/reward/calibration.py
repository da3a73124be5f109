"""Making the groups' rewards comparable before a minimum is taken over them.

Preferences determine a reward up to an offset at each prompt, and its scale is how decided the group is. A minimum over
raw rewards is decided by those offsets.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

METHODS = ("center", "scale", "win_rate", "regret", None)
# Numbers held at once by the win rate's (prompts, samples, reference samples, groups).
_BLOCK = 1 << 22

Rewards = TypeVar("Rewards", np.ndarray, Tensor)


def calibrate(rewards: Rewards, method: str | None = "center", reference: Any = None) -> Rewards:
    """Rewards in units that groups have in common.

    Args:
        rewards: ``(P, S, K)`` rewards of S samples at each of P prompts for K groups, NumPy or torch; NaN where there
            is none, which stays NaN and counts in no mean.
        method: ``"center"`` takes each group's mean over the prompt's reference samples off: 0 is what the reference
            policy gives. ``"scale"`` divides by the group's spread as well (root mean square about the prompts' means,
            one number a group, so that a group's prompts keep their proportions): groups then count by how much a
            response is better *for them*, however decided they are. ``"win_rate"`` is the probability that the
            group prefers the response to a reference sample, ``E σ(r(y) - r(y_ref))``, in [0, 1]: .5 is as good as
            the reference, and no response is worth more than one that always wins. ``"regret"`` takes each group's best
            reference sample of the prompt off: 0 is all that a group could wish for there, and a minimum over groups
            asks who misses most, in the group's own units (scale first where those differ). The best of more samples
            is better: compare only between equal numbers of them. None leaves them as they are.
        reference: ``(P, R, K)`` rewards of the reference policy's samples; None: ``rewards`` are those. A sample is
            then compared with itself too, which is exact for a menu and a little towards .5 for draws.

    Returns:
        Like ``rewards``: NumPy float64, or a tensor of their floating dtype (integers: float64).

    Raises:
        ValueError, TypeError: an unknown method, a shape that does not fit, values that are not numbers.

    Warns:
        UserWarning: a group is indifferent between all reference samples, so there is no scale to divide by.
    """
    if method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"calibrate: expected one of {known}, got {method!r}")
    r = as_rewards("rewards", rewards)
    ref = r if reference is None else as_rewards("reference", reference).to(r)
    if (ref.shape[0], ref.shape[2]) != (r.shape[0], r.shape[2]):
        raise ValueError(
            f"reference: expected shape ({r.shape[0]}, R, {r.shape[2]}), got {tuple(ref.shape)}"
        )
    if method == "win_rate":
        out = _win_rate(r, ref)
    elif method is None:
        out = r.clone()
    elif method == "regret":
        out = r - _best(ref)
    else:
        mean = ref.nanmean(1, keepdim=True)
        out = r - mean
        if method == "scale":
            out = out / _spread(ref - mean)
    return out if isinstance(rewards, Tensor) else out.numpy()


def dominance(rewards: Any) -> np.ndarray:
    """How often each group alone is the worst off, as shares ``(K,)`` of the samples that every group has judged.

    Where one group's share is near one a minimum over groups listens to nobody else: usually the rewards are not
    comparable yet, and offsets or units decide. `maxmin_rlhf.solve_maxmin` warns above .95.

    Args:
        rewards: ``(P, S, K)`` calibrated rewards, NumPy or torch. Samples where several groups are equally badly off
            count for none.
    """
    alone, judged = worst_alone(as_rewards("rewards", rewards))
    return (alone / judged.clamp_min(1)).cpu().numpy()


def worst_alone(r: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) samples at which a group alone is the worst off, and () all judged by every group; both float64."""
    low = r == r.amin(-1, keepdim=True)
    alone = low & (low.sum(-1, keepdim=True) == 1)
    judged = ~r.isnan().any(-1)
    return alone.flatten(0, 1).sum(0).double(), judged.sum().double()


def as_rewards(name: str, rewards: Any) -> Tensor:
    """``(P, S, K)`` floating tensor of what was given; NumPy's are float64 from here on."""
    if not isinstance(rewards, Tensor):
        array = np.asarray(rewards)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
        rewards = torch.from_numpy(array.astype(np.float64))
    if rewards.dim() != 3 or rewards.shape[2] == 0:
        raise ValueError(f"{name}: expected shape (P, S, K), got {tuple(rewards.shape)}")
    return rewards if rewards.is_floating_point() else rewards.double()


def _spread(centred: Tensor) -> Tensor:
    """(K,) root mean square, 1 for a group without any."""
    spread = centred.square().flatten(0, 1).nanmean(0).sqrt()
    flat = (spread == 0).nonzero().flatten().tolist()
    if flat:
        warnings.warn(
            f"rewards: groups {flat} are indifferent between all reference samples; left unscaled",
            UserWarning,
            stacklevel=3,
        )
    return torch.where(spread == 0, 1.0, spread)


def _best(ref: Tensor) -> Tensor:
    """(P, 1, K) the largest that is there, NaN without any."""
    if ref.shape[1] == 0:
        return ref.new_full((ref.shape[0], 1, ref.shape[2]), torch.nan)
    best = torch.where(ref.isnan(), -torch.inf, ref).amax(1, keepdim=True)
    return torch.where(ref.isnan().all(1, keepdim=True), torch.nan, best)


def _win_rate(r: Tensor, ref: Tensor) -> Tensor:
    per_prompt = max(1, r.shape[1] * ref.shape[1] * r.shape[2])
    step = max(1, _BLOCK // per_prompt)
    blocks = [
        torch.sigmoid(some[:, :, None] - against[:, None]).nanmean(2)
        for some, against in zip(r.split(step), ref.split(step), strict=True)
    ]
    return torch.cat(blocks) if blocks else r.clone()

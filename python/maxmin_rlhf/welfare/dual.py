"""MaxMin from samples: the weights, the policy and a certificate (section 4 of docs/math.md)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maxmin_kernels import functional
from maxmin_rlhf.reward.calibration import as_rewards
from maxmin_rlhf.reward.calibration import calibrate as _calibrate

OBJECTIVES = ("maxmin", "mean", "per_sample_min")


@dataclass(frozen=True)
class Solution:
    """A policy for K groups as probabilities of the samples, and what it is worth to each group.

    Attributes:
        weights: (K,) weights of the groups' rewards in the policy's one reward; NaN for ``per_sample_min``.
        utilities: (K,) expected calibrated rewards under the policy, without the KL term.
        value: what the objective attains, KL term included: D(w*) of (13) for ``maxmin``.
        gap: the certificate (15) in units of calibrated reward: the worst-off group cannot be given more than this
            above what it has. 0 for ``mean``, NaN for ``per_sample_min``.
        ess: (P,) effective number of samples behind the policy at each prompt, 0 where no sample could be used.
        policy: (P, S) probabilities of the samples, 0 for those left out.
    """

    weights: np.ndarray
    utilities: np.ndarray
    value: float
    gap: float
    ess: np.ndarray
    policy: np.ndarray

    @property
    def worst_group(self) -> int:
        """The group with the least utility, the first of equals."""
        return int(self.utilities.argmin())


def solve_maxmin(
    rewards: Any,
    beta: float,
    *,
    objective: str = "maxmin",
    group_weights: Any = None,
    calibrate: str | None = "center",
    tol: float = 1e-6,
) -> Solution:
    """The policy that is best for the worst-off group, from samples of the reference policy and their rewards.

    Maximises ``min_k E r_k - beta KL(policy ‖ reference)`` over policies that put weight on the samples given, by its
    dual in the K weights. The minimum is over *expected* rewards: groups may take turns. The samples of a prompt count
    alike, as draws from the reference policy or as a menu that it chooses from evenly.

    Where the weights are not unique (two groups that agree) a middle one is given; the policy is unique. A group that
    is better off than others under every policy that is best for them has weight 0. Where one group has all the
    weight the policy is that group's own best, and there is nothing to trade off.

    Args:
        rewards: ``(P, S, K)`` rewards of S samples at P prompts for K groups, NumPy or torch (solved on its device). A
            sample with a NaN for any group is left out, and so is a prompt without any sample left.
        beta: strength of the KL penalty, > 0, in units of calibrated reward.
        objective: ``"maxmin"``; ``"mean"``: the best for the average of the groups, by their shares;
            ``"per_sample_min"``: the best for ``E min_k r_k``, what public MaxMin code trains on. It holds every
            sample to its worst group and leaves the worst-off group worse off than ``"maxmin"``: for comparison.
        group_weights: ``(K,)`` shares of the groups, for ``"mean"``; None: equal. Normalised.
        calibrate: how rewards are made comparable first, see :func:`maxmin_rlhf.reward.calibrate`; None: they are.
        tol: the gap aimed at.

    Returns:
        A :class:`Solution` of NumPy arrays and floats.

    Raises:
        ValueError, TypeError: rewards of another shape, infinite ones, no usable sample, a parameter out of range.

    Warns:
        UserWarning: the gap stayed above ``tol``; or fewer than min(10, S/4) samples are behind the policy at more
            than a tenth of the prompts, so that the certificate, which holds for these samples, says little about
            others. (No matter if the samples are all there is to choose from.)
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    beta, tol = _plain(beta), _plain(tol)
    r = _calibrated(rewards, calibrate)
    shares = _shares(group_weights, r)
    if objective == "per_sample_min":
        score = r.amin(-1, keepdim=True)
        dual = functional.maxmin_dual(score, beta, tol=tol)
        nowhere = torch.full_like(shares, torch.nan)
        solution = _solution(r, score[..., 0], beta, dual, nowhere, gap=float("nan"))
    else:
        fixed = shares if objective == "mean" else None
        dual = functional.maxmin_dual(r, beta, weights=fixed, tol=tol)
        gap = 0.0 if objective == "mean" else float(dual.gap)
        solution = _solution(r, r @ dual.weights, beta, dual, dual.weights, gap)
    _warn(solution, r, tol)
    return solution


def evaluate_maxmin(
    rewards: Any, weights: Any, beta: float, *, calibrate: str | None = "center"
) -> Solution:
    """What given weights are worth on other samples: the gap here is the honest one, where that of
    :func:`solve_maxmin` is of the samples it was solved on.

    Args:
        rewards: ``(P, S, K)`` as in :func:`solve_maxmin`, fresh ones.
        weights: ``(K,)`` on the simplex, for instance ``solution.weights``.
        beta, calibrate: as given to :func:`solve_maxmin`.
    """
    beta = _plain(beta)
    r = _calibrated(rewards, calibrate)
    w = torch.as_tensor(np.asarray(weights, np.float64)).to(r.device)
    dual = functional.maxmin_dual(r, beta, weights=w, validate=True)
    return _solution(r, r @ dual.weights, beta, dual, dual.weights, float(dual.gap))


def _plain(number: float) -> float:
    """NumPy's numbers as Python's."""
    return number.item() if isinstance(number, np.generic) else number


def _calibrated(rewards: Any, method: str | None) -> Tensor:
    """(P, S, K) float64, checked."""
    r = as_rewards("rewards", rewards.detach() if isinstance(rewards, Tensor) else rewards).double()
    infinite = r.isinf().nonzero()
    if len(infinite):
        raise ValueError(
            f"rewards: expected finite numbers, got inf at {tuple(infinite[0].tolist())}"
        )
    r = _calibrate(r, method)
    if not bool((~r.isnan().any(-1)).any()):
        raise ValueError(
            "rewards: expected at least one sample with a reward for every group, got none"
        )
    return r


def _shares(group_weights: Any, r: Tensor) -> Tensor:
    n_groups = r.shape[2]
    if group_weights is None:
        return torch.full((n_groups,), 1 / n_groups, dtype=r.dtype, device=r.device)
    shares = np.asarray(group_weights, np.float64)
    if shares.shape != (n_groups,):
        raise ValueError(f"group_weights: expected shape ({n_groups},), got {shares.shape}")
    if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise ValueError(
            f"group_weights: expected numbers >= 0 with a positive sum, got {shares.tolist()}"
        )
    return torch.as_tensor(shares / shares.sum()).to(r.device)


def _solution(
    r: Tensor,
    score: Tensor,
    beta: float,
    dual: functional.DualSolution,
    weights: Tensor,
    gap: float,
) -> Solution:
    """The policy of a score (P, S) and its worth; (14)."""
    usable = ~r.isnan().any(-1)
    logits = (score - torch.where(usable, score, -torch.inf).amax(1, keepdim=True)) / beta
    policy = torch.where(usable, logits.exp(), 0.0)
    policy = policy / policy.sum(1, keepdim=True).clamp_min(1)
    worth = (policy[..., None] * torch.where(usable[..., None], r, 0.0)).sum(1)
    utilities = worth[usable.any(1)].mean(0)
    return Solution(
        weights=weights.cpu().numpy(),
        utilities=utilities.cpu().numpy(),
        value=float(dual.value),
        gap=gap,
        ess=dual.ess.cpu().numpy(),
        policy=policy.cpu().numpy(),
    )


def _warn(solution: Solution, r: Tensor, tol: float) -> None:
    if solution.gap > tol:
        warnings.warn(
            f"solve_maxmin: the gap is {solution.gap:.2g}, above tol = {tol:g}; a larger beta or "
            "smaller rewards can be solved more closely",
            UserWarning,
            stacklevel=3,
        )
    usable = (~r.isnan().any(-1)).sum(1).cpu().numpy()
    ess = solution.ess[usable > 0]
    low = ess < np.minimum(10, usable[usable > 0] / 4)
    if low.mean() > 0.1:
        warnings.warn(
            f"solve_maxmin: at {low.sum()} of {low.size} prompts fewer than {min(10, r.shape[1] / 4):g} "
            f"samples are behind the policy (median {np.median(ess):.1f} of {r.shape[1]}): draw more, or "
            "raise beta. No matter if the samples are all there is to choose from",
            UserWarning,
            stacklevel=3,
        )

"""Rewards that come in shards, on one rank or several, and what one pass over them yields: (13) and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from maxmin_rlhf.reward.calibration import METHODS, as_rewards, calibrate, worst_alone

Array = NDArray[np.float64]
# Numbers that a pass works on at once: what it needs beside the rewards stays within some 100 MB.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Moments:
    """Of one pass at (K,) weights on the simplex, all float64.

    Attributes:
        value: D of (13).
        utilities: (K,) expected rewards under the policy of the weights, D's gradient.
        hessian: (K, K) of D.
    """

    value: float
    utilities: Array
    hessian: Array


@dataclass(frozen=True)
class _Block:
    """Rewards less their mean at the prompt, which keeps digits when offsets are large."""

    rewards: Tensor  # (P, S, K), 0 where not there
    there: Tensor  # (P, S)
    count: Tensor  # (P,) samples, at least 1
    used: Tensor  # (P,) 1, or 0 without a sample
    mean: Tensor  # (P, K) what was taken off

    def policy(self, score: Tensor, beta: float) -> Tensor:
        """(14): (P, S) scores to probabilities."""
        top = torch.where(self.there, score, -torch.inf).amax(1, keepdim=True)
        z = torch.where(self.there, ((score - top) / beta).exp(), 0.0)
        return z / z.sum(1, keepdim=True).clamp_min(1)

    def moments(self, w: Tensor, beta: float) -> Tensor:
        """(1 + K + K²,) sums over prompts: value, gradient, beta times the Hessian."""
        score = self.rewards @ w
        top = torch.where(self.there, score, -torch.inf).amax(1)
        top = torch.where(self.used > 0, top, 0.0)
        # Accurate for a large beta too.
        x = torch.where(self.there, ((score - top[:, None]) / beta).expm1(), 0.0).sum(1)
        value = (top + beta * torch.log1p(x / self.count)).sum()
        policy = self.policy(score, beta)
        by_prompt = (policy[:, None] @ self.rewards)[:, 0]
        root = (policy.sqrt()[..., None] * (self.rewards - by_prompt[:, None])).flatten(0, 1)
        return torch.cat([value[None], by_prompt.sum(0), (root.T @ root).flatten()])


def _block(rewards: Tensor) -> _Block:
    there = ~rewards.isnan().any(-1)
    r = torch.where(there[..., None], rewards, 0.0)
    count = there.sum(1)
    used = (count > 0).to(r.dtype)
    mean = r.sum(1) / count.clamp_min(1)[:, None]
    r = torch.where(there[..., None], r - mean[:, None], 0.0)
    return _Block(r, there, count.clamp_min(1), used, mean)


def _survey(rewards: Tensor, block: _Block) -> Tensor:
    """Sums: prompts with a sample, samples, samples that some groups have judged and others not, squares about the
    prompts' means; and of each group the means, the samples that it alone is missing in, those where it alone is the
    worst off, those that it has judged."""
    missing = rewards.isnan()
    partial = missing.any(-1) & ~missing.all(-1)
    alone, samples = worst_alone(rewards)
    ours = (missing & partial[..., None]).flatten(0, 1).sum(0).double()
    judged = (~missing).flatten(0, 1).sum(0).double()
    squares = block.rewards.square().sum()
    whole = torch.stack([block.used.sum(), samples, partial.sum().double(), squares])
    return torch.cat([whole, block.mean.sum(0), ours, alone, judged])


class Shards:
    """Calibrated rewards, read once a pass.

    Args:
        read: yields (P, S, K) float64 tensors, the same ones at each call; NaN where there is none.
        n_groups: K.
        keep: whether to hold them between passes.
        group: ranks over which the sums go, or None for this one alone.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Tensor]],
        n_groups: int,
        *,
        keep: bool,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._read, self._group, self.n_groups = read, group, n_groups
        self.alone = group is None  # no other rank has prompts
        kept: list[_Block] = []
        sums, span = np.zeros(4 + 4 * n_groups), 0.0
        for rewards in self._pieces():
            block = _block(rewards)
            if keep:
                kept.append(block)
            sums += _survey(rewards, block).cpu().numpy()
            low, high = (
                torch.where(block.there[..., None], block.rewards, end)
                for end in (torch.inf, -torch.inf)
            )
            width = torch.where(block.used[:, None] > 0, high.amax(1) - low.amin(1), 0.0)
            span = max(span, float(width.max()))
        self._kept = kept if keep else None
        self._take(summed(sums, group))
        # Largest difference between two samples of one prompt.
        self.span = float(summed(np.array([span]), group, "max")[0])

    def _take(self, sums: Array) -> None:
        """What the survey of all blocks says; see `_survey`."""
        self.n_prompts, self.n_samples, self.n_partial, squares = sums[:4]
        offset, self.n_missing, alone, self.n_judged = sums[4:].reshape(4, self.n_groups)
        self.offset: Array = offset / max(self.n_prompts, 1)
        # Root mean square about the prompts' means, over all groups.
        self.spread = float((squares / max(self.n_samples * self.n_groups, 1)) ** 0.5)
        self.dominance: Array = alone / max(self.n_samples, 1)

    def _pieces(self) -> Iterator[Tensor]:
        for rewards in self._read():
            step = max(1, _BLOCK // max(1, rewards.shape[1] * rewards.shape[2]))
            yield from (some for some in rewards.split(step) if some.numel())

    def _blocks(self) -> Iterable[_Block]:
        return map(_block, self._pieces()) if self._kept is None else self._kept

    def moments(self, weights: Array, beta: float) -> Moments:
        """Value, gradient and Hessian of (13) at (K,) weights on the simplex."""
        K = self.n_groups
        sums = np.zeros(1 + K + K * K)
        for block in self._blocks():
            w = torch.as_tensor(weights).to(block.rewards)
            sums += block.moments(w, beta).cpu().numpy()
        sums = summed(sums, self._group) / self.n_prompts
        hessian = sums[1 + K :].reshape(K, K) / beta
        utilities = sums[1 : 1 + K] + self.offset
        return Moments(float(sums[0] + self.offset @ weights), utilities, hessian)

    def ess(self, weights: Array, beta: float) -> tuple[Array, Array]:
        """(P,) effective number of samples behind the policy at this rank's prompts, and (P,) how many there are."""
        ess, counts = [np.zeros(0)], [np.zeros(0)]
        for block in self._blocks():
            policy = block.policy(block.rewards @ torch.as_tensor(weights).to(block.rewards), beta)
            squares = policy.square().sum(1)
            ess.append(torch.where(block.used > 0, 1 / squares, 0.0).cpu().numpy())
            counts.append((block.count * block.used).cpu().numpy())
        return np.concatenate(ess), np.concatenate(counts)


def summed(values: Array, group: dist.ProcessGroup | None, how: str = "sum") -> Array:
    """The sum (or maximum) over ranks, the same bits on each."""
    if group is None:
        return values
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    total = torch.as_tensor(values, dtype=torch.float64).to(device)
    dist.all_reduce(total, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM, group=group)
    return total.cpu().numpy()


def reader(rewards: Any) -> Callable[[], Iterable[Any]] | None:
    """How to go through shards once more, or None for one array.

    Raises:
        TypeError: an iterator, which can be gone through once only.
    """
    if callable(rewards):
        return rewards
    if isinstance(rewards, Tensor) or hasattr(rewards, "__array__"):
        return None
    if isinstance(rewards, (list, tuple)):
        sharded = all(getattr(shard, "ndim", 0) == 3 for shard in rewards)
        return (lambda: rewards) if sharded else None
    if not hasattr(rewards, "__iter__") or iter(rewards) is rewards:
        raise TypeError(
            "rewards: expected an array, or shards that can be gone through more than once (a list, or a function "
            f"that yields them anew), got {type(rewards).__name__}"
        )
    return lambda: rewards


def checked(rewards: Any) -> Tensor:
    """(P, S, K) float64, without infinities."""
    r = as_rewards("rewards", rewards.detach() if isinstance(rewards, Tensor) else rewards).double()
    infinite = r.isinf().nonzero()
    if len(infinite):
        at = tuple(infinite[0].tolist())
        raise ValueError(f"rewards: expected finite numbers, got inf at {at}")
    return r


def calibrated_reader(
    read: Callable[[], Iterable[Any]], method: str | None, group: dist.ProcessGroup | None
) -> tuple[Callable[[], Iterator[Tensor]], int]:
    """Checked and calibrated shards at each call, and K. A group's scale is that of all its shards."""
    sizes = {r.shape[2] for r in map(checked, read())}
    n_groups = int(summed(np.array([max(sizes, default=0)], np.float64), group, "max")[0])
    if n_groups == 0:
        raise ValueError("rewards: expected at least one shard (P, S, K), got none")
    if sizes - {n_groups}:
        raise ValueError(
            f"rewards: expected shards of one number of groups, got {sorted(sizes | {n_groups})}"
        )
    if method not in METHODS:
        calibrate(np.zeros((1, 1, 1)), method)  # says what is wrong
    first = "center" if method == "scale" else method

    def plain() -> Iterator[Tensor]:
        return (calibrate(checked(shard), first) for shard in read())

    if method != "scale":
        return plain, n_groups
    sums = np.zeros((2, n_groups))
    for r in plain():
        r = r.flatten(0, 1)
        sums += torch.stack([r.square().nansum(0), (~r.isnan()).sum(0).double()]).cpu().numpy()
    squares, counts = summed(sums, group)
    spread = np.sqrt(squares / np.maximum(counts, 1))
    spread[spread == 0] = 1
    return lambda: (r / torch.as_tensor(spread).to(r.device) for r in plain()), n_groups

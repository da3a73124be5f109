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
    mean: Tensor  # (K,) sum over prompts of what was taken off

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
    return _Block(r, there, count.clamp_min(1), used, mean.sum(0))


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
        self._kept = list(self._blocks_anew()) if keep else None
        sums, span = np.zeros(1 + n_groups), 0.0
        for block in self._blocks():
            sums += torch.cat([block.used.sum()[None], block.mean]).cpu().numpy()
            low, high = (
                torch.where(block.there[..., None], block.rewards, end) for end in (torch.inf, -torch.inf)
            )
            width = torch.where(block.used[:, None] > 0, high.amax(1) - low.amin(1), 0.0)
            span = max(span, float(width.max()))
        sums = summed(sums, group)
        self.n_prompts = float(sums[0])
        self.offset: Array = sums[1:] / max(self.n_prompts, 1)
        # Largest difference between two samples of one prompt.
        self.span = float(summed(np.array([span]), group, "max")[0])

    def _blocks_anew(self) -> Iterator[_Block]:
        for rewards in self._read():
            step = max(1, _BLOCK // max(1, rewards.shape[1] * rewards.shape[2]))
            for some in rewards.split(step):
                if some.numel():
                    yield _block(some)

    def _blocks(self) -> Iterable[_Block]:
        return self._blocks_anew() if self._kept is None else self._kept

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

    def ess(self, weights: Array, beta: float) -> Array:
        """(P,) effective number of samples behind the policy at this rank's prompts, 0 without any."""
        parts = [np.zeros(0)]
        for block in self._blocks():
            policy = block.policy(block.rewards @ torch.as_tensor(weights).to(block.rewards), beta)
            ess = block.used / policy.square().sum(1).clamp_min(torch.finfo(policy.dtype).tiny)
            parts.append(ess.cpu().numpy())
        return np.concatenate(parts)


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
        sharded = bool(rewards) and all(getattr(shard, "ndim", 0) == 3 for shard in rewards)
        return (lambda: rewards) if sharded else None
    if iter(rewards) is rewards:
        raise TypeError(
            "rewards: expected shards that can be gone through more than once (a list, or a function that yields them "
            f"anew), got {type(rewards).__name__}"
        )
    return lambda: rewards

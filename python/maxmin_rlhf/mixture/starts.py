"""Where the ascent begins. Starts matter more than steps (measured: docs/fitting.md).

All starts lie around the pooled head, the optimum of K = 1. Deviations are drawn in coordinates where the curvature an
annotator is the identity, so that their squared length is what one annotator's comparisons can tell, in nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maxmin_rlhf.mixture.objective import Objective

_REACH = 6.0  # nats: the squared length of a random deviation
_SEEDS = 512  # annotators among whom far ones are sought


def _inverse_root(curvature: Tensor, objective: Objective) -> Tensor:
    """1 / sqrt; 0 where the data tell nothing: there all heads stay with the pooled one."""
    rounding = 1e-10 if objective.acc == torch.float64 else 1e-6
    told = curvature > rounding * curvature.max()
    return torch.where(told, curvature.clamp_min(1e-300).rsqrt(), 0.0)


@dataclass(frozen=True)
class Landscape:
    """The pooled head and what deviations from it look like.

    Attributes:
        head: ``(D,)`` float64, the pooled head.
        root: ``(D, D)``: a whitened deviation z stands for the head ``head + root @ z``. ``(D,)``: the same, diagonal.
        seeds: ``(S, D)`` whitened ridge heads of some annotators, each alone.
    """

    head: Tensor
    root: Tensor
    seeds: Tensor

    @classmethod
    def of(
        cls, objective: Objective, head: Tensor, pooled: Tensor, rng: np.random.Generator
    ) -> Landscape:
        """``pooled``: (D, D) curvature at the pooled head for everybody, or its diagonal (D,)."""
        n = objective.ranks.n_annotators
        chosen = np.sort(rng.permutation(n)[:_SEEDS])
        pulls = objective.annotator_pulls(head, torch.from_numpy(chosen))
        if pooled.dim() == 1:
            root = _inverse_root(pooled / n, objective)
            seeds = pulls * root
        else:
            values, vectors = torch.linalg.eigh(pooled / n)
            root = vectors * _inverse_root(values, objective)
            seeds = pulls @ root
        # Half way to the annotator's own optimum: the ridge is as strong as their comparisons.
        return cls(head, root, 0.5 * seeds)

    def heads(self, deviations: Tensor) -> Tensor:
        """(..., D) whitened deviations to heads."""
        if self.root.dim() == 1:
            return self.head + deviations * self.root
        return self.head + deviations @ self.root.T

    def random(self, n_groups: int, rng: np.random.Generator) -> Tensor:
        """(K, D) heads around the pooled one, in random directions."""
        n_features = len(self.head)
        z = rng.standard_normal((n_groups, n_features)) * min(1.0, _REACH / n_features) ** 0.5
        return self.heads(torch.from_numpy(z).to(self.head))

    def annotators(self, n_groups: int, rng: np.random.Generator) -> Tensor:
        """(K, D) ridge heads of annotators far from each other (k-means++)."""
        seeds = self.seeds
        at = torch.tensor([int(rng.integers(len(seeds)))], device=seeds.device)
        picked, far = [at], (seeds - seeds[at]).square().sum(1)
        while (
            len(picked) < n_groups
        ):  # without a look at what was picked: that would wait for the device
            chance = far.cumsum(0)
            at = torch.searchsorted(chance, rng.random() * chance[-1:]).clamp_max(len(seeds) - 1)
            picked.append(at)
            far = far.minimum((seeds - seeds[at]).square().sum(1))
        return self.heads(seeds[torch.cat(picked)])

    def draw(self, how: str, n_groups: int, count: int, rng: np.random.Generator) -> list[Tensor]:
        """``count`` starts; ``auto`` alternates the two kinds."""
        kinds = ("random", "annotators") if how == "auto" else (how,)
        return [getattr(self, kinds[i % len(kinds)])(n_groups, rng) for i in range(count)]

    def split_and_merge(
        self, theta: Tensor, limit: int, rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Moves out of an optimum ``theta`` (K, D + 1): a head is given up and another's group is split in two.

        Yields heads ``(K, D)`` and log mixing weights ``(K,)``; what was given up joins whom it fits best in the
        first pass.
        """
        heads, log_weights = theta[:, :-1], theta[:, -1].log_softmax(0)
        n_groups = len(heads)
        pairs = [(k, j) for k in range(n_groups) for j in range(n_groups) if k != j]
        for i in rng.permutation(len(pairs))[:limit]:
            gone, split = pairs[i]
            apart = 0.5 * (self.random(1, rng)[0] - self.head)
            moved, weights = heads.clone(), log_weights.clone()
            moved[gone], moved[split] = heads[split] - apart, heads[split] + apart
            weights[[gone, split]] = log_weights[split] - float(np.log(2.0))
            yield moved, weights

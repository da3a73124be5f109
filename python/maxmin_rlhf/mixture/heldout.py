"""(11): how well a mixture predicts comparisons that did not assign their annotator."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import maxmin_kernels as mk
from maxmin_rlhf.data import PreferenceData, PreferenceStore
from maxmin_rlhf.data.splits import held_out_masks, held_out_units, skip
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.objective import Objective, margins
from maxmin_rlhf.mixture.ranks import Ranks


@dataclass(frozen=True)
class HeldOut:
    """Predictive log-likelihood of the scored comparisons, by annotator.

    Attributes:
        total: ``(A, G)`` sum of ``v log p`` of an annotator's scored comparisons under each mixture.
        weight: ``(A,)`` sum of their v.
    """

    total: NDArray[np.float64]
    weight: NDArray[np.float64]

    @property
    def score(self) -> NDArray[np.float64]:
        """(G,) mean a comparison."""
        score: NDArray[np.float64] = self.total.sum(0) / self.weight.sum()
        return score


def held_out_score(
    data: PreferenceData | PreferenceStore,
    bank: Bank,
    split: str,
    seed: int | np.random.Generator | None,
    label_noise: float = 0.0,
    ranks: Ranks | None = None,
) -> HeldOut:
    """Assign each annotator on the visible comparisons (T = 1), predict the others.

    ``ranks``: of the processes that have other annotators, whose random numbers come before or after these. A store is read
    twice.

    Raises:
        ValueError: nothing is left to be scored.
    """
    rng, device = np.random.default_rng(seed), data.device
    if ranks is not None and ranks.group is not None:
        skip(rng, ranks.before(held_out_units(data, split)))
    visible, scored, _ = held_out_masks(data, split, rng)
    n_scored = torch.tensor([float(scored.sum())], device=device)
    if not (n_scored if ranks is None else ranks.sum(n_scored)[0]).any():
        raise ValueError("data: expected comparisons to score, got none after the split")
    known = data.select_comparisons(visible)
    at = Objective.of(known, label_noise=label_noise)(bank, with_resp=True)
    assert at.log_resp is not None
    log_resp = at.log_resp.double()
    total = torch.zeros(data.n_annotators, len(bank), dtype=torch.float64, device=device)
    weight = torch.zeros(data.n_annotators, dtype=torch.float64, device=device)
    for block, _ in Objective.of(data.select_comparisons(scored)).blocks():
        here = slice(block.first, block.first + block.data.n_annotators)
        parts = _predict(block.data, bank, log_resp[here], label_noise)
        total[here] += parts[0]
        weight[here] += parts[1]
    return HeldOut(total.cpu().numpy(), weight.cpu().numpy())


def _predict(
    rest: PreferenceData, bank: Bank, log_resp: Tensor, label_noise: float
) -> tuple[Tensor, Tensor]:
    """(A, G) sums of ``v log p`` under each mixture, and (A,) of v."""
    owner = torch.repeat_interleave(rest.indptr.diff())
    weight = torch.ones(rest.n_comparisons, dtype=torch.float64, device=owner.device)
    if rest.weight is not None:
        weight = rest.weight
    total = torch.zeros(rest.n_annotators, len(bank), dtype=torch.float64, device=owner.device)
    ends = bank.mixture_indptr.tolist()
    packed = bank.pack(bank.heads)
    for g, (begin, end) in enumerate(itertools.pairwise(ends)):
        log_prob, _ = mk.choice_shares(
            margins(rest, packed[begin:end]), rest.choice_indptr, label_noise=label_noise
        )
        predicted = torch.logsumexp(log_resp[owner, begin:end] + log_prob.double(), dim=1)
        total[:, g] = _by_annotator(weight * predicted, rest.indptr)
    return total, _by_annotator(weight, rest.indptr)


def _by_annotator(values: Tensor, indptr: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=indptr, axis=0)

"""(11): how well a mixture predicts comparisons that did not assign their annotator."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import maxmin_kernels as mk
from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.data.splits import held_out_masks
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.objective import Objective, margins


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
    data: PreferenceData,
    bank: Bank,
    split: str,
    seed: int | np.random.Generator | None,
    label_noise: float = 0.0,
) -> HeldOut:
    """Assign each annotator on the visible comparisons (T = 1), predict the others.

    Raises:
        ValueError: nothing is left to be scored.
    """
    visible, scored, _ = held_out_masks(data, split, seed)
    if not scored.any():
        raise ValueError("data: expected comparisons to score, got none after the split")
    known = data.select_comparisons(visible)
    log_resp = Objective.of(known, label_noise=label_noise)(bank).log_resp.double()
    rest = data.select_comparisons(scored)
    owner = torch.repeat_interleave(rest.indptr.diff())
    weight = torch.ones(rest.n_comparisons, dtype=torch.float64, device=owner.device)
    if rest.weight is not None:
        weight = rest.weight
    total = torch.zeros(data.n_annotators, len(bank), dtype=torch.float64, device=owner.device)
    ends = bank.mixture_indptr.tolist()
    packed = bank.pack(bank.heads)
    for g, (begin, end) in enumerate(itertools.pairwise(ends)):
        log_prob, _ = mk.choice_shares(
            margins(rest, packed[begin:end]), rest.choice_indptr, label_noise=label_noise
        )
        predicted = torch.logsumexp(log_resp[owner, begin:end] + log_prob.double(), dim=1)
        total[:, g] = _by_annotator(weight * predicted, rest.indptr)
    return HeldOut(total.cpu().numpy(), _by_annotator(weight, rest.indptr).cpu().numpy())


def _by_annotator(values: Tensor, indptr: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=indptr, axis=0)

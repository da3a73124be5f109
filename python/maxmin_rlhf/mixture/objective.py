"""What the fit climbs: (7), (7T) or (7H) of all mixtures of a bank, and its gradient, from one pass over the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import maxmin_kernels as mk
from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.ranks import Ranks

_SAMPLE = 50_000  # comparisons that a pooled curvature is taken from
_DENSE = 2048  # features up to which it is a full matrix
_TOGETHER = 64  # annotators whose pulls are taken at once


class Evaluation(NamedTuple):
    """The objective at a bank of mixtures. Pads are zero."""

    value: Tensor  # (G,) float64, penalised
    gradient: Tensor  # (G, K, D + 1) float64, by heads and logits
    mass: Tensor  # (G, K) float64
    log_likelihood: Tensor  # (G,) float64, unpenalised
    log_resp: Tensor  # (A, H), packed heads, of this process's annotators


@dataclass(frozen=True)
class Objective:
    """A data set on its device (or this process's part of it), and the model's options."""

    data: PreferenceData
    plan: mk.EMPlan
    ranks: Ranks
    alpha: float = 1.0
    label_noise: float = 0.0
    hard: bool = False
    temperature: float = 1.0

    @classmethod
    def of(cls, data: PreferenceData, process_group: Any = None, **options: Any) -> Objective:
        """Build the plan of a data set; with a process group, of this process's part of one."""
        plan = mk.em_plan(
            data.indptr,
            chosen=data.chosen,
            rejected=data.rejected,
            n_items=data.features.shape[0] if data.is_indexed else None,
            choice_indptr=data.choice_indptr,
        )
        return cls(data, plan, Ranks.of(data, process_group), **options)

    def at(self, temperature: float) -> Objective:
        """The same with another temperature."""
        return replace(self, temperature=temperature)

    def __call__(self, bank: Bank) -> Evaluation:
        """One EM pass over the heads of all mixtures."""
        data, n = self.data, self.ranks.n_annotators
        heads, log_weights = bank.pack(bank.heads), bank.log_weights
        result = mk.em_pass(
            data.features,
            data.indptr,
            heads,
            bank.pack(log_weights),
            chosen=data.chosen,
            rejected=data.rejected,
            choice_indptr=data.choice_indptr,
            mixture_indptr=bank.mixture_indptr,
            comparison_weight=data.weight,
            label_noise=self.label_noise,
            hard=self.hard,
            temperature=self.temperature,
            plan=self.plan,
        )
        log_likelihood, mass, by_weight = self.ranks.sum(
            result.log_likelihood, result.mass, result.grad_weight
        )
        mass, weights = bank.pad(mass), log_weights.exp()
        value = log_likelihood - 0.5 * bank.l2 * bank.heads.square().sum((1, 2))
        by_heads = bank.pad(by_weight) - bank.l2[:, None, None] * bank.heads
        pseudo = torch.zeros_like(mass)
        if self.alpha > 1.0:  # at 1 the term would be 0 * -inf for an empty group
            pseudo = (self.alpha - 1.0) * bank.mask
            value = value + (pseudo * log_weights.masked_fill(~bank.mask, 0.0)).sum(1)
        total = n + pseudo.sum(1, keepdim=True)
        by_logits = mass + pseudo - weights * total
        gradient = torch.cat([by_heads, by_logits[..., None]], dim=2)
        return Evaluation(value, gradient, mass, log_likelihood, result.log_resp)

    @property
    def acc(self) -> torch.dtype:
        """The dtype in which the kernels accumulate."""
        return torch.float64 if self.data.features.dtype == torch.float64 else torch.float32

    def pooled_curvature(self, head: Tensor) -> Tensor:
        """Curvature of one head that serves everybody: (D, D) float64, or its diagonal (D,) for many features.

        From an even sample of the comparisons where there are many: it only steers the ascent.
        """
        data, ranks = self.data, self.ranks
        thin = max(1, ranks.n_comparisons // _SAMPLE)
        if thin > 1:
            place = ranks.first_comparison + np.arange(data.n_comparisons)
            data = data.select_comparisons(place % thin == 0)
        _, share = mk.choice_shares(margins(data, head[None]), data.choice_indptr)
        if data.n_features > _DENSE:
            rows = _differences(data)
            diagonal: Tensor = (rows.double().square() * (share * (1 - share)).double()).sum(0)
            return thin * ranks.sum(diagonal)[0]
        gram = mk.weighted_gram(
            data.features,
            torch.ones(data.n_annotators, 1, dtype=self.acc, device=share.device),
            share,
            data.indptr,
            chosen=data.chosen,
            rejected=data.rejected,
            choice_indptr=data.choice_indptr,
            comparison_weight=data.weight,
        )
        return thin * ranks.sum(gram[0].double())[0]

    def annotator_pulls(self, head: Tensor, annotators: Tensor) -> Tensor:
        """(S, D) float64: the gradient G of (8) of each of a few annotators, numbered over all processes, at one head."""
        here = annotators - self.ranks.first_annotator
        mine = (here >= 0) & (here < self.data.n_annotators)
        pulls = torch.zeros(
            len(annotators), self.data.n_features, dtype=torch.float64, device=head.device
        )
        if bool(mine.any()):  # annotators are on the CPU
            parts = here[mine].split(_TOGETHER)  # their rows are written out
            pulls[mine.to(head.device)] = torch.cat([self._pulls(head, part) for part in parts])
        return self.ranks.sum(pulls)[0]

    def _pulls(self, head: Tensor, annotators: Tensor) -> Tensor:
        data = self.data.select_annotators(annotators)
        _, pull = mk.choice_shares(margins(data, head[None]), data.choice_indptr)
        ends = data.indptr
        if data.weight is not None:
            weight = data.weight[:, None]
            if data.choice_indptr is not None:
                weight = weight.repeat_interleave(data.choice_indptr.diff(), 0)
            pull = pull * weight
        if data.choice_indptr is not None:
            ends = data.choice_indptr[ends]
        rows = _differences(data).to(self.acc)
        return torch.segment_reduce((rows * pull).double(), "sum", offsets=ends, axis=0)


def margins(data: PreferenceData, heads: Tensor) -> Tensor:
    """(2): (N, H) margins of heads (H, D)."""
    acc = torch.float64 if data.features.dtype == torch.float64 else torch.float32
    scores = mk.reward_heads(data.features, heads.to(acc))
    return scores[data.chosen] - scores[data.rejected] if data.is_indexed else scores


def _differences(data: PreferenceData) -> Tensor:
    """(N, D) rows of a small data set."""
    if data.is_indexed:
        return data.features[data.chosen] - data.features[data.rejected]
    return data.features

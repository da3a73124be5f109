"""What the fit climbs: (7), (7T) or (7H) of all mixtures of a bank, and its gradient, from one pass over the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import maxmin_kernels as mk
from maxmin_rlhf.data import PreferenceData, PreferenceStore
from maxmin_rlhf.data.store_blocks import Block
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.blocks import PassSums, on_device
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
    log_resp: (
        Tensor | None
    )  # (A, H), packed heads, of this process's annotators; from a store: if asked for


@dataclass(frozen=True)
class Objective:
    """A data set (or this process's part of it), and the model's options. A store is read anew in every pass."""

    data: PreferenceData | PreferenceStore
    plan: mk.EMPlan | None
    ranks: Ranks
    alpha: float = 1.0
    label_noise: float = 0.0
    hard: bool = False
    temperature: float = 1.0

    @classmethod
    def of(
        cls, data: PreferenceData | PreferenceStore, process_group: Any = None, **options: Any
    ) -> Objective:
        """Build the plan of a data set; with a process group, of this process's part of one."""
        plan = None
        if isinstance(data, PreferenceData):
            plan = mk.em_plan(
                data.indptr,
                chosen=data.chosen,
                rejected=data.rejected,
                n_items=data.features.shape[0] if data.is_indexed else None,
                choice_indptr=data.choice_indptr,
            )
        return cls(data, plan, Ranks.of(data, process_group), **options)

    def blocks(self, small: bool = False) -> Iterator[tuple[Block, mk.EMPlan | None]]:
        """The data on their device: at once, or from a store in blocks, ``small`` ones where copies are made of them."""
        if isinstance(self.data, PreferenceData):
            yield Block(self.data), self.plan
        else:
            for block in (self.data.in_eighths() if small else self.data).blocks():
                yield on_device(block)

    def at(self, temperature: float) -> Objective:
        """The same with another temperature."""
        return replace(self, temperature=temperature)

    def __call__(self, bank: Bank, with_resp: bool = False) -> Evaluation:
        """One EM pass over the heads of all mixtures. ``with_resp``: responsibilities of a store's annotators too."""
        n = self.ranks.n_annotators
        log_weights = bank.log_weights
        sums = PassSums(
            bank.pack(bank.heads),
            bank.pack(log_weights),
            bank.mixture_indptr,
            (self.label_noise, self.hard, self.temperature),
        )
        if with_resp and isinstance(self.data, PreferenceStore):
            sums.keep_resp(self.data.n_annotators, self.acc)
        for block, plan in self.blocks():
            sums.add(block, plan)
        log_likelihood, mass, by_weight = self.ranks.sum(*sums.totals)
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
        return Evaluation(value, gradient, mass, log_likelihood, sums.log_resp)

    @property
    def acc(self) -> torch.dtype:
        """The dtype in which the kernels accumulate."""
        return torch.float64 if self.data.dtype == torch.float64 else torch.float32

    def pooled_curvature(self, head: Tensor) -> Tensor:
        """Curvature of one head that serves everybody: (D, D) float64, or its diagonal (D,) for many features.

        From an even sample of the comparisons where there are many: it only steers the ascent.
        """
        ranks, n_features = self.ranks, self.data.n_features
        thin = max(1, ranks.n_comparisons // _SAMPLE)
        shape = (n_features,) if n_features > _DENSE else (n_features, n_features)
        total = torch.zeros(shape, dtype=torch.float64, device=self.data.device)
        place = ranks.first_comparison
        for block, _ in self.blocks(small=True):
            data, here = block.data, block.data.n_comparisons
            if thin > 1:
                data = data.select_comparisons((place + np.arange(here)) % thin == 0)
            place += here
            if data.n_comparisons:
                total += _curvature(data, head, self.acc)
        return thin * ranks.sum(total)[0]

    def annotator_pulls(self, head: Tensor, annotators: Tensor) -> Tensor:
        """(S, D) float64: the gradient G of (8) of each of a few annotators, numbered over all processes, at one head.

        ``annotators`` ascend, on the CPU.
        """
        here = annotators - self.ranks.first_annotator
        mine = (here >= 0) & (here < self.data.n_annotators)
        at = mine.nonzero()[:, 0].to(head.device)
        pulls = torch.zeros(
            len(annotators), self.data.n_features, dtype=torch.float64, device=head.device
        )
        # Rows in memory are written out, so not everybody's at once; a store's blocks are small as they are.
        together = _TOGETHER if isinstance(self.data, PreferenceData) else max(1, at.numel())
        for part, places in zip(here[mine].split(together), at.split(together), strict=True):
            if part.numel():  # nobody is one empty part
                some = replace(self, data=self.data.select_annotators(part), plan=None)
                for block, _ in some.blocks(small=True):
                    rows = places[block.first : block.first + block.data.n_annotators]
                    pulls[rows] += _pulls(block.data, head, self.acc)
        return self.ranks.sum(pulls)[0]


def _curvature(data: PreferenceData, head: Tensor, acc: torch.dtype) -> Tensor:
    _, share = mk.choice_shares(margins(data, head[None]), data.choice_indptr)
    if data.n_features > _DENSE:
        rows = _differences(data)
        diagonal: Tensor = (rows.double().square() * (share * (1 - share)).double()).sum(0)
        return diagonal
    gram = mk.weighted_gram(
        data.features,
        torch.ones(data.n_annotators, 1, dtype=acc, device=share.device),
        share,
        data.indptr,
        chosen=data.chosen,
        rejected=data.rejected,
        choice_indptr=data.choice_indptr,
        comparison_weight=data.weight,
    )
    return gram[0].double()


def _pulls(data: PreferenceData, head: Tensor, acc: torch.dtype) -> Tensor:
    _, pull = mk.choice_shares(margins(data, head[None]), data.choice_indptr)
    ends = data.indptr
    if data.weight is not None:
        weight = data.weight[:, None]
        if data.choice_indptr is not None:
            weight = weight.repeat_interleave(data.choice_indptr.diff(), 0)
        pull = pull * weight
    if data.choice_indptr is not None:
        ends = data.choice_indptr[ends]
    rows = _differences(data).to(acc)
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

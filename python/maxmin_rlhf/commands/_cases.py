"""What ``maxmin bench`` times: operations at shapes from real work, and the same formulas in plain PyTorch.

A case is as large as the work it is taken from, or as large as memory allows: then with fewer rows, which are all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import maxmin_kernels as mk

Run = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """Where data of this size come from.

    Attributes:
        rows: N, pairs. each: pairs of an annotator. features: D, or None where items have a reward each.
        items: M, of the table that pairs point into; None: every pair has features of its own.
        groups: K of every mixture that is fitted at once.
    """

    words: str
    rows: int
    each: int
    groups: tuple[int, ...]
    features: int | None = None
    items: int | None = None
    dtype: torch.dtype = torch.float32

    @property
    def heads(self) -> int:
        """H, of all mixtures."""
        return sum(self.groups)

    def fitting(self, memory: float) -> int:
        """Rows, in whole annotators, whose features and whose margins in plain PyTorch take ``memory`` bytes."""
        size = 24 * self.heads
        if self.features and not self.items:
            size += self.features * (4 + self.dtype.itemsize)
        return max(1, min(self.rows, int(memory / size)) // self.each) * self.each


SWEEP = tuple(range(1, 9))  # K = 1 ... 8: 36 heads
SHAPES = {
    "jester": Shape("all pairs of Jester's raters", 11_249_604, 2813, SWEEP, items=100),
    "arena": Shape("votes with a trunk's states", 1_000_000, 50, (8,), 4096, dtype=torch.bfloat16),
    "prism": Shape("1500 annotators, 50 pairs each", 75_000, 50, SWEEP, 384),
}
OPERATIONS = ("em_pass", "mixture_log_likelihood", "reward_heads", "maxmin_reduce")


@dataclass(frozen=True)
class Case:
    """An operation at a shape: ours and plain PyTorch, whose results agree to ``rtol`` of their size.

    ``n_bytes`` is what must be read once, ``flops`` the multiply-adds counted twice.
    """

    op: str
    name: str
    shape: dict[str, int]
    dtype: torch.dtype
    ours: Run
    plain: Run
    n_bytes: int
    flops: int = 0
    rtol: float = 1e-3


@dataclass(frozen=True)
class Mixtures:
    """Heads of several mixtures side by side, and padded to (mixtures, most heads) as plain PyTorch wants them."""

    indptr: Tensor
    slots: Tensor  # (G, most): which head, H for a pad
    sizes: Tensor

    @classmethod
    def of(cls, sizes: Sequence[int], device: str = "cpu") -> Mixtures:
        indptr = F.pad(torch.tensor(sizes).cumsum(0), (1, 0))
        slots = torch.full((len(sizes), max(sizes)), int(indptr[-1]))
        for g, size in enumerate(sizes):
            slots[g, :size] = torch.arange(int(indptr[g]), int(indptr[g + 1]))
        return cls(*(t.to(device) for t in (indptr, slots, torch.tensor(sizes))))


def posterior(joint: Tensor, mixtures: Mixtures) -> tuple[Tensor, Tensor]:
    """(A, G) log-likelihoods and (A, H) log-responsibilities of (A, H) log η + Σ log p."""
    if len(mixtures.slots) == 1:
        evidence = joint.logsumexp(1, keepdim=True)
        return evidence, joint - evidence
    padded = F.pad(joint, (0, 1), value=-torch.inf)[:, mixtures.slots]
    evidence = padded.logsumexp(2)
    width = joint.shape[1]
    return evidence, joint - evidence.repeat_interleave(mixtures.sizes, dim=1, output_size=width)


def plain_rows(
    x: Tensor, weight: Tensor, log_weights: Tensor, owner: Tensor, n: int, mixtures: Mixtures
) -> Any:
    """``em_pass`` of pairs with features (N, D): every formula once, on whole tensors, in float32."""
    x = x.to(weight.dtype)
    margins = x @ weight.T
    joint = log_weights + x.new_zeros(n, weight.shape[0]).index_add(0, owner, F.logsigmoid(margins))
    evidence, log_resp = posterior(joint, mixtures)
    resp = log_resp.exp()
    pull = resp[owner] * torch.sigmoid(-margins)
    return evidence.sum(0), log_resp, resp.sum(0), pull.T @ x


def plain_indexed(
    items: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    owner: Tensor,
    n: int,
    mixtures: Mixtures,
) -> Any:
    """``em_pass`` of pairs of items (M, D)."""
    scores = items @ weight.T
    margins = scores[chosen] - scores[rejected]
    joint = log_weights + items.new_zeros(n, weight.shape[0]).index_add(
        0, owner, F.logsigmoid(margins)
    )
    evidence, log_resp = posterior(joint, mixtures)
    resp = log_resp.exp()
    pull = resp[owner] * torch.sigmoid(-margins)
    by_item = torch.zeros_like(scores).index_add(0, chosen, pull).index_add(0, rejected, -pull)
    return evidence.sum(0), log_resp, resp.sum(0), by_item.T @ items


def cases(operation: str, memory: float, device: str = "cpu") -> dict[str, Callable[[], Case]]:
    """{name: how to make it} of an operation; ``memory`` in bytes."""
    if operation == "em_pass":
        return {name: lambda s=shape, n=name: _em_pass(n, s, memory, device) for name, shape in SHAPES.items()}  # type: ignore[misc]  # fmt: skip
    make = {
        "mixture_log_likelihood": _likelihood,
        "reward_heads": _heads,
        "maxmin_reduce": _reduce,
    }[operation]
    return {operation: lambda: make(memory, device)}


def _em_pass(name: str, shape: Shape, memory: float, device: str) -> Case:
    torch.manual_seed(0)
    n_rows, h = shape.fitting(memory), shape.heads
    n = n_rows // shape.each
    mixtures = Mixtures.of(shape.groups, device)
    indptr = torch.arange(0, n_rows + 1, shape.each, device=device)
    owner = torch.arange(n_rows, device=device) // shape.each
    log_weights = -mixtures.sizes.float().log().repeat_interleave(mixtures.sizes)
    if shape.items:
        items = torch.eye(shape.items, device=device)
        weight = torch.randn(h, shape.items, device=device)
        chosen = torch.randint(0, shape.items, (n_rows,), device=device)
        rejected = (chosen + torch.randint(1, shape.items, (n_rows,), device=device)) % shape.items
        plan = mk.em_plan(indptr, chosen=chosen, rejected=rejected, n_items=shape.items)

        def ours() -> Any:
            return mk.em_pass(
                items, indptr, weight, log_weights, chosen=chosen, rejected=rejected,
                mixture_indptr=mixtures.indptr, plan=plan,
            )  # fmt: skip

        def plain() -> Any:
            return plain_indexed(items, chosen, rejected, weight, log_weights, owner, n, mixtures)

        assert plan.chosen is not None and plan.item_rows is not None
        n_bytes = 2 * n_rows * plan.chosen.element_size()
        n_bytes += plan.item_rows.numel() * plan.item_rows.element_size()
        sizes = {"N": n_rows, "M": shape.items, "H": h, "A": n}
        return Case("em_pass", name, sizes, torch.float32, ours, plain, n_bytes)
    assert shape.features is not None
    x = torch.randn(n_rows, shape.features, device=device).to(shape.dtype)
    weight = torch.randn(h, shape.features, device=device) / shape.features**0.5
    plan = mk.em_plan(indptr)

    def ours_of_rows() -> Any:
        return mk.em_pass(
            x, indptr, weight, log_weights, mixture_indptr=mixtures.indptr, plan=plan
        )  # fmt: skip

    sizes = {"N": n_rows, "D": shape.features, "H": h, "A": n}
    return Case(
        "em_pass", name, sizes, shape.dtype, ours_of_rows,
        lambda: plain_rows(x, weight, log_weights, owner, n, mixtures),
        x.numel() * x.element_size(), 4 * n_rows * shape.features * h,
    )  # fmt: skip


def _likelihood(memory: float, device: str) -> Case:
    torch.manual_seed(0)
    h, each = 8, 50
    n_rows = max(1, min(1_000_000, int(memory / (24 * h))) // each) * each
    margins = torch.randn(n_rows, h, device=device, requires_grad=True)
    indptr = torch.arange(0, n_rows + 1, each, device=device)
    owner = torch.arange(n_rows, device=device) // each
    log_weights = torch.full((h,), 1 / h, device=device).log()

    def ours() -> Any:
        value = mk.mixture_log_likelihood(margins, indptr, log_weights)[0].sum()
        return torch.autograd.grad(value, margins)

    def plain() -> Any:
        by_owner = margins.new_zeros(n_rows // each, h)
        joint = log_weights + by_owner.index_add(0, owner, F.logsigmoid(margins))
        return torch.autograd.grad(joint.logsumexp(1).sum(), margins)

    sizes = {"N": n_rows, "H": h, "A": n_rows // each}
    return Case("mixture_log_likelihood", "both directions", sizes, torch.float32, ours, plain, 3 * margins.numel() * 4)  # fmt: skip


def _heads(memory: float, device: str) -> Case:
    torch.manual_seed(0)
    d, h = 4096, 8
    b = max(1, min(4096, int(memory / (8 * d))))
    hidden = torch.randn(b, d, device=device)
    weight = torch.randn(h, d, device=device) / d**0.5
    sizes = {"B": b, "D": d, "H": h}
    return Case(
        "reward_heads", "last token's states", sizes, torch.float32,
        lambda: mk.reward_heads(hidden, weight), lambda: F.linear(hidden, weight),
        hidden.numel() * 4, 2 * b * d * h,
    )  # fmt: skip


def _reduce(memory: float, device: str) -> Case:
    torch.manual_seed(0)
    b, k = max(1, min(65_536, int(memory / 256))), 8
    rewards = torch.randn(b, k, device=device)

    def plain() -> Any:
        utilities = rewards.nanmean(0)
        value, worst = utilities.min(0)
        return value, F.one_hot(worst, k).to(rewards), utilities

    sizes = {"B": b, "K": k}
    return Case("maxmin_reduce", "min", sizes, torch.float32, lambda: tuple(mk.maxmin_reduce(rewards, "min")), plain, rewards.numel() * 4)  # fmt: skip

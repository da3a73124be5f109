"""Heads as the CUDA EM pass takes them: filled up to 8 or to blocks, and in float16's range."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maxmin_kernels._memory import Memory

# Columns of the widest variants: of 8 heads, of 16 (csrc/cuda/em_pass_variants.h).
MOST_FEATURES, WIDE = 8192, 4096


def block_of(n_features: int) -> int:
    """More heads than this go into blocks, which neighbouring clusters work on over the same tiles."""
    return 16 if n_features <= WIDE else 8


class Places(NamedTuple):
    """Where the heads go among the padded ones; what fills up makes mixtures of its own, which are thrown away."""

    head: Tensor | slice
    begin: Tensor  # (padded) int32, bounds of each place's mixture
    end: Tensor
    first: Tensor  # (G) place of each mixture's first head

    @property
    def padded(self) -> int:
        return self.begin.shape[0]


_dealt = Memory()


def _fullest_block(sizes: dict[int, int], block: int) -> frozenset[int]:
    """Of mixtures with their sizes, those that fill a block as far as it can be filled."""
    held: dict[int, frozenset[int]] = {0: frozenset()}
    for mixture, size in sizes.items():
        for total, inside in list(held.items()):
            if total + size <= block:
                held.setdefault(total + size, inside | {mixture})
    return held[max(held)]


def _blocks_of(sizes: list[int], block: int) -> list[frozenset[int]] | None:
    """Mixtures of each block: two where two are enough, and any two hold more than one could.

    ``None``: a mixture is larger than a block. An empty mixture may be in none.
    """
    if min(sizes, default=0) < 0 or max(sizes, default=0) > block:
        return None
    left, blocks = {mixture: size for mixture, size in enumerate(sizes) if size > 0}, []
    while left:
        blocks.append(_fullest_block(left, block))
        left = {mixture: size for mixture, size in left.items() if mixture not in blocks[-1]}
    return blocks


def places_in_blocks(mixture_indptr: Tensor, block: int) -> Places | None:
    """``None`` where a mixture is larger than a block; waits for the device when it sees the pointer for the first time."""

    def deal() -> Places | None:
        sizes, device = mixture_indptr.diff().tolist(), mixture_indptr.device
        blocks = _blocks_of(sizes, block)
        if blocks is None:
            return None
        first = [0] * len(sizes)  # of an empty one, anybody's
        # Where nobody lives, each place is a mixture.
        bounds = torch.arange(max(1, len(blocks)) * block, dtype=torch.int32)
        bounds = torch.stack([bounds, bounds + 1])
        for b, inside in enumerate(blocks):
            place = b * block
            for mixture in sorted(inside):
                first[mixture], end = place, place + sizes[mixture]
                bounds[0, place:end], bounds[1, place:end] = place, end
                place = end
        heads = [place + i for place, size in zip(first, sizes, strict=True) for i in range(size)]
        begin, end = bounds.to(device)
        return Places(torch.tensor(heads, device=device), begin, end, torch.tensor(first, device=device))  # fmt: skip

    known = _dealt.of(mixture_indptr, dict)
    if block not in known:
        known[block] = deal()
    return known[block]


def places_of(mixture_indptr: Tensor, n_heads: int, n_features: int) -> Places:
    if n_heads > (block := block_of(n_features)):
        places = places_in_blocks(mixture_indptr, block)
        assert places is not None  # em_pass_refusal has looked
        return places
    heads = 8 if n_heads <= 8 else 16
    head = torch.arange(heads, device=mixture_indptr.device)
    bounds = torch.cat([mixture_indptr, mixture_indptr.new_full((1,), heads)])
    mixture = torch.searchsorted(bounds, head, right=True)
    return Places(
        slice(n_heads),
        bounds[mixture - 1].to(torch.int32),
        bounds[mixture].to(torch.int32),
        mixture_indptr[:-1].clamp(max=heads - 1),
    )


def _power(largest: Tensor) -> Tensor:
    """The power of two that puts numbers of this size at [2^14, 2^15), where float16 ends at 2^16."""
    exponent = (15 - torch.frexp(largest)[1]).clamp(-126, 126)
    return ((exponent + 127).to(torch.int32) << 23).view(torch.float32)  # exact, unlike exp2


def scaled_for_float16(weight: Tensor, comparison_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Heads brought into float16's range, and what undoes it, (H), with the power for coefficients behind.

    Two float16 parts then hold a weight to 2^-23 of itself and 2^-39 of its head's largest, a coefficient to as much of
    itself and of the largest comparison weight.
    """
    power = _power(weight.abs().amax(1))
    if comparison_weight is None:
        coef = weight.new_full((1,), 2.0**14)
    else:
        coef = _power(comparison_weight.float().amax()[None])
    return weight * power[:, None], torch.cat([1 / power, coef])

"""Heads as the CUDA EM pass takes them: filled up to 8, 16 or two blocks of 16, and in float16's range."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maxmin_kernels._memory import Memory

# Features at most, by padded heads (csrc/cuda/em_pass_variants.h).
COLUMNS = {8: 8192, 16: 4096, 32: 4096}
# More heads than this go into two blocks, which neighbouring clusters work on over the same tiles.
BLOCK = 16


def padded(n_heads: int) -> int:
    return next(padded for padded in COLUMNS if n_heads <= padded)


class Places(NamedTuple):
    """Where the heads go among the padded ones; what fills up makes mixtures of its own, which are thrown away."""

    head: Tensor | slice
    begin: Tensor  # (padded) int32, bounds of each place's mixture
    end: Tensor
    first: Tensor  # (G) place of each mixture's first head


_dealt = Memory()


def _first_block(sizes: list[int]) -> frozenset[int] | None:
    """Mixtures of the first block of two, if they go into two: the fullest that it can be."""
    held: dict[int, frozenset[int]] = {0: frozenset()}
    for mixture, size in enumerate(sizes):
        for total, inside in list(held.items()):
            if total + size <= BLOCK:
                held.setdefault(total + size, inside | {mixture})
    return held[max(held)] if sum(sizes) - max(held) <= BLOCK else None


def places_in_blocks(mixture_indptr: Tensor) -> Places | None:
    """Waits for the device when it sees the pointer for the first time."""

    def deal() -> Places | None:
        sizes = mixture_indptr.diff().tolist()
        inside = _first_block(sizes)
        if inside is None or min(sizes) < 0:
            return None
        device, free, owns = mixture_indptr.device, [0, BLOCK], []
        # Where nobody lives, each place is a mixture.
        bounds = torch.arange(2 * BLOCK, dtype=torch.int32)
        bounds = torch.stack([bounds, bounds + 1])
        for mixture, size in enumerate(sizes):
            block = 0 if mixture in inside else 1
            own = range(free[block], free[block] + size)
            bounds[0, own.start : own.stop], bounds[1, own.start : own.stop] = own.start, own.stop
            owns.append(own)
            free[block] += size
        begin, end = bounds.to(device)
        first = [min(own.start, 2 * BLOCK - 1) for own in owns]  # of an empty one, anybody's
        return Places(
            torch.tensor([place for own in owns for place in own], device=device),
            begin,
            end,
            torch.tensor(first, device=device),
        )

    return _dealt.of(mixture_indptr, deal)


def places_of(mixture_indptr: Tensor, n_heads: int) -> Places:
    heads = padded(n_heads)
    if heads > BLOCK:
        places = places_in_blocks(mixture_indptr)
        assert places is not None  # em_pass_refusal has looked
        return places
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

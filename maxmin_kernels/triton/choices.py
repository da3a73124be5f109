"""Choices and their rows: (3), (3'), (3b), and (10) where an upstream gradient is given.

    l_c  = -log(1 + sum_i exp(-m_i))        of a pair log σ(m); with label noise log((1 - ε) exp(l) + ε / J)
    s_i  = dl_c / dm_i = ρ_c exp(l_c - m_i)  of a pair ρ_c σ(-m)
    pull = up[owner_c] v_c s_i               what backward multiplies the features by

``margins (N, H)`` or, gathered on the way, ``scores[chosen] - scores[rejected]`` of a table ``(M, H)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.triton._math import log1p, log_sigmoid, sigmoid_neg

ACC = {torch.float32: tl.float32, torch.float64: tl.float64}


@dataclass(frozen=True)
class Config:
    """Choices and heads of a program."""

    block_c: int
    block_h: int


def _config_choices(n_heads: int) -> Config:
    block_h = min(32, triton.next_power_of_2(max(1, n_heads)))
    return Config(512 // block_h, block_h)


@triton.jit
def load_margins(
    m_ptr,
    chosen_ptr,
    rejected_ptr,
    rows,
    h,
    mask,
    stride_mn,
    stride_mh,
    GATHER: tl.constexpr,
    ACC: tl.constexpr,
):
    """Margins of ``rows`` (whatever shape broadcasts with ``h``), 0 where masked."""
    if GATHER:
        chosen = tl.load(chosen_ptr + rows, mask=mask, other=0).to(tl.int64)
        rejected = tl.load(rejected_ptr + rows, mask=mask, other=0).to(tl.int64)
        at = h * stride_mh
        plus = tl.load(m_ptr + chosen * stride_mn + at, mask=mask, other=0.0).to(ACC)
        minus = tl.load(m_ptr + rejected * stride_mn + at, mask=mask, other=0.0).to(ACC)
        m = plus - minus
    else:
        m = tl.load(m_ptr + rows * stride_mn + h * stride_mh, mask=mask, other=0.0).to(ACC)
    return m


@triton.jit
def noisy(log_prob, log_kept, log_other):
    """``log((1 - ε) p + ε / J)`` and the part ρ of it that is (1 - ε) p: (3b)."""
    kept = log_kept + log_prob
    top = tl.maximum(kept, log_other)
    # The larger term leads: log(e^a + e^b) = max + log1p(e^-|a - b|).
    out = top + log1p(tl.exp(-tl.abs(kept - log_other)))
    return out, tl.exp(kept - out)


@triton.jit
def _choices_kernel(
    m_ptr,
    chosen_ptr,
    rejected_ptr,
    choice_ptr,
    owner_ptr,
    up_ptr,
    v_ptr,
    log_prob_ptr,
    share_ptr,
    C,
    H,
    stride_mn,
    stride_mh,
    log_kept: tl.float64,
    noise: tl.float64,
    SETS: tl.constexpr,
    GATHER: tl.constexpr,
    NOISE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PULL: tl.constexpr,
    WRITE_LOG_PROB: tl.constexpr,
    WRITE_SHARE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :].to(tl.int64)
    ok = (c < C) & (h < H)
    if SETS:
        begin = tl.load(choice_ptr + c, mask=c < C, other=0)
        end = tl.load(choice_ptr + c + 1, mask=c < C, other=0)
        longest = tl.max(end - begin)
        shift = tl.zeros((BLOCK_C, BLOCK_H), ACC)
        for j in tl.range(0, longest):
            here = ok & (begin + j < end)
            m = load_margins(
                m_ptr, chosen_ptr, rejected_ptr, begin + j, h, here, stride_mn, stride_mh, GATHER, ACC
            )  # fmt: skip
            shift = tl.maximum(shift, tl.where(here, -m, 0.0))
        total = tl.exp(-shift)
        for j in tl.range(0, longest):
            here = ok & (begin + j < end)
            m = load_margins(
                m_ptr, chosen_ptr, rejected_ptr, begin + j, h, here, stride_mn, stride_mh, GATHER, ACC
            )  # fmt: skip
            total += tl.where(here, tl.exp(-m - shift), 0.0)
        clean = -(shift + tl.log(total))
        n_offered = (end - begin + 1).to(ACC)
    else:
        m = load_margins(
            m_ptr, chosen_ptr, rejected_ptr, c, h, ok, stride_mn, stride_mh, GATHER, ACC
        )
        clean = log_sigmoid(m)
        n_offered = tl.full((BLOCK_C, 1), 2.0, ACC)
    factor = tl.full((BLOCK_C, BLOCK_H), 1.0, ACC)
    log_prob = clean
    if NOISE:
        log_other = tl.log(tl.full((1, 1), noise, ACC) / n_offered)
        log_prob, factor = noisy(clean, tl.full((1, 1), log_kept, ACC), log_other)
    if WRITE_LOG_PROB:
        tl.store(log_prob_ptr + c * H + h, log_prob, mask=ok)
    if PULL:
        owner = tl.load(owner_ptr + c, mask=c < C, other=0)
        factor *= tl.load(up_ptr + owner * H + h, mask=ok, other=0.0).to(ACC)
    if WEIGHTED:
        factor *= tl.load(v_ptr + c, mask=c < C, other=0.0).to(ACC)
    if WRITE_SHARE:
        if SETS:
            for j in tl.range(0, longest):
                here = ok & (begin + j < end)
                m = load_margins(
                    m_ptr, chosen_ptr, rejected_ptr, begin + j, h, here, stride_mn, stride_mh, GATHER, ACC
                )  # fmt: skip
                tl.store(share_ptr + (begin + j) * H + h, tl.exp(clean - m) * factor, mask=here)
        else:
            tl.store(share_ptr + c * H + h, sigmoid_neg(m) * factor, mask=ok)


def _launch(
    margins: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    label_noise: float,
    n_rows: int,
    *,
    owner: Tensor | None = None,
    upstream: Tensor | None = None,
    weight: Tensor | None = None,
    log_prob: Tensor | None = None,
    share: Tensor | None = None,
) -> None:
    n_choices = n_rows if choice_indptr is None else choice_indptr.shape[0] - 1
    n_heads = margins.shape[1]
    if n_choices == 0 or n_heads == 0:
        return
    config = _config_choices(n_heads)
    grid = (triton.cdiv(n_choices, config.block_c), triton.cdiv(n_heads, config.block_h))
    nothing = margins  # a pointer that is never followed
    with torch.cuda.device_of(margins):
        _choices_kernel[grid](
            margins,
            nothing if chosen is None else chosen,
            nothing if rejected is None else rejected,
            nothing if choice_indptr is None else choice_indptr,
            nothing if owner is None else owner,
            nothing if upstream is None else upstream,
            nothing if weight is None else weight,
            nothing if log_prob is None else log_prob,
            nothing if share is None else share,
            n_choices,
            n_heads,
            margins.stride(0),
            margins.stride(1),
            math.log1p(-label_noise),
            label_noise,
            SETS=choice_indptr is not None,
            GATHER=chosen is not None,
            NOISE=label_noise > 0,
            WEIGHTED=weight is not None,
            PULL=upstream is not None,
            WRITE_LOG_PROB=log_prob is not None,
            WRITE_SHARE=share is not None,
            ACC=ACC[accumulation_dtype(margins)],
            BLOCK_C=config.block_c,
            BLOCK_H=config.block_h,
        )


def choice_shares_fwd(
    margins: Tensor, choice_indptr: Tensor | None, label_noise: float
) -> tuple[Tensor, Tensor]:
    """(C, H) log-probabilities and (N, H) shares."""
    acc = accumulation_dtype(margins)
    n_rows, n_heads = margins.shape
    n_choices = n_rows if choice_indptr is None else choice_indptr.shape[0] - 1
    log_prob = margins.new_empty(n_choices, n_heads, dtype=acc)
    share = margins.new_empty(n_rows, n_heads, dtype=acc)
    _launch(margins, None, None, choice_indptr, label_noise, n_rows, log_prob=log_prob, share=share)
    return log_prob, share


def log_probabilities(
    margins: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor,
    label_noise: float,
    n_rows: int,
) -> Tensor:
    """(C, H) of choice sets alone."""
    out = margins.new_empty(
        choice_indptr.shape[0] - 1, margins.shape[1], dtype=accumulation_dtype(margins)
    )
    _launch(margins, chosen, rejected, choice_indptr, label_noise, n_rows, log_prob=out)
    return out


def pull(
    margins: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    label_noise: float,
    n_rows: int,
    owner: Tensor,
    upstream: Tensor,
    weight: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(N, H) gradients by the margins: ``upstream (A, H)`` at each choice's owner, times its weight and share."""
    out = margins.new_empty(n_rows, margins.shape[1], dtype=dtype)
    _launch(
        margins,
        chosen,
        rejected,
        choice_indptr,
        label_noise,
        n_rows,
        owner=owner,
        upstream=upstream.contiguous(),
        weight=weight,
        share=out,
    )
    return out

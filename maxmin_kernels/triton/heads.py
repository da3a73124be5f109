"""Several linear heads on a row, or on one token of a sequence: the token is gathered, the others are never read.

    out (B, H) = x_b Wᵀ + bias            a program for each row
    by hidden, by weight, by bias         one launch over blocks of features; the zeros of other tokens are filled once

Batches of sequences are small and what counts is latency. Many rows are gathered first and go the way of rows of
features: products on tensor cores, sums over splits in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels import reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.triton.rows import gradient, margins

FEW_ROWS, FEW_HEADS = 1024, 64


def _config_forward(n_features: int, n_heads: int) -> tuple[int, int]:
    """Features and heads of a tile: 16 numbers for each of 128 threads."""
    block_h = min(16, triton.next_power_of_2(n_heads))
    return min(2048 // block_h, max(16, triton.next_power_of_2(n_features))), block_h


@triton.jit
def _token(t_ptr, b, T, here, GATHER: tl.constexpr):
    """Which token of sequence ``b`` is read, and whether there is one."""
    token = (b * 0).to(tl.int64)
    if GATHER:
        token = tl.load(t_ptr + b, mask=here, other=-1)
        here = here & (token >= 0) & (token < T)
        token = tl.where(here, token, 0)
    return token, here


@triton.jit
def _heads_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    t_ptr,
    out_ptr,
    T,
    D,
    H,
    stride_xb,
    stride_xt,
    stride_xd,
    stride_wh,
    stride_wd,
    GATHER: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    token, here = _token(t_ptr, b, T, b >= 0, GATHER)
    row = x_ptr + b * stride_xb + token * stride_xt
    acc = tl.zeros((BLOCK_H, BLOCK_D), ACC)
    for d0 in tl.range(0, D, BLOCK_D):
        d = (d0 + tl.arange(0, BLOCK_D)).to(tl.int64)
        x = tl.load(row + d * stride_xd, mask=(d < D) & here, other=0.0).to(ACC)
        w = tl.load(
            w_ptr + h[:, None] * stride_wh + d[None, :] * stride_wd,
            mask=(h < H)[:, None] & (d < D)[None, :],
            other=0.0,
        )
        acc += w.to(ACC) * x[None, :]
    out = tl.sum(acc, 1)
    if BIAS:
        out += tl.load(bias_ptr + h, mask=h < H, other=0.0).to(ACC)
    out = tl.where(here, out, float("nan"))
    tl.store(out_ptr + b * H + h, out, mask=h < H)


@triton.jit
def _heads_bwd_kernel(
    g_ptr,
    x_ptr,
    w_ptr,
    t_ptr,
    by_x_ptr,
    by_w_ptr,
    by_bias_ptr,
    B,
    T,
    D,
    H,
    stride_xb,
    stride_xt,
    stride_xd,
    stride_wh,
    stride_wd,
    stride_ob,
    stride_ot,
    GATHER: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_W: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    ACC: tl.constexpr = by_bias_ptr.dtype.element_ty
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.program_id(0) == 0
    inside = (d < D)[None, :]
    h = tl.arange(0, BLOCK_H)
    at_w = w_ptr + h[:, None] * stride_wh + d[None, :] * stride_wd
    w = tl.load(at_w, mask=(h < H)[:, None] & inside, other=0.0).to(ACC)
    by_w = tl.zeros((BLOCK_H, BLOCK_D), ACC)
    by_bias = tl.zeros((BLOCK_H,), ACC)
    for b0 in tl.range(0, B, BLOCK_B):
        b = (b0 + tl.arange(0, BLOCK_B)).to(tl.int64)
        token, here = _token(t_ptr, b, T, b < B, GATHER)
        g = tl.load(
            g_ptr + b[:, None] * H + h[None, :], mask=here[:, None] & (h < H)[None, :], other=0.0
        ).to(ACC)
        by_bias += tl.sum(g, 0)
        if NEED_W:
            row = b * stride_xb + token * stride_xt
            x = tl.load(
                x_ptr + row[:, None] + d[None, :] * stride_xd,
                mask=here[:, None] & inside,
                other=0.0,
            ).to(ACC)
            by_w = tl.dot(tl.trans(g), x, by_w, input_precision="ieee", out_dtype=ACC)
        if NEED_X:
            by_x = tl.dot(g, w, input_precision="ieee", out_dtype=ACC)
            at = by_x_ptr + (b * stride_ob + token * stride_ot)[:, None] + d[None, :]
            tl.store(at, by_x, mask=here[:, None] & inside)
    if NEED_W:
        tl.store(by_w_ptr + h[:, None] * D + d[None, :], by_w, mask=(h < H)[:, None] & inside)
    tl.store(by_bias_ptr + h, by_bias, mask=(h < H) & first)


def _strides(hidden: Tensor) -> tuple[int, int, int]:
    """Of sequences, tokens and features."""
    if hidden.dim() == 2:
        return hidden.stride(0), 0, hidden.stride(1)
    return hidden.stride(0), hidden.stride(1), hidden.stride(2)


def reward_heads_fwd(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_index: Tensor | None
) -> Tensor:
    """``(B, H)``."""
    acc = accumulation_dtype(hidden)
    n_rows, n_features, n_heads = hidden.shape[0], hidden.shape[-1], weight.shape[0]
    if n_rows > FEW_ROWS:
        rows, present = reference.rows_of(hidden, token_index)
        out = margins(rows, weight.to(acc))
        out = out if bias is None else out + bias.to(acc)
        return out if present is None else torch.where(present, out, torch.nan)
    out = hidden.new_empty(n_rows, n_heads, dtype=acc)
    if out.numel() == 0:
        return out
    block_d, block_h = _config_forward(n_features, n_heads)
    with torch.cuda.device_of(hidden):
        _heads_kernel[(n_rows, triton.cdiv(n_heads, block_h))](
            hidden,
            weight,
            weight if bias is None else bias.contiguous(),
            weight if token_index is None else token_index.contiguous(),
            out,
            hidden.shape[1],
            n_features,
            n_heads,
            *_strides(hidden),
            weight.stride(0),
            weight.stride(1),
            GATHER=token_index is not None,
            BIAS=bias is not None,
            BLOCK_D=block_d,
            BLOCK_H=block_h,
        )
    return out


def reward_heads_bwd(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    token_index: Tensor | None,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """By hidden (like it), by weight (like it), by bias ``(H,)``; what is not needed is empty."""
    acc = accumulation_dtype(hidden)
    n_rows, n_features, n_heads = hidden.shape[0], hidden.shape[-1], weight.shape[0]
    if n_rows > FEW_ROWS or n_heads > FEW_HEADS:
        return _many_rows_bwd(grad, hidden, weight, token_index, need_hidden, need_weight)
    by_bias = hidden.new_empty(n_heads, dtype=acc)
    by_weight = weight.new_empty(weight.shape if need_weight else 0)
    make = hidden.new_empty if token_index is None else hidden.new_zeros
    by_hidden = make(hidden.shape if need_hidden else 0)
    out = _strides(by_hidden) if need_hidden else (0, 0, 0)
    # Narrow blocks: 4096 features then make a program for each multiprocessor.
    block_d = max(16, min(32, triton.next_power_of_2(n_features)))
    with torch.cuda.device_of(hidden):
        _heads_bwd_kernel[(max(1, triton.cdiv(n_features, block_d)),)](
            grad.contiguous(),
            hidden,
            weight,
            weight if token_index is None else token_index.contiguous(),
            by_hidden if need_hidden else hidden,
            by_weight,
            by_bias,
            n_rows,
            hidden.shape[1],
            n_features,
            n_heads,
            *_strides(hidden),
            weight.stride(0),
            weight.stride(1),
            out[0],
            out[1],
            GATHER=token_index is not None,
            NEED_X=need_hidden,
            NEED_W=need_weight,
            BLOCK_B=16,
            BLOCK_D=block_d,
            BLOCK_H=max(16, triton.next_power_of_2(n_heads)),
        )
    return by_hidden, by_weight, by_bias


def _many_rows_bwd(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    token_index: Tensor | None,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation_dtype(hidden)
    rows, present = reference.rows_of(hidden, token_index)
    grad = grad.to(acc)
    by_hidden, by_weight = hidden.new_empty(0), weight.new_empty(0)
    if present is not None:
        grad = torch.where(present, grad, 0.0)
        rows = torch.where(present, rows, 0.0)
    if need_weight:
        by_weight = gradient(rows, grad.contiguous()).to(weight.dtype)
    if need_hidden:
        by_hidden = (grad @ weight.to(acc)).to(hidden.dtype)
        if token_index is not None and present is not None:
            at = (
                torch.arange(len(hidden), device=hidden.device),
                token_index.where(present[:, 0], 0),
            )
            by_hidden = hidden.new_zeros(hidden.shape).index_put_(at, by_hidden)
    return by_hidden, by_weight, grad.sum(0)

"""Margins of pairs of rows, (1) and (2), from one read of both: the difference stays on the chip.

margins (N, H) = (C - R) Wᵀ                   as rows of features
by chosen (N, D) = g W, by rejected = -g W    one launch writes both
by weight (H, D) = gᵀ (C - R)                 as rows of features
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.triton.rows import gradient, margins


@triton.jit
def _push_kernel(
    g_ptr,
    w_ptr,
    by_c_ptr,
    by_r_ptr,
    N,
    D,
    H,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    ACC: tl.constexpr = w_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_D), ACC)
    for h0 in tl.range(0, H, BLOCK_H):
        h = (h0 + tl.arange(0, BLOCK_H)).to(tl.int64)
        g = tl.load(g_ptr + n * H + h[None, :], mask=(n < N) & (h < H)[None, :], other=0.0)
        w = tl.load(w_ptr + h[:, None] * D + d, mask=(h < H)[:, None] & (d < D), other=0.0)
        acc = tl.dot(g, w, acc, input_precision="ieee", out_dtype=ACC)
    here = (n < N) & (d < D)
    tl.store(by_c_ptr + n * D + d, acc, mask=here)
    tl.store(by_r_ptr + n * D + d, -acc, mask=here)


def preference_margins_fwd(chosen: Tensor, rejected: Tensor, weight: Tensor) -> Tensor:
    """``(N, H)``."""
    return margins(chosen, weight.to(accumulation_dtype(chosen)), rejected)


def preference_margins_bwd(
    grad: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    weight: Tensor,
    need_features: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """By chosen, by rejected ``(N, D)``, by weight ``(H, D)``; what is not needed is empty."""
    acc = accumulation_dtype(chosen)
    grad = grad.to(acc).contiguous()
    (n_rows, n_features), n_heads = chosen.shape, weight.shape[0]
    shape = chosen.shape if need_features else (0,)
    by_chosen, by_rejected = chosen.new_empty(shape), rejected.new_empty(shape)
    if by_chosen.numel():
        block_d = max(16, min(64, triton.next_power_of_2(n_features)))
        with torch.cuda.device_of(chosen):
            _push_kernel[(triton.cdiv(n_rows, 32), triton.cdiv(n_features, block_d))](
                grad,
                weight.to(acc).contiguous(),
                by_chosen,
                by_rejected,
                n_rows,
                n_features,
                n_heads,
                BLOCK_N=32,
                BLOCK_D=block_d,
                BLOCK_H=16,
            )
    by_weight = weight.new_empty(0)
    if need_weight:
        by_weight = gradient(chosen, grad, rejected).to(weight.dtype)
    return by_chosen, by_rejected, by_weight

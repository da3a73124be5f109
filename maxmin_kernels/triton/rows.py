"""Products with rows of features, exact in the other factor: (2) and the product of (8).

    margins (N, H) = X Wᵀ            one read of X (N, D)
    gradient (H, D) = Cᵀ X           one read of X; row splits of their own, added in a fixed order

X may be the difference of two tensors, (1), which is then never written.

Tensor cores multiply bfloat16 by bfloat16. The float32 factor is cut into three bfloat16 parts, which together hold its
24 bits, so that the likelihood and its gradient agree about the weights. float16 features are widened: three products of
tf32 hold them and the other factor's 22 bits, and differences of rows as well. Wider features go through the library's
matrix product, their differences through plain products here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels import _triton

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Config:
    """Rows, features and heads of a tile."""

    block_n: int
    block_d: int
    block_h: int
    num_warps: int = 4
    num_stages: int = 3


def _tile(n_features: int, n_heads: int, dtype: torch.dtype, pairs: bool) -> Config:
    block_h = max(16, min(64, triton.next_power_of_2(n_heads)))
    # Wide tiles hide the memory's delay; those of three tf32 products, or of many heads, would not fit the registers.
    if pairs or block_h > 32:
        widest = 32
    else:
        widest = 128 if dtype == torch.bfloat16 and block_h == 16 else 64
    return Config(64, max(16, min(widest, triton.next_power_of_2(n_features))), block_h)


def _splits(n_rows: int, n_features: int, n_heads: int, config: Config) -> int:
    tiles = triton.cdiv(n_features, config.block_d) * triton.cdiv(n_heads, config.block_h)
    # Some programs for each multiprocessor, and no split shorter than a few tiles of rows.
    return max(1, min(512 // tiles, triton.cdiv(n_rows, 1024)))


@triton.jit
def _product(x, w, acc, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + x w`` with ``w`` float32."""
    if PARTS:
        high = w.to(tl.bfloat16)
        rest = w - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        acc = tl.dot(x, low, acc)
        acc = tl.dot(x, middle, acc)
        acc = tl.dot(x, high, acc)
    else:
        acc = tl.dot(x.to(w.dtype), w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def _tile_of(x_ptr, r_ptr, at, at_r, here, PAIRS: tl.constexpr, ACC: tl.constexpr):
    x = tl.load(x_ptr + at, mask=here, other=0.0)
    if PAIRS:
        x = x.to(ACC) - tl.load(r_ptr + at_r, mask=here, other=0.0).to(ACC)
    return x


@triton.jit
def _margins_kernel(
    x_ptr,
    r_ptr,
    w_ptr,
    m_ptr,
    N,
    D,
    H,
    stride_xn,
    stride_xd,
    stride_rn,
    stride_rd,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    h = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    ACC: tl.constexpr = m_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    for d0 in tl.range(0, D, BLOCK_D):
        d = (d0 + tl.arange(0, BLOCK_D)).to(tl.int64)
        at, at_r = n * stride_xn + d[None, :] * stride_xd, n * stride_rn + d[None, :] * stride_rd
        x = _tile_of(x_ptr, r_ptr, at, at_r, (n < N) & (d < D)[None, :], PAIRS, ACC)
        w = tl.load(w_ptr + h * D + d[:, None], mask=(h < H) & (d < D)[:, None], other=0.0)
        acc = _product(x, w, acc, PARTS, PRECISION)
    tl.store(m_ptr + n * H + h, acc, mask=(n < N) & (h < H))


@triton.jit
def _gradient_kernel(
    x_ptr,
    r_ptr,
    c_ptr,
    part_ptr,
    N,
    D,
    H,
    rows,
    stride_xn,
    stride_xd,
    stride_rn,
    stride_rd,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(1).to(tl.int64)
    h = tl.program_id(2).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    end = tl.minimum(split * rows + rows, N)
    ACC: tl.constexpr = part_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_D, BLOCK_H), ACC)
    for n0 in tl.range(split * rows, end, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        at = n[None, :] * stride_xn + d[:, None] * stride_xd
        at_r = n[None, :] * stride_rn + d[:, None] * stride_rd
        x = _tile_of(x_ptr, r_ptr, at, at_r, (n < end)[None, :] & (d < D)[:, None], PAIRS, ACC)
        c = tl.load(
            c_ptr + n[:, None] * H + h[None, :],
            mask=(n < end)[:, None] & (h < H)[None, :],
            other=0.0,
        )
        acc = _product(x, c, acc, PARTS, PRECISION)
    at = (split * H + h[None, :]) * D + d[:, None]
    tl.store(part_ptr + at, acc, mask=(d < D)[:, None] & (h < H)[None, :])


def _in_parts(features: Tensor, less: Tensor | None) -> bool:
    # The interpreter multiplies in float32: nothing to cut.
    return features.dtype == torch.bfloat16 and less is None and not _triton.interpreted()


def _precision(features: Tensor) -> str:
    """Of products of float32 that was half precision: three of tf32 where there is such a thing."""
    from triton.runtime import driver

    if features.dtype not in HALF or _triton.interpreted():
        return "ieee"
    return "tf32x3" if driver.active.get_current_target().backend == "cuda" else "ieee"


def margins(features: Tensor, weight: Tensor, less: Tensor | None = None) -> Tensor:
    """``(N, H)`` of features, or of features less others, in the dtype of ``weight (H, D)``."""
    if features.dtype not in HALF and less is None:
        return features.to(weight.dtype) @ weight.T
    (n_rows, n_features), n_heads = features.shape, weight.shape[0]
    out = weight.new_empty(n_rows, n_heads)
    if out.numel() == 0:
        return out
    config = _tile(n_features, n_heads, features.dtype, less is not None)
    with torch.cuda.device_of(features):
        _margins_kernel[(triton.cdiv(n_rows, config.block_n), triton.cdiv(n_heads, config.block_h))](
            features,
            features if less is None else less,
            weight.contiguous(),
            out,
            n_rows,
            n_features,
            n_heads,
            features.stride(0),
            features.stride(1),
            0 if less is None else less.stride(0),
            0 if less is None else less.stride(1),
            PAIRS=less is not None,
            PARTS=_in_parts(features, less),
            PRECISION=_precision(features),
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_d,
            BLOCK_H=config.block_h,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )  # fmt: skip
    return out


def gradient(features: Tensor, pull: Tensor, less: Tensor | None = None) -> Tensor:
    """``(H, D)`` in the dtype of ``pull (N, H)``, contiguous."""
    if features.dtype not in HALF and less is None:
        return pull.T @ features.to(pull.dtype)
    (n_rows, n_features), n_heads = features.shape, pull.shape[1]
    if n_rows == 0 or n_heads == 0 or n_features == 0:
        return pull.new_zeros(n_heads, n_features)
    config = _tile(n_features, n_heads, features.dtype, less is not None)
    each = triton.cdiv(n_rows, _splits(n_rows, n_features, n_heads, config))
    rows = triton.cdiv(each, config.block_n) * config.block_n
    splits = triton.cdiv(n_rows, rows)
    parts = pull.new_empty(splits, n_heads, n_features)
    grid = (triton.cdiv(n_features, config.block_d), splits, triton.cdiv(n_heads, config.block_h))
    with torch.cuda.device_of(features):
        _gradient_kernel[grid](
            features,
            features if less is None else less,
            pull,
            parts,
            n_rows,
            n_features,
            n_heads,
            rows,
            features.stride(0),
            features.stride(1),
            0 if less is None else less.stride(0),
            0 if less is None else less.stride(1),
            PAIRS=less is not None,
            PARTS=_in_parts(features, less),
            PRECISION=_precision(features),
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_d,
            BLOCK_H=config.block_h,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return parts.sum(0)

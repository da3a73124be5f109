"""Welfare of rows of utilities, and of a batch's group means: value and weights in one launch.

    welfare         u (R, K) -> W(u) (R,), dW/du (R, K)
    maxmin_reduce   u_k = mean of the rewards (B, K) that are there, else the running estimate; then W(u), dW/du

A batch of more than 64k rewards is summed by several programs first; a second launch adds their sums in order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.triton._welfare_row import welfare_of

ONE_LAUNCH = 1 << 16  # rewards


def _config_rows(n_groups: int) -> tuple[int, int]:
    """Rows and groups of a program: groups are compared each with each."""
    block_k = max(2, triton.next_power_of_2(n_groups))
    return max(1, min(32, 1024 // block_k**2)), block_k


@triton.jit
def _welfare_kernel(
    u_ptr,
    eta_ptr,
    rank_ptr,
    floor_ptr,
    value_ptr,
    weights_ptr,
    R,
    K,
    stride_ur,
    stride_uk,
    param: tl.float64,
    SHARES: tl.constexpr,
    FLOOR: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    here = (r < R)[:, None] & (k < K)[None, :]
    u = tl.load(u_ptr + r[:, None] * stride_ur + k[None, :] * stride_uk, mask=here, other=0.0)
    eta, floor = _shares(eta_ptr, floor_ptr, k, K, SHARES, FLOOR)
    groups = (k < K)[None, :] & (r >= 0)[:, None]
    value, weights = welfare_of(
        u.to(tl.float64), eta, rank_ptr, floor, param, groups, k, K, KIND
    )  # fmt: skip
    tl.store(value_ptr + r, value, mask=r < R)
    tl.store(weights_ptr + r[:, None] * K + k[None, :], weights, mask=here)


@triton.jit
def _shares(eta_ptr, floor_ptr, k, K, SHARES: tl.constexpr, FLOOR: tl.constexpr):
    """(1, K) shares of the groups and their floors, in float64."""
    eta = tl.where(k < K, 1.0, 0.0).to(tl.float64) / K
    if SHARES:
        eta = tl.load(eta_ptr + k, mask=k < K, other=0.0).to(tl.float64)
    floor = eta * 0.0
    if FLOOR:
        floor = tl.load(floor_ptr + k, mask=k < K, other=0.0).to(tl.float64)
    return eta[None, :], floor[None, :]


@triton.jit
def _sums_kernel(
    r_ptr,
    mask_ptr,
    total_ptr,
    count_ptr,
    B,
    K,
    rows,
    stride_rb,
    stride_rk,
    stride_mb,
    stride_mk,
    MASK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    split = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    total, count = _means(
        r_ptr, mask_ptr, split * rows, tl.minimum(split * rows + rows, B), k, K,
        stride_rb, stride_rk, stride_mb, stride_mk, MASK, BLOCK_B, BLOCK_K,
    )  # fmt: skip
    tl.store(total_ptr + split * K + k, total, mask=k < K)
    tl.store(count_ptr + split * K + k, count, mask=k < K)


@triton.jit
def _means(
    r_ptr,
    mask_ptr,
    begin,
    end,
    k,
    K,
    stride_rb,
    stride_rk,
    stride_mb,
    stride_mk,
    MASK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(K,) sums and numbers of the rewards that are there, in rows ``begin`` to ``end``."""
    total = tl.zeros((BLOCK_B, BLOCK_K), tl.float64)
    count = tl.zeros((BLOCK_B, BLOCK_K), tl.int64)
    for b0 in tl.range(begin, end, BLOCK_B):
        b = (b0 + tl.arange(0, BLOCK_B)).to(tl.int64)[:, None]
        here = (b < end) & (k < K)[None, :]
        r = tl.load(r_ptr + b * stride_rb + k[None, :] * stride_rk, mask=here, other=0.0)
        r = r.to(tl.float64)
        here = here & (r == r)
        if MASK:
            at = mask_ptr + b * stride_mb + k[None, :] * stride_mk
            here = here & (tl.load(at, mask=here, other=0) != 0)
        total += tl.where(here, r, 0.0)
        count += here.to(tl.int64)
    return tl.sum(total, 0), tl.sum(count, 0)


@triton.jit
def _reduce_kernel(
    r_ptr,
    mask_ptr,
    total_ptr,
    count_ptr,
    running_ptr,
    eta_ptr,
    rank_ptr,
    floor_ptr,
    value_ptr,
    weights_ptr,
    utilities_ptr,
    B,
    K,
    SPLITS,
    stride_rb,
    stride_rk,
    stride_mb,
    stride_mk,
    param: tl.float64,
    PARTS: tl.constexpr,
    MASK: tl.constexpr,
    RUNNING: tl.constexpr,
    SHARES: tl.constexpr,
    FLOOR: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    k = tl.arange(0, BLOCK_K)
    if PARTS:
        total = tl.zeros((BLOCK_K,), tl.float64)
        count = tl.zeros((BLOCK_K,), tl.int64)
        for s in tl.range(0, SPLITS):
            total += tl.load(total_ptr + s * K + k, mask=k < K, other=0.0)
            count += tl.load(count_ptr + s * K + k, mask=k < K, other=0)
    else:
        total, count = _means(
            r_ptr, mask_ptr, 0, B, k, K,
            stride_rb, stride_rk, stride_mb, stride_mk, MASK, BLOCK_B, BLOCK_K,
        )  # fmt: skip
    absent = tl.full((BLOCK_K,), float("nan"), tl.float64)
    if RUNNING:
        absent = tl.load(running_ptr + k, mask=k < K, other=0.0).to(tl.float64)
    u = tl.where(count > 0, total / tl.maximum(count, 1).to(tl.float64), absent)
    eta, floor = _shares(eta_ptr, floor_ptr, k, K, SHARES, FLOOR)
    value, weights = welfare_of(
        u[None, :], eta, rank_ptr, floor, param, (k < K)[None, :], k, K, KIND
    )  # fmt: skip
    tl.store(utilities_ptr + k, u, mask=k < K)
    tl.store(weights_ptr + k[None, :], weights, mask=(k < K)[None, :])
    tl.store(value_ptr + tl.arange(0, 1), value)


def _kind(kind: str, param: float) -> str:
    return "mean" if kind == "power" and param == 1 else kind


def welfare_fwd(
    utilities: Tensor,
    kind: str,
    group_weights: Tensor | None,
    rank_weights: Tensor | None,
    floor: Tensor | None,
    param: float,
) -> tuple[Tensor, Tensor]:
    """``(...)`` values and ``(..., K)`` weights."""
    acc = accumulation_dtype(utilities)
    value = utilities.new_empty(utilities.shape[:-1], dtype=acc)
    weights = utilities.new_empty(utilities.shape, dtype=acc)
    if value.numel() == 0:
        return value, weights
    n_groups = utilities.shape[-1]
    u = utilities.reshape(-1, n_groups)
    block_r, block_k = _config_rows(n_groups)
    with torch.cuda.device_of(utilities):
        _welfare_kernel[(triton.cdiv(u.shape[0], block_r),)](
            u,
            u if group_weights is None else group_weights.contiguous(),
            u if rank_weights is None else rank_weights.contiguous(),
            u if floor is None else floor.contiguous(),
            value,
            weights,
            u.shape[0],
            n_groups,
            u.stride(0),
            u.stride(1),
            float(param),
            SHARES=group_weights is not None,
            FLOOR=floor is not None,
            KIND=_kind(kind, param),
            BLOCK_R=block_r,
            BLOCK_K=block_k,
        )
    return value, weights


def maxmin_reduce_fwd(
    rewards: Tensor,
    kind: str,
    mask: Tensor | None,
    running: Tensor | None,
    group_weights: Tensor | None,
    rank_weights: Tensor | None,
    floor: Tensor | None,
    param: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``value ()``, ``weights (K,)``, ``utilities (K,)``."""
    n_rows, n_groups = rewards.shape
    acc = accumulation_dtype(rewards)
    value = rewards.new_empty((), dtype=acc)
    weights, utilities = rewards.new_empty(n_groups, dtype=acc), rewards.new_empty(n_groups, dtype=acc)  # fmt: skip
    block_k = _config_rows(n_groups)[1]
    block_b = max(1, 2048 // block_k)
    splits = 1 if rewards.numel() <= ONE_LAUNCH else min(256, triton.cdiv(n_rows, 4 * block_b))
    given: tuple[Any, ...] = (
        rewards.stride(0),
        rewards.stride(1),
        0 if mask is None else mask.stride(0),
        0 if mask is None else mask.stride(1),
    )
    there = rewards if mask is None else mask.view(torch.uint8)
    total = rewards.new_empty(splits, n_groups, dtype=torch.float64)
    count = rewards.new_empty(splits, n_groups, dtype=torch.int64)
    blocks = {"MASK": mask is not None, "BLOCK_B": block_b, "BLOCK_K": block_k}
    with torch.cuda.device_of(rewards):
        if splits > 1:
            rows = triton.cdiv(n_rows, splits)
            _sums_kernel[(splits,)](
                rewards, there, total, count, n_rows, n_groups, rows, *given, **blocks
            )
        _reduce_kernel[(1,)](
            rewards,
            there,
            total,
            count,
            rewards if running is None else running.contiguous(),
            rewards if group_weights is None else group_weights.contiguous(),
            rewards if rank_weights is None else rank_weights.contiguous(),
            rewards if floor is None else floor.contiguous(),
            value,
            weights,
            utilities,
            n_rows,
            n_groups,
            splits,
            *given,
            float(param),
            PARTS=splits > 1,
            RUNNING=running is not None,
            SHARES=group_weights is not None,
            FLOOR=floor is not None,
            KIND=_kind(kind, param),
            **blocks,
        )
    return value, weights, utilities

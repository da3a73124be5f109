"""Rewards by group to one advantage a sample: centred at the prompt, weighted, scaled, in one launch.

A spread over the whole batch takes a second one: every program adds the prompts' sums in order for itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels._checks import accumulation_dtype


@triton.jit
def _advantages_kernel(
    r_ptr,
    weights_ptr,
    out_ptr,
    squares_ptr,
    freedom_ptr,
    P,
    S,
    K,
    stride_p,
    stride_s,
    stride_k,
    eps: tl.float64,
    SCALE: tl.constexpr,
    LEAVE_ONE_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    eps = tl.full((1,), eps, tl.float64).to(ACC)[:, None]
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    s = tl.arange(0, BLOCK_S)
    k = tl.arange(0, BLOCK_K)
    inside = (p < P)[:, None, None] & (s < S)[None, :, None] & (k < K)[None, None, :]
    at = p[:, None, None] * stride_p + s[None, :, None] * stride_s + k[None, None, :] * stride_k
    r = tl.load(r_ptr + at, mask=inside, other=float("nan")).to(ACC)
    weights = tl.load(weights_ptr + k, mask=k < K, other=0.0).to(ACC)[None, None, :]
    there = r == r
    r = tl.where(there, r, 0.0)
    count = tl.sum(there.to(ACC), 1)[:, None, :]
    mean = tl.sum(r, 1)[:, None, :] / tl.maximum(count, 1.0)
    deviation = tl.where(there, r - mean, 0.0)
    centred = deviation
    if LEAVE_ONE_OUT:
        centred = centred * (count / tl.maximum(count - 1.0, 1.0))
    if SCALE == "group":
        spread = tl.sum(deviation * deviation, 1)[:, None, :] / tl.maximum(count - 1.0, 1.0)
        centred = centred / (tl.sqrt(spread) + eps[:, :, None])
    advantages = tl.sum(centred * weights, 2)
    if SCALE == "prompt" or SCALE == "batch":
        plain = tl.sum(deviation * weights, 2)
        squares = tl.sum(plain * plain, 1)
        freedom = tl.maximum(tl.sum(tl.max(there.to(tl.int32), 2), 1) - 1, 0).to(ACC)
        if SCALE == "prompt":
            spread = tl.sqrt(squares / tl.maximum(freedom, 1.0))
            advantages = advantages / (spread[:, None] + eps)
        else:
            tl.store(squares_ptr + p, squares, mask=p < P)
            tl.store(freedom_ptr + p, freedom, mask=p < P)
    here = (p < P)[:, None] & (s < S)[None, :]
    tl.store(out_ptr + p[:, None] * S + s[None, :], advantages, mask=here)


@triton.jit
def _batch_scale_kernel(
    out_ptr, squares_ptr, freedom_ptr, P, n, eps: tl.float64, BLOCK: tl.constexpr
):
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float64)
    freedom = tl.zeros((BLOCK,), tl.float64)
    for p0 in tl.range(0, P, BLOCK):
        p = p0 + lanes
        squares += tl.load(squares_ptr + p, mask=p < P, other=0.0).to(tl.float64)
        freedom += tl.load(freedom_ptr + p, mask=p < P, other=0.0).to(tl.float64)
    spread = tl.sqrt(tl.sum(squares, 0) / tl.maximum(tl.sum(freedom, 0), 1.0))
    at = tl.program_id(0).to(tl.int64) * BLOCK + lanes
    a = tl.load(out_ptr + at, mask=at < n, other=0.0)
    tl.store(out_ptr + at, a / (spread + tl.full((1,), eps, tl.float64)).to(ACC), mask=at < n)


def maxmin_advantages_fwd(
    rewards: Tensor, weights: Tensor, scale: str, leave_one_out: bool, eps: float
) -> Tensor:
    """``(P, S)``."""
    acc = accumulation_dtype(rewards)
    n_prompts, n_samples, n_groups = rewards.shape
    out = rewards.new_empty(n_prompts, n_samples, dtype=acc)
    if out.numel() == 0:
        return out
    block_s, block_k = triton.next_power_of_2(n_samples), triton.next_power_of_2(max(1, n_groups))
    block_p = max(1, 1024 // (block_s * block_k))
    n_sums = n_prompts if scale == "batch" else 0
    squares, freedom = rewards.new_empty(n_sums, dtype=acc), rewards.new_empty(n_sums, dtype=acc)
    with torch.cuda.device_of(rewards):
        _advantages_kernel[(triton.cdiv(n_prompts, block_p),)](
            rewards,
            weights.contiguous(),
            out,
            squares,
            freedom,
            n_prompts,
            n_samples,
            n_groups,
            *rewards.stride(),
            float(eps),
            SCALE=scale,
            LEAVE_ONE_OUT=leave_one_out,
            BLOCK_P=block_p,
            BLOCK_S=block_s,
            BLOCK_K=block_k,
            num_warps=4 if block_s * block_k <= 2048 else 8,
        )
        if scale == "batch":
            _batch_scale_kernel[(triton.cdiv(out.numel(), 1024),)](
                out, squares, freedom, n_prompts, out.numel(), float(eps), BLOCK=1024
            )
    return out

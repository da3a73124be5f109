"""Small kernels with known properties, to try the compile-only driver on."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def largest_kernel(x_ptr, out_ptr, stride_n, D, BLOCK_D: tl.constexpr):
    """Row maxima plus the sum of what lies below: the whole row stays in registers."""
    pid = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + pid * stride_n + offs_d, mask=offs_d < D, other=float("-inf"))
    x = x.to(tl.float32)
    m = tl.max(x, 0)
    tl.store(out_ptr + pid, m + tl.sum(tl.exp(x - m), 0))


@triton.jit
def product_kernel(a_ptr, b_ptr, out_ptr, BLOCK: tl.constexpr):
    """One square product."""
    offs = tl.arange(0, BLOCK)
    at = offs[:, None] * BLOCK + offs[None, :]
    tl.store(out_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))

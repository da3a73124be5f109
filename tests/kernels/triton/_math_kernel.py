"""A kernel that applies the shared functions, for their test."""

from __future__ import annotations

import triton
import triton.language as tl

from maxmin_kernels.triton._math import log1p, log_sigmoid, sigmoid_neg


@triton.jit
def apply_kernel(x_ptr, z_ptr, log1p_ptr, log_sigmoid_ptr, sigmoid_ptr, BLOCK: tl.constexpr):
    """Each function at every element."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    tl.store(log1p_ptr + offs, log1p(tl.load(z_ptr + offs)))
    tl.store(log_sigmoid_ptr + offs, log_sigmoid(x))
    tl.store(sigmoid_ptr + offs, sigmoid_neg(x))

"""What several kernels say the same way. Everything runs in the accumulation dtype, and in the interpreter."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def log1p(z):
    """``log(1 + z)`` for z in [0, 1], to a few units in the last place also where z is tiny."""
    u = 1.0 + z
    # u - 1 is what the sum kept of z: the logarithm's error and the quotient's cancel (Kahan).
    return tl.where(u == 1.0, z, tl.log(u) * z / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def log_sigmoid(x):
    """``log σ(x)``, (3) of a pair."""
    return tl.minimum(x, 0.0) - log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid_neg(x):
    """``σ(−x)``, (3') of a pair, without overflow on either side."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, e, 1.0) / (1.0 + e)

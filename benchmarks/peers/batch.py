"""EM of many starts at once, whatever computes a pass: the driver of the NumPy, PyTorch and JAX peers.

A pass is one E-step, the log-likelihood where it was made, and a Newton step of every head, which is shortened where it
turns out to lower the likelihood: far from the optimum plain Newton steps diverge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MAX_PASSES = 500
TOL = 1e-7  # relative gain of a pass below which a start has converged: that of the product
RIDGE = 1e-8  # for a head that nobody holds; it changes no fit

# (heads (G, K, D), log weights (G, K)) -> Newton's step of the heads, new log weights, log-likelihood (G,) where it stands
Pass = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def climb(one_pass: Pass, heads: np.ndarray) -> dict[str, Any]:
    """The best of G starts. Those that have converged leave the batch whenever three quarters of it have."""
    n_starts, n_groups, _ = heads.shape
    heads, log_weights = heads.copy(), np.full((n_starts, n_groups), -np.log(n_groups))
    best: tuple[float, Any, Any] = (-np.inf, None, None)
    ends = np.full(n_starts, -np.inf)
    value, alive = np.full(n_starts, -np.inf), np.arange(n_starts)
    converged, scale = np.zeros(n_starts, dtype=bool), np.ones(n_starts)
    step, next_weights = np.zeros_like(heads), log_weights
    passes = 0
    for _ in range(MAX_PASSES):
        trial = heads + scale[:, None, None] * step
        new_step, new_weights, new_value = one_pass(trial, next_weights)
        passes += int((~converged).sum())
        gain = new_value - value
        up = ~converged & (gain >= -1e-9 * np.abs(new_value))  # else a shorter step
        heads[up], log_weights[up], value[up] = trial[up], next_weights[up], new_value[up]
        step[up], scale[up] = new_step[up], 1.0
        scale[~up] *= 0.25
        next_weights = np.where(up[:, None], new_weights, next_weights)
        top = int(np.argmax(value))
        if value[top] > best[0]:
            best = (float(value[top]), heads[top].copy(), log_weights[top].copy())
        ends[alive] = value
        converged |= (up & (gain <= TOL * np.abs(value))) | (scale < 1e-6)
        if converged.all():
            break
        if 4 * (~converged).sum() <= converged.size:
            # A quarter, whatever has finished already: few sizes, since each is compiled once.
            keep = np.argsort(converged, kind="stable")[: converged.size // 4]
            heads, log_weights, value, step = (a[keep] for a in (heads, log_weights, value, step))
            alive, converged, scale, next_weights = (
                a[keep] for a in (alive, converged, scale, next_weights)
            )
    return {
        "heads": best[1],
        "log_weights": best[2],
        "passes": passes,
        "starts": n_starts,
        "ends": ends,
    }

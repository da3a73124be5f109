"""The dual (13') of Nash and power means by a damped Newton method, a pass over the rewards a step.

Their weights have no fixed sum. With ``D(w) = s D(w/s)``, s the sum of w, both minimise ``D(w) - log h(w)`` over w > 0,
h being the conjugate mean (for Nash the geometric one): convex, and ``<w, F>`` is one where it is least.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.welfare.objectives import Objective, conjugate_mean
from maxmin_rlhf.welfare.shards import Moments, Shards

Array = NDArray[np.float64]
_MAX_PASSES = 500
_HALVINGS = 40


def minimise_homogeneous(
    shards: Shards,
    beta: float,
    objective: Objective,
    start: Array,
    gap: Callable[[Array, Moments], float],
    tol: float,
) -> tuple[Array, Moments]:
    """(K,) weights on the simplex and what a pass says there.

    Args:
        start: (K,) weights on the simplex of a policy that has a positive utility for every group that counts.
    """
    some, eta = objective.counts, objective.shares[objective.counts]
    dual_p = 0.0 if objective.kind == "nash" else objective.param / (objective.param - 1)

    def at(q: Array) -> tuple[Array, Moments]:
        whole = np.zeros(len(some))
        whole[some] = q
        return whole, shards.moments(whole, beta)

    q = 0.5 * start[some] + 0.5 * eta
    whole, here = at(q / q.sum())
    w = whole[some] / here.value
    best_w, best, best_gap = whole, here, math.inf
    for _ in range(_MAX_PASSES):
        now = gap(whole, here)
        if now < best_gap:
            best_w, best, best_gap = whole, here, now
        if now <= 0.1 * tol:
            break
        grad, hessian = _derivatives(w, here, some, eta, dual_p)
        # In relative steps, so that small weights are no small numbers.
        relative = w[:, None] * hessian * w
        step = w * np.linalg.lstsq(relative, -w * grad, rcond=1e-15)[0]
        slope = float(grad @ step)
        if slope >= -1e-30:
            break
        t = min(1.0, 0.99 / max(float((-step / w).max()), 0.99))
        value = _value(w, here, eta, dual_p)
        for _ in range(_HALVINGS):
            trial = w + t * step
            there_w, there = at(trial / trial.sum())
            if there.value > 0:
                lower = _value(trial, there, eta, dual_p) <= value + 1e-4 * t * slope
                flatter = (
                    abs(float(_derivatives(trial, there, some, eta, dual_p)[0] @ step))
                    <= -0.5 * slope
                )
                if lower or flatter:
                    break
            t *= 0.5
        w, whole, here = trial, there_w, there
    return best_w, best


def _value(w: Array, at: Moments, eta: Array, dual_p: float) -> float:
    """``D(w) - log h(w)``."""
    if dual_p == 0:
        return float(w.sum() * at.value - eta @ (np.log(w) - np.log(eta)))
    p = dual_p / (dual_p - 1)
    return float(w.sum()) * at.value - math.log(conjugate_mean(w, eta, p))


def _derivatives(
    w: Array, at: Moments, some: NDArray[np.bool_], eta: Array, dual_p: float
) -> tuple[Array, Array]:
    total = w.sum()
    q = w / total
    g = at.utilities[some]
    grad = g - (q @ g - at.value)  # F, utilities with the KL term
    left = np.eye(len(w)) - np.outer(np.ones(len(w)), q)
    hessian = left @ at.hessian[np.ix_(some, some)] @ left.T / total
    log_x = np.log(eta) + dual_p * (np.log(w) - np.log(eta))
    share = np.exp(log_x - log_x.max())
    share = share / share.sum()
    pull = share / w
    curved = (1 - dual_p) * (np.diag(share) - np.outer(share, share)) / np.outer(w, w)
    return grad - pull, hessian + curved + np.outer(pull, pull)

"""The dual (13') over a set of weights by a primal-dual interior-point method, a pass over the rewards a step.

The KL strength comes down from one at which the dual is nearly quadratic to the one asked for: for a small strength the
dual is nearly piecewise linear, and Newton's method only works near its solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.welfare.shards import Moments, Shards
from maxmin_rlhf.welfare.weight_sets import WeightSet

Array = NDArray[np.float64]
_MAX_PASSES = 300
_HALVINGS = 30
_REFINEMENTS = 3
_DAMPING = 1e-7
_TO_THE_BOUND = 0.99


@dataclass
class _Point:
    """Where the iteration is, or a step of it: weights, multipliers of their bounds, what is left of the radius.

    The last is a variable of its own: it may differ from what the weights leave on the way, since a curved bound that
    is kept to the letter is followed in small steps only.
    """

    q: Array  # (J, K)
    low: Array  # (J, K)
    high: Array  # (J, K)
    radius: float  # multiplier
    left: float  # of the radius


def minimise(
    shards: Shards,
    beta: float,
    inside: WeightSet,
    gap: Callable[[Array, Moments], float],
    tol: float,
) -> tuple[Array, Moments]:
    """(K,) weights and what a pass says there, at a gap of ``tol`` if rounding lets it."""
    part, at = inside.part, _start(inside, shards)
    strength = max(shards.span, beta)
    # Below the rounding error of the utilities a barrier would chase noise where the dual is flat.
    noise = 2 * np.finfo(np.float64).eps * shards.span * (1 + shards.span / beta)
    mu_end = max(tol / (100 * inside.n_bounds), noise)
    here = shards.moments(part @ at.q, strength)
    best_w, best, best_gap, stalled = part @ at.q, here, math.inf, 0
    centring = 1.0
    for _ in range(_MAX_PASSES):
        if strength == beta and inside.slack(at.q) >= -1e-12 * inside.radius:
            now = gap(part @ at.q, here)
            # Nothing is gained for a while: rounding has it.
            stalled = 0 if now < 0.9 * best_gap else stalled + 1
            if now < best_gap or best_gap == math.inf:
                best_w, best, best_gap = part @ at.q, here, now
            if now <= 0.1 * tol or stalled == 10:
                break
        mu = max(centring * _complementarity(inside, at), mu_end)
        if strength > beta:
            mu = max(mu, 0.01 * strength)
        step, curved = _direction(inside, at, here, mu)
        t, here = _line_search(shards, strength, inside, at, here, step, curved)
        t_dual = _move(inside, at, step, t)
        # Long steps deserve a bold aim.
        centring = 0.03 if min(t, t_dual) > 0.9 else 0.1 if min(t, t_dual) > 0.5 else 0.5
        if strength > beta and t > 0.5 and curved <= 0.25 * strength:
            strength = max(0.25 * strength, beta)
            here = shards.moments(part @ at.q, strength)
    if best_gap == math.inf:
        return part @ at.q, shards.moments(part @ at.q, beta)
    return best_w, best


def _start(inside: WeightSet, shards: Shards) -> _Point:
    mu = 0.1 * max(shards.span + np.ptp(shards.offset), inside.tau, 1e-300)
    q, left = inside.start.copy(), inside.slack(inside.start)
    with np.errstate(divide="ignore"):
        low, high = (np.where(inside.free, mu / s, 0.0) for s in (q - inside.low, inside.high - q))
    return _Point(q, low, high, mu / left, left)


def _complementarity(inside: WeightSet, at: _Point) -> float:
    """Multiplier times slack, the mean over all bounds: what mu is at the barrier's minimiser."""
    free, capped = inside.free, inside.free & np.isfinite(inside.high)
    total = (at.low * (at.q - inside.low))[free].sum()
    total += (at.high[capped] * (inside.high - at.q)[capped]).sum()
    if inside.radius < math.inf:
        total += at.radius * at.left
    return float(total) / inside.n_bounds


def _direction(inside: WeightSet, at: _Point, here: Moments, mu: float) -> tuple[_Point, float]:
    """Newton's step of all of a point, by elimination down to K equations, and D's curvature along it."""
    q, free, part = at.q, inside.free, inside.part
    above, below = np.where(free, q - inside.low, 1.0), np.where(free, inside.high - q, 1.0)
    hessian, grad = here.hessian, here.utilities - mu / above + mu / below
    # Steps a little too short where the bounds are far and D is flat, for a system that keeps its digits.
    curvature = at.low / above + at.high / below + _DAMPING * here.hessian.diagonal().max()
    if inside.tau:
        first, second = inside.div_derivatives(q, "kl")
        grad, curvature = grad + inside.tau * first, curvature + inside.tau * second
    normal, outside = np.zeros(q.shape[1]), 0.0
    if inside.radius < math.inf:
        first, second = inside.div_derivatives(q, inside.div)
        normal = np.where(free, first, 0.0)[0]
        outside = at.left - inside.slack(q)
        grad = grad + (mu + at.radius * outside) / at.left * first
        curvature = curvature + at.radius * second
        hessian = hessian + at.radius / at.left * np.outer(normal, normal)
    grad = np.where(free, grad, 0.0)
    curvature = np.where(free, curvature, 0.0)
    inverse = np.divide(1.0, curvature, where=free, out=np.zeros_like(q))
    total = np.maximum(inverse.sum(1, keepdims=True), 1e-300)

    def project(x: Array) -> Array:
        # The mean goes first: it is large, and a multiplier taken off afterwards would cost the last digits.
        return inverse * (x - (inverse * x).sum(1, keepdims=True) / total)

    response = np.diag(part @ inverse) - (inverse * (part[:, None] / total)).T @ inverse
    system = np.eye(len(response)) + response @ hessian
    step = np.zeros_like(q)
    for _ in range(_REFINEMENTS):
        # What the equations are still short of.
        alone = -project(grad + curvature * step + hessian @ (part @ step))
        pull = hessian @ np.linalg.solve(system, part @ alone)
        step = step + alone - project(np.broadcast_to(pull, q.shape))
        step = step - inverse * (step.sum(1, keepdims=True) / total)
    low = np.where(free, (mu - at.low * step) / above - at.low, 0.0)
    high = np.where(free, (mu + at.high * step) / below - at.high, 0.0)
    left, radius = 0.0, 0.0
    if inside.radius < math.inf:
        left = -outside - float(normal @ step[0])
        radius = (mu - at.radius * left) / at.left - at.radius
    moved = part @ step
    return _Point(step, low, high, radius, left), float(moved @ here.hessian @ moved)


def _line_search(
    shards: Shards,
    strength: float,
    inside: WeightSet,
    at: _Point,
    here: Moments,
    step: _Point,
    curved: float,
) -> tuple[float, Moments]:
    """How far to go, and the moments there: as far as D's gradient rises no faster than the Hessian tells, roughly."""
    t, moved = _longest(inside, at, step), inside.part @ step.q
    for _ in range(_HALVINGS):
        there = shards.moments(inside.part @ (at.q + t * step.q), strength)
        rise = float(moved @ (there.utilities - here.utilities))
        # A curvature as small as this is a step on which D is quadratic.
        if rise <= 1.5 * curved or curved <= 1e-4 * strength:
            break
        t *= max(min(curved / rise, 0.5), 0.1)
    return t, there


def _longest(inside: WeightSet, at: _Point, step: _Point) -> float:
    """At most 1, and most of the way to the nearest bound."""
    free = inside.free
    room = min(_room(at.q - inside.low, step.q, free), _room(inside.high - at.q, -step.q, free))
    if step.left < 0:
        room = min(room, at.left / -step.left)
    return min(1.0, _TO_THE_BOUND * room)


def _room(value: Array, step: Array, free: NDArray[np.bool_]) -> float:
    """How many steps until one of the values > 0 is 0."""
    falls = free & (step < 0)
    return float((value[falls] / -step[falls]).min(initial=math.inf))


def _move(inside: WeightSet, at: _Point, step: _Point, t: float) -> float:
    """Weights by t, multipliers as far as they may, which is returned."""
    at.q, at.left = at.q + t * step.q, at.left + t * step.left
    room = min(_room(at.low, step.low, inside.free), _room(at.high, step.high, inside.free))
    if step.radius < 0:
        room = min(room, at.radius / -step.radius)
    t = min(1.0, _TO_THE_BOUND * room)
    at.low, at.high = at.low + t * step.low, at.high + t * step.high
    at.radius += t * step.radius
    return t

"""Welfare of a tile of rows, value and weights, every kind of MATH section 5. All in float64: K numbers are few.

Groups are compared each with each instead of being sorted: ``rank`` is a count of those before, and the sum over a prefix
of the ranks is a masked sum. Tiles are (R, K) and (R, K, K): axis 1 asks, axis 2 is asked about.
"""

from __future__ import annotations

import triton
import triton.language as tl

from maxmin_kernels.triton._math import log1p


@triton.jit
def expm1(x):
    u = tl.exp(x)
    safe = tl.where((u == 1.0) | (u == 0.0), 2.0, u)
    return tl.where(u == 1.0, x, tl.where(u == 0.0, -1.0, (u - 1.0) * x / tl.log(safe)))


@triton.jit
def _row(x):
    """A number of each row beside its groups."""
    return x[:, None]


@triton.jit
def _before(x, k, HERE):
    """(R, K, K): does j (axis 2) come before i (axis 1), in ascending order, the first of equals first?"""
    xi, xj = x[:, :, None], x[:, None, :]
    ki, kj = k[None, :, None], k[None, None, :]
    return ((xj < xi) | ((xj == xi) & (kj < ki))) & HERE[:, None, :]


@triton.jit
def _prefix(values, inside):
    """(R, K) sum over the groups j that are ``inside`` i's prefix."""
    return tl.sum(tl.where(inside, values[:, None, :], 0.0), 2)


@triton.jit
def _first(chosen, rank, value, K):
    """(R,) ``value`` at the lowest rank that is ``chosen``."""
    place = tl.where(chosen, rank, K)
    at = tl.min(place, 1)
    return tl.sum(tl.where(place == _row(at), value, 0.0), 1)


@triton.jit
def _first_min(u, here, k, K):
    """(R, K) the smallest, the first of equals."""
    low = tl.min(tl.where(here, u, float("inf")), 1)
    at = tl.min(tl.where(here & (u == _row(low)), k[None, :], K), 1)
    return k[None, :] == _row(at)


@triton.jit
def _tilted(above, eta, floor, rate, here, k, K, FLOOR: tl.constexpr):
    """``q = max(floor, c η exp(-rate · above))``, ``c`` in closed form."""
    tilted = tl.where(here, eta * tl.exp(-above * _row(rate)), 0.0)
    return _normalised(tilted, floor, here, k, K, FLOOR)


@triton.jit
def _normalised(tilted, floor, here, k, K, FLOOR: tl.constexpr):
    if FLOOR:
        # Groups leave their floor in the order of floor / tilted.
        held = tilted > 0
        ratio = tl.where(held, floor / tl.where(held, tilted, 1.0), float("inf"))
        ratio = tl.where(here, ratio, float("inf"))
        before = _before(ratio, k, here)
        upto = before | ((k[None, :, None] == k[None, None, :]) & here[:, None, :])
        rank = tl.sum(before.to(tl.int32), 2)
        spare = 1.0 - tl.sum(tl.where(here, floor, 0.0), 1)
        part = _prefix(tilted, upto)
        scale = (_prefix(floor, upto) + _row(spare)) / tl.where(part > 0, part, 1.0)
        scale = tl.where(part > 0, scale, float("inf"))
        following = tl.min(
            tl.where(upto | (here[:, None, :] == 0), float("inf"), ratio[:, None, :]), 2
        )
        fits = here & ((scale <= following) | (rank == K - 1))
        q = tl.maximum(floor, tilted * _row(_first(fits, rank, scale, K)))
    else:
        q = tilted / _row(tl.sum(tilted, 1))
    return q


@triton.jit
def _divergence(q, eta, here):
    # As a sum of terms >= 0, which keeps its digits near zero.
    excess = tl.where(here & (eta > 0), q / tl.where(eta > 0, eta, 1.0), 1.0) - 1.0
    gone = excess <= -1.0
    safe = tl.where(gone, 0.0, excess)
    term = tl.where(gone, 1.0, (1.0 + safe) * log1p(safe) - safe)
    return tl.sum(tl.where(here, eta * term, 0.0), 1)


@triton.jit
def _kl_ball(above, worst, eta, floor, radius, here, k, K, FLOOR: tl.constexpr):
    corner = _normalised(tl.where(worst, eta, 0.0), floor, here, k, K, FLOOR)
    span = tl.maximum(tl.max(above, 1), 2.2250738585072014e-308)
    # By Hoeffding's lemma the divergence is at most span^2 / (8 tau^2).
    ball = tl.where(radius > 0, radius, 1.0)
    low = tl.log(span) - 41.44653167389282
    high = tl.log(span) + tl.log(4.0 / tl.sqrt(ball))
    for _ in tl.range(0, 72):
        middle = 0.5 * (low + high)
        q = _tilted(above, eta, floor, tl.exp(-middle), here, k, K, FLOOR)
        outside = _divergence(q, eta, here) > radius
        low, high = tl.where(outside, middle, low), tl.where(outside, high, middle)
    q = _tilted(above, eta, floor, tl.exp(-high), here, k, K, FLOOR)
    q = tl.where(_row(_divergence(corner, eta, here)) <= radius, corner, q)
    return tl.where(radius > 0, q, eta)


@triton.jit
def _chi2_ball(above, worst, eta, radius, here, k, K):
    """``q ∝ η (t - u)_+``: the root t in closed form, by the number of groups below it."""
    shared = here & (eta > 0)
    # Groups without a share go last, where they change no prefix.
    x = tl.where(shared, above, _row(tl.max(tl.where(here, above, 0.0), 1)))
    before = _before(x, k, here)
    upto = before | ((k[None, :, None] == k[None, None, :]) & here[:, None, :])
    rank = tl.sum(before.to(tl.int32), 2)
    share = tl.where(here, eta, 0.0)
    mass = _prefix(share, upto)
    mass = mass / _row(tl.sum(share, 1))
    tiny = 2.2250738585072014e-308
    mean = _prefix(share * x, upto) / tl.maximum(mass, tiny)
    apart = x[:, None, :] - mean[:, :, None]
    spread = tl.sum(tl.where(upto, share[:, None, :] * apart * apart, 0.0), 2)
    room = mass * radius - (1.0 - mass)
    slope = tl.sqrt(tl.maximum(room * mass / tl.maximum(spread, tiny), 0.0))
    later = (upto == 0) & here[:, None, :]
    following = tl.min(tl.where(later, x[:, None, :], float("inf")), 2)
    # At the last rank whatever is there serves, as no group follows.
    beyond = tl.where(following == float("inf"), 1.0, slope * (following - mean))
    fits = here & (((room > 0) & ((beyond >= 1.0) | (slope == float("inf")))) | (rank == K - 1))
    steep, centre = _first(fits, rank, slope, K), _first(fits, rank, mean, K)
    q = tl.where(here, eta * tl.maximum(1.0 + _row(steep) * (_row(centre) - above), 0.0), 0.0)
    q = q / _row(tl.sum(q, 1))
    mass_worst = tl.sum(tl.where(worst, eta, 0.0), 1)
    corner = tl.where(worst, eta, 0.0) / _row(mass_worst)
    return tl.where(_row(mass_worst * (1.0 + radius)) >= 1.0, corner, q)


@triton.jit
def _log_power_mean(log_u, eta, p, here):
    """``log (Σ η u^p)^(1/p)``, the geometric mean at p = 0 and accurate near it."""
    share = tl.where(here, eta, 0.0)
    centre = tl.sum(share * log_u, 1)
    x = p * (log_u - _row(centre))
    near = log1p(tl.sum(share * expm1(tl.minimum(tl.maximum(x, -1.0), 1.0)), 1))
    logits = tl.where(share > 0, tl.log(tl.where(share > 0, share, 1.0)) + x, float("-inf"))
    top = tl.max(logits, 1)
    far = top + tl.log(tl.sum(tl.exp(logits - _row(top)), 1))
    close = tl.max(tl.where(share > 0, tl.abs(x), 0.0), 1) < 1.0
    step = tl.where(close, near, far) / tl.where(p == 0.0, 1.0, p)
    return tl.where(p == 0.0, centre, centre + step)


@triton.jit
def welfare_of(u, eta, rank_ptr, floor, param, here, k, K, KIND: tl.constexpr):
    """``(value (R,), weights (R, K))`` of utilities ``(R, K)``; ``here`` masks what is only padding."""
    param = tl.full((1,), param, tl.float64)  # a bare number would meet comparisons as a float32
    lost = tl.max(tl.where(here & (u != u), 1, 0), 1) == 1
    # A NaN would upset comparisons; the row is undefined whatever is found for it.
    u = tl.where(here & (u == u), u, 0.0)
    eta = tl.where(here, eta, 0.0)
    if KIND == "min":
        low = tl.min(tl.where(here, u, float("inf")), 1)
        weights = tl.where(_first_min(u, here, k, K), 1.0, 0.0).to(tl.float64)
        value = low
    elif KIND == "softmin":
        logits = tl.where(eta > 0, tl.log(tl.where(eta > 0, eta, 1.0)) - u / param, float("-inf"))
        top = tl.max(logits, 1)
        part = tl.exp(logits - _row(top))
        total = tl.sum(part, 1)
        value, weights = -param * (top + tl.log(total)), part / _row(total)
    elif KIND == "nash" or KIND == "power":
        lost = lost | (tl.max(tl.where(here & (u <= 0) & (eta > 0), 1, 0), 1) == 1)
        inside = (u > 0) & (eta > 0)
        log_u = tl.log(tl.where(inside, u, 1.0))
        if KIND == "nash":
            value, weights = tl.sum(eta * log_u, 1), eta * tl.exp(-log_u)
        else:
            log_mean = _log_power_mean(log_u, eta, param, here)
            value = tl.exp(log_mean)
            weights = eta * tl.exp((param - 1.0) * (log_u - _row(log_mean)))
    elif KIND == "mean":
        value, weights = tl.sum(eta * u, 1), eta
    else:
        if KIND == "cvar":
            before = _before(u, k, here)
            cap = eta / param
            weights = tl.minimum(cap, tl.maximum(1.0 - _prefix(cap, before), 0.0))
        elif KIND == "owa":
            rank = tl.sum(_before(u, k, here).to(tl.int32), 2)
            weights = tl.load(rank_ptr + rank, mask=here, other=0.0).to(tl.float64)
        elif KIND == "tv":
            low = tl.min(tl.where(here, u, float("inf")), 1)
            worst = here & (u == _row(low))
            moved = 1.0 - tl.sum(tl.where(worst, eta, 0.0), 1)
            moved = tl.minimum(tl.maximum(moved, 0.0), param)
            before = _before(-u, k, here)
            taken = tl.minimum(eta, tl.maximum(_row(moved) - _prefix(eta, before), 0.0))
            weights = eta - taken
            weights += tl.where(_first_min(u, here, k, K), _row(tl.sum(taken, 1)), 0.0)
        else:
            low = tl.min(tl.where(here & (eta > 0), u, float("inf")), 1)
            above = tl.where(here & (eta > 0), u - _row(low), 0.0)
            worst = here & (eta > 0) & (above == 0.0)
            if KIND == "chi2":
                weights = _chi2_ball(above, worst, eta, param, here, k, K)
            else:
                weights = _kl_ball(above, worst, eta, floor, param, here, k, K, KIND == "floor")
        value = tl.sum(tl.where(here, weights * u, 0.0), 1)
    value = tl.where(lost, float("nan"), value)
    weights = tl.where(_row(lost), float("nan"), weights)
    return value, weights

"""Welfare of section 5 in plain PyTorch, and what batches need of it: group means, reduction, advantages.

The names are part of ``maxmin_kernels.reference``. Conventions, for every kind: shares sum to one (the faces see to
it), ``None`` is equal shares; the weights are the gradient of the value by the utilities; a row with a NaN, or outside
the domain of its kind, is NaN throughout. Groups without a share count in ``min``, ``owa`` and ``tv`` only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maxmin_kernels._checks import accumulation_dtype


def welfare(
    utilities: Tensor,
    kind: str,
    group_weights: Tensor | None = None,
    rank_weights: Tensor | None = None,
    floor: Tensor | None = None,
    param: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Section 5: (..., K) to value (...) and weights (..., K); ``param`` is the kind's tau, p, alpha or radius."""
    acc = accumulation_dtype(utilities)
    u = utilities.to(acc)
    if group_weights is None:
        group_weights = u.new_full((u.shape[-1],), 1 / u.shape[-1], dtype=torch.float64)
    eta = group_weights.to(acc).expand_as(u)
    undefined = u.isnan().any(-1)
    if kind == "min":
        weights = torch.zeros_like(u).scatter(-1, _first_min(u), 1.0)
        value = u.amin(-1)
    elif kind == "softmin":
        # In float64, as the balls below: with a large tau the logarithm is of a number near one.
        logits = group_weights.double().log() - u.double() / param
        value, weights = (-param * logits.logsumexp(-1)).to(acc), logits.softmax(-1).to(acc)
    elif kind == "nash" or (kind == "power" and param < 1):
        undefined = undefined | ((u <= 0) & (eta > 0)).any(-1)
        log_u = torch.where((u > 0) & (eta > 0), u, 1.0).log()
        if kind == "nash":
            value, weights = (eta * log_u).sum(-1), eta * (-log_u).exp()
        else:
            log_mean = _log_power_mean(log_u, eta, param)
            value = log_mean.exp()
            weights = eta * ((param - 1) * (log_u - log_mean[..., None])).exp()
    elif kind in ("mean", "power"):
        value, weights = (eta * u).sum(-1), eta
    elif kind in ("cvar", "owa"):
        weights = _cvar(u, eta, param) if kind == "cvar" else _by_rank(u, rank_weights)
        value = (weights * u).sum(-1)
    elif kind in ("kl", "chi2", "tv", "floor"):
        # Roots of small sums: in float64 whatever comes in; that costs nothing beside a batch.
        wide, shares = u.double(), group_weights.double().expand_as(u)
        if kind == "chi2":
            weights = _chi2_ball(wide, shares, param)
        elif kind == "tv":
            weights = _tv_ball(wide, shares, param)
        else:
            least = None if floor is None else floor.double().expand_as(wide)
            weights = _kl_ball(wide, shares, param, least)
        value, weights = (weights * wide).sum(-1).to(acc), weights.to(acc)
    else:
        raise ValueError(f"kind: no welfare is called {kind!r}")
    return value.masked_fill(undefined, math.nan), weights.masked_fill(
        undefined[..., None], math.nan
    )


def _first_min(u: Tensor) -> Tensor:
    """(..., 1) index of the smallest, the first of equals."""
    index = torch.arange(u.shape[-1], device=u.device)
    return torch.where(u == u.amin(-1, keepdim=True), index, u.shape[-1] - 1).amin(-1, keepdim=True)


def _log_power_mean(log_u: Tensor, eta: Tensor, p: float) -> Tensor:
    """log (sum eta u^p)^(1/p), the geometric mean at p = 0 and accurate near it."""
    centre = (eta * log_u).sum(-1)
    if p == 0:
        return centre
    x = p * (log_u - centre[..., None])
    near = torch.log1p((eta * x.clamp(-1, 1).expm1()).sum(-1))
    far = (eta.log() + x).logsumexp(-1)
    near_enough = torch.where(eta > 0, x.abs(), 0.0).amax(-1) < 1
    return centre + torch.where(near_enough, near, far) / p


def _by_rank(u: Tensor, rank_weights: Tensor | None) -> Tensor:
    """Rank weights, worst first, at the places of their groups; the first of equals ranks lower."""
    assert rank_weights is not None
    order = torch.argsort(u, dim=-1, stable=True)
    return torch.zeros_like(u).scatter(-1, order, rank_weights.to(u.dtype).expand_as(u))


def _cvar(u: Tensor, eta: Tensor, alpha: float) -> Tensor:
    """The smallest utilities filled up to eta / alpha until the mass is one."""
    order = torch.argsort(u, dim=-1, stable=True)
    cap = eta.gather(-1, order) / alpha
    mass = torch.minimum(cap, (1 - (cap.cumsum(-1) - cap)).clamp_min(0))
    return torch.zeros_like(u).scatter(-1, order, mass)


def _tv_ball(u: Tensor, eta: Tensor, radius: float) -> Tensor:
    """Mass moved from the largest utilities to the smallest."""
    worst = u == u.amin(-1, keepdim=True)
    moved = (1 - torch.where(worst, eta, 0.0).sum(-1, keepdim=True)).clamp(0, radius)
    order = torch.argsort(u, dim=-1, descending=True, stable=True)
    held = eta.gather(-1, order)
    taken = torch.minimum(held, (moved - (held.cumsum(-1) - held)).clamp_min(0))
    q = torch.zeros_like(u).scatter(-1, order, held - taken)
    return q.scatter_add(-1, _first_min(u), taken.sum(-1, keepdim=True))


def _worst_supported(u: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Utilities above the worst group that has a share (0 without a share), those worst groups, their mass."""
    low = torch.where(eta > 0, u, math.inf).amin(-1, keepdim=True)
    above = torch.where(eta > 0, u - low, 0.0)
    worst = (eta > 0) & (above == 0)
    return above, worst, torch.where(worst, eta, 0.0).sum(-1, keepdim=True)


def _chi2_ball(u: Tensor, eta: Tensor, radius: float) -> Tensor:
    """q ∝ eta (t - u)_+: the root t in closed form, by the number of groups below it."""
    above, worst, mass_worst = _worst_supported(u, eta)
    # Groups without a share go last, where they change no prefix.
    place = torch.where(eta > 0, above, above.amax(-1, keepdim=True))
    x, order = place.sort(dim=-1, stable=True)
    share = eta.gather(-1, order)
    mass = share.cumsum(-1)
    mass = mass / mass[..., -1:]
    mean = (share * x).cumsum(-1) / mass.clamp_min(torch.finfo(u.dtype).tiny)
    before = torch.nn.functional.pad(mean[..., :-1], (1, 0))
    spread = (share * (x - before) * (x - mean)).cumsum(-1)  # mass times variance of each prefix
    room = mass * radius - (1 - mass)
    # 1 / (t - mean); at radius 0 it vanishes and the ball is a point.
    slope = (room * mass / spread.clamp_min(torch.finfo(u.dtype).tiny)).clamp_min(0).sqrt()
    following = torch.nn.functional.pad(x[..., 1:], (0, 1), value=math.inf)
    fits = (room > 0) & (slope * (following - mean) >= 1)
    last = torch.arange(u.shape[-1], device=u.device) == u.shape[-1] - 1
    first = (fits | last).to(torch.int8).argmax(-1, keepdim=True)
    q = eta * (1 + slope.gather(-1, first) * (mean.gather(-1, first) - above)).clamp_min(0)
    q = q / q.sum(-1, keepdim=True)
    corner = torch.where(worst, eta, 0.0) / mass_worst
    return torch.where(mass_worst * (1 + radius) >= 1, corner, q)


def _kl_ball(u: Tensor, eta: Tensor, radius: float, floor: Tensor | None) -> Tensor:
    """q = max(floor, c eta exp(-u / tau)): bisection on log tau, c in closed form for each."""
    if radius == 0:
        return eta
    above, worst, _ = _worst_supported(u, eta)

    def normalised(tilted: Tensor) -> Tensor:
        if floor is None:
            return tilted / tilted.sum(-1, keepdim=True)
        # Groups leave their floor in the order of floor / tilted.
        ratio, order = torch.where(tilted > 0, floor / tilted, math.inf).sort(dim=-1, stable=True)
        lifted = floor.gather(-1, order).cumsum(-1) + (1 - floor.sum(-1, keepdim=True))
        scale = lifted / tilted.gather(-1, order).cumsum(-1)
        following = torch.nn.functional.pad(ratio[..., 1:], (0, 1), value=math.inf)
        first = (scale <= following).to(torch.int8).argmax(-1, keepdim=True)
        return torch.maximum(floor, tilted * scale.gather(-1, first))

    def divergence(q: Tensor) -> Tensor:
        # As a sum of terms >= 0, which keeps its digits near zero.
        excess = torch.where(eta > 0, q / eta, 1.0) - 1
        term = torch.special.xlog1py(1 + excess, excess) - excess
        return (eta * term).sum(-1, keepdim=True)

    corner = normalised(torch.where(worst, eta, 0.0))
    if math.isinf(radius):
        return corner
    span = above.amax(-1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    # By Hoeffding's lemma the divergence is at most span^2 / (8 tau^2).
    low, high = (span * 1e-18).log(), (span * (4 / math.sqrt(radius))).log()
    for _ in range(72):
        middle = (low + high) / 2
        outside = divergence(normalised(eta * (-above / middle.exp()).exp())) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    q = normalised(eta * (-above / high.exp()).exp())
    return torch.where(divergence(corner) <= radius, corner, q)


def _present(rewards: Tensor, mask: Tensor | None) -> Tensor:
    present = ~rewards.isnan()
    return present if mask is None else present & mask


def maxmin_reduce(
    rewards: Tensor,
    kind: str,
    mask: Tensor | None = None,
    running: Tensor | None = None,
    group_weights: Tensor | None = None,
    rank_weights: Tensor | None = None,
    floor: Tensor | None = None,
    param: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group means of what is there (running estimates for groups that are not), then `welfare`."""
    acc = accumulation_dtype(rewards)
    present = _present(rewards, mask)
    count = present.sum(0)
    total = torch.where(present, rewards.to(acc), 0.0).sum(0)
    absent = torch.full_like(total, math.nan) if running is None else running.to(acc)
    utilities = torch.where(count > 0, total / count, absent)
    value, weights = welfare(utilities, kind, group_weights, rank_weights, floor, param)
    return value, weights, utilities


def maxmin_reduce_bwd(
    grad_value: Tensor,
    grad_utilities: Tensor,
    rewards: Tensor,
    mask: Tensor | None,
    weights: Tensor,
) -> Tensor:
    """Gradient by the rewards: that of the group's utility, spread over the rewards that are there."""
    present = _present(rewards, mask)
    by_utility = (grad_value * weights + grad_utilities) / present.sum(0)
    return torch.where(present, by_utility, 0.0).to(rewards.dtype)


def maxmin_advantages(
    rewards: Tensor, weights: Tensor, scale: str, leave_one_out: bool, eps: float
) -> Tensor:
    """Weighted sum over groups of rewards less their mean at the prompt, (P, S, K) to (P, S)."""
    acc = accumulation_dtype(rewards)
    there = ~rewards.isnan()
    r = torch.where(there, rewards.to(acc), 0.0)
    count = there.sum(1, keepdim=True).to(acc)  # a ratio of integers would be a float32
    centred = torch.where(there, r - r.sum(1, keepdim=True) / count.clamp_min(1), 0.0)
    deviation = centred
    if leave_one_out:
        centred = centred * (count / (count - 1).clamp_min(1))
    if scale == "group":
        spread = (deviation.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
        centred = centred / (spread + eps)
    advantages = (centred * weights.to(acc)).sum(-1)
    if scale in ("prompt", "batch"):
        squares = (deviation * weights.to(acc)).sum(-1).square().sum(1, keepdim=True)
        freedom = (there.any(-1).sum(1, keepdim=True) - 1).clamp_min(0)
        if scale == "batch":
            squares, freedom = squares.sum(0, keepdim=True), freedom.sum(0, keepdim=True)
        advantages = advantages / ((squares / freedom.clamp_min(1)).sqrt() + eps)
    return advantages

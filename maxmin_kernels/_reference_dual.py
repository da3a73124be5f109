"""MaxMin by its dual in plain PyTorch: (13)-(15) of section 4 from samples of the reference policy.

An interior-point Newton method. Two things are let down together: the weight ``mu`` of a logarithmic barrier that keeps
the weights positive (the gap at its minimiser is at most ``K mu``), and the KL strength itself, from one at which the
dual is nearly quadratic to the one asked for, since for a small strength the dual is nearly piecewise linear and
Newton's method only works near its solution. Everything is a tensor on the rewards' device: nothing waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class DualSolution(NamedTuple):
    """What `maxmin_dual` yields, all in float64."""

    weights: Tensor  # (K,): w* of (14)
    value: Tensor  # (): D(w*)
    utilities: Tensor  # (K,): g_k, expected rewards under the policy of (14), without the KL term
    gap: Tensor  # (): (15)
    ess: Tensor  # (P,): effective number of samples behind the policy at each prompt


@dataclass(frozen=True)
class Samples:
    """Rewards less their mean at the prompt, which keeps digits when offsets are large."""

    rewards: Tensor  # (P, S, K), 0 where not there
    there: Tensor  # (P, S)
    count: Tensor  # (P,) at least 1
    share: Tensor  # (P,) weight of a prompt: equal, 0 without samples
    offset: Tensor  # (K,) mean over prompts of what was taken off

    def policy(self, score: Tensor, beta: Tensor | float) -> Tensor:
        """(14): softmax over a prompt's samples of score / beta, (P, S, ...)."""
        there = self.there.view(*self.there.shape, *[1] * (score.dim() - 2))
        top = torch.where(there, score, -torch.inf).amax(1, keepdim=True)
        z = torch.where(there, ((score - top) / beta).exp(), 0.0)
        return z / z.sum(1, keepdim=True).clamp_min(1)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over prompts, (P, ...) to (...)."""
        return torch.tensordot(self.share, values, dims=1)

    def utilities(self, policy: Tensor) -> Tensor:
        return self.mean((policy[:, None] @ self.rewards)[:, 0]) + self.offset

    def value(self, weights: Tensor, beta: float) -> Tensor:
        """D of (13), accurate for large beta too (log1p and expm1)."""
        score = self.rewards @ weights
        top = torch.where(self.there, score, -torch.inf).amax(1)
        top = torch.where(self.share > 0, top, 0.0)
        x = torch.where(self.there, ((score - top[:, None]) / beta).expm1(), 0.0)
        return self.mean(top + beta * torch.log1p(x.sum(1) / self.count)) + self.offset @ weights


def samples_of(rewards: Tensor) -> Samples:
    r = rewards.double()
    there = ~r.isnan().any(-1)
    r = torch.where(there[..., None], r, 0.0)
    count = there.sum(1)
    used = (count > 0).to(r.dtype)
    share = used / used.sum()
    mean = r.sum(1) / count.clamp_min(1)[:, None]
    centred = torch.where(there[..., None], r - mean[:, None], 0.0)
    return Samples(centred, there, count.clamp_min(1), share, share @ mean)


def _gap(weights: Tensor, utilities: Tensor) -> Tensor:
    """(15) as a sum of terms >= 0."""
    return (weights * (utilities - utilities.amin())).sum()


def maxmin_dual(
    rewards: Tensor, beta: float, weights: Tensor | None, tol: float, max_iter: int
) -> DualSolution:
    """(13)-(15); with ``weights`` nothing is solved, they are evaluated."""
    if rewards.numel() == 0:
        nothing = rewards.new_full((rewards.shape[2],), torch.nan, dtype=torch.float64)
        one = nothing.new_full((), torch.nan)
        return DualSolution(nothing, one, nothing, one, nothing.new_zeros(rewards.shape[0]))
    samples = samples_of(rewards)
    w = solve(samples, beta, tol, max_iter) if weights is None else weights.double()
    policy = samples.policy(samples.rewards @ w, beta)
    utilities = samples.utilities(policy)
    ess = 1 / policy.square().sum(1)
    ess = torch.where(samples.share > 0, ess, 0.0)
    return DualSolution(w, samples.value(w, beta), utilities, _gap(w, utilities), ess)


def maxmin_dual_bwd(grad_value: Tensor, rewards: Tensor, weights: Tensor, beta: float) -> Tensor:
    """Gradient of D(w*) by the rewards: by Danskin w* counts as fixed."""
    if rewards.numel() == 0:
        return torch.zeros_like(rewards)
    samples = samples_of(rewards)
    policy = samples.policy(samples.rewards @ weights, beta) * samples.share[:, None]
    grad = grad_value * policy[..., None] * weights
    return torch.where(samples.there[..., None], grad, 0.0).to(rewards.dtype)


def _newton_direction(
    w: Tensor, utilities: Tensor, around: Tensor, mu: Tensor
) -> tuple[Tensor, Tensor]:
    """Relative step z (the step is w z, of sum 0) and its decrement, for D - mu sum log w on the simplex.

    ``around`` (n, K) is a root of the Hessian. Everything is projected on w z = 0 first: a multiplier eliminated
    afterwards would cost the digits on which the last of the gap depends.
    """
    unit = w / w.square().sum().sqrt()
    root = around * w
    root = root - (root @ unit)[:, None] * unit
    matrix = root.T @ root + mu * torch.eye(len(w), dtype=w.dtype, device=w.device)
    downhill = w * (unit @ (unit * utilities) - utilities) + mu * (1 - unit * unit.sum())
    # cholesky_ex and not solve, which waits for the device to see whether it went well.
    factor, _ = torch.linalg.cholesky_ex(matrix)
    z = torch.cholesky_solve(downhill[:, None], factor)[:, 0]
    z = z - unit * (unit @ z)
    return z, (z @ downhill).clamp_min(0)


def solve(samples: Samples, beta: float, tol: float, max_iter: int) -> Tensor:
    r, there = samples.rewards, samples.there[..., None]
    n_groups = r.shape[-1]
    w = torch.full((n_groups,), 1 / n_groups, dtype=r.dtype, device=r.device)
    if n_groups == 1:
        return w
    span = (r.amax(1) - r.amin(1)).amax()
    scale = span + samples.offset.amax() - samples.offset.amin()
    scale = torch.where(scale > 0, scale, 1.0)
    # A barrier below the rounding error of the utilities would chase noise where the dual is flat.
    noise = 2 * torch.finfo(r.dtype).eps * span * (1 + span / beta)
    mu_end = (1e-11 * scale).clamp_max(tol / (10 * n_groups)).maximum(noise)
    mu = (0.1 * scale).maximum(mu_end)
    strength = span.clamp_min(beta)
    halvings = 2.0 ** -torch.arange(12, dtype=r.dtype, device=r.device)
    best_w, best_gap = w, torch.full_like(mu, torch.inf)
    for _ in range(max_iter):
        score = r @ w
        policy = samples.policy(score, strength)
        by_prompt = (policy[:, None] @ r)[:, 0]
        utilities = samples.mean(by_prompt) + samples.offset
        gap = _gap(w, utilities)
        arrived = strength == beta
        better = arrived & (gap < best_gap)
        best_w, best_gap = torch.where(better, w, best_w), torch.where(better, gap, best_gap)
        weight = (policy * samples.share[:, None] / strength).sqrt()[..., None]
        around = (weight * torch.where(there, r - by_prompt[:, None], 0.0)).flatten(0, 1)
        z, decrement = _newton_direction(w, utilities, around, mu)
        # Along the step the slope of a convex function: the step is where it is nearest to zero.
        steps = (0.99 / (-z).amax().clamp_min(0.99)) * halvings
        pull = r @ (w * z)
        moved = samples.policy(score[..., None] + pull[..., None] * steps, strength)
        slope = samples.mean((pull[:, None] @ moved)[:, 0]) + samples.offset @ (w * z)
        slope = slope - mu * (z[:, None] / (1 + z[:, None] * steps)).sum(0)
        step = steps[slope.abs().argmin()]
        w = w * (1 + step * z)
        w = w / w.sum()
        near = (decrement <= 0.1 * mu) & (pull.abs().amax() <= 0.5 * strength)
        finished = arrived & (mu == mu_end) & (decrement <= 1e-6 * mu) & (best_gap <= 0.1 * tol)
        mu = torch.where(near, (0.1 * mu).maximum(mu_end), mu)
        strength = torch.where(near, (0.25 * strength).clamp_min(beta), strength)
        # On a CPU there is no device to wait for.
        if finished.device.type == "cpu" and bool(finished | gap.isnan()):
            break
    return without_traces(samples, torch.where(best_gap < torch.inf, best_w, w), beta, tol)


def without_traces(samples: Samples, w: Tensor, beta: float, tol: float) -> Tensor:
    """An interior point never reaches zero: do it where the certificate is no worse for it."""
    clean = torch.where(w < 1e-7, 0.0, w)
    clean = clean / clean.sum()
    gaps = [
        _gap(v, samples.utilities(samples.policy(samples.rewards @ v, beta))) for v in (clean, w)
    ]
    return torch.where(gaps[0] <= gaps[1] + 1e-9 * tol, clean, w)

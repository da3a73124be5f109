"""MaxMin by its dual, (13)-(15), without a look from the host: two launches a step, at most 24 steps before one.

    evaluate    a range of prompts a program: gradient (K,) and Hessian (K, K) of the dual, added up in order
    advance     one program: judges the last step, solves K equations, takes the next

A primal-dual interior-point method: Newton's for "weight times slack of each group = mu" (slacks are what the utilities
lie above the worst), with mu let down from step to step. The KL strength is let down as well, from one at which the dual
is nearly quadratic to the one asked for. About a dozen steps are usual. Where the rewards span thousands of times beta it
may not arrive: then the plain method, which is slower and does, is asked.

What passes between launches is one float64 vector, ``state``: five rows of BLOCK_K, then the scalars named below.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels import _reference_dual as reference
from maxmin_kernels._reference_dual import Samples

STEPS = 24  # between looks of the host
PROGRAMS = 128
# Scalars behind the rows w, base, z, slack and best_w.
SCALARS = ("strength", "mu", "step", "slope", "centring", "cuts", "best_gap", "stale", "done", "beta", "tol", "mu_end")  # fmt: skip


@triton.jit
def _evaluate_kernel(
    r_ptr,
    there_ptr,
    share_ptr,
    state_ptr,
    part_ptr,
    P,
    S,
    K,
    each,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    done = tl.load(state_ptr + 5 * BLOCK_K + 8)
    if done != 0.0:
        return
    program = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    k = tl.arange(0, BLOCK_K)
    w = tl.load(state_ptr + k)[None, None, :]
    moving = w - tl.load(state_ptr + BLOCK_K + k)[None, None, :]
    strength = tl.load(state_ptr + 5 * BLOCK_K)
    gradient = tl.zeros((BLOCK_P, BLOCK_K), tl.float64)
    hessian = tl.zeros((BLOCK_K, BLOCK_K), tl.float64)
    moved = tl.zeros((BLOCK_P, BLOCK_S), tl.float64)
    end = tl.minimum(program * each + each, P)
    for p0 in tl.range(program * each, end, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        row = p[:, None] * S + s[None, :]
        real = (p < end)[:, None] & (s < S)[None, :]
        there = tl.load(there_ptr + row, mask=real, other=0.0) != 0.0
        share = tl.load(share_ptr + p, mask=p < end, other=0.0)
        here = there[:, :, None] & (k < K)[None, None, :]
        r = tl.load(r_ptr + row[:, :, None] * K + k[None, None, :], mask=here, other=0.0)
        score = tl.where(there, tl.sum(r * w, 2), float("-inf"))
        top = tl.max(score, 1)
        top = tl.where(top == float("-inf"), 0.0, top)
        policy = tl.exp((score - top[:, None]) / strength)
        policy = policy / tl.maximum(tl.sum(policy, 1), 1.0)[:, None]
        mean = tl.sum(policy[:, :, None] * r, 1)
        root = tl.sqrt(policy * share[:, None] / strength)
        around = tl.where(here, root[:, :, None] * (r - mean[:, None, :]), 0.0)
        around = tl.reshape(around, (BLOCK_P * BLOCK_S, BLOCK_K))
        hessian = tl.dot(tl.trans(around), around, hessian, out_dtype=tl.float64)
        gradient += share[:, None] * mean
        moved = tl.maximum(moved, tl.abs(tl.sum(r * moving, 2)))
    out = part_ptr + program * (BLOCK_K * BLOCK_K + BLOCK_K + 1)
    tl.store(out + k[:, None] * BLOCK_K + k[None, :], hessian)
    tl.store(out + BLOCK_K * BLOCK_K + k, tl.sum(gradient, 0))
    tl.store(out + BLOCK_K * BLOCK_K + BLOCK_K, tl.max(tl.max(moved, 1), 0) / strength)


@triton.jit
def _longest(begin, bend, mu, z, most):
    """The longest of 64 steps at which the slope ``begin + bend t`` less the barrier's is not yet positive."""
    steps = most * (tl.arange(0, 64) + 1).to(tl.float64) / 64.0
    barrier = tl.sum(z[None, :] / (1.0 + steps[:, None] * z[None, :]), 1)
    good = begin + bend * steps - mu * barrier <= 0.0
    return tl.max(tl.where(good, steps, most / 64.0), 0)


@triton.jit
def _to_boundary(relative):
    """The longest step, 1 at most, after which ``x (1 + step relative)`` keeps half a percent of every x."""
    return 0.995 / tl.maximum(tl.max(-relative, 0), 0.995)


@triton.jit
def _direction(w, utilities, hessian, slack, mu, here, k, K):
    """Relative step z (the step is ``w z``, of sum 0) towards the central path at ``mu``, and z' W H W z.

    Everything is projected on w z = 0 first: a multiplier eliminated afterwards would cost the digits on which the last
    of the gap depends.
    """
    unit = w / tl.sqrt(tl.sum(w * w, 0))
    curvature = w[:, None] * hessian * w[None, :]
    diagonal = k[:, None] == k[None, :]
    trace = tl.sum(tl.sum(tl.where(diagonal, curvature, 0.0), 1), 0)
    # No less than what rounding leaves of the curvature: the equations must have a solution.
    product = tl.where(here, tl.maximum(w * slack, 1e-15 * trace), 1.0)
    matrix = curvature + tl.where(diagonal, product[:, None], 0.0)
    along = tl.sum(matrix * unit[None, :], 1)  # the matrix is symmetric
    twice = tl.sum(along * unit, 0)
    level = tl.sum(tl.where(here, product, 0.0), 0) / K
    matrix = matrix - unit[:, None] * along[None, :] - along[:, None] * unit[None, :]
    matrix += (twice + level) * unit[:, None] * unit[None, :]
    rhs = w * (tl.sum(unit * unit * utilities, 0) - utilities) + mu * (1.0 - unit * tl.sum(unit, 0))
    rhs = tl.where(here, rhs, 0.0)
    for j in tl.range(0, K):
        at = k == j
        row = tl.sum(tl.where(at[:, None], matrix, 0.0), 0)
        column = tl.sum(tl.where(at[None, :], matrix, 0.0), 1)
        pivot = tl.sum(tl.where(at, row, 0.0), 0)
        factor = tl.where(at, 0.0, column / pivot)
        rhs -= factor * tl.sum(tl.where(at, rhs, 0.0), 0)
        matrix -= factor[:, None] * row[None, :]
    z = tl.where(here, rhs / tl.sum(tl.where(diagonal, matrix, 0.0), 1), 0.0)
    z = tl.where(here, z - unit * tl.sum(unit * z, 0), 0.0)
    return z, tl.sum(tl.sum(curvature * z[None, :], 1) * z, 0)


@triton.jit
def _advance_kernel(
    part_ptr,
    offset_ptr,
    state_ptr,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    scalars = state_ptr + 5 * BLOCK_K
    done = tl.load(scalars + 8)
    if done != 0.0:
        return
    k = tl.arange(0, BLOCK_K)
    here = k < K
    n = tl.arange(0, BLOCK_N)
    both = tl.arange(0, BLOCK_K * BLOCK_K)
    size = BLOCK_K * BLOCK_K + BLOCK_K + 1
    hessian = tl.zeros((BLOCK_K * BLOCK_K,), tl.float64)
    utilities = tl.load(offset_ptr + k, mask=here, other=0.0)
    moved = tl.zeros((1,), tl.float64)
    for n0 in tl.range(0, N, BLOCK_N):
        part = part_ptr + (n0 + n).to(tl.int64)[:, None] * size
        inside = (n0 + n < N)[:, None]
        hessian += tl.sum(tl.load(part + both[None, :], mask=inside, other=0.0), 0)
        part += BLOCK_K * BLOCK_K
        utilities += tl.sum(tl.load(part + k[None, :], mask=inside, other=0.0), 0)
        far = tl.load(part + BLOCK_K + tl.zeros((1,), tl.int32)[None, :], mask=inside, other=0.0)
        moved = tl.maximum(moved, tl.max(far, 0))
    moved = tl.max(moved, 0)
    hessian = tl.reshape(hessian, (BLOCK_K, BLOCK_K))

    w, base = tl.load(state_ptr + k), tl.load(state_ptr + BLOCK_K + k)
    z, slack = tl.load(state_ptr + 2 * BLOCK_K + k), tl.load(state_ptr + 3 * BLOCK_K + k)
    strength, mu = tl.load(scalars), tl.load(scalars + 1)
    step, slope = tl.load(scalars + 2), tl.load(scalars + 3)
    centring, cuts = tl.load(scalars + 4), tl.load(scalars + 5)
    best_gap, stale = tl.load(scalars + 6), tl.load(scalars + 7)
    beta, tol, mu_end = tl.load(scalars + 9), tl.load(scalars + 10), tl.load(scalars + 11)

    worst = tl.min(tl.where(here, utilities, float("inf")), 0)
    gap = tl.sum(tl.where(here, w * (utilities - worst), 0.0), 0)
    arrived = strength == beta
    stale = tl.where(arrived & (gap > 0.9 * best_gap), stale + 1.0, 0.0)
    better = arrived & (gap < best_gap)
    tl.store(state_ptr + 4 * BLOCK_K + k, w, mask=better)
    best_gap = tl.where(better, gap, best_gap)
    finished = (best_gap <= 0.1 * tol) | (stale >= 12.0) | (gap != gap)

    # If the slope has turned, the step was too long: how long it should have been tell both ends.
    end = tl.sum(base * z * utilities, 0)
    after = end - mu * tl.sum(z / (1.0 + z * step), 0)
    again = (after > 0.5 * tl.abs(slope - mu * tl.sum(z, 0))) & (cuts < 8.0)
    shorter = _longest(slope, (end - slope) / step, mu, z, step)
    # Else the next step: as long as the dual's curvature and the boundary of the simplex allow.
    floor = tl.where(arrived, mu_end, 0.03 * strength)
    next_mu = tl.maximum(centring * tl.sum(w * slack, 0) / K, floor)
    next_z, bend = _direction(w, utilities, hessian, slack, next_mu, here, k, K)
    next_slope = tl.sum(w * next_z * utilities, 0)
    next_step = _longest(next_slope, bend, next_mu, next_z, _to_boundary(next_z))
    # Logits that move by more than 3 (root mean square) leave the range of the quadratic model.
    moves = next_step * tl.sqrt(bend / strength)
    next_step = next_step * tl.minimum(3.0 / tl.maximum(moves, 1e-300), 1.0)
    safe = tl.where(here, w, 1.0)
    relative = tl.where(here, next_mu / (safe * slack) - 1.0 - next_z, 0.0)
    slack_step = _to_boundary(relative)
    path = next_mu / (safe * (1.0 + next_step * next_z))
    next_slack = slack * (1.0 + slack_step * relative)
    next_slack = tl.minimum(tl.maximum(next_slack, 1e-3 * path), 1e3 * path)
    full = tl.minimum(next_step, slack_step)
    next_centring = tl.where(full > 0.8, 0.03, tl.where(full > 0.4, 0.25, 0.5))
    # Where the last step stayed within the model's range, a weaker penalty may not be far.
    easing = tl.where(moved <= 0.25, 0.25, tl.where(moved <= 1.0, 0.5, 1.0))
    weaker = tl.maximum(easing * strength, beta)
    # Slopes at two strengths do not compare.
    next_cuts = tl.where(weaker == strength, 0.0, 9.0)

    base, z = tl.where(again, base, w), tl.where(again, z, next_z)
    step = tl.where(again, shorter, next_step)
    w = base * (1.0 + step * z)
    w = w / tl.sum(w, 0)
    tl.store(state_ptr + k, w)
    tl.store(state_ptr + BLOCK_K + k, base)
    tl.store(state_ptr + 2 * BLOCK_K + k, z)
    tl.store(state_ptr + 3 * BLOCK_K + k, tl.where(again, slack, next_slack))
    tl.store(scalars, tl.where(again, strength, weaker))
    tl.store(scalars + 1, tl.where(again, mu, next_mu))
    tl.store(scalars + 2, step)
    tl.store(scalars + 3, tl.where(again, slope, next_slope))
    tl.store(scalars + 4, tl.where(again, centring, next_centring))
    tl.store(scalars + 5, tl.where(again, cuts + 1.0, next_cuts))
    tl.store(scalars + 6, best_gap)
    tl.store(scalars + 7, stale)
    tl.store(scalars + 8, tl.where(finished, 1.0, 0.0))


def _start(samples: Samples, beta: float, tol: float, block_k: int) -> Tensor:
    """The state before the first step, made on the device."""
    r = samples.rewards
    n_groups = r.shape[2]
    span = (r.amax(1) - r.amin(1)).amax()
    scale = span + samples.offset.amax() - samples.offset.amin()
    scale = torch.where(scale > 0, scale, 1.0)
    # Products below the rounding error of the utilities would chase noise where the dual is flat.
    noise = torch.finfo(r.dtype).eps * span * (1 + span / beta)
    values: dict[str, Tensor | float] = {
        "strength": span.clamp_min(beta),
        "mu_end": (0.5 * noise).clamp_min(0.02 * tol / n_groups),
        "step": 1.0,
        "centring": 0.5,
        "cuts": 9.0,
        "best_gap": torch.inf,
        "beta": beta,
        "tol": tol,
    }
    state = r.new_zeros(5 * block_k + len(SCALARS))
    rows = state[: 5 * block_k].view(5, block_k)
    rows[:2, :n_groups] = 1 / n_groups
    rows[3, :n_groups] = 0.1 * n_groups * scale
    rows[3, n_groups:] = 1.0
    rows[4, :n_groups] = 1 / n_groups
    for name, value in values.items():
        state[5 * block_k + SCALARS.index(name)] = value
    return state


def _steps(samples: Samples, state: Tensor, block_k: int, number: int) -> None:
    # As numbers: Triton lays out a product of float64 by the narrowest load behind it, and has none for bytes.
    r, there = samples.rewards.contiguous(), samples.there.to(samples.rewards)
    n_prompts, n_samples, n_groups = r.shape
    block_s = max(2, triton.next_power_of_2(n_samples))
    block_p = max(1, triton.cdiv(16, block_s), 1024 // (block_s * block_k))
    each = triton.cdiv(triton.cdiv(n_prompts, PROGRAMS), block_p) * block_p
    programs = triton.cdiv(n_prompts, each)
    parts = r.new_empty(programs, block_k * block_k + block_k + 1)
    for _ in range(number):
        _evaluate_kernel[(programs,)](
            r,
            there,
            samples.share,
            state,
            parts,
            n_prompts,
            n_samples,
            n_groups,
            each,
            BLOCK_P=block_p,
            BLOCK_S=block_s,
            BLOCK_K=block_k,
            num_warps=8,
        )
        _advance_kernel[(1,)](
            parts,
            samples.offset,
            state,
            programs,
            n_groups,
            BLOCK_N=max(1, 8192 // block_k**2),
            BLOCK_K=block_k,
            num_warps=8,
        )


def _solve(samples: Samples, beta: float, tol: float, max_iter: int) -> Tensor:
    """(K,) the weights. Waits for the device only after 24 steps that did not suffice, never in a graph's capture."""
    n_groups = samples.rewards.shape[2]
    block_k = max(16, triton.next_power_of_2(n_groups))
    state = _start(samples, beta, tol, block_k)
    scalars = state[5 * block_k :]
    captured = samples.rewards.is_cuda and torch.cuda.is_current_stream_capturing()
    with torch.cuda.device_of(samples.rewards):
        _steps(samples, state, block_k, min(max_iter, STEPS))
        best = state[4 * block_k : 4 * block_k + n_groups]
        if not captured and max_iter > STEPS:
            if not bool(scalars[SCALARS.index("done")]):
                _steps(samples, state, block_k, min(max_iter - STEPS, STEPS))
            if not bool(scalars[SCALARS.index("best_gap")] <= tol):
                return reference.solve(samples, beta, tol, max_iter)
    return reference.without_traces(samples, best, beta, tol)


def maxmin_dual_fwd(
    rewards: Tensor, beta: float, weights: Tensor | None, tol: float, max_iter: int
) -> tuple[Tensor, ...]:
    """As the schema says."""
    if weights is None and rewards.numel() and rewards.shape[2] > 1:
        weights = _solve(reference.samples_of(rewards), beta, tol, max_iter)
    solution = reference.maxmin_dual(rewards, beta, weights, tol, max_iter)
    # An op may not hand out its own input, nor one tensor twice.
    return tuple(t.clone() for t in solution)

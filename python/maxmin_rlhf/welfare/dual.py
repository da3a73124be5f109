"""The best policy from samples: the weights, the policy and a certificate (section 4 of docs/math.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from maxmin_kernels import functional
from maxmin_rlhf.welfare.homogeneous import minimise_homogeneous
from maxmin_rlhf.welfare.newton import minimise
from maxmin_rlhf.welfare.objectives import HOMOGENEOUS, KINDS, Objective
from maxmin_rlhf.welfare.problem import Problem, pose, positive
from maxmin_rlhf.welfare.shards import Moments
from maxmin_rlhf.welfare.solution import Solution, warn
from maxmin_rlhf.welfare.weight_sets import weight_set

Array = NDArray[np.float64]
# For parity with public code; no dual, and so no weights and no certificate.
_OF_SINGLE_SAMPLES = ("per_sample_min", "batch_argmin")
OBJECTIVES = (*KINDS, *_OF_SINGLE_SAMPLES)


def solve_maxmin(
    rewards: Any,
    beta: float,
    *,
    objective: str = "maxmin",
    group_weights: Any = None,
    tau: float | None = None,
    p: float | None = None,
    alpha: float | None = None,
    radius: float | None = None,
    floor: Any = None,
    rank_weights: Any = None,
    min_mass: float = 0.0,
    calibrate: str | None = "center",
    fresh: Any = None,
    tol: float = 1e-6,
    process_group: dist.ProcessGroup | None = None,
) -> Solution:
    """The policy that is best for the worst-off group, or by another welfare, from samples of the reference policy.

    Maximises ``min_k E r_k - beta KL(policy ‖ reference)`` over policies that put weight on the samples given, by its
    dual in the K weights. The minimum is over *expected* rewards: groups may take turns. The samples of a prompt count
    alike, as draws from the reference policy or as a menu that it chooses from evenly.

    Where the weights are not unique (two groups that agree) a middle one is given; the policy is unique. A group that
    is better off than others under every policy that is best for them has weight 0. Where one group has all the
    weight the policy is that group's own best, and there is nothing to trade off.

    Args:
        rewards: ``(P, S, K)`` rewards of S samples at P prompts for K groups, NumPy or torch (solved on its device). A
            sample with a NaN for any group is left out, and so is a prompt without any sample left. Or shards of
            prompts, ``(P_i, S_i, K)`` each, read once a pass (some 30 passes): a list or other iterable of arrays, or
            a function that yields them anew at each call.
        beta: strength of the KL penalty, > 0, in units of calibrated reward.
        objective: ``"maxmin"``, or another welfare of the groups' utilities (KL term included): ``"mean"``,
            ``"softmin"`` (tau), ``"nash"``, ``"power"`` (p), ``"cvar"`` (alpha: caps weights at share / alpha),
            ``"owa"`` (rank_weights), ``"kl"``, ``"chi2"``, ``"tv"`` (radius: the worst case over shares in a ball),
            ``"floor"`` (floor, radius or none: the worst case over shares above a floor), ``"leximin"``; they and
            their parameters are those of `maxmin_kernels.welfare`. With a KL penalty the MaxMin policy is
            unique, so leximin's next step, raising the second worst without harm to the worst, has no room: it is the
            same policy.
            ``"per_sample_min"``: the best for ``E min_k r_k``, what public MaxMin code trains on. It holds every
            sample to its worst group and leaves the worst-off group worse off than ``"maxmin"``. ``"batch_argmin"``:
            at each prompt the best for the group whose raw rewards there are lowest on average, which offsets
            decide. Both for comparison.
        group_weights: ``(K,)`` shares of the groups; None: equal. Normalised.
        tau, p, alpha, radius, floor, rank_weights: the objective's parameters; rank_weights are normalised.
        min_mass: groups with a smaller share are left out; the result and a warning name them.
        calibrate: how rewards are made comparable first, see `maxmin_rlhf.reward.calibrate`; None: they are.
        fresh: a second sample like ``rewards``, on which the gap is computed as well.
        tol: the gap aimed at, as a share of the value, or of the rewards' spread where that is larger.
        process_group: ranks of torch.distributed that hold other prompts each: sums go over all of them, and all get the
            same weights, value and gap.

    Returns:
        A `Solution` of NumPy arrays and floats.

    Raises:
        ValueError, TypeError: rewards of another shape, infinite ones, no usable sample, a group without any reward, a
            parameter out of range; ``nash`` or ``power`` where no policy has a positive utility for every group.

    Warns:
        UserWarning: the gap stayed above ``tol``; groups or samples were left out; one group alone is the worst off at
            more than 95 % of the samples; or fewer than min(10, S/4) samples are behind the policy at more than a
            tenth of the prompts, so that the certificate, which holds for these samples, says little about others. (No
            matter if the samples are all there is to choose from.)
    """
    beta, tol = positive("beta", beta), positive("tol", tol)
    how = {
        "calibrate": calibrate,
        "group_weights": group_weights,
        "min_mass": min_mass,
        "process_group": process_group,
        "parameters": {
            "tau": tau,
            "p": p,
            "alpha": alpha,
            "radius": radius,
            "floor": floor,
            "rank_weights": rank_weights,
        },
    }
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    certified = objective not in _OF_SINGLE_SAMPLES
    if fresh is not None and not certified:
        raise ValueError(f"fresh: expected None for objective {objective!r}, which has no gap")
    problem = pose(rewards, objective, **how)
    second = None if fresh is None else pose(fresh, objective, **how)
    if second is not None and second.n_groups != problem.n_groups:
        raise ValueError(
            f"fresh: expected {problem.n_groups} groups as in rewards, got {second.n_groups}"
        )
    if certified:
        weights = _solve(problem, beta, tol)
        solution, counts = _evaluate(problem, weights, beta)
    else:
        solution, counts = _of_single_samples(problem, objective, beta)
    if second is not None:
        solution = replace(solution, fresh_gap=_evaluate(second, weights, beta)[0].gap)
    warn(solution, problem.shards, problem.kept, tol, counts)
    return solution


def evaluate_maxmin(
    rewards: Any,
    weights: Any,
    beta: float,
    *,
    objective: str = "maxmin",
    group_weights: Any = None,
    min_mass: float = 0.0,
    calibrate: str | None = "center",
    process_group: dist.ProcessGroup | None = None,
    **parameters: Any,
) -> Solution:
    """What given weights are worth on other samples: the gap here is the honest one, where that of
    `solve_maxmin` is of the samples it was solved on.

    Args:
        rewards: ``(P, S, K)`` or shards as in `solve_maxmin`, fresh ones.
        weights: ``(K,)`` on the simplex, for instance ``solution.weights``.
        beta, objective, group_weights, min_mass, calibrate, process_group: as given to `solve_maxmin`.
        parameters: the objective's, likewise.
    """
    beta = positive("beta", beta)
    if objective not in KINDS:
        raise ValueError(f"objective: expected one of {', '.join(KINDS)}, got {objective!r}")
    problem = pose(
        rewards,
        objective,
        calibrate=calibrate,
        group_weights=group_weights,
        min_mass=min_mass,
        process_group=process_group,
        parameters=parameters,
    )
    w = np.asarray(weights, np.float64)
    if w.shape != (problem.n_groups,):
        raise ValueError(f"weights: expected shape ({problem.n_groups},), got {w.shape}")
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise ValueError(f"weights: expected numbers >= 0, got {w.tolist()}")
    if not abs(w.sum() - 1) <= 1e-6:
        raise ValueError(f"weights: expected a sum of 1, got {w.sum():g}")
    if (w[list(problem.left_out)] > 0).any():
        raise ValueError(f"weights: expected 0 for groups {list(problem.left_out)}, left out")
    return _evaluate(problem, w[problem.kept], beta)[0]


def _solve(problem: Problem, beta: float, tol: float) -> Array:
    """(K',) weights on the simplex."""
    shards, objective = problem.shards, problem.objective
    if objective.kind == "mean":
        return objective.shares
    if objective.counts.sum() == 1:
        return objective.counts.astype(np.float64)
    aim = max(tol * (1.0 if objective.kind == "nash" else shards.spread), 1e-300)
    if objective.kind in HOMOGENEOUS:
        start = _positive_for_all(problem, beta)
        gap = _gap_of(objective)
        return minimise_homogeneous(shards, beta, objective, start, gap, aim)[0]
    if objective.kind == "min" and problem.whole is not None and problem.shards.alone:
        whole = problem.whole[..., problem.kept.tolist()]
        return functional.maxmin_dual(whole, beta, tol=aim).weights.cpu().numpy()
    return minimise(shards, beta, weight_set(objective), _gap_of(objective), aim)[0]


def _gap_of(objective: Objective) -> Callable[[Array, Moments], float]:
    return lambda w, at: objective.gap(w, at.value, at.utilities)


def _positive_for_all(problem: Problem, beta: float) -> Array:
    """(K',) weights of a policy with a positive utility for every group that counts."""
    shards, objective = problem.shards, problem.objective
    counts = objective.counts
    worst_off = Objective("min", objective.shares, counts)
    for tol in (1e-3, 1e-9):
        w, at = minimise(
            shards, beta, weight_set(worst_off), _gap_of(worst_off), tol * shards.spread
        )
        utilities = at.utilities - (w @ at.utilities - at.value)
        if utilities[counts].min() > 0:
            return w
    alone = [shards.moments(one, beta).value for one in np.eye(len(counts))]
    hopeless = [int(k) for k in problem.kept[counts & (np.array(alone) <= 0)]]
    who = f"; groups {hopeless} cannot have one even alone" if hopeless else ""
    raise ValueError(
        f"rewards: expected a policy with a positive utility for every group for {objective.kind!r}, but the worst-off "
        f"group's is {at.value:.3g} at most{who}. Fix where zero is: calibrate='win_rate', or rewards of your own units"
    )


def _evaluate(problem: Problem, w: Array, beta: float) -> tuple[Solution, Array]:
    """What (K',) weights are worth, and how many samples each prompt has."""
    shards, objective = problem.shards, problem.objective
    at = shards.moments(w, beta)
    value = objective.dual(w, at.value)
    gap = 0.0 if objective.kind == "mean" else objective.gap(w, at.value, at.utilities)
    ess, counts = shards.ess(w, beta)
    policy, utilities = np.zeros((0, 0)), problem.scatter(at.utilities, math.nan)
    if problem.whole is not None:
        rewards = problem.whole[..., problem.kept.tolist()]
        policy, worth = _policy(rewards @ torch.as_tensor(w).to(rewards), problem.whole, beta)
        # Those left out have no part in the passes.
        utilities[list(problem.left_out)] = worth[list(problem.left_out)]
    unit = 1.0 if objective.kind == "nash" else shards.spread
    return Solution(
        weights=problem.scatter(w),
        utilities=utilities,
        value=value,
        gap=gap,
        ess=ess,
        policy=policy,
        relative_gap=gap / max(abs(value), unit) if gap else 0.0,
        left_out=problem.left_out,
    ), counts


def _of_single_samples(problem: Problem, objective: str, beta: float) -> tuple[Solution, Array]:
    """What is best for a reward that is made of all groups' sample by sample, or prompt by prompt."""
    if problem.raw is None or problem.whole is None:
        raise ValueError(f"rewards: expected one array for objective {objective!r}, got shards")
    columns = problem.kept.tolist()
    r = problem.whole[..., columns]
    if objective == "per_sample_min":
        score = r.amin(-1)
    else:
        means = problem.raw[..., columns].nanmean(1)
        lowest = torch.where(means.isnan(), torch.inf, means).argmin(1)
        score = r.gather(2, lowest[:, None, None].expand(*r.shape[:2], 1))[..., 0]
        score = torch.where(r.isnan().any(-1), torch.nan, score)
    dual = functional.maxmin_dual(score[..., None], beta)
    policy, utilities = _policy(score, problem.whole, beta)
    return Solution(
        weights=np.full(problem.n_groups, math.nan),
        utilities=utilities,
        value=float(dual.value),
        gap=math.nan,
        ess=dual.ess.cpu().numpy(),
        policy=policy,
        relative_gap=math.nan,
        left_out=problem.left_out,
    ), (~score.isnan()).sum(1).cpu().numpy()


def _policy(score: Tensor, rewards: Tensor, beta: float) -> tuple[Array, Array]:
    """(14): probabilities (P, S) of a score (P, S), NaN left out, and (K,) the mean rewards (P, S, K) under them."""
    usable = ~score.isnan()
    logits = (score - torch.where(usable, score, -torch.inf).amax(1, keepdim=True)) / beta
    policy = torch.where(usable, logits.exp(), 0.0)
    policy = policy / policy.sum(1, keepdim=True).clamp_min(1)
    worth = (policy[..., None] * torch.where(usable[..., None], rewards, 0.0)).sum(1)
    return policy.cpu().numpy(), worth[usable.any(1)].mean(0).cpu().numpy()

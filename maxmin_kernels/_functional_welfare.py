"""The faces of the welfare operations; their names are part of ``maxmin_kernels.functional``."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from maxmin_kernels._checks import (
    accumulation_dtype,
    check_scalar,
    check_tensor,
    validate_finite,
    validate_nonnegative,
)
from maxmin_kernels.ops import call
from maxmin_kernels.reference import DualSolution as DualSolution

# The scalar each kind needs, and its bounds.
_PARAMETERS = {
    "softmin": ("tau", {"low": 0.0, "low_open": True, "high": math.inf, "high_open": True}),
    "power": ("p", {"low_open": True, "high": 1.0}),
    "cvar": ("alpha", {"low": 0.0, "low_open": True, "high": 1.0}),
    "kl": ("radius", {"low": 0.0}),
    "chi2": ("radius", {"low": 0.0, "high_open": True}),
    "tv": ("radius", {"low": 0.0}),
    "floor": ("radius", {"low": 0.0}),
}
_KINDS = (
    *("min", "softmin", "mean", "nash", "power", "cvar"),
    *("owa", "leximin", "kl", "chi2", "tv", "floor"),
)
# A rank's weight in units of the one before: leximin as a number.
_LEXIMIN_RATIO = 1e-3
_SCALES = ("none", "group", "prompt", "batch")


class Welfare(NamedTuple):
    """Welfare of each row of utilities and its gradient by them."""

    value: Tensor  # (...)
    weights: Tensor  # (..., K)


class MaxMinReduction(NamedTuple):
    """Welfare of a batch, its gradient by the groups' utilities, and those."""

    value: Tensor  # ()
    weights: Tensor  # (K,)
    utilities: Tensor  # (K,)


def _shares(group_weights: Tensor | None, n_groups: int, like: Tensor) -> Tensor | None:
    """Shares that sum to one, in float64: radii are compared with their logarithms."""
    if group_weights is None:
        return None
    check_tensor("group_weights", group_weights, (n_groups,), device=like.device)
    shares = group_weights.detach().double()
    return shares / shares.sum()


def _parameters(
    like: Tensor,
    kind: str,
    group_weights: Tensor | None,
    scalars: dict[str, float | None],
    floor: Tensor | None,
    rank_weights: Tensor | None,
    validate: bool,
) -> tuple[str, Tensor | None, Tensor | None, Tensor | None, float]:
    """The op's (kind, group_weights, rank_weights, floor, param) for utilities like ``like`` (..., K)."""
    if kind not in _KINDS:
        raise ValueError(f"kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
    n_groups = like.shape[-1]
    if n_groups == 0:
        raise ValueError(f"utilities: expected at least one group, got shape {tuple(like.shape)}")
    wanted, bounds = _PARAMETERS.get(kind, ("", {}))
    for name, scalar in scalars.items():
        if scalar is not None and name != wanted:
            takes = f"takes {wanted}" if wanted else "takes no such parameter"
            raise ValueError(f"{name}: kind {kind!r} {takes}, got {name}={scalar}")
    param = scalars.get(wanted)
    if kind == "floor" and param is None:
        param = math.inf
    if wanted:
        if param is None:
            raise ValueError(f"{wanted}: expected a number for kind {kind!r}, got None")
        param = check_scalar(wanted, param, **bounds)  # type: ignore[arg-type]
    for name, tensor, owner in (("floor", floor, "floor"), ("rank_weights", rank_weights, "owa")):
        if (tensor is None) != (kind != owner):
            expected = "a tensor (K,) for" if kind == owner else "None for"
            got = "None" if tensor is None else "a tensor"
            raise ValueError(f"{name}: expected {expected} kind {kind!r}, got {got}")
        if tensor is not None:
            check_tensor(name, tensor, (n_groups,), device=like.device)
    shares = _shares(group_weights, n_groups, like)
    if validate:
        _validate_parameters(group_weights, shares, floor, rank_weights, n_groups)
    if kind == "leximin":
        ranks = torch.arange(n_groups, dtype=torch.float64, device=like.device)
        rank_weights = _LEXIMIN_RATIO**ranks
        kind, rank_weights = "owa", rank_weights / rank_weights.sum()
    least = None if floor is None else floor.detach().double()
    ranked = None if rank_weights is None else rank_weights.detach().double()
    return kind, shares, ranked, least, 0.0 if param is None else param


def _validate_parameters(
    group_weights: Tensor | None,
    shares: Tensor | None,
    floor: Tensor | None,
    rank_weights: Tensor | None,
    n_groups: int,
) -> None:
    if group_weights is not None:
        validate_nonnegative("group_weights", group_weights)
        if not bool(group_weights.sum() > 0):
            raise ValueError("group_weights: expected a positive sum, got 0")
    if floor is not None:
        validate_nonnegative("floor", floor)
        limit = torch.full_like(floor, 1 / n_groups, dtype=torch.float64)
        limit = limit if shares is None else shares
        over = (floor.double() > limit * (1 + 1e-6)).nonzero()
        if over.numel():
            at = int(over[0])
            raise ValueError(
                f"floor: expected at most the group's share {float(limit[at]):g}, "
                f"got {float(floor[at]):g} for group {at}"
            )
    if rank_weights is not None:
        validate_nonnegative("rank_weights", rank_weights)
        rises = (rank_weights.diff() > 0).nonzero()
        if rises.numel():
            at = int(rises[0])
            raise ValueError(
                "rank_weights: expected weights that do not rise with the rank (worst group "
                f"first), got {float(rank_weights[at]):g} before {float(rank_weights[at + 1]):g}"
            )


def welfare(
    utilities: Tensor,
    kind: str = "min",
    *,
    group_weights: Tensor | None = None,
    tau: float | None = None,
    alpha: float | None = None,
    p: float | None = None,
    radius: float | None = None,
    floor: Tensor | None = None,
    rank_weights: Tensor | None = None,
    validate: bool = False,
) -> Welfare:
    """Welfare of the groups' utilities and the weights it gives them (section 5 of docs/math.md).

    ======== ============================================================ ===================
    kind     value, u_k the utilities and η_k the groups' shares          needs
    ======== ============================================================ ===================
    min      min u; ties: the first group takes the gradient
    softmin  -τ log Σ η e^(-u/τ); → min as τ → 0                          tau > 0
    mean     Σ η u
    nash     Σ η log u, u > 0
    power    (Σ η u^p)^(1/p), u > 0 (p = 1: any u); p = 0 geometric mean  p ≤ 1
    cvar     mean of the worst α of the population                        0 < alpha ≤ 1
    owa      Σ of rank weight times utility, worst group first            rank_weights
    leximin  owa whose weights fall a thousandfold from rank to rank
    kl       min Σ q u over KL(q‖η) ≤ radius                              radius ≥ 0
    chi2     min Σ q u over Σ(q-η)²/η ≤ radius                            radius ≥ 0
    tv       min Σ q u over ½ Σ|q-η| ≤ radius                             radius ≥ 0
    floor    min Σ q u over q ≥ floor, and KL(q‖η) ≤ radius if given      floor (radius)
    ======== ============================================================ ===================

    A radius of 0 is the mean. With S the set of worst groups, the balls reach min at a finite radius: kl -log η(S),
    chi2 1/η(S) - 1, tv 1 - η(S); cvar at alpha ≤ η(S). Leximin proper is an order, no number: differences at one rank
    outweigh those at the next here as long as they exceed a thousandth of them.

    Args:
        utilities: ``(..., K)`` float64, float32, bfloat16 or float16; any strides.
        kind: see above.
        group_weights: ``(K,)`` shares of the population, normalised to sum to one; None: equal. Not used by min, owa
            and leximin, for which every group counts.
        tau, alpha, p, radius: the kind's parameter; giving one that it has not is an error.
        floor: ``(K,)`` least weights, each at most the group's share.
        rank_weights: ``(K,)`` weights by rank from the worst group on, which must not rise. Used as they are.
        validate: check the values of the tensors too. Waits for the device.

    Returns:
        ``Welfare(value (...), weights (..., K))`` in float32 (float64 for float64); the weights are the gradient of
        the value by the utilities. A row with a NaN, or outside the domain of its kind, is NaN in both.

    Raises:
        ValueError, TypeError: a shape, dtype, device or parameter that does not fit.

    Note:
        ``value`` is differentiable once by ``utilities``; the shares, floors and rank weights are constants.
    """
    if not isinstance(utilities, Tensor) or utilities.dim() == 0:
        got = tuple(utilities.shape) if isinstance(utilities, Tensor) else type(utilities).__name__
        raise (ValueError if isinstance(utilities, Tensor) else TypeError)(
            f"utilities: expected a torch.Tensor of shape (..., K), got {got}"
        )
    check_tensor("utilities", utilities, [None] * utilities.dim())
    scalars = {"tau": tau, "alpha": alpha, "p": p, "radius": radius}
    kind, *rest = _parameters(
        utilities, kind, group_weights, scalars, floor, rank_weights, validate
    )
    if validate:
        validate_finite("utilities", utilities)
    return Welfare(*call("welfare_fwd", utilities, kind, *rest))


def maxmin_reduce(
    rewards: Tensor,
    kind: str = "min",
    mask: Tensor | None = None,
    *,
    running: Tensor | None = None,
    group_weights: Tensor | None = None,
    tau: float | None = None,
    alpha: float | None = None,
    p: float | None = None,
    radius: float | None = None,
    floor: Tensor | None = None,
    rank_weights: Tensor | None = None,
    validate: bool = False,
) -> MaxMinReduction:
    """Welfare of a batch: each group's mean reward, then `welfare` of the means.

    The mean of what is there comes first and the minimum after it, as in (12); the minimum of each sample's rewards is
    another objective. A reward is there if it is not NaN and ``mask`` does not hide it. A group without any keeps its
    ``running`` estimate, which counts as a constant.

    Args:
        rewards: ``(B, K)`` reward of each sample for each group, NaN where there is none; float64, float32, bfloat16
            or float16; any strides.
        kind: of welfare, with its parameters as in `welfare`.
        mask: ``(B, K)`` bool, True where a reward counts.
        running: ``(K,)`` utilities of groups that are absent from this batch; None: NaN, and so is the welfare.
        group_weights, tau, alpha, p, radius, floor, rank_weights: as in `welfare`.
        validate: check the values of the tensors too (infinite rewards). Waits for the device.

    Returns:
        ``MaxMinReduction(value (), weights (K,), utilities (K,))`` in float32 (float64 for float64).

    Raises:
        ValueError, TypeError: a shape, dtype, device or parameter that does not fit.

    Note:
        ``value`` and ``utilities`` are differentiable once by ``rewards``: a reward's gradient is its group's over
        the number of rewards that are there, exactly 0 for the others.
    """
    device = check_tensor("rewards", rewards, ("B", "K")).device
    n_groups = rewards.shape[1]
    if mask is not None:
        check_tensor("mask", mask, tuple(rewards.shape), dtypes=(torch.bool,), device=device)
    if running is not None:
        check_tensor("running", running, (n_groups,), device=device)
        running = running.detach().to(accumulation_dtype(rewards))
    scalars = {"tau": tau, "alpha": alpha, "p": p, "radius": radius}
    kind, *rest = _parameters(rewards, kind, group_weights, scalars, floor, rank_weights, validate)
    if validate:
        validate_finite("rewards", torch.where(rewards.isnan(), 0, rewards))
    return MaxMinReduction(*call("maxmin_reduce_fwd", rewards, kind, mask, running, *rest))


def maxmin_advantages(
    rewards: Tensor,
    weights: Tensor,
    *,
    scale: str = "none",
    leave_one_out: bool = False,
    eps: float = 1e-4,
    validate: bool = False,
) -> Tensor:
    """Advantage of each sample: the groups' rewards, centred at the prompt and weighted.

    ``A_ps = Σ_k w_k (r_psk - mean over samples of r_p·k)``, the policy gradient's signal for ``Σ_k w_k r_k``, whose
    optimum is (14) if ``weights`` are w*. Centring by prompt takes the arbitrary offsets of reward models out.

    A NaN means that a group did not judge a sample. It takes no part in that group's mean and spread and adds 0 to
    the advantage, as an average sample would; the other groups' weights stay as they are. A sample that nobody
    judged has advantage 0, and so has the only one that a group judged at its prompt.

    Args:
        rewards: ``(P, S, K)`` rewards of S samples at each of P prompts; float64, float32, bfloat16 or float16; any
            strides.
        weights: ``(K,)`` weights of the groups, for instance from `welfare` or `maxmin_dual`.
        scale: what advantages are divided by (plus ``eps``); n samples at a prompt leave n - 1 degrees of freedom.
            ``"none"``: nothing, so their size carries over (the weights mean what they say only then).
            ``"group"``: each group's rewards by their spread at the prompt, before weighting.
            ``"prompt"``: the weighted sum by its spread at the prompt, as GRPO does.
            ``"batch"``: the weighted sum by its spread about the prompts' means, one number over the whole batch. Unlike
            GRPO's, which is about the batch's mean, it does not see how far apart the prompts' rewards lie, which the
            offsets of reward models decide.
        leave_one_out: a sample's baseline is the mean of the others (RLOO): the centred reward times n/(n - 1).
        eps: added to a spread, so that equal rewards give 0.
        validate: check the values too (infinite rewards, weights that are not finite). Waits for the device.

    Returns:
        ``(P, S)`` in float32 (float64 for float64). A constant: nothing is differentiated through it.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that does not fit.
    """
    device = check_tensor("rewards", rewards, ("P", "S", "K")).device
    check_tensor("weights", weights, (rewards.shape[2],), device=device)
    if scale not in _SCALES:
        raise ValueError(f"scale: expected one of {', '.join(_SCALES)}, got {scale!r}")
    check_scalar("eps", eps, low=0.0)
    if validate:
        validate_finite("rewards", torch.where(rewards.isnan(), 0, rewards))
        validate_finite("weights", weights)
    return call(
        "maxmin_advantages_fwd", rewards.detach(), weights.detach(), scale, leave_one_out, eps
    )


def maxmin_dual(
    rewards: Tensor,
    beta: float,
    *,
    weights: Tensor | None = None,
    tol: float = 1e-6,
    max_iter: int = 200,
    validate: bool = False,
) -> DualSolution:
    """The MaxMin problem (12) solved from samples of the reference policy: (13)-(15).

    The best policy for the worst-off group under a KL penalty is that of one reward, ``Σ_k w*_k r_k``; this finds w*,
    the minimiser of the convex dual (13), by an interior-point Newton method on the rewards' device, in float64
    whatever comes in, with no wait for the device. The gap (15) certifies it for these samples; what it is on fresh
    ones tells a call with ``weights``.

    Rewards should be calibrated before: a minimum over groups is decided by their offsets otherwise.

    Args:
        rewards: ``(P, S, K)`` rewards of S samples of the reference policy at each of P prompts; float64, float32,
            bfloat16 or float16; any strides. A sample with a NaN for any group is left out; a prompt without samples
            is left out of the mean over prompts.
        beta: strength of the KL penalty, > 0, in units of reward.
        weights: ``(K,)`` on the simplex: nothing is solved, the policy and the certificate of these are given.
        tol: the gap aimed at, in units of reward. Rounding bounds it by about ``K ε span²/β`` (ε = 2e-16): 1e-6 is
            reached with rewards that span up to about a million β.
        max_iter: Newton steps at most; 10 to 60 are usual.
        validate: check the values too (infinite rewards, weights off the simplex). Waits for the device.

    Returns:
        ``DualSolution(weights (K,), value (), utilities (K,), gap (), ess (P,))`` in float64: w*, D(w*), the expected
        rewards g_k under the policy (14) without the KL term, (15), and the effective number of samples behind the
        policy at each prompt (0 for one left out). Without any sample all but ``ess`` is NaN. Where w* is not unique
        (groups alike) it is a middle one.

    Raises:
        ValueError, TypeError: a shape, dtype, device or parameter that does not fit.

    Note:
        ``value`` is differentiable once by ``rewards`` (with w* held fixed, by Danskin's theorem exact at the
        optimum). Deterministic. On a CPU it stops when ``tol`` is reached with a digit to spare.
    """
    device = check_tensor("rewards", rewards, ("P", "S", "K")).device
    n_groups = rewards.shape[2]
    if n_groups == 0:
        raise ValueError(f"rewards: expected at least one group, got shape {tuple(rewards.shape)}")
    beta = check_scalar("beta", beta, low=0.0, low_open=True, high_open=True)
    tol = check_scalar("tol", tol, low=0.0, low_open=True)
    check_scalar("max_iter", max_iter, low=1)
    if weights is not None:
        check_tensor("weights", weights, (n_groups,), device=device)
        weights = weights.detach().double()
    if validate:
        validate_finite("rewards", torch.where(rewards.isnan(), 0, rewards))
        if weights is not None:
            validate_nonnegative("weights", weights)
            if not abs(float(weights.sum()) - 1) <= 1e-6:
                raise ValueError(f"weights: expected a sum of 1, got {float(weights.sum()):g}")
    return DualSolution(*call("maxmin_dual_fwd", rewards, beta, weights, tol, max_iter))

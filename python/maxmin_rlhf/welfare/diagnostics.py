"""How far one reward is from fair: the alignment gap (16), what no single reward can avoid, and the published bounds (17).

Everything is exact for the samples given: the reference policy draws evenly among a prompt's usable samples.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import maxmin_kernels as mk
from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.mixture.objective import margins
from maxmin_rlhf.reward.calibration import as_rewards
from maxmin_rlhf.welfare.dual import solve_maxmin
from maxmin_rlhf.welfare.problem import positive

Array = NDArray[np.float64]
_INTERVAL = (2.5, 97.5)  # percentiles
_FLAT = 1e-10  # of the largest eigenvalue: below it a direction has no features


@dataclass(frozen=True)
class Diversity:
    """How differently two groups choose: 0 alike, 1 always opposed for certain.

    Attributes:
        matrix: ``(K, K)`` mean total variation between two groups' choice probabilities, zero on the diagonal.
        low, high: ``(K, K)`` ends of the 95 % bootstrap interval.
    """

    matrix: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class PublishedBounds:
    """(17) for each group, beside what it bounds. To be read, not relied on: as printed it can fail.

    Attributes:
        distance: ``(K,)`` ‖φ* − φ*_u‖, which Lemma 1 bounds. lemma: ``(K,)`` its bound.
        theorem: ``(K,)`` Theorem 1's bound on (16) as printed. theorem_squared: ``(K,)`` as its proof suggests.
        epsilon: ``(K,)`` the group's least total variation to another group.
        feature_norm: D_φ. least_eigenvalue: λ_ψ on the span of the features, where distances are taken too.
        lipschitz: L_π.
    """

    distance: Array
    lemma: Array
    theorem: Array
    theorem_squared: Array
    epsilon: Array
    feature_norm: float
    least_eigenvalue: float
    lipschitz: float


def policy_of(scores: Any, beta: float) -> Array:
    """``(P, S)`` the best policy (14) for one reward ``(P, S)``; a sample with a NaN has chance 0."""
    found = np.asarray(scores, np.float64)
    chances: Array = np.exp(_log_best(found[..., None], ~np.isnan(found), positive("beta", beta)))
    return chances[..., 0]


def alignment_gap(rewards: Any, policy: Any, beta: float) -> Array:
    """(16): what a policy costs each group against the best policy for that group alone, β KL(π ‖ π*_u).

    Args:
        rewards: ``(P, S, K)`` of S samples at P prompts, NaN where there is none: such a sample is left out.
        policy: ``(P, S)`` probabilities of the samples, 0 where one is left out.
        beta: strength of the KL penalty, > 0, in units of reward.

    Returns:
        ``(K,)`` F_u(π*_u) − F_u(π) ≥ 0, in units of reward, a mean over prompts with a usable sample.

    Raises:
        ValueError: another shape, probabilities that do not sum to one over the usable samples, none usable.
    """
    r, usable = _usable(rewards)
    chances = np.asarray(policy, np.float64)
    if chances.shape != usable.shape:
        raise ValueError(f"policy: expected shape {usable.shape}, got {chances.shape}")
    there = usable.any(1)
    total = np.where(usable, chances, 0.0).sum(1)[there]
    if not (chances >= 0).all() or np.abs(total - 1).max() > 1e-6:
        raise ValueError("policy: expected probabilities of sum 1 over the usable samples of each prompt")  # fmt: skip
    drawn = usable & (chances > 0)
    logs = np.log(np.where(drawn, chances, 1.0))[..., None]
    best = np.where(drawn[..., None], _log_best(r, usable, positive("beta", beta)), 0.0)
    gap: Array = beta * (np.where(drawn, chances, 0.0)[..., None] * (logs - best)).sum(1)[there]
    return np.maximum(gap.mean(0), 0.0)


def unavoidable_gap(rewards: Any, beta: float) -> float:
    """The largest (16) over groups under the policy that makes it smallest: no single reward can avoid it.

    Every policy is the best one for some single reward, so this bounds them all. By the dual (13) of MaxMin over
    r_u − F_u(π*_u); the dual's value errs, if at all, to the side of less.

    Args:
        rewards, beta: as of :func:`alignment_gap`.
    """
    r, usable = _usable(rewards)
    score = np.where(usable[..., None], r / positive("beta", beta), -np.inf)[usable.any(1)]
    count = usable.sum(1)[usable.any(1), None]
    alone = beta * (_logsumexp(score)[:, 0] - np.log(count)).mean(0)  # F_u(π*_u)
    with warnings.catch_warnings():
        # The samples are all there is here, and whoever is furthest from his best may decide alone.
        warnings.filterwarnings("ignore", message="solve_maxmin: ")
        found = solve_maxmin(r - alone, beta, calibrate=None)
    return max(0.0, -found.value)


def diversity(
    data: PreferenceData,
    heads: Any,
    *,
    clusters: Any = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Diversity:
    """Total variation between the groups' choice probabilities, a mean over the comparisons of ``data``.

    Args:
        data: what was offered; who chose what does not matter.
        heads: ``(K, D)`` reward heads, taken as given.
        clusters: ``(C,)`` hashable: comparisons that are drawn together in the bootstrap, such as those of one
            prompt. None: those of one annotator.
        n_resamples: of the bootstrap. seed: of it.
    """
    w = torch.as_tensor(np.asarray(heads, np.float64))
    log_prob, share = mk.choice_shares(margins(data, w), data.choice_indptr)
    # A comparison's alternatives are the chosen one, of probability exp(log_prob), and its rows, each its share.
    chosen, rest = log_prob.double().exp().numpy(), share.double().numpy()
    label = data.comparison_annotator
    if clusters is not None:
        label = np.unique(np.asarray(clusters), return_inverse=True)[1]
        if label.shape != (data.n_comparisons,):
            raise ValueError(f"clusters: expected shape ({data.n_comparisons},), got {label.shape}")
    count = np.bincount(label).astype(float)
    k = w.shape[0]
    total = np.zeros((count.size, k, k))
    for i, j in itertools.combinations(range(k), 2):
        apart = np.abs(rest[:, i] - rest[:, j])
        apart = np.bincount(data.row_comparison, apart, data.n_comparisons)
        apart = 0.5 * (apart + np.abs(chosen[:, i] - chosen[:, j]))
        total[:, i, j] = total[:, j, i] = np.bincount(label, apart)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count.size, np.full(count.size, 1 / count.size), n_resamples)
    again = np.tensordot(times.astype(float), total, 1) / (times @ count)[:, None, None]
    low, high = np.percentile(again, _INTERVAL, axis=0)
    return Diversity(total.sum(0) / count.sum(), low, high)


def published_bounds(
    features: Any,
    pooled: Any,
    heads: Any,
    shares: Any,
    matrix: Any,
    beta: float,
    lipschitz: float | None = None,
) -> PublishedBounds:
    """(17): Lemma 1 and both forms of Theorem 1, for policies π_w ∝ exp(⟨w, φ⟩/β) over given samples.

    Args:
        features: ``(P, S, D)`` φ of the samples, centred here at each prompt; NaN where there is none.
        pooled: ``(D,)`` φ*, the one head fitted to all. heads: ``(K, D)`` φ*_u. shares: ``(K,)`` η_u.
        matrix: ``(K, K)`` of :class:`Diversity`.
        beta: strength of the KL penalty, > 0.
        lipschitz: L_π of log π; None: 2 D_φ, which holds for these policies in the parameter w/β.
    """
    phi, usable = _usable(features)
    shown = usable.any(1)
    phi, usable = np.where(usable[..., None], phi, 0.0)[shown], usable[shown]
    count = usable.sum(1)
    phi = np.where(usable[..., None], phi - (phi.sum(1) / count[:, None])[:, None], 0.0)
    gram = np.einsum("psd,pse->de", phi / count[:, None, None], phi) / len(phi)
    w, eta, tv = np.asarray(heads, np.float64), np.asarray(shares), np.array(matrix, np.float64)
    if len(w) < 2:
        raise ValueError(f"heads: expected at least 2 groups, got {len(w)}")
    np.fill_diagonal(tv, np.inf)
    epsilon = tv.min(1)
    norm = float(np.sqrt((phi**2).sum(2).max()))
    values, vectors = np.linalg.eigh(gram)
    spanned = values > _FLAT * max(values[-1], 1e-300)  # what no sample has is nobody's taste
    least = float(values[spanned].min(initial=np.inf)) if spanned.any() else 0.0
    slope = 2 * norm if lipschitz is None else positive("lipschitz", lipschitz)
    apart = epsilon * (1 - eta)
    scale = least / (64 * positive("beta", beta) ** 2 * slope * norm**2)
    return PublishedBounds(
        distance=np.linalg.norm((np.asarray(pooled) - w) @ vectors[:, spanned], axis=1),
        lemma=apart / (4 * norm),
        theorem=scale * apart,
        theorem_squared=scale * apart**2,
        epsilon=epsilon,
        feature_norm=norm,
        least_eigenvalue=least,
        lipschitz=slope,
    )


def _usable(rewards: Any) -> tuple[Array, NDArray[np.bool_]]:
    """Float64 ``(P, S, K)``, and which of ``(P, S)`` have no NaN."""
    r: Array = as_rewards("rewards", rewards).double().cpu().numpy()
    usable = np.asarray(~np.isnan(r).any(axis=2))
    if not usable.any():
        raise ValueError("rewards: expected at least one sample with a reward for every group, got none")  # fmt: skip
    return r, usable


def _log_best(r: Array, usable: NDArray[np.bool_], beta: float) -> Array:
    """(P, S, K) log π*_u, -inf where not usable."""
    score = np.where(usable[..., None], r / beta, -np.inf)
    total = _logsumexp(score)
    best: Array = score - np.where(np.isfinite(total), total, 0.0)
    return best


def _logsumexp(score: Array) -> Array:
    """Over the samples, axis 1, which stays; -inf where there is none."""
    top = score.max(1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total: Array = np.log(np.exp(score - top).sum(1, keepdims=True)) + top
    return total

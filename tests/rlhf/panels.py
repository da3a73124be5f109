"""Panels with known groups, and the likelihood of MATH (3)-(7) in plain Python loops: the truth for the mixture layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from maxmin_rlhf import PreferenceData


@dataclass(frozen=True)
class Panel:
    """Simulated choices and who they came from."""

    data: PreferenceData
    heads: np.ndarray  # (K, D) the truth
    shares: np.ndarray  # (K,)
    groups: np.ndarray  # (A,) in the order of data.annotators_


def true_heads(n_groups, n_features, sharpness, rng):
    """(K, D) orthogonal tastes of one sharpness, so that no pair of groups is closer than another."""
    directions, _ = np.linalg.qr(rng.standard_normal((n_features, n_groups)))
    return sharpness * directions.T


def planted(
    seed,
    n_groups=2,
    *,
    form="pairs",
    n_annotators=60,
    per_annotator=20,
    n_features=5,
    n_items=30,
    sharpness=2.0,
    shares=None,
    heads=None,
    dtype=np.float64,
):
    """Annotators of ``n_groups`` tastes. ``form``: "pairs", "sets" (best of four) or "items" (pairs, indexed)."""
    rng = np.random.default_rng(seed)
    shares = np.full(n_groups, 1 / n_groups) if shares is None else np.asarray(shares)
    if heads is None:
        heads = true_heads(n_groups, n_features, sharpness, rng)
    groups = rng.choice(n_groups, n_annotators, p=shares)
    owner = np.repeat(np.arange(n_annotators), per_annotator)
    size = 4 if form == "sets" else 2
    table = rng.standard_normal((n_items, n_features)).astype(dtype)
    if form == "items":
        drawn = np.array([rng.permutation(n_items)[:size] for _ in owner])
        offers = table[drawn]
    else:
        offers = rng.standard_normal((owner.size, size, n_features)).astype(dtype)
    utility = (offers * heads[groups[owner]][:, None]).sum(2) + rng.gumbel(size=(owner.size, size))
    order = np.argsort(-utility, axis=1)
    if form == "items":
        chosen, rejected = np.take_along_axis(drawn, order, 1).T
        data = PreferenceData.from_items(table, chosen, rejected, owner)
    else:
        offers = np.take_along_axis(offers, order[..., None], 1)
        rows = (offers[:, :1] - offers[:, 1:]).reshape(-1, n_features)
        comparison = np.repeat(np.arange(owner.size), size - 1)
        data = PreferenceData.from_arrays(rows, np.repeat(owner, size - 1), comparison=comparison)
    return Panel(data, heads, shares, groups)


def differences(data):
    """(N, D) rows chosen - rejected, float64."""
    features = data.features.double().numpy()
    if data.is_indexed:
        return features[data.chosen.numpy()] - features[data.rejected.numpy()]
    return features


def joint(data, heads, log_weights, label_noise=0.0):
    """(A, K) L of (4), one comparison at a time."""
    rows = differences(data)
    ends = range(data.n_rows + 1) if data.choice_indptr is None else data.choice_indptr.tolist()
    indptr = data.indptr.tolist()
    total = np.empty((data.n_annotators, len(heads)))
    for a in range(data.n_annotators):
        for h, head in enumerate(heads):
            total[a, h] = log_weights[h]
            for c in range(indptr[a], indptr[a + 1]):
                margins = [float(rows[i] @ head) for i in range(ends[c], ends[c + 1])]
                chance = 1.0 / (1.0 + sum(math.exp(-m) for m in margins))
                chance = (1 - label_noise) * chance + label_noise / (len(margins) + 1)
                weight = 1.0 if data.weight is None else float(data.weight[c])
                total[a, h] += weight * math.log(chance)
    return total


def log_sum(x):
    """(A,) logsumexp over the columns."""
    top = x.max(1)
    return top + np.log(np.exp(x - top[:, None]).sum(1))


def penalised(
    data, heads, logits, *, l2=0.0, alpha=1.0, label_noise=0.0, hard=False, temperature=1.0
):
    """(7), (7T) or (7H)."""
    log_weights = logits - log_sum(logits[None])[0]
    L = joint(data, heads, log_weights, label_noise)
    evidence = L.max(1) if hard else temperature * log_sum(L / temperature)
    return evidence.sum() - 0.5 * l2 * (heads**2).sum() + (alpha - 1) * log_weights.sum()


def match(found, true):
    """The permutation of ``found`` heads (K, D) that lies nearest to ``true``: found[order[k]] is group k."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(((true[:, None] - found[None]) ** 2).sum(2))[1]

"""What one reward costs: (16) and the unavoidable gap against enumeration, diversity by hand, (17) where it must hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from maxmin_rlhf import PreferenceData
from maxmin_rlhf.welfare.diagnostics import (
    alignment_gap,
    diversity,
    policy_of,
    published_bounds,
    unavoidable_gap,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def utility(r, policy, beta):
    """F of section 4, by its definition, for rewards (P, S)."""
    kl = (policy * np.log(policy * policy.shape[1])).sum(1)
    return float(((policy * r).sum(1) - beta * kl).mean())


@pytest.mark.parametrize("seed", range(20))
def test_the_gap_is_the_loss_of_utility(seed):
    rng = np.random.default_rng(seed)
    beta = rng.uniform(0.2, 3.0)
    rewards = 2 * rng.standard_normal((3, 5, 2))
    policy = rng.dirichlet(np.ones(5), 3)
    for u, gap in enumerate(alignment_gap(rewards, policy, beta)):
        best = policy_of(rewards[..., u], beta)
        r = rewards[..., u]
        assert gap == pytest.approx(utility(r, best, beta) - utility(r, policy, beta), rel=1e-9)
        # The best policy is no worse than others near it, or the loss would not be one.
        other = 0.9 * best + 0.1 * rng.dirichlet(np.ones(5), 3)
        assert utility(r, other, beta) < utility(r, best, beta)
        assert alignment_gap(rewards, best, beta)[u] == pytest.approx(0, abs=1e-12)


def test_samples_that_are_missing_do_not_count():
    rng = np.random.default_rng(0)
    rewards = rng.standard_normal((2, 3, 2))
    padded = np.full((3, 5, 2), np.nan)
    padded[:2, :3] = rewards
    padded[0, 4, 0] = 1.0  # known to one group only
    policy = policy_of(rewards.mean(2), 0.5)
    wide = policy_of(padded.mean(2), 0.5)
    assert wide[:2, :3] == pytest.approx(policy)
    assert alignment_gap(padded, wide, 0.5) == pytest.approx(alignment_gap(rewards, policy, 0.5))
    assert unavoidable_gap(padded, 0.5) == pytest.approx(unavoidable_gap(rewards, 0.5))


@pytest.mark.parametrize("seed", range(5))
def test_nothing_avoids_the_unavoidable(seed):
    """Against the best policy that a general-purpose optimiser finds, and against many single rewards."""
    rng = np.random.default_rng(seed)
    beta, rewards = rng.uniform(0.3, 2.0), 2 * rng.standard_normal((1, 4, 3))
    least = unavoidable_gap(rewards, beta)

    def worst(logits):
        return alignment_gap(rewards, policy_of(logits[None], 1.0), beta).max()

    tries = [minimize(worst, rng.standard_normal(4), method="Nelder-Mead",
                      options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-11}).fun for _ in range(3)]  # fmt: skip
    assert min(tries) == pytest.approx(least, rel=1e-3, abs=1e-6)
    assert all(worst(2 * rng.standard_normal(4)) >= least - 1e-9 for _ in range(200))


def test_opposed_groups_share_the_loss_and_equal_groups_have_none():
    r = np.array([[1.0, -1.0]])
    opposed = np.stack([r, -r], 2)
    # By symmetry the even draw: each loses log cosh(1) of its best.
    assert unavoidable_gap(opposed, 1.0) == pytest.approx(np.log(np.cosh(1.0)), rel=1e-6)
    assert unavoidable_gap(np.stack([r, r], 2), 1.0) == pytest.approx(0, abs=1e-9)


def test_diversity_by_hand():
    rng = np.random.default_rng(0)
    heads = np.array([[1.0, 0.0], [-0.5, 1.0], [1.0, 0.0]])
    pairs = rng.standard_normal((40, 2))
    found = diversity(PreferenceData.from_arrays(pairs, np.arange(40) % 8), heads)
    p = sigmoid(pairs @ heads.T)
    assert found.matrix[0, 1] == pytest.approx(np.abs(p[:, 0] - p[:, 1]).mean())
    assert found.matrix[0, 2] == 0 and (found.matrix == found.matrix.T).all()
    assert found.low[0, 1] < found.matrix[0, 1] < found.high[0, 1]

    offers = rng.standard_normal((10, 3, 2))
    rows = (offers[:, :1] - offers[:, 1:]).reshape(-1, 2)
    data = PreferenceData.from_arrays(rows, np.zeros(20), comparison=np.repeat(np.arange(10), 2))
    utilities = np.exp(offers @ heads.T)
    p = utilities / utilities.sum(1, keepdims=True)
    by_hand = 0.5 * np.abs(p[..., 0] - p[..., 1]).sum(1)
    prompts = diversity(data, heads, clusters=[f"prompt {i % 5}" for i in range(10)])
    assert prompts.matrix[0, 1] == pytest.approx(by_hand.mean())
    spread = by_hand.reshape(2, 5).mean(0).std() / 5**0.5  # the bootstrap's standard error
    assert prompts.high[0, 1] - prompts.low[0, 1] == pytest.approx(3.92 * spread, rel=0.3)


def test_the_interval_covers():
    heads = np.array([[1.0, 0.0], [-1.0, 0.5]])
    rng = np.random.default_rng(0)
    many = rng.standard_normal((200_000, 2))
    truth = np.abs(np.diff(sigmoid(many @ heads.T), axis=1)).mean()
    inside = 0
    for seed in range(100):
        rows = np.random.default_rng([seed, 1]).standard_normal((40, 5, 2))
        found = diversity(PreferenceData.from_arrays(rows.reshape(-1, 2), np.repeat(np.arange(40), 5)), heads, n_resamples=300, seed=seed)  # fmt: skip
        inside += found.low[0, 1] <= truth <= found.high[0, 1]
    assert 87 <= inside <= 100


def pooled_fit(pairs, heads, shares):
    """The one head that a whole population of the groups, asked every pair, would be fitted by."""
    p = sigmoid(pairs @ heads.T) @ shares

    def loss(w):
        m = pairs @ w
        return np.mean(np.logaddexp(0, m) - p * m), pairs.T @ (sigmoid(m) - p) / len(pairs)

    return minimize(loss, np.zeros(pairs.shape[1]), jac=True, options={"gtol": 1e-10}).x


def instance(heads, shares, rng):
    features = rng.standard_normal((1, 6, heads.shape[1]))
    first, second = np.array(list(itertools.combinations(range(6), 2))).T
    pairs = features[0, first] - features[0, second]
    matrix = diversity(PreferenceData.from_arrays(pairs, np.zeros(len(pairs))), heads, n_resamples=1).matrix  # fmt: skip
    return features, pooled_fit(pairs, heads, shares), matrix


def test_lemma_1_holds_for_two_groups():
    rng = np.random.default_rng(0)
    for _ in range(60):
        heads = rng.standard_normal((2, 3)) * rng.uniform(0.2, 3.0)
        share = rng.uniform(0.02, 0.98)
        shares = np.array([share, 1 - share])
        features, pooled, matrix = instance(heads, shares, rng)
        found = published_bounds(features, pooled, heads, shares, matrix, 1.0)
        assert (found.distance >= found.lemma).all()
        # Theorem 1 is not asserted; its two forms differ by the factor that the proof lacks.
        assert found.theorem_squared == pytest.approx(found.theorem * found.epsilon * (1 - shares))


def test_lemma_1_fails_for_the_group_in_the_middle():
    rng = np.random.default_rng(0)
    theta = np.array([1.5, -1.0])
    heads = np.stack([theta, 0 * theta, -theta])
    shares = np.full(3, 1 / 3)
    features, pooled, matrix = instance(heads, shares, rng)
    found = published_bounds(features, pooled, heads, shares, matrix, 1.0)
    assert pooled == pytest.approx([0, 0], abs=1e-6)
    assert found.lemma[1] > 0.01 > found.distance[1]
    gap = alignment_gap(features @ heads.T, policy_of(features @ pooled, 1.0), 1.0)
    assert gap[1] == pytest.approx(0, abs=1e-9) and gap[1] < found.theorem[1]


def test_constants_of_the_theorem():
    features = np.array([[[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]]) + 7.0  # centred here
    matrix = np.array([[0, 0.4], [0.4, 0]])
    found = published_bounds(features, [0, 0], [[1, 0], [0, 2]], [0.25, 0.75], matrix, 2.0, 5.0)
    assert (found.feature_norm, found.lipschitz) == (pytest.approx(3), 5)
    assert found.least_eigenvalue == pytest.approx(0.5)
    assert found.distance.tolist() == [1, 2]
    assert found.lemma == pytest.approx([0.4 * 0.75 / 12, 0.4 * 0.25 / 12])
    assert found.theorem == pytest.approx(np.array([0.3, 0.1]) * 0.5 / (64 * 4 * 5 * 9))
    flat = np.concatenate([features, np.ones((1, 4, 1))], 2)  # a feature that all have
    again = published_bounds(flat, [0, 0, 9], [[1, 0, 5], [0, 2, 5]], [0.25, 0.75], matrix, 2.0, 5.0)  # fmt: skip
    assert again.theorem == pytest.approx(found.theorem)
    assert again.distance == pytest.approx([1, 2])


def test_bad_input():
    r = np.zeros((2, 3, 2))
    even = np.full((2, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"policy: expected shape \(2, 3\)"):
        alignment_gap(r, even[:1], 1.0)
    with pytest.raises(ValueError, match="policy: expected probabilities"):
        alignment_gap(r, 2 * even, 1.0)
    with pytest.raises(ValueError, match="beta: expected"):
        alignment_gap(r, even, 0.0)
    with pytest.raises(ValueError, match="rewards: expected at least one sample"):
        unavoidable_gap(np.full((1, 2, 2), np.nan), 1.0)
    data = PreferenceData.from_arrays(np.ones((2, 1)), [0, 1])
    with pytest.raises(ValueError, match="clusters: expected shape"):
        diversity(data, [[1.0], [2.0]], clusters=[1])
    with pytest.raises(ValueError, match="heads: expected at least 2 groups"):
        published_bounds(np.ones((1, 2, 1)), [0], [[1]], [1], [[0]], 1.0)

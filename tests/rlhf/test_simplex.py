"""Blends of prototypes: planted ones are found again, new people in a few pairs, and its likelihood is the plain one."""

from __future__ import annotations

import numpy as np
import pytest

from maxmin_rlhf import PreferenceData, PreferenceMixture
from maxmin_rlhf.mixture.simplex import SimplexWeights
from tests.rlhf.panels import differences, planted


def blends(seed, heads, n_annotators=120, each=60):
    """Everybody between two prototypes; (data, (A, 2) weights)."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet([1.5, 1.5], n_annotators)
    owner = np.repeat(np.arange(n_annotators), each)
    rows = rng.standard_normal((owner.size, heads.shape[1]))
    margin = (rows * (weights @ heads)[owner]).sum(1)
    ahead = rng.random(owner.size) < 1 / (1 + np.exp(-margin))
    return PreferenceData.from_arrays(np.where(ahead[:, None], rows, -rows), owner), weights


HEADS = np.array([[3.0, 0, 1, 0], [0, 3.0, 0, -1]])


@pytest.fixture(scope="module")
def fitted():
    data, weights = blends(0, HEADS)
    return SimplexWeights(2, l2=5.0, spread=0.3, random_state=0).fit(data), data, weights


def test_planted_blends_are_found(fitted):
    model, _, weights = fitted
    assert model.converged_ and model.weights_.sum(1) == pytest.approx(1)
    order = [0, 1] if model.heads_[0, 0] > model.heads_[1, 0] else [1, 0]
    # Prototypes trade off against the spread of the weights: what is identified is each one's own reward.
    own, truth = model.weights_ @ model.heads_, weights @ HEADS
    near = (own * truth).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(truth, axis=1)
    assert np.median(near) > 0.95
    assert np.corrcoef(model.weights_[:, order[0]], weights[:, 0])[0, 1] > 0.9


def test_beats_the_mixture_on_new_people_who_blend(fitted):
    model, data, _ = fitted
    new, weights = blends(1, HEADS)
    mixture = PreferenceMixture(2, l2=0.1, n_init=4, random_state=0).fit(data)
    assert model.score(new, random_state=0) > mixture.score(new, random_state=0) + 0.002
    few = new.select_comparisons(np.arange(new.n_comparisons) % 60 < 10)
    placed = model.predict_weights(few)
    order = 0 if model.heads_[0, 0] > model.heads_[1, 0] else 1
    assert np.corrcoef(placed[:, order], weights[:, 0])[0, 1] > 0.7


def test_the_likelihood_and_its_optimum(fitted):
    model, data, _ = fitted
    m = (differences(data) @ model.heads_.T * model.weights_[data.comparison_annotator]).sum(1)
    plain = -np.logaddexp(0, -m)
    assert model.log_prob(data, model.weights_) == pytest.approx(plain, rel=1e-9)
    z = np.log(model.weights_)
    z += model.center_.mean() - z.mean(
        1, keepdims=True
    )  # a softmax has no level: the prior puts it at the centre's
    penalty = ((z - model.center_) ** 2).sum() / (2 * 0.3**2) + 2.5 * (model.heads_**2).sum()
    assert model.objective_ == pytest.approx(plain.sum() - penalty, rel=1e-6)
    # Who was fitted is placed where he was.
    assert model.predict_weights(data) == pytest.approx(model.weights_, abs=2e-3)


def test_sets_items_and_people_without_a_comparison():
    for form in ("sets", "items"):
        data = planted(0, form=form, n_annotators=30).data
        model = SimplexWeights(2, random_state=0).fit(data)
        nobody = data.select_comparisons(data.comparison_annotator != 3)
        placed = model.predict_weights(nobody)
        center = np.exp(model.center_ - model.center_.max())
        assert placed[3] == pytest.approx(center / center.sum())
        assert np.isfinite(model.score(data, random_state=0))
        assert model.predict(data).shape == (30,) and model.n_parameters == 11


def test_one_head_is_the_pooled_reward():
    data = planted(0).data
    model = SimplexWeights(1, random_state=0).fit(data)
    assert model.heads_ == pytest.approx(PreferenceMixture(1, random_state=0).fit(data).heads_, abs=1e-3)  # fmt: skip


def test_bad_input():
    data = planted(0).data
    with pytest.raises(ValueError, match="spread: expected"):
        SimplexWeights(2, spread=0.0)
    with pytest.raises(ValueError, match="not fitted"):
        SimplexWeights(2).predict(data)
    model = SimplexWeights(1, random_state=0).fit(data)
    with pytest.raises(ValueError, match="data: expected 5 features"):
        model.predict(planted(0, n_features=3).data)

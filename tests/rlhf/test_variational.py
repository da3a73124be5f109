"""Latent tastes: planted groups are told apart, new people predicted, and MaxMin over samples is fair to the few."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from maxmin_rlhf import PreferenceMixture, solve_maxmin
from maxmin_rlhf.mixture.variational import VariationalPreferences
from tests.rlhf.panels import planted

HEADS = np.array([[2.5, 0.0, 1.0, 0.0], [-2.5, 0.0, 1.0, 0.0]])


def panel(seed, **options):
    return planted(seed, heads=HEADS, n_features=4, n_annotators=200, per_annotator=20, shares=[0.75, 0.25], **options)  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    return VariationalPreferences(2, hidden=16, l2=0.1, max_epochs=60, random_state=0).fit(
        panel(0).data
    )


def test_new_people_are_predicted_about_as_well_as_by_the_true_model(fitted):
    new = panel(1).data
    pooled = PreferenceMixture(1, random_state=0).fit(panel(0).data).score(new, random_state=0)
    truth = PreferenceMixture(2)
    truth.heads_, truth.weights_ = HEADS, np.array([0.75, 0.25])
    best = truth.score(new, random_state=0)
    found = fitted.score(new, random_state=0)
    assert pooled < best - 0.1  # there is something to know
    assert found > pooled + 0.8 * (best - pooled)
    assert fitted.score(new, random_state=0) == found


def test_the_latent_is_the_group(fitted):
    new = panel(2)
    mean, variance = fitted.posterior(new.data)
    side = mean[:, np.abs(np.corrcoef(mean.T, new.groups)[-1, :-1]).argmax()]
    assert abs(np.corrcoef(side, new.groups)[0, 1]) > 0.9
    few = new.data.select_comparisons(np.arange(new.data.n_comparisons) % 20 < 2)
    assert (fitted.posterior(few)[1].min(1) > variance.min(1)).all()


def test_nobody_known_is_the_prior(fitted):
    data = panel(1).data
    nothing = data.select_comparisons(np.zeros(data.n_comparisons, bool))
    mean, variance = fitted.posterior(nothing)
    assert (mean == 0).all() and (variance == 1).all()


def test_maxmin_over_samples_serves_the_few(fitted):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 16, 4))
    truth = features @ HEADS.T
    truth = truth - truth.mean(1, keepdims=True)
    heads = fitted.sample_heads(panel(0).data, 24)
    assert heads.shape == (24, 4) and 0.6 < (heads[:, 0] > 0).mean() < 0.95
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few samples: enough for a menu
        fair = solve_maxmin(features @ heads.T, 0.5).policy
        mean = solve_maxmin(features @ heads.T, 0.5, objective="mean").policy
    worst = [np.einsum("ps,psk->k", policy, truth).min() / len(truth) for policy in (fair, mean)]
    assert worst[0] > 0.2 > worst[1]


def test_sets_and_items():
    for form in ("sets", "items"):
        data = planted(0, form=form, n_annotators=40).data
        model = VariationalPreferences(1, hidden=4, max_epochs=3, random_state=0).fit(data)
        again = VariationalPreferences(1, hidden=4, max_epochs=3, random_state=0).fit(data)
        assert np.isfinite(model.validation_).all() and model.validation_ == again.validation_
        assert model.n_parameters == (5 * 4 + 4 + 4 * 2 + 2) + 5 + (4 + 4) + 4 * 5


def test_bad_input(fitted):
    with pytest.raises(ValueError, match="n_latent: expected at least 1"):
        VariationalPreferences(0)
    with pytest.raises(ValueError, match="at least 2 annotators"):
        VariationalPreferences(1).fit(panel(0).data.select_annotators([0]))
    with pytest.raises(ValueError, match="not fitted"):
        VariationalPreferences(1).posterior(panel(0).data)
    with pytest.raises(ValueError, match="data: expected 4 features"):
        fitted.posterior(planted(0).data)
    with pytest.raises(ValueError, match="known: expected 200 annotators"):
        fitted.log_prob(panel(0).data, panel(0).data.select_annotators([0]))

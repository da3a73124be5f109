"""Groups that were planted are found: assignments as good as knowing the true heads, heads up to a permutation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from maxmin_rlhf import PreferenceMixture, select_groups
from tests.rlhf.panels import match, planted

POINT = 0.01

SETTINGS = {
    "two groups, pairs": {"n_groups": 2},
    "three groups, pairs": {"n_groups": 3},
    "two groups, sets of four": {"n_groups": 2, "form": "sets"},
    "three groups, shared items": {"n_groups": 3, "form": "items"},
    "unequal sizes": {"n_groups": 3, "shares": [0.6, 0.3, 0.1]},
    "faint tastes": {"n_groups": 2, "sharpness": 1.0},
    "float32": {"n_groups": 2, "dtype": np.float32},
    "many features": {"n_groups": 2, "n_features": 24, "n_annotators": 800, "n_items": 60},
}


def simulate(setting, seed, **changes):
    return planted(
        seed, **{"n_annotators": 400, "per_annotator": 20, **SETTINGS[setting], **changes}
    )


def bayes(panel):
    """(A,) groups by the classifier that knows the true heads and shares."""
    known = PreferenceMixture(len(panel.heads))
    known.heads_, known.weights_ = panel.heads, panel.shares
    return known.predict(panel.data)


def accuracy(found, true):
    """Share of annotators in the right group, groups named in the best way."""
    k = 1 + max(found.max(), true.max())
    return max((np.array(p)[found] == true).mean() for p in permutations(range(k)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_assignments_are_within_a_point_of_bayes(setting):
    panel = simulate(setting, seed=11)
    mix = PreferenceMixture(SETTINGS[setting]["n_groups"], n_init=4, random_state=0).fit(panel.data)
    best = (bayes(panel) == panel.groups).mean()
    assert best > 0.8  # or the setting tests nothing
    assert accuracy(mix.predict(panel.data), panel.groups) >= best - POINT

    held_out = simulate(setting, seed=12, heads=panel.heads)
    best = (bayes(held_out) == held_out.groups).mean()
    assert accuracy(mix.predict(held_out.data), held_out.groups) >= best - POINT


@pytest.mark.parametrize("setting", SETTINGS)
def test_heads_and_shares_are_recovered(setting):
    panel = simulate(setting, seed=13)
    k = SETTINGS[setting]["n_groups"]
    mix = PreferenceMixture(k, n_init=4, random_state=0).fit(panel.data)
    order = match(mix.heads_, panel.heads)
    assert sorted(order) == list(range(k))
    heads = mix.heads_[order]
    norms = np.linalg.norm(heads, axis=1) * np.linalg.norm(panel.heads, axis=1)
    assert ((heads * panel.heads).sum(1) / norms).min() > 0.95
    found = np.bincount(panel.groups, minlength=k) / len(panel.groups)
    np.testing.assert_allclose(mix.weights_[order], found, atol=0.04)


def test_hard_and_tempered_fits_find_them_too():
    panel = simulate("three groups, pairs", seed=14)
    best = (bayes(panel) == panel.groups).mean()
    for options in ({"hard": True}, {"temperature": 2.0}, {"label_noise": 0.02}):
        mix = PreferenceMixture(3, n_init=4, random_state=0, **options).fit(panel.data)
        assert accuracy(mix.predict(panel.data), panel.groups) >= best - 2 * POINT


def test_groups_that_differ_in_sharpness_alone():
    """One direction, two norms: no difference of taste, but the likelihood tells them apart."""
    heads = np.array([[4.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    panel = planted(15, 2, heads=heads, n_features=3, n_annotators=400, per_annotator=40)
    mix = PreferenceMixture(2, n_init=4, l2=0.1, random_state=0).fit(panel.data)
    found = mix.heads_[match(mix.heads_, heads)]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [4.0, 0.5], rtol=0.25)
    best = (bayes(panel) == panel.groups).mean()
    assert accuracy(mix.predict(panel.data), panel.groups) >= best - POINT


@pytest.mark.parametrize("form", ["pairs", "sets", "items"])
def test_the_number_of_groups_is_found(form):
    panel = planted(
        16, 3, form=form, n_annotators=120, per_annotator=24, n_features=4, sharpness=3.0
    )
    sel = select_groups(panel.data, [1, 2, 3, 4], n_init=2, n_folds=3, random_state=0)
    assert sel.best_ == 3


@pytest.mark.parametrize("form", ["pairs", "sets", "items"])
def test_one_shared_reward_is_not_split(form):
    panel = planted(17, 1, form=form, n_annotators=100, per_annotator=20, n_features=4)
    sel = select_groups(panel.data, [1, 2, 3], n_init=2, n_folds=3, random_state=0)
    assert sel.best_ == 1

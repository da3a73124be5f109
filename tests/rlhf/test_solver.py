"""The ascent: it never goes down, it ends where an independent optimiser ends, and it survives awkward data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from maxmin_rlhf import PreferenceData, PreferenceMixture
from maxmin_rlhf.mixture import FitWarning, solver
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.fit import Fit, Problem
from maxmin_rlhf.mixture.objective import Objective
from maxmin_rlhf.mixture.solver import Preconditioner
from tests.rlhf.panels import planted

CLIMBS = {
    "soft": {},
    "prior": {"alpha": 2.0},
    "noise": {"label_noise": 0.1},
    "tempered": {"temperature": 5.0},
    "cool": {"temperature": 0.3},
    "hard": {"hard": True},
}


def random_bank(n_features, sizes, l2, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    heads = [torch.from_numpy(spread * rng.standard_normal((k, n_features))) for k in sizes]
    ridges = torch.tensor([l2] * len(sizes), dtype=torch.float64)
    return Bank.of(heads, [torch.zeros(k) for k in sizes], ridges, max(sizes))


def ascend(objective, bank, max_iter=500, tol=1e-9):
    flat = torch.zeros(objective.data.n_features, dtype=torch.float64)
    steer = Preconditioner.of(objective, objective.pooled_curvature(flat))
    state = solver.start(objective, bank, steer)
    return solver.climb(objective, state, steer, max_iter=max_iter, tol=tol)


@pytest.mark.parametrize("form", ["pairs", "sets", "items"])
@pytest.mark.parametrize("climb", CLIMBS)
@pytest.mark.parametrize("spread", [0.5, 20.0])
def test_no_round_goes_down(form, climb, spread):
    panel = planted(3, 3, form=form, n_annotators=40, per_annotator=8)
    objective = Objective.of(panel.data, **CLIMBS[climb])
    state = ascend(objective, random_bank(5, [2, 3, 3, 4], 0.3, seed=7, spread=spread))
    for history, value in zip(state.history.numpy(), state.value.numpy(), strict=True):
        history = history[np.isfinite(history)]
        assert np.diff(history).min() >= -1e-9 * abs(value)
        assert history[-1] == value
    torch.testing.assert_close(objective(state.bank).value, state.value, rtol=1e-12, atol=0)
    assert state.converged.all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_no_round_goes_down_in_low_precision(dtype):
    panel = planted(4, 3, n_annotators=80, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        bounds = PreferenceMixture(3, n_init=3, random_state=0).fit(panel.data).lower_bounds_
    assert np.diff(bounds).min() >= -1e-6 * abs(bounds[-1])


def by_scipy(objective, bank):
    """The same climb by scipy's L-BFGS, one mixture at a time."""
    results = []
    for g in range(len(bank)):
        k = int(bank.sizes[g])
        one = Bank(bank.theta[g : g + 1, :k], bank.mask[g : g + 1, :k], bank.l2[g : g + 1])

        def negative(x, one=one):
            at = objective(one.replace(torch.from_numpy(x.reshape(one.theta.shape))))
            return -float(at.value), -at.gradient.numpy().ravel()

        x0 = one.theta.numpy().ravel()
        options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
        results.append(minimize(negative, x0, jac=True, method="L-BFGS-B", options=options))
    return results


@pytest.mark.parametrize("form", ["pairs", "sets", "items"])
@pytest.mark.parametrize("climb", ["soft", "prior", "noise", "tempered"])
def test_ends_where_scipy_ends(form, climb):
    panel = planted(5, 2, form=form, n_annotators=40)
    objective = Objective.of(panel.data, **CLIMBS[climb])
    # Beside the true heads, so that both climbers are in the same basin.
    bank = random_bank(5, [2, 2], 0.5, seed=1, spread=0.2)
    theta = bank.theta.clone()
    theta[..., :-1] += torch.from_numpy(panel.heads)
    state = ascend(objective, bank.replace(theta), tol=1e-12)
    for g, found in enumerate(by_scipy(objective, bank.replace(theta))):
        assert float(state.value[g]) == pytest.approx(-found.fun, rel=1e-6)
        assert float(state.value[g]) >= -found.fun - 1e-6 * abs(found.fun)
        heads = found.x.reshape(state.theta[g].shape)[:, :-1]
        np.testing.assert_allclose(state.theta[g, :, :-1].numpy(), heads, atol=2e-3)


def test_a_hard_fit_is_each_groups_own_optimum():
    """With the assignment fixed, (7H) falls apart into one ridge logit a group."""
    panel = planted(6, 2, n_annotators=40)
    mix = PreferenceMixture(2, n_init=4, hard=True, tol=1e-12, random_state=0).fit(panel.data)
    assert set(np.unique(mix.responsibilities_)) == {0.0, 1.0}
    groups = mix.responsibilities_.argmax(1)
    for k in range(2):
        own = panel.data.select_annotators(groups == k)
        alone = PreferenceMixture(1, n_init=1, tol=1e-12, random_state=0).fit(own)
        np.testing.assert_allclose(mix.heads_[k], alone.heads_[0], atol=1e-4)
        assert mix.weights_[k] == pytest.approx((groups == k).mean(), abs=1e-4)


def test_one_group_is_logistic_regression():
    data = planted(7, 2, form="sets", n_annotators=30).data
    mix = PreferenceMixture(1, l2=0.25, tol=1e-12, random_state=0).fit(data)
    rows, ends = data.features.numpy(), data.choice_indptr.numpy()[:-1]

    def negative(w):
        odds = np.exp(-rows @ w)
        return np.log1p(np.add.reduceat(odds, ends)).sum() + 0.125 * w @ w

    found = minimize(negative, np.zeros(5), method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(mix.heads_[0], found.x, atol=1e-5)
    assert mix.lower_bound_ == pytest.approx(-found.fun, rel=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scale_of_the_features_does_not_matter(scale):
    panel = planted(8, 2, n_annotators=60)
    rows, owner = panel.data.features.numpy(), panel.data.comparison_annotator
    plain = PreferenceMixture(2, n_init=4, l2=0, random_state=0).fit(panel.data)
    scaled = PreferenceMixture(2, n_init=4, l2=0, random_state=0)
    scaled.fit(PreferenceData.from_arrays(rows * scale, owner))
    assert scaled.lower_bound_ == pytest.approx(plain.lower_bound_, rel=1e-7)
    np.testing.assert_allclose(scaled.heads_ * scale, plain.heads_, rtol=1e-2, atol=1e-2)


def test_nor_do_features_of_very_different_scales():
    panel = planted(8, 2, n_annotators=60)
    scales = np.array([1.0, 1e-3, 1e3, 1.0, 1e-2])
    data = PreferenceData.from_arrays(
        panel.data.features.numpy() * scales, panel.data.comparison_annotator
    )
    plain = PreferenceMixture(2, n_init=4, l2=0, random_state=0).fit(panel.data)
    scaled = PreferenceMixture(2, n_init=4, l2=0, random_state=0).fit(data)
    assert scaled.lower_bound_ == pytest.approx(plain.lower_bound_, rel=1e-6)
    np.testing.assert_allclose(scaled.heads_ * scales, plain.heads_, atol=0.05)


# ---- awkward data


def separable(n_annotators=12, per_annotator=10):
    """Two groups of perfectly consistent people."""
    rng = np.random.default_rng(0)
    heads = np.array([[1.0, 0.2, 0.0], [-0.3, 1.0, 0.5]])
    owner = np.repeat(np.arange(n_annotators), per_annotator)
    rows = rng.standard_normal((owner.size, 3))
    rows *= np.sign((rows * heads[owner % 2]).sum(1))[:, None]
    return PreferenceData.from_arrays(rows, owner)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_separable_data_converge_with_a_ridge(n_groups):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix = PreferenceMixture(n_groups, n_init=4, l2=0.1, random_state=0).fit(separable())
    assert mix.converged_ and np.abs(mix.heads_).max() < 100


@pytest.mark.parametrize("hard", [False, True])
def test_separable_data_without_a_ridge_end_finite(hard):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        mix = PreferenceMixture(2, n_init=4, l2=0.0, hard=hard, random_state=0).fit(separable())
    assert np.isfinite(mix.heads_).all() and np.isfinite(mix.lower_bound_)
    assert np.diff(mix.lower_bounds_).min() >= -1e-9 * abs(mix.lower_bounds_).max()
    assert (mix.predict(separable())[::2] != mix.predict(separable())[1::2]).all()


@pytest.mark.parametrize("indexed", [False, True])
def test_heads_that_grow_for_ever_are_said(indexed):
    """All groups, one of two, none; and none where a ridge holds them."""
    data = separable()
    with pytest.warns(FitWarning, match="the choices of groups 0 can be told without fail"):
        PreferenceMixture(1, l2=0.0, random_state=0).fit(
            data.select_annotators(np.arange(0, 12, 2))
        )
    rng = np.random.default_rng(1)
    rows, owner = data.features.numpy().copy(), data.comparison_annotator
    others = (owner % 2 == 1) & (rng.random(owner.size) < 0.25)
    rows[others] *= -1  # the second group errs
    mixed = PreferenceData.from_arrays(rows, owner)
    if indexed:
        items = np.concatenate([rows, np.zeros_like(rows)])
        n = np.arange(len(rows))
        mixed = PreferenceData.from_items(items, n, n + len(rows), owner)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mix = PreferenceMixture(2, l2=0.0, random_state=0).fit(mixed)
    sure = int(mix.predict(mixed)[0])
    said = [str(w.message) for w in caught if "told without fail" in str(w.message)]
    assert len(said) == 1 and f"groups {sure} can" in said[0]
    assert np.linalg.norm(mix.heads_[sure]) > 10 * np.linalg.norm(mix.heads_[1 - sure])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PreferenceMixture(2, l2=0.1, random_state=0).fit(mixed)
        PreferenceMixture(2, l2=0.0, random_state=0).fit(planted(9, 2, sharpness=1.0).data)


def test_running_out_of_passes_warns():
    panel = planted(9, 3, sharpness=1.0)
    with pytest.warns(FitWarning, match="the fit of 3 groups made 4 passes without converging"):
        mix = PreferenceMixture(3, n_init=2, max_iter=4, random_state=0).fit(panel.data)
    assert not mix.converged_ and mix.n_iter_ == 4 and mix.lower_bounds_.shape == (4,)


def test_one_annotator():
    data = planted(0, 1, n_annotators=1).data
    mix = PreferenceMixture(1, random_state=0).fit(data)
    assert mix.converged_ and mix.weights_ == 1 and mix.responsibilities_.tolist() == [[1.0]]
    with pytest.raises(ValueError, match="at most 1, the number of annotators, got 2"):
        PreferenceMixture(2).fit(data)


@pytest.mark.parametrize("l2", [0.0, 1.0])
def test_one_pair(l2):
    data = PreferenceData.from_arrays([[1.0, -2.0]], ["a"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        mix = PreferenceMixture(1, l2=l2, random_state=0).fit(data)
    assert np.isfinite(mix.heads_).all()
    if l2:  # stationary: w = sigmoid(-m) x
        m = float(mix.heads_[0] @ [1.0, -2.0])
        np.testing.assert_allclose(
            mix.heads_[0], np.array([1.0, -2.0]) / (1 + np.exp(m)), atol=1e-3
        )


def test_one_pair_an_annotator():
    rng = np.random.default_rng(0)
    data = PreferenceData.from_arrays(rng.normal([1.0, 0.0], 1.0, (30, 2)), np.arange(30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        mix = PreferenceMixture(2, n_init=4, random_state=0).fit(data)
    assert np.isfinite(mix.heads_).all() and np.diff(mix.lower_bounds_).min() >= -1e-9


def test_as_many_groups_as_annotators():
    data = planted(1, 2, n_annotators=3).data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        mix = PreferenceMixture(3, n_init=4, random_state=0).fit(data)
    assert mix.responsibilities_.shape == (3, 3)
    assert np.allclose(mix.responsibilities_.sum(1), 1)


@pytest.mark.parametrize("l2", [0.0, 1.0])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_data_that_say_nothing(l2, n_groups):
    """All features zero, and all weights zero: every head is as good."""
    rows = np.random.default_rng(0).standard_normal((8, 2))
    owner = np.arange(8) // 2
    for data, value in (
        (PreferenceData.from_arrays(np.zeros((8, 2)), owner), -8 * np.log(2)),
        (PreferenceData.from_arrays(rows, owner, weight=np.zeros(8)), 0.0),
    ):
        mix = PreferenceMixture(n_groups, n_init=2, l2=l2, random_state=0).fit(data)
        assert mix.lower_bound_ == pytest.approx(value, abs=1e-6) and mix.converged_
        assert np.abs(mix.heads_).max() < 10


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_directions_that_the_data_do_not_tell_stay_small(l2):
    """One-hot items leave the sum of the rewards open; a constant feature tells nothing either."""
    panel = planted(2, 2, form="items", n_items=6, n_features=6)
    data = PreferenceData.from_items(
        np.hstack([np.eye(6), np.ones((6, 1))]), panel.data.chosen, panel.data.rejected,
        panel.data.comparison_annotator,
    )  # fmt: skip
    mix = PreferenceMixture(2, n_init=4, l2=l2, init="random", random_state=0).fit(data)
    assert np.abs(mix.heads_[:, 6]).max() < 1e-4
    assert np.abs(mix.heads_[:, :6].sum(1)).max() < 1e-4


def test_an_empty_group_is_reported():
    panel = planted(2, 1, n_annotators=20)
    far = np.vstack([panel.heads[0], -100 * panel.heads[0]])
    with pytest.warns(
        FitWarning, match=r"1 of 2 groups hold less than half an annotator \(groups 1\)"
    ):
        mix = PreferenceMixture(2, init=far, max_iter=3, l2=0.0, random_state=0).fit(panel.data)
    assert np.isfinite(mix.heads_).all() and np.isfinite(mix.lower_bound_)


# ---- precision and weights


def test_float32_features_agree_with_float64():
    rows = planted(3, 2, n_annotators=100, dtype=np.float32).data
    single = PreferenceMixture(2, n_init=4, random_state=0).fit(rows)
    double = PreferenceMixture(2, n_init=4, dtype="float64", random_state=0).fit(rows)
    assert single.lower_bound_ == pytest.approx(double.lower_bound_, rel=2e-6)
    np.testing.assert_allclose(single.heads_, double.heads_, atol=2e-2)
    np.testing.assert_allclose(single.weights_, double.weights_, atol=2e-3)
    assert (single.predict(rows) == double.predict(rows)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_features_fit_what_they_hold(dtype):
    exact = planted(3, 2, n_annotators=100).data
    half = PreferenceMixture(2, n_init=4, dtype=dtype, random_state=0).fit(exact)
    rounded = exact.features.to(getattr(torch, dtype)).double()
    data = PreferenceData.from_arrays(rounded, exact.comparison_annotator)
    full = PreferenceMixture(2, n_init=4, random_state=0).fit(data)
    assert half.lower_bound_ == pytest.approx(full.lower_bound_, rel=2e-6)
    np.testing.assert_allclose(half.weights_, full.weights_, atol=2e-3)


def weighted(data, weight):
    rows = weight[data.row_comparison]
    owner = data.comparison_annotator[data.row_comparison]
    return PreferenceData.from_arrays(
        data.features, owner, comparison=data.row_comparison, weight=rows
    )


@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_a_comparison_of_weight_zero_is_not_there(form):
    data = planted(4, 2, form=form, n_annotators=40).data
    keep = np.random.default_rng(0).random(data.n_comparisons) < 0.7
    options = {"n_init": 4, "tol": 1e-11, "random_state": 0}
    zero = PreferenceMixture(2, **options).fit(weighted(data, keep.astype(float)))
    gone = PreferenceMixture(2, **options).fit(data.select_comparisons(keep))
    assert zero.lower_bound_ == pytest.approx(gone.lower_bound_, rel=1e-10)
    np.testing.assert_allclose(zero.heads_, gone.heads_, atol=1e-4)


def test_a_whole_weight_counts_a_comparison_so_many_times():
    data = planted(5, 2, n_annotators=30).data
    times = np.random.default_rng(0).integers(1, 4, data.n_comparisons)
    repeated = PreferenceData.from_arrays(
        np.repeat(data.features.numpy(), times, 0), np.repeat(data.comparison_annotator, times)
    )
    options = {"n_init": 4, "tol": 1e-11, "random_state": 0}
    once = PreferenceMixture(2, **options).fit(weighted(data, times.astype(float)))
    often = PreferenceMixture(2, **options).fit(repeated)
    assert once.lower_bound_ == pytest.approx(often.lower_bound_, rel=1e-10)
    np.testing.assert_allclose(once.heads_, often.heads_, atol=1e-4)


# ---- the bank


def test_mixtures_side_by_side_do_not_feel_each_other():
    objective = Objective.of(planted(6, 3, n_annotators=40).data)
    together = random_bank(5, [2, 4, 1], 0.5, seed=3)
    states = ascend(objective, together)
    for g, k in enumerate([2, 4, 1]):
        one = Bank(
            together.theta[g : g + 1, :k], together.mask[g : g + 1, :k], together.l2[g : g + 1]
        )
        alone = ascend(objective, one)
        assert float(alone.value[0]) == pytest.approx(float(states.value[g]), rel=1e-9)


def test_converged_mixtures_drop_out_of_the_passes(monkeypatch):
    objective = Objective.of(planted(6, 3, n_annotators=40).data)
    banks = []
    call = Objective.__call__
    monkeypatch.setattr(
        Objective, "__call__", lambda self, b: banks.append(len(b)) or call(self, b)
    )
    state = ascend(objective, random_bank(5, [1, 4, 4], 0.5, seed=3), tol=1e-7)
    assert sum(banks) == int(state.rounds.sum()) and banks[-1] < 3
    assert banks == sorted(banks, reverse=True)


def test_moves_never_lose_the_best():
    objective = Objective.of(planted(7, 4, n_annotators=40, sharpness=1.5).data)
    values = []

    def watch(fit, whole):
        if fit.progress.best is not None:
            values.append(float(fit.progress.best.value[0]))

    best = Fit(objective, [Problem(4, 0.5)], n_init=2, on_round=watch).run()
    assert values == sorted(values) and float(best.value[0]) >= values[-1]

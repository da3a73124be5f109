"""The objective that a fit climbs, (7), (7T), (7H), against plain loops and their finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maxmin_rlhf import PreferenceData
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.objective import Objective
from tests.rlhf.panels import differences, joint, penalised, planted

SIZES = (1, 3, 2)
L2 = (0.0, 0.7, 2.5)


def small(form="pairs", weighted=False, seed=0):
    """Six annotators of different lengths; weights include zeros."""
    data = planted(
        seed, 2, form=form, n_annotators=6, per_annotator=5, n_features=3, n_items=7
    ).data
    keep = np.ones(data.n_comparisons, bool)
    keep[[1, 6, 7, 8, 9, 14]] = False
    data = data.select_comparisons(keep)
    if not weighted:
        return data
    weight = np.random.default_rng(seed).integers(0, 4, data.n_comparisons) / 2
    rows = weight[data.row_comparison]
    owner = data.comparison_annotator[data.row_comparison]
    return PreferenceData.from_arrays(
        differences(data), owner, comparison=data.row_comparison, weight=rows
    )


def some_bank(n_features=3, seed=1):
    """Three mixtures of different sizes and ridges, in four columns."""
    rng = np.random.default_rng(seed)
    heads = [torch.from_numpy(rng.standard_normal((k, n_features))) for k in SIZES]
    logits = [torch.from_numpy(rng.standard_normal(k)) for k in SIZES]
    return Bank.of(heads, logits, torch.tensor(L2, dtype=torch.float64), 4)


def slopes(function, x, width=1e-5):
    """Central differences of a function of an array."""
    slope = np.empty_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += width
        down[i] -= width
        slope[i] = (function(up) - function(down)) / (2 * width)
    return slope


OPTIONS = {
    "soft": {},
    "tempered": {"temperature": 3.0},
    "hard": {"hard": True},
    "prior": {"alpha": 2.5},
    "noise": {"label_noise": 0.1},
    "hard, prior, noise": {"hard": True, "alpha": 1.5, "label_noise": 0.2},
    "tempered, prior, noise": {"temperature": 0.5, "alpha": 4.0, "label_noise": 0.05},
}
FORMS = {"pairs": ("pairs", False), "sets": ("sets", False), "items": ("items", False),
         "weighted pairs": ("pairs", True), "weighted sets": ("sets", True)}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("option", OPTIONS)
def test_value_is_the_formula(form, option):
    data, bank = small(*FORMS[form]), some_bank()
    at = Objective.of(data, **OPTIONS[option])(bank)
    for g, k in enumerate(SIZES):
        theta = bank.theta[g, :k].numpy()
        expected = penalised(data, theta[:, :-1], theta[:, -1], l2=L2[g], **OPTIONS[option])
        assert float(at.value[g]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("form", "option"),
    [("pairs", o) for o in OPTIONS] + [(f, "soft") for f in FORMS] + [("sets", "noise"), ("weighted sets", "tempered, prior, noise")],
)  # fmt: skip
def test_gradient_is_the_formulas_slope(form, option):
    data, bank = small(*FORMS[form]), some_bank()
    at = Objective.of(data, **OPTIONS[option])(bank)
    for g, k in enumerate(SIZES):
        expected = slopes(
            lambda t, g=g: penalised(data, t[:, :-1], t[:, -1], l2=L2[g], **OPTIONS[option]),
            bank.theta[g, :k].numpy(),
        )
        np.testing.assert_allclose(at.gradient[g, :k].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_unpenalised_likelihood_responsibilities_and_mass():
    data, bank = small("sets"), some_bank()
    at = Objective.of(data)(bank)
    begin = 0
    for g, k in enumerate(SIZES):
        L = joint(data, bank.heads[g, :k].numpy(), bank.log_weights[g, :k].numpy())
        resp = np.exp(L - np.logaddexp.reduce(L, 1)[:, None])
        assert float(at.log_likelihood[g]) == pytest.approx(np.logaddexp.reduce(L, 1).sum())
        np.testing.assert_allclose(
            at.log_resp[:, begin : begin + k].exp().numpy(), resp, rtol=1e-10
        )
        np.testing.assert_allclose(at.mass[g, :k].numpy(), resp.sum(0), rtol=1e-10)
        begin += k


def test_pads_are_zero_and_change_nothing():
    data, bank = small(), some_bank()
    at = Objective.of(data, alpha=2.0)(bank)
    for tensor in (at.gradient, at.mass):
        assert not tensor[~bank.mask].any()
    alone = Bank.of([bank.heads[2, :2]], [bank.log_weights[2, :2]], bank.l2[2:], 2)
    single = Objective.of(data, alpha=2.0)(alone)
    torch.testing.assert_close(single.value[0], at.value[2], rtol=1e-13, atol=0)
    torch.testing.assert_close(single.gradient[0], at.gradient[2, :2], rtol=1e-12, atol=1e-12)


def test_an_empty_group_has_no_nan():
    bank = Bank.of(
        [torch.ones(2, 3, dtype=torch.float64)], [torch.tensor([0.0, -torch.inf])], torch.ones(1), 2
    )
    at = Objective.of(small())(bank)
    assert at.value.isfinite().all() and at.gradient.isfinite().all() and float(at.mass[0, 1]) == 0


def test_gradient_by_logits_sums_to_zero():
    """Adding the same to every logit changes nothing."""
    at = Objective.of(small(), alpha=3.0, temperature=2.0)(some_bank())
    assert at.gradient[..., -1].sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_pooled_curvature_is_the_second_derivative(form):
    data = small(*FORMS[form])
    objective = Objective.of(data)
    head = np.array([0.3, -0.8, 0.5])

    def gradient(w):
        bank = Bank.of([torch.from_numpy(w)[None]], [torch.zeros(1)], torch.zeros(1), 1)
        return objective(bank).gradient[0, 0, :-1].numpy()

    found = objective.pooled_curvature(torch.from_numpy(head)).numpy()
    for d in range(3):
        step = 1e-5 * np.eye(3)[d]
        expected = (gradient(head - step) - gradient(head + step)) / 2e-5
        np.testing.assert_allclose(found[d], expected, rtol=1e-6, atol=1e-7)


def test_pooled_curvature_of_many_features_is_the_diagonal(monkeypatch):
    import maxmin_rlhf.mixture.objective as module

    head = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
    objective = Objective.of(small("items"))
    full = objective.pooled_curvature(head)
    monkeypatch.setattr(module, "_DENSE", 2)
    torch.testing.assert_close(objective.pooled_curvature(head), full.diagonal())


def test_pooled_curvature_of_a_sample_is_near_the_whole(monkeypatch):
    import maxmin_rlhf.mixture.objective as module

    objective = Objective.of(planted(0, per_annotator=50, n_features=3).data)
    head = torch.zeros(3, dtype=torch.float64)
    whole = objective.pooled_curvature(head)
    monkeypatch.setattr(module, "_SAMPLE", 1000)
    assert (objective.pooled_curvature(head) - whole).abs().max() < 0.15 * whole.max()


@pytest.mark.parametrize("form", FORMS)
def test_annotator_pulls_are_the_slopes_of_each_annotator(form):
    data = small(*FORMS[form])
    head, some = np.array([0.3, -0.8, 0.5]), torch.tensor([0, 2, 5])
    found = Objective.of(data).annotator_pulls(torch.from_numpy(head), some).numpy()
    for row, a in zip(found, some.tolist(), strict=True):
        expected = slopes(lambda w, a=a: joint(data, w[None], [0.0])[a, 0], head)
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-7)


def test_annotator_pulls_do_not_depend_on_how_many_are_taken_at_once(monkeypatch):
    import maxmin_rlhf.mixture.objective as module

    objective = Objective.of(planted(0, per_annotator=50, n_features=3).data)
    head, some = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64), torch.arange(1, 30, 2)
    whole = objective.annotator_pulls(head, some)
    monkeypatch.setattr(module, "_TOGETHER", 4)
    assert torch.equal(objective.annotator_pulls(head, some), whole)

"""A fit of preferences on disk is the fit of those in memory; it needs two blocks of them in memory, and no more."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maxmin_rlhf import PreferenceData, PreferenceStore, fit_sweep
from maxmin_rlhf.data.controls import redraw_choices
from maxmin_rlhf.data.splits import held_out_masks
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.heldout import held_out_score
from maxmin_rlhf.mixture.objective import Objective
from tests.rlhf.panels import planted

ONE = 40  # bytes of a row of five float64 features
BLOCKS = {"one row": 1, "seven rows": 7 * ONE, "many": 90 * ONE, "everything": None}


def stored(folder, data, block_bytes=None, shards=2):
    """``data`` in a store, its annotators in so many shards."""
    for part in np.array_split(np.arange(data.n_annotators), shards):
        PreferenceStore.append(folder, data.select_annotators(part))
    return PreferenceStore(folder, block_bytes=block_bytes)


def weighted(form, dtype=np.float64, n_annotators=40):
    """Annotators of ten comparisons, but one who has none and one who has many."""
    data = planted(2, 3, form=form, n_annotators=n_annotators, per_annotator=10, sharpness=1.5, dtype=dtype).data  # fmt: skip
    counts = data.indptr.diff()
    counts[3], counts[4], counts[5], counts[6] = 0, 37, 2, 1
    weight = torch.from_numpy(np.random.default_rng(0).random(data.n_comparisons) + 0.5)
    return PreferenceData(
        features=data.features,
        indptr=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        annotators_=np.array([f"a{i}" for i in range(n_annotators)]),
        order=data.order,
        choice_indptr=data.choice_indptr,
        weight=weight,
    )


def some_bank(n_features=5):
    rng = np.random.default_rng(1)
    heads = [torch.from_numpy(rng.standard_normal((k, n_features))) for k in (1, 3, 2)]
    return Bank.of(heads, [torch.randn(len(h)).double() for h in heads], torch.ones(3), 3)


OPTIONS = {
    "soft": {},
    "hard": {"hard": True},
    "tempered": {"temperature": 3.0},
    "noise and prior": {"label_noise": 0.1, "alpha": 2.0},
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_what_is_put_in_comes_out(tmp_path, form, block):
    data = weighted(form)
    found = stored(tmp_path, data, BLOCKS[block])
    loaded = found.load()
    for name in ("features", "indptr", "choice_indptr", "weight"):
        expected = getattr(data, name)
        assert expected is None or torch.equal(getattr(loaded, name), expected), name
    assert loaded.annotators_.tolist() == data.annotators_.tolist()
    assert (found.n_rows, found.n_comparisons) == (data.n_rows, data.n_comparisons)
    some = np.random.default_rng(0).random(data.n_annotators) < 0.6
    part, expected = found.select_annotators(some), data.select_annotators(some)
    assert torch.equal(part.load().features, expected.features)
    assert part.select_annotators([1, 5]).annotators_.tolist() == expected.annotators_[[1, 5]].tolist()  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_a_pass_is_the_sum_over_blocks(tmp_path, form, block, option):
    data, bank = weighted(form), some_bank()
    store = stored(tmp_path, data, BLOCKS[block])
    expected = Objective.of(data, **OPTIONS[option])(bank)
    found = Objective.of(store, **OPTIONS[option])(bank, with_resp=True)
    for name in ("value", "gradient", "mass", "log_likelihood", "log_resp"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-11)  # fmt: skip
    assert Objective.of(store)(bank).log_resp is None or block == "everything"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_pass_in_less_precision(tmp_path, dtype):
    data = planted(2, 3, n_annotators=300, per_annotator=20, n_features=64).data
    data = PreferenceData.from_arrays(data.features.to(dtype), data.comparison_annotator)
    store, bank = stored(tmp_path, data, 64 * 700), some_bank(64)
    found, expected = Objective.of(store)(bank), Objective.of(data)(bank)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_starts_and_curvature_too(tmp_path, form, block, monkeypatch):
    monkeypatch.setattr("maxmin_rlhf.mixture.objective._SAMPLE", 100)  # every third comparison
    data = weighted(form)
    expected, found = (Objective.of(d) for d in (data, stored(tmp_path, data, BLOCKS[block])))
    head = torch.linspace(-1, 1, 5, dtype=torch.float64)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found.pooled_curvature(head), expected.pooled_curvature(head), **close)  # fmt: skip
    some = torch.tensor([0, 3, 4, 17, 38])
    torch.testing.assert_close(found.annotator_pulls(head, some), expected.annotator_pulls(head, some), **close)  # fmt: skip
    monkeypatch.setattr("maxmin_rlhf.mixture.objective._DENSE", 4)
    torch.testing.assert_close(found.pooled_curvature(head), expected.pooled_curvature(head), **close)  # fmt: skip


@pytest.mark.parametrize("block", ["seven rows", "many"])
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_held_out_scores_and_controls_too(tmp_path, form, block):
    data, bank = weighted(form), some_bank()
    store = stored(tmp_path, data, BLOCKS[block])
    for a, b in zip(held_out_masks(store, rng=3), held_out_masks(data, rng=3), strict=True):
        assert np.array_equal(a, b)
    found, expected = (held_out_score(d, bank, "comparison", 3, 0.1) for d in (store, data))
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.weight, expected.weight)
    head = np.linspace(-1, 1, 5)
    found, expected = (redraw_choices(d, head, 7) for d in (store, data))
    assert torch.equal(found.load().features, expected.features)
    part = found.select_annotators([2, 4, 5, 9])
    assert torch.equal(part.load().features, expected.select_annotators([2, 4, 5, 9]).features)
    assert found.fingerprint() != store.fingerprint() != part.fingerprint()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_fit_is_that_of_memory_step_by_step(tmp_path, dtype):
    data = weighted("pairs", dtype)
    options = {"n_init": 2, "random_state": 0}
    expected = fit_sweep(data, [1, 3], **options)
    for name, size in (("a", 7 * ONE), ("b", None)):
        found = fit_sweep(stored(tmp_path / name, data, size), [1, 3], **options)
        for k, fit in expected.items():
            if dtype == np.float64:
                assert found[k].lower_bound_ == pytest.approx(fit.lower_bound_, rel=1e-12)
                np.testing.assert_allclose(found[k].lower_bounds_, fit.lower_bounds_, rtol=1e-9)
            else:  # the last steps, of less than `tol` = 1e-7, are of rounding
                assert found[k].lower_bound_ == pytest.approx(fit.lower_bound_, rel=1e-8)
                n = 2 * min(found[k].n_iter_, fit.n_iter_) // 3
                np.testing.assert_allclose(found[k].lower_bounds_[:n], fit.lower_bounds_[:n], rtol=1e-6)  # fmt: skip
            np.testing.assert_allclose(found[k].responsibilities_, fit.responsibilities_, atol=1e-3)
            assert found[k].annotators_.tolist() == fit.annotators_.tolist()
            assert found[k].bic(data) == pytest.approx(fit.bic(data), rel=1e-8)
    store = PreferenceStore(tmp_path / "a", block_bytes=300)
    np.testing.assert_allclose(found[3].predict_proba(store), found[3].predict_proba(data), atol=1e-6)  # fmt: skip
    assert found[3].score(store, random_state=0) == pytest.approx(found[3].score(data, random_state=0))  # fmt: skip

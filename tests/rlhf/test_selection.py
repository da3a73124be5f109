"""select_groups: the rule of best_, its intervals and controls, and that it resumes exactly."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from maxmin_rlhf import PreferenceData, PreferenceMixture, select_groups
from maxmin_rlhf.data import annotator_folds
from maxmin_rlhf.mixture import FitWarning, Selection, checkpoint, selection
from maxmin_rlhf.mixture.folds import Folds, Notes
from maxmin_rlhf.mixture.ranks import Ranks
from maxmin_rlhf.mixture.selection import L2_GRID, _choose, _compare
from tests.rlhf.panels import planted

QUICK = {"n_init": 1, "n_folds": 3, "random_state": 0}


@pytest.fixture(scope="module")
def two():
    return planted(1, 2, n_annotators=60, n_features=3)


@pytest.fixture(scope="module")
def chosen(two):
    return select_groups(two.data, [1, 2, 3], **QUICK)


# ---- the rule


def result(k, score, *, gain=(0.0, 0.0), behind=(0.0, 0.0), **control):
    return {
        "n_groups": k,
        "score": score,
        "gain": sum(gain) / 2,
        "gain_low": gain[0],
        "gain_high": gain[1],
        "behind_low": behind[0],
        "behind_high": behind[1],
        "control_gain": control or {"redrawn": 0.0},
    }


ONE = result(1, -0.60, behind=(-0.2, -0.1))


@pytest.mark.parametrize(
    ("results", "best", "reason"),
    [
        ([result(1, -0.5), result(2, -0.6, behind=(-0.2, -0.1))], 1,
         "One reward: K=1 has the best held-out score."),
        ([result(1, -0.50, behind=(-0.02, 0.01)), result(2, -0.49)], 1,
         "One reward: K=1 has no held-out score below K=2's beyond chance."),
        ([ONE, result(2, -0.45, gain=(0.1, 0.2), redrawn=0.01)], 2,
         "2 groups: K=2 gains 0.1500 a held-out comparison over one reward (95 % interval 0.1000 to 0.2000); "
         "the redrawn control gains 0.0100; it has the best score."),
        # The smallest that is not significantly below the best.
        ([ONE, result(2, -0.46, gain=(0.1, 0.2), behind=(-0.02, 0.0)), result(3, -0.45, gain=(0.1, 0.2))], 2,
         "it has the fewest groups not below K=3 beyond chance."),
        ([ONE, result(2, -0.50, gain=(0.1, 0.2), behind=(-0.02, -0.01)), result(3, -0.45, gain=(0.1, 0.2))], 3,
         "3 groups"),
        # Beyond chance, beyond every control.
        ([ONE, result(2, -0.59, gain=(-0.01, 0.03))], 1, "which chance explains."),
        ([ONE, result(2, -0.59, gain=(0.0, 0.03))], 1, "which chance explains."),
        ([ONE, result(2, -0.55, gain=(0.02, 0.08), redrawn=0.03)], 1,
         "but the redrawn control gains 0.0300 where there is one reward."),
        ([ONE, result(2, -0.55, gain=(0.02, 0.08), redrawn=0.0, swapped=0.02)], 1,
         "but the swapped control gains 0.0200 where there is one reward."),
        ([ONE, result(2, -0.55, gain=(0.02, 0.08), redrawn=-0.01, swapped=0.01)], 2,
         "the swapped control gains 0.0100"),
        ([result(1, -0.5)], 1, "One reward: K=1 has the best held-out score."),
    ],
)  # fmt: skip
def test_rule(results, best, reason):
    found, why = _choose(results)
    assert found == best and reason in why


def test_intervals_are_a_bootstrap_over_annotators():
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 30, 40).astype(float)
    totals = -weight[:, None] * (
        0.6 - np.array([0.0, 0.05, 0.06]) + 0.1 * rng.standard_normal((40, 3))
    )
    rows = _compare(
        [1, 2, 4], [1.0, 2.0, 3.0], totals, weight, {"redrawn": np.array([0.0, 0.1, 0.2])}, rng
    )
    scores = totals.sum(0) / weight.sum()
    draws = np.array(
        [totals[i].sum(0) / weight[i].sum() for i in (rng.integers(0, 40, 40) for _ in range(4000))]
    )
    best = scores.argmax()
    for i, row in enumerate(rows):
        assert (row["n_groups"], row["l2"]) == ([1, 2, 4][i], [1.0, 2.0, 3.0][i])
        assert row["score"] == pytest.approx(scores[i])
        assert row["score_se"] == pytest.approx(draws[:, i].std(), rel=0.1)
        assert row["control_gain"] == {"redrawn": [0.0, 0.1, 0.2][i]}
        gains, behind = draws[:, i] - draws[:, 0], draws[:, i] - draws[:, best]
        expected = [*np.percentile(gains, [2.5, 97.5]), *np.percentile(behind, [2.5, 97.5])]
        found = [row[n] for n in ("gain_low", "gain_high", "behind_low", "behind_high")]
        np.testing.assert_allclose(found, expected, atol=0.005)
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    assert rows[0]["gain"] == rows[0]["gain_low"] == rows[0]["gain_high"] == 0.0
    assert rows[best]["behind_low"] == rows[best]["behind_high"] == 0.0


def test_the_interval_covers_the_truth():
    """Of the mean over annotators whose comparisons hang together: the plain error would be far too small."""
    rng, hits, trials = np.random.default_rng(1), 0, 200
    for _ in range(trials):
        weight = rng.integers(5, 30, 50).astype(float)
        totals = weight[:, None] * np.stack([np.zeros(50), rng.normal(0.1, 0.3, 50)], 1)
        row = _compare([1, 2], [1.0, 1.0], totals, weight, {}, rng)[1]
        hits += row["gain_low"] <= 0.1 <= row["gain_high"]
    assert 0.88 <= hits / trials <= 0.99


# ---- the whole


def test_finds_two_where_there_are_two(two, chosen):
    assert isinstance(chosen, Selection) and chosen.best_ == 2 and type(chosen.best_) is int
    assert chosen.reason_.startswith("2 groups: K=2 gains 0.")
    assert [r["n_groups"] for r in chosen.results_] == [1, 2, 3]
    assert chosen.split_ == "comparison" and math.isnan(chosen.swapped_share_)
    second = chosen.results_[1]
    assert second["gain_low"] > 0.02 and second["control_gain"]["redrawn"] < 0.01
    assert set(second["control_gain"]) == {"redrawn"}
    assert all(
        type(v) in (int, float)
        for r in chosen.results_
        for n, v in r.items()
        if n != "control_gain"
    )


def test_best_mixture_is_refitted_on_everybody(two, chosen):
    mix, row = chosen.best_mixture_, chosen.results_[1]
    assert mix.n_groups == 2 and len(mix.annotators_) == 60 and mix.l2 == row["l2"]
    again = PreferenceMixture(2, n_init=1, l2=mix.l2, random_state=0).fit(two.data)
    assert again.lower_bound_ == pytest.approx(mix.lower_bound_, rel=1e-6)
    assert row["log_likelihood"] == mix.log_likelihood_
    assert row["bic"] == mix.bic(two.data) and row["icl"] == mix.icl(two.data)


def test_the_ridge_is_chosen_for_each_number_from_the_grid(chosen):
    assert all(r["l2"] in L2_GRID for r in chosen.results_)
    assert (
        len({r["l2"] for r in chosen.results_}) > 1
    )  # one head of a mixture of two is pulled to the middle


def test_a_given_ridge_is_kept(two):
    sel = select_groups(two.data, [1, 2], l2=0.5, **QUICK)
    assert [r["l2"] for r in sel.results_] == [0.5, 0.5] and sel.best_mixture_.l2 == 0.5


def test_the_grid_path_ends_where_a_fit_at_that_ridge_ends(two, chosen):
    """Ridges are reached from the middle one's optimum; the score at the chosen one must be that of a fit there."""
    row = chosen.results_[1]
    fixed = select_groups(two.data, [1, 2], l2=row["l2"], **QUICK).results_[1]
    assert fixed["score"] == pytest.approx(row["score"], abs=2e-4)


def test_one_is_always_tried(two):
    assert [r["n_groups"] for r in select_groups(two.data, [2], l2=1.0, **QUICK).results_] == [1, 2]


def test_one_reward_is_not_split():
    for seed in range(3):
        data = planted(seed, 1, n_annotators=60, n_features=3).data
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error"
            )  # that groups of two or three stay empty is as it should be
            sel = select_groups(data, [1, 2, 3], **QUICK)
        assert sel.best_ == 1 and sel.reason_.startswith("One reward")
        assert sel.best_mixture_.n_groups == 1


def test_the_swap_control_needs_items_that_several_judged():
    """Texts that one annotator alone compared: nothing can be swapped, and the control would be the panel itself."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((2 * 24 * 20, 3))
    first, second = np.arange(0, len(items), 2), np.arange(1, len(items), 2)
    annotator = np.repeat(np.arange(24), 20)
    taste = np.where(annotator % 2, 3.0, -3.0) * (items[first, 0] - items[second, 0])
    won = rng.random(len(taste)) < 1 / (1 + np.exp(-taste))
    data = PreferenceData.from_items(items, np.where(won, first, second), np.where(won, second, first), annotator)  # fmt: skip
    sel = select_groups(data, [1, 2], n_init=2, l2=0.1, random_state=0)
    assert sel.swapped_share_ == 0 and set(sel.results_[1]["control_gain"]) == {"redrawn"}
    assert sel.best_ == 2, sel.reason_


def test_by_item_with_the_swap_control():
    panel = planted(2, 2, form="items", n_annotators=60, n_features=3, n_items=20)
    sel = select_groups(panel.data, [1, 2], **QUICK)
    assert sel.split_ == "item" and sel.best_ == 2 and 0.1 < sel.swapped_share_ <= 1
    assert set(sel.results_[1]["control_gain"]) == {"redrawn", "swapped"}
    assert max(sel.results_[1]["control_gain"].values()) < sel.results_[1]["gain_low"]
    other = select_groups(panel.data, [1, 2], split="comparison", **QUICK)
    assert other.split_ == "comparison"


def test_choice_sets():
    panel = planted(3, 2, form="sets", n_annotators=40, per_annotator=12, n_features=3)
    assert select_groups(panel.data, [1, 2], **QUICK).best_ == 2


def test_the_score_is_of_annotators_and_comparisons_not_fitted(two):
    """By hand: folds, fits and scores through the public faces."""
    sel = select_groups(two.data, [1], l2=2.0, **QUICK)
    folds = Folds(Ranks.of(two.data), 3, 1, "comparison", None, None, None, 0, None)
    fold_of = annotator_folds(60, 3, folds.rng("folds"))
    total = weight = 0.0
    for fold in range(3):
        fitted = PreferenceMixture(1, l2=2.0).fit(two.data.select_annotators(fold_of != fold))
        rest = two.data.select_annotators(fold_of == fold)
        n = round(0.3 * 20) * rest.n_annotators
        total += n * fitted.score(rest, "comparison", folds.rng(f"split {fold}"))
        weight += n
    assert sel.results_[0]["score"] == pytest.approx(total / weight, rel=1e-6)


def equal(a, b):
    assert a.best_ == b.best_ and a.reason_ == b.reason_ and a.results_ == b.results_
    assert np.array_equal(a.best_mixture_.heads_, b.best_mixture_.heads_)
    assert np.array_equal(a.best_mixture_.responsibilities_, b.best_mixture_.responsibilities_)


def test_a_seed_repeats_bit_for_bit(two, chosen):
    equal(select_groups(two.data, [3, 2, 1], **QUICK), chosen)


def test_folds_are_silent_when_piped(two, capfd):
    select_groups(two.data, [1], l2=1.0, **QUICK)
    assert capfd.readouterr() == ("", "")
    select_groups(two.data, [1], l2=1.0, verbose=1, **QUICK)
    err = capfd.readouterr().err
    assert "panel: fold 1 of 3 done\n" in err and "redrawn: fold 3 of 3 done\n" in err


# ---- checkpoints


class Stopped(Exception):  # noqa: N818
    """Raised after a fold."""


def stop_after(monkeypatch, n):
    """Raises once ``n`` folds are kept."""
    keep, kept = Notes.keep, []

    def stop(self, unit, *arrays):
        keep(self, unit, *arrays)
        kept.append(unit)
        if len(kept) == n:
            raise Stopped

    monkeypatch.setattr(Notes, "keep", stop)
    return kept


@pytest.mark.parametrize("n", [1, 3, 5])
def test_goes_on_from_the_finished_folds(two, chosen, tmp_path, monkeypatch, n):
    path = tmp_path / "sel"
    with monkeypatch.context() as patch:
        stop_after(patch, n)
        with pytest.raises(Stopped):
            select_groups(two.data, [1, 2, 3], checkpoint=path, **QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["sel"]
    kept = stop_after(monkeypatch, None)
    equal(select_groups(two.data, [1, 2, 3], checkpoint=path, **QUICK), chosen)
    assert len(kept) == 6 - n and not list(tmp_path.iterdir())


def test_without_a_seed_it_goes_on_with_its_own(two, tmp_path, monkeypatch):
    options = {**QUICK, "l2": 1.0, "checkpoint": tmp_path / "sel"}
    with monkeypatch.context() as patch:
        patch.setattr(selection, "fresh_seed", lambda: 7)
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            select_groups(two.data, [1, 2], **{**options, "random_state": None})
    again = select_groups(two.data, [1, 2], **{**options, "random_state": None})
    equal(again, select_groups(two.data, [1, 2], **{**options, "random_state": 7}))


@pytest.fixture
def stopped(two, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            select_groups(two.data, [1, 2], l2=1.0, checkpoint=tmp_path / "sel", **QUICK)
    return tmp_path / "sel"


@pytest.mark.parametrize(
    "change", [{"l2": 2.0}, {"n_init": 2}, {"n_folds": 4}, {"random_state": 1}, {"n_groups": [3]}, {"dtype": "float32"}],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_of_other_options(two, stopped, change):
    options = {"n_groups": [1, 2], "l2": 1.0, **QUICK, **change}
    with pytest.raises(
        ValueError, match="sel: expected a checkpoint with options = .*; remove it to start anew"
    ):
        select_groups(two.data, checkpoint=stopped, **options)


def test_of_other_data(stopped):
    other = planted(9, 2, n_annotators=60, n_features=3).data
    with pytest.raises(ValueError, match="sel: expected a checkpoint with data = "):
        select_groups(other, [1, 2], l2=1.0, checkpoint=stopped, **QUICK)


def test_item_ids_are_part_of_the_data():
    data = planted(2, 2, form="items", n_annotators=5, n_items=6).data
    apart = data.chosen + data.rejected != 1  # the first two items will be one
    rows = (data.chosen[apart], data.rejected[apart], data.comparison_annotator[apart.numpy()])
    prints = {
        checkpoint.fingerprint(PreferenceData.from_items(data.features, *rows, item_ids=ids))
        for ids in (None, [0, 0, 1, 2, 3, 4])
    }
    assert len(prints) == 2


def test_damaged_foreign_or_of_another_version(two, stopped, monkeypatch):
    whole = stopped.read_bytes()
    options = {"l2": 1.0, "checkpoint": stopped, **QUICK}
    stopped.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match="expected a whole file of maxmin"):
        select_groups(two.data, [1, 2], **options)
    PreferenceMixture(1, random_state=0).fit(two.data).save(stopped)
    with pytest.raises(ValueError, match="expected a checkpoint of a selection, got a mixture"):
        select_groups(two.data, [1, 2], **options)
    stopped.write_bytes(whole)
    monkeypatch.setattr(checkpoint, "FORMAT", 5)
    with pytest.raises(ValueError, match="expected format 5, got 1 of another version"):
        select_groups(two.data, [1, 2], **options)


# ---- arguments and awkward data


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_groups": [0]}, ValueError, "n_groups: expected at least 1, got 0"),
        ({"n_groups": [2.5]}, TypeError, "n_groups: expected a whole number, got float"),
        ({"n_init": 0}, ValueError, "n_init: expected at least 1, got 0"),
        ({"l2": -1.0}, ValueError, "l2: expected a finite number >= 0, got -1.0"),
        ({"split": "pair"}, ValueError, "split: expected 'auto', 'item' or 'comparison', got 'pair'"),
        ({"split": "item"}, ValueError, 'split: "item" needs items with ids (from_items), got rows of differences'),
        ({"n_folds": 1}, ValueError, "data: expected at least 2 annotators and 2 folds, got 60 and 1"),
        ({"n_folds": 0}, ValueError, "n_folds: expected at least 1, got 0"),
        ({"n_groups": [41]}, ValueError, "n_groups: expected at most 40, the annotators a fold leaves, got 41"),
        ({"dtype": "int8"}, ValueError, "dtype: expected float64, float32, bfloat16 or float16, got 'int8'"),
        ({"random_state": -1}, ValueError, "random_state: expected at least 0, got -1"),
        ({"random_state": "x"}, TypeError, "random_state: expected a whole number, got str"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)  # fmt: skip
def test_refuses(two, options, error, message):
    with pytest.raises(error) as caught:
        select_groups(two.data, **{"n_groups": [1, 2], **QUICK, **options})
    assert str(caught.value) == message


def test_one_annotator():
    with pytest.raises(
        ValueError, match="data: expected at least 2 annotators and 2 folds, got 1 and 1"
    ):
        select_groups(planted(0, 1, n_annotators=1).data, [1])


def test_few_annotators_and_annotators_with_one_comparison():
    rng = np.random.default_rng(0)
    data = PreferenceData.from_arrays(rng.standard_normal((9, 2)), [0, 0, 0, 0, 1, 2, 2, 3, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        sel = select_groups(data, [1, 2], n_init=1, random_state=0)
    assert sel.best_ in (1, 2) and all(math.isfinite(r["score"]) for r in sel.results_)


def test_weights_count():
    panel = planted(4, 2, n_annotators=40, n_features=3)
    weight = np.where(np.arange(panel.data.n_comparisons) % 2, 1.0, 0.0)
    owner = panel.data.comparison_annotator
    half = panel.data.select_comparisons(weight > 0)
    weighted = PreferenceData.from_arrays(panel.data.features, owner, weight=weight)
    a, b = (
        select_groups(d, [1], l2=1.0, **QUICK).results_[0]["log_likelihood"]
        for d in (half, weighted)
    )
    assert a == pytest.approx(b, rel=1e-6)


def test_a_checkpoint_that_some_processes_do_not_have(tmp_path, two):
    """As the second of two processes, whose first says that it has none."""
    files = tmp_path / "kept"
    files.write_bytes(b"")
    ranks = replace(Ranks.of(two.data), group=SimpleNamespace(size=lambda: 2))
    object.__setattr__(ranks, "sum", lambda mine: (mine + 0.0,))
    with pytest.raises(ValueError, match="checkpoint: expected the same file for every process"):
        Notes(files, 0, 3, first=False).open(ranks, {})


def test_annotators_without_weight_are_no_part_of_the_population():
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(30), 6)
    features = rng.standard_normal((180, 2))
    few = PreferenceData.from_arrays(features, who, weight=(who < 5) * 1.0)
    chosen = select_groups(few, [2], n_init=2, n_folds=2, l2=1.0, random_state=0)
    assert all(math.isfinite(r["behind_high"]) for r in chosen.results_)
    none = PreferenceData.from_arrays(features, who, weight=np.zeros(180))
    with pytest.raises(ValueError, match="weight: expected held-out comparisons that count"):
        select_groups(none, [2], n_init=2, n_folds=2, l2=1.0, random_state=0)

"""Held-out masks without leaks, folds, and the two null controls."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxmin_rlhf import PreferenceData
from maxmin_rlhf.data import (
    annotator_folds,
    held_out_masks,
    redraw_choices,
    swap_judgments,
)
from maxmin_rlhf.data.splits import item_set_keys

DATA = os.environ.get("MAXMIN_DATA")


def simulate(seed, n_annotators=9, n_items=8, n_sets=120, largest=4, form="items", weighted=False):
    """Random choice sets (pairs if largest is 2) of items with random features; annotator 0 has one comparison."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in range(n_sets):
        who = 0 if c == 0 else rng.integers(1, n_annotators)
        drawn = rng.permutation(n_items)[: rng.integers(2, largest + 1)]
        rows += [(drawn[0], other, who, c) for other in drawn[1:]]
    chosen, rejected, annotator, comparison = np.array(rows).T
    table = rng.standard_normal((n_items, 3))
    weight = rng.integers(0, 4, n_sets)[comparison] if weighted else None
    options = {"comparison": comparison, "weight": weight}
    if form == "rows":
        return PreferenceData.from_arrays(table[chosen] - table[rejected], annotator, **options)
    return PreferenceData.from_items(table, chosen, rejected, annotator, **options)


def comparisons(data):
    """(annotator, chosen item, rejected items) of each comparison, in plain Python."""
    ends = range(data.n_rows + 1) if data.choice_indptr is None else data.choice_indptr.tolist()
    chosen, rejected = data.chosen.tolist(), data.rejected.tolist()
    for a, (start, end) in zip(
        data.comparison_annotator.tolist(), itertools.pairwise(ends), strict=True
    ):
        assert len(set(chosen[start:end])) == 1
        yield a, chosen[start], set(rejected[start:end])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 4), st.sampled_from([0.1, 0.3, 0.6]))
def test_by_item_hides_a_share_of_each_annotators_own_items(seed, largest, fraction):
    data = simulate(seed, largest=largest)
    visible, scored, split = held_out_masks(data, "auto", seed, fraction)
    assert split == "item" and (visible ^ scored).all()
    judged, shown = {}, {}
    for (a, won, lost), see in zip(comparisons(data), visible, strict=True):
        judged.setdefault(a, set()).update(lost | {won})
        shown.setdefault(a, set()).update(lost | {won} if see else set())
    some = False
    for a, items in judged.items():
        quota = max(1, round(fraction * len(items)))
        assert len(items - shown[a]) >= quota  # never seen before they are scored
        hidden_choices = list(itertools.combinations(sorted(items), quota))
        mine = [
            ((lost | {won}), s)
            for (b, won, lost), s in zip(comparisons(data), scored, strict=True)
            if b == a
        ]
        # Some set of exactly that many items explains the mask: scored are just those that touch it.
        assert any(all(bool(x & set(h)) == s for x, s in mine) for h in hidden_choices)
        some |= bool(shown[a])
    assert (some or fraction > 0.5) and scored[data.comparison_annotator == 0].all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["rows", "items"]))
def test_by_comparison_hides_a_share_of_each_annotators_comparisons(seed, form):
    data = simulate(seed, form=form, n_items=30)
    visible, scored, split = held_out_masks(data, "comparison", seed)
    assert split == "comparison" and (visible ^ scored).all()
    what = np.arange(data.n_comparisons) if form == "rows" else item_set_keys(data)
    for a in range(data.n_annotators):
        mine = data.comparison_annotator == a
        seen, hidden = set(what[mine & visible]), set(what[mine & scored])
        assert not seen & hidden  # the same items again stay on one side
        assert len(hidden) == max(1, np.rint(0.3 * len(seen | hidden)))
    if form == "rows":
        assert held_out_masks(data, "auto", 0)[2] == "comparison"


def test_equal_ids_are_one_item():
    data = PreferenceData.from_items(
        np.eye(4), [0, 2], [1, 3], [0, 0], item_ids=["a", "b", "a", "b"]
    )
    for seed in range(5):
        assert held_out_masks(data, "item", seed)[1].tolist() == [True, True]
    assert len(set(item_set_keys(data))) == 1


def test_splits_repeat_and_differ_by_seed():
    data = simulate(0)
    first = held_out_masks(data, "item", 3)[1]
    np.testing.assert_array_equal(first, held_out_masks(data, "item", np.random.default_rng(3))[1])
    assert (first != held_out_masks(data, "item", 4)[1]).any()


def test_splits_of_nothing():
    data = simulate(0).select_comparisons(np.zeros(120, bool))
    for split in ("item", "comparison"):
        assert [m.shape for m in held_out_masks(data, split)[:2]] == [(0,), (0,)]
    assert swap_judgments(data)[1] == 0.0


def test_bad_arguments():
    rows = simulate(0, form="rows")
    with pytest.raises(ValueError, match="split: expected .*, got 'pair'"):
        held_out_masks(rows, "pair")
    with pytest.raises(ValueError, match='split: "item" needs items with ids'):
        held_out_masks(rows, "item")
    with pytest.raises(ValueError, match=r"fraction: expected a number in \(0, 1\), got 1"):
        held_out_masks(rows, fraction=1)
    with pytest.raises(ValueError, match="data: expected items with ids"):
        swap_judgments(rows)
    with pytest.raises(ValueError, match=r"weight: expected shape \(3,\), got \(2,\)"):
        redraw_choices(rows, np.ones(2))
    for n_folds in (1, 6):
        with pytest.raises(ValueError, match="n_folds: expected 2 to 5"):
            annotator_folds(5, n_folds)


def test_folds_are_balanced_and_random():
    folds = annotator_folds(23, 5, 0)
    assert sorted(np.bincount(folds)) == [4, 4, 5, 5, 5]
    np.testing.assert_array_equal(folds, annotator_folds(23, 5, 0))
    assert (folds != annotator_folds(23, 5, 1)).any() and (folds != np.arange(23) % 5).any()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 4), st.booleans())
def test_swap_keeps_the_votes_on_every_set(seed, largest, weighted):
    data = simulate(seed, n_items=5, largest=largest, weighted=weighted)
    swapped, share = swap_judgments(data, seed)
    before, after = list(comparisons(data)), list(comparisons(swapped))
    assert [(a, lost | {won}) for a, won, lost in before] == [
        (a, lost | {won}) for a, won, lost in after
    ]
    weight = [1.0] * len(before) if data.weight is None else data.weight.tolist()
    moved = weight if swapped.weight is None else swapped.weight.tolist()

    def votes(judged, v):
        return sorted(
            (sorted(lost | {won}), won, w) for (_, won, lost), w in zip(judged, v, strict=True)
        )

    assert votes(before, weight) == votes(after, moved)
    assert 0.2 < share < 1.0
    np.testing.assert_array_equal(swapped.order, data.order)


def test_swap_makes_judgments_exchangeable():
    """Two annotators who always disagree: afterwards each answers as either of them in half of the pairs."""
    pairs = np.array(list(itertools.combinations(range(40), 2)))
    low, high = pairs.T
    data = PreferenceData.from_items(
        np.eye(40),
        np.r_[low, high],
        np.r_[high, low],
        ["up"] * len(low) + ["down"] * len(low),
    )
    swapped, share = swap_judgments(data, 0)
    ups = (swapped.chosen < swapped.rejected).numpy()
    assert ups[: len(low)].mean() == pytest.approx(0.5, abs=0.06) and share == pytest.approx(
        0.5, abs=0.06
    )
    assert (ups[: len(low)] ^ ups[len(low) :]).all()  # every pair keeps one vote each way


def test_pairs_of_one_annotator_alone_are_not_swapped():
    data = PreferenceData.from_items(np.eye(4), [0, 2, 2], [1, 3, 3], ["a", "b", "b"])
    swapped, share = swap_judgments(data, 0)
    assert share == 0 and torch.equal(swapped.chosen, data.chosen)


@pytest.mark.parametrize("form", ["rows", "items"])
@pytest.mark.parametrize("largest", [2, 5])
def test_redrawn_choices_are_of_the_same_sets(form, largest):
    data = simulate(1, form=form, largest=largest, weighted=True)
    drawn = redraw_choices(data, np.array([1.0, -1.0, 0.5]), 0)
    assert drawn.weight is data.weight and drawn.choice_indptr is data.choice_indptr
    if form == "items":
        sets = [(a, lost | {won}) for a, won, lost in comparisons(data)]
        assert sets == [(a, lost | {won}) for a, won, lost in comparisons(drawn)]
        changed = (drawn.chosen != data.chosen).double().mean()
    else:
        # The alternatives up to a shift, the old choice at 0: differences of any two are the same as before.
        same = 0
        for c in range(data.n_comparisons):
            old, new = (
                torch.cat([torch.zeros(1, 3), -d.features[d.row_comparison == c]])
                for d in (data, drawn)
            )
            shift = [o for o in old if torch.allclose((old - o).sort(0)[0], new.sort(0)[0])]
            assert len(shift) == 1
            same += bool((shift[0] == 0).all())
        changed = 1 - same / data.n_comparisons
    assert 0.2 < changed < 0.9


@pytest.mark.parametrize("form", ["rows", "items"])
def test_redrawn_choices_follow_the_logit_model(form):
    n, table = 40_000, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, -1.0]])
    lost = np.tile([1, 2, 3], n)
    who, sets = np.zeros(3 * n, int), np.repeat(np.arange(n), 3)
    if form == "items":
        data = PreferenceData.from_items(table, 0 * lost, lost, who, comparison=sets)
    else:
        data = PreferenceData.from_arrays(table[[0]] - table[lost], who, comparison=sets)
    head = torch.tensor([0.8, 0.3])
    drawn = redraw_choices(data, head, 1)
    if form == "items":
        won = drawn.chosen[::3]
    else:  # three minus the sum tells which alternative the differences are against
        best = (drawn.features.reshape(n, 3, 2).sum(1) + table.sum(0)) / 4
        won = torch.cdist(best, table).argmin(1)
    share = torch.bincount(won, minlength=4) / n
    torch.testing.assert_close(share, torch.softmax(table @ head, 0), atol=0.01, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_redrawn_pairs_turn_their_sign_in_their_own_dtype(dtype):
    features = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    data = PreferenceData.from_arrays(features, np.arange(5000) % 7)
    drawn = redraw_choices(data, np.array([30.0, 0, 0]), 0)
    assert drawn.dtype == dtype and torch.equal(drawn.features.abs(), data.features.abs())
    assert (drawn.features[:, 0].double() > 0).double().mean() > 0.95
    assert torch.equal(data.features[data.order.argsort()], features)  # the input is left alone


@pytest.mark.skipif(not DATA, reason="MAXMIN_DATA names no folder of data sets")
def test_jester_splits_and_swap():
    pytest.importorskip("pyarrow")
    data = PreferenceData.read(
        Path(DATA) / "jester5k" / "pairs.parquet",
        annotator="annotator_id",
        chosen="chosen_id",
        rejected="rejected_id",
    )
    visible, _, split = held_out_masks(data, "auto", 0)
    assert split == "item" and visible.mean() == pytest.approx(0.49, abs=0.02)
    swapped, share = swap_judgments(data, 0)
    assert share > 0.95
    for side in ("chosen", "rejected"):
        counts = [torch.bincount(getattr(d, side), minlength=100) for d in (data, swapped)]
        assert torch.equal(*counts)
    assert (swapped.chosen != data.chosen).double().mean() > 0.3

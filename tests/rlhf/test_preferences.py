"""PreferenceData: against a naive construction in plain Python, and what it says to bad input."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxmin_rlhf import PreferenceData, PreferenceMixture, PreferenceStore
from maxmin_rlhf.data._arrays import id_array


def naive_order(annotator, comparison=None):
    """Rows of each comparison of each annotator, all in order of first appearance."""
    panel = {}
    for row, who in enumerate(annotator):
        key = row if comparison is None else comparison[row]
        panel.setdefault(who, {}).setdefault(key, []).append(row)
    return {who: list(sets.values()) for who, sets in panel.items()}


def rows_of(data):
    """The same structure read out of a PreferenceData."""
    choice = range(data.n_rows + 1) if data.choice_indptr is None else data.choice_indptr.tolist()
    order, indptr = data.order.tolist(), data.indptr.tolist()
    return {
        who: [order[choice[c] : choice[c + 1]] for c in range(indptr[a], indptr[a + 1])]
        for a, who in enumerate(data.annotators_.tolist())
    }


panels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=150)
@given(panels, st.sampled_from([str, int, lambda x: (x, "id"), float]))
def test_rows_equal_a_naive_construction(panel, kind):
    annotator, comparison = [kind(a) for a, _ in panel], [c for _, c in panel]
    features = np.arange(2.0 * len(panel)).reshape(-1, 2)
    weight = [1.0 + a + 10 * c for a, c in panel]
    for sets in (None, comparison):
        data = PreferenceData.from_arrays(features, annotator, comparison=sets, weight=weight)
        want = naive_order(annotator, sets)
        assert rows_of(data) == want
        assert list(rows_of(data)) == list(want)
        np.testing.assert_array_equal(data.features.numpy(), features[data.order.numpy()])
        firsts = [rows[0] for groups in want.values() for rows in groups]
        assert data.weight.tolist() == [weight[row] for row in firsts]
        assert data.comparison_annotator.tolist() == [
            a for a, groups in enumerate(want.values()) for _ in groups
        ]
        assert data.row_comparison.shape == (len(panel),)
        assert data.n_comparisons == len(firsts) and data.n_annotators == len(want)


@settings(deadline=None, max_examples=60)
@given(panels, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_the_content(panel, random):
    shuffled = list(range(len(panel)))
    random.shuffle(shuffled)
    features = np.arange(float(len(panel)))[:, None]

    def content(rows):
        data = PreferenceData.from_arrays(
            features[rows],
            [panel[r][0] for r in rows],
            comparison=[panel[r][1] for r in rows],
        )
        owner, values = data.row_comparison, data.features[:, 0].tolist()
        sets = [
            frozenset(values[i] for i in np.flatnonzero(owner == c)) for c in range(owner[-1] + 1)
        ]
        who = data.annotators_[data.comparison_annotator].tolist()
        return sorted((a, sorted(s)) for a, s in zip(who, sets, strict=True))

    assert content(list(range(len(panel)))) == content(shuffled)


def test_indexed_form_sorts_rows_and_keeps_items():
    items = torch.randn(5, 3, dtype=torch.bfloat16)
    data = PreferenceData.from_items(
        items, [0, 3, 0, 2], [1, 4, 2, 1], ["b", "a", "b", "a"], comparison=[0, 0, 0, 1]
    )
    assert data.annotators_.tolist() == ["b", "a"]
    assert data.chosen.tolist() == [0, 0, 3, 2] and data.rejected.tolist() == [
        1,
        2,
        4,
        1,
    ]
    assert data.choice_indptr.tolist() == [0, 2, 3, 4] and data.indptr.tolist() == [
        0,
        1,
        3,
    ]
    assert data.dtype == torch.bfloat16 and data.is_indexed and data.has_items
    assert data.item_ids.tolist() == [0, 1, 2, 3, 4]
    assert "3 comparisons (4 rows) of 2 annotators; 5 items, 3 features, bfloat16" in repr(data)


def test_pairs_are_differences():
    chosen, rejected = np.random.default_rng(0).standard_normal((2, 6, 3))
    data = PreferenceData.from_pairs(chosen, rejected, [1, 0, 1, 0, 2, 2])
    np.testing.assert_array_equal(data.features.numpy(), (chosen - rejected)[[0, 2, 1, 3, 4, 5]])
    assert data.choice_indptr is None and data.item_ids is None and not data.has_items


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.zeros((2, 3), np.float32), torch.float32),
        (np.zeros((2, 3), np.float16), torch.float16),
        (np.zeros((2, 3), np.longdouble), torch.float64),
        (np.zeros((2, 3), ">f4"), torch.float32),
        (np.zeros((2, 3), np.int8), torch.float64),
        (np.zeros((2, 3), bool), torch.float64),
        (np.zeros((3, 2), np.float32).T, torch.float32),
        (np.zeros((4, 3), np.float32)[::-2], torch.float32),
        (torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True), torch.bfloat16),
        (torch.zeros(2, 3, dtype=torch.int64), torch.float64),
        (torch.zeros(2, 6)[:, ::2], torch.float32),
        ([[0, 0, 0], [0, 0, 0]], torch.float64),
        (pd.DataFrame(np.zeros((2, 3), np.float32)), torch.float32),
        (pd.Series([[0.0] * 3, [0.0] * 3]), torch.float64),
    ],
)
def test_kinds_of_features(value, dtype):
    data = PreferenceData.from_arrays(value, [0, 0])
    assert data.features.shape == (2, 3) and data.dtype == dtype
    assert data.features.is_contiguous() and not data.features.requires_grad


@pytest.mark.parametrize(
    "ids",
    [
        ["x", "y", "x"],
        np.array(["x", "y", "x"]),
        pd.Series(["x", "y", "x"]),
        pd.Series(["x", "y", "x"], dtype="category"),
        pd.Series(["x", "y", "x"], dtype="string"),
        [3, "y", 3],
        [("x", 1), ("y", 2), ("x", 1)],
        np.array([9, -4, 9], np.int16),
        torch.tensor([9, 4, 9]),
        pd.Series(pd.to_datetime(["2020-01-01", "2021-01-01", "2020-01-01"])),
    ],
)
def test_kinds_of_ids(ids):
    data = PreferenceData.from_arrays(np.eye(3), ids)
    assert data.indptr.tolist() == [0, 2, 3] and data.order.tolist() == [0, 2, 1]
    assert data.annotators_.shape == (2,)
    first = next(iter(ids))
    assert data.annotators_[0] == (first.item() if isinstance(first, torch.Tensor) else first)


LARGE = [2**63 + 1, -1, 2**63 + 2]
NULLS = ["a", "a\0", "\0"]
LONG = ["x" * 100_000 + end for end in "ab"]


@pytest.mark.parametrize(
    "ids",
    [LARGE, NULLS, LONG, [2**63, 2**63 + 1], [2**70, 2**70 + 1]],
    ids=["large", "nulls", "long", "unsigned", "huge"],
)
def test_ids_that_numpy_would_change_are_kept(tmp_path, ids):
    n = len(ids)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2 * n, 2))
    data = PreferenceData.from_arrays(features, ids * 2)
    assert data.annotators_.tolist() == ids and data.annotators_.nbytes <= 8 * n
    mixture = PreferenceMixture(1, n_init=1, random_state=0).fit(data)
    mixture.save(tmp_path / "m")
    assert PreferenceMixture.load(tmp_path / "m").annotators_.tolist() == ids
    items = PreferenceData.from_items(np.eye(n), [0], [1], ["x"], item_ids=ids)
    assert items.item_ids.tolist() == ids and np.unique(items.item_codes).size == n
    for i in range(n):  # one by one, on disk, with usual ones
        PreferenceStore.append(tmp_path / "store", data.select_annotators([i]))
    PreferenceStore.append(tmp_path / "store", PreferenceData.from_arrays(np.ones((2, 2)), [7, 8]))
    PreferenceStore.append(tmp_path / "store", PreferenceData.from_arrays(np.ones((1, 2)), ["7"]))
    assert PreferenceStore(tmp_path / "store").annotators_.tolist() == [*ids, 7, 8, "7"]


def test_usual_ids_are_plain_arrays():
    for ids, kind in (([3, -1], "i"), (["a", "b" * 64], "U"), ([3, "a"], "O"), ([], "i")):
        assert id_array(ids).dtype.kind == kind


def test_read_only_input_is_taken_silently(recwarn):
    features = np.ones((2, 2))
    features.flags.writeable = False
    PreferenceData.from_arrays(features, [0, 1])
    assert not recwarn.list


ITEMS, FEATURES = np.eye(4), np.ones((3, 2))
BAD = {
    "nan": (lambda: arrays(features=[[0.0, 1], [0, np.nan], [0, 0]]), ValueError,
            "features: expected finite numbers, got nan in row 1, column 1"),
    "inf": (lambda: arrays(features=np.float16([[0, 1], [0, 1], [-np.inf, 0]])), ValueError,
            "features: expected finite numbers, got -inf in row 2, column 0"),
    "nan pair": (lambda: PreferenceData.from_pairs(np.ones((2, 1)), [[0.0], [np.nan]], [0, 0]), ValueError,
                 "rejected: expected finite numbers, got nan in row 1"),
    "overflow": (lambda: PreferenceData.from_pairs(np.float16([[6e4]]), np.float16([[-6e4]]), [0]), ValueError,
                 "chosen - rejected: expected finite numbers, got inf in row 0"),
    "nan item": (lambda: PreferenceData.from_items(np.full((2, 1), np.nan), [0], [1], [0]), ValueError,
                 "items: expected finite numbers, got nan in row 0"),
    "one axis": (lambda: arrays(features=[1.0, 2, 3]), ValueError, r"features: expected shape \(N, D\), got \(3,\)"),
    "no feature": (lambda: arrays(features=np.ones((3, 0))), ValueError, r"features: .* got \(3, 0\)"),
    "no row": (lambda: arrays(features=np.ones((0, 2)), annotator=[]), ValueError, "features: .* at least one row"),
    "ragged": (lambda: arrays(features=[[1.0], [1, 2], [3]]), ValueError, "features: expected rows of equal length"),
    "ragged column": (lambda: arrays(features=pd.Series([[1.0], [1, 2], [3]])), ValueError, "features: .*equal length"),
    "text": (lambda: arrays(features=[["a"], ["b"], ["c"]]), TypeError, "features: expected numbers, got dtype <U1"),
    "complex": (lambda: arrays(features=torch.zeros(3, 1, dtype=torch.complex64)), TypeError,
                "features: expected float64, .* got complex64"),
    "shapes": (lambda: PreferenceData.from_pairs(np.ones((2, 3)), np.ones((2, 2)), [0, 0]), ValueError,
               r"rejected: expected the shape of chosen \(2, 3\), got \(2, 2\)"),
    "few ids": (lambda: arrays(annotator=[1, 2]), ValueError, "annotator: expected 3 ids, one a row, got 2"),
    "one string": (lambda: arrays(annotator="abc"), TypeError, "annotator: expected one id a row, got str"),
    "id matrix": (lambda: arrays(annotator=np.ones((3, 1))), ValueError, r"annotator: expected shape \(N,\)"),
    "unhashable": (lambda: arrays(annotator=[[1], [2], [3]]), TypeError, "annotator: expected hashable ids: .*list"),
    "None": (lambda: arrays(annotator=["a", None, None]), ValueError,
             "annotator: 2 missing values, the first in row 1"),
    "nan id": (lambda: arrays(annotator=np.array([1, np.nan, np.nan])), ValueError,
               "annotator: 2 missing values, the first in row 1"),
    "NA": (lambda: arrays(annotator=pd.Series(["a", "b", pd.NA], dtype="string")), ValueError,
           "annotator: 1 missing values, the first in row 2"),
    "NaT": (lambda: arrays(annotator=np.array(["2020", "NaT", "2020"], "M8[ns]")), ValueError,
            "annotator: 1 missing values, the first in row 1"),
    "no comparison id": (lambda: arrays(comparison=[0, None, 1]), ValueError, "comparison: 1 missing values"),
    "negative weight": (lambda: arrays(weight=[1, 2, -3.0]), ValueError,
                        "weight: expected finite numbers >= 0, got -3.0 in row 2"),
    "nan weight": (lambda: arrays(weight=torch.tensor([1, np.nan, 1])), ValueError, "weight: .* got nan in row 1"),
    "few weights": (lambda: arrays(weight=[1.0]), ValueError, r"weight: expected shape \(3,\), one a row, got \(1,\)"),
    "text weights": (lambda: arrays(weight=["a", "b", "c"]), TypeError, "weight: expected numbers"),
    "two weights": (lambda: arrays(annotator=[0, 1, 0], comparison=[5, 5, 5], weight=[1, 2, 3]), ValueError,
                    "weight: expected one weight a comparison, got 3.0 in row 2 and 1.0 in another row"),
    "out of range": (lambda: items(chosen=[0, 4, 1]), ValueError,
                     r"chosen: expected indices in \[0, 4\), got 4 in row 1"),
    "negative": (lambda: items(rejected=[3, 3, -1]), ValueError, r"rejected: .* got -1 in row 2"),
    "float index": (lambda: items(chosen=[0.0, 1, 1]), TypeError, "chosen: expected integers, got dtype float64"),
    "lengths": (lambda: items(rejected=[3]), ValueError, r"rejected: expected shape \(3,\), got \(1,\)"),
    "no pair": (lambda: items(chosen=[], rejected=[], annotator=[]), ValueError, "chosen: .* at least one row"),
    "itself": (lambda: items(rejected=[3, 1, 3]), ValueError,
               "rejected: expected another item than the chosen one, got 1 twice in row 1"),
    "itself by id": (lambda: items(item_ids=["a", "b", "c", "b"]), ValueError,
                     "rejected: expected another item than the chosen one, got the id 'b' twice in row 1"),
    "two chosen": (lambda: items(annotator=[0, 1, 0], comparison=[7, 7, 7], chosen=[0, 2, 1]), ValueError,
                   r"chosen: a choice set with two chosen items \(0 and 1\), in rows 0 and 2"),
    "twice rejected": (lambda: items(annotator=[0, 1, 0], comparison=[7, 7, 7], chosen=[0, 0, 0]), ValueError,
                       "rejected: item 3 stands twice in one choice set, in rows 0 and 2"),
    "ids of items": (lambda: items(item_ids=["a", "b"]), ValueError, "item_ids: expected 4 ids, one a row, got 2"),
}  # fmt: skip


def arrays(features=FEATURES, annotator=(0, 0, 1), **options):
    return PreferenceData.from_arrays(features, annotator, **options)


def items(chosen=(0, 1, 1), rejected=(3, 3, 3), annotator=(0, 0, 1), **options):
    return PreferenceData.from_items(ITEMS, chosen, rejected, annotator, **options)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_rows_are_the_callers_not_the_sorted_ones():
    with pytest.raises(ValueError, match="in row 1, column 0"):
        PreferenceData.from_arrays([[0.0], [np.nan], [0], [0]], ["b", "a", "b", "b"])


def test_values_are_checked_in_blocks(monkeypatch):
    monkeypatch.setattr("maxmin_rlhf.data._arrays._CHECKED_AT_ONCE", 8)
    features = np.zeros((11, 2))
    features[9, 1] = np.inf
    with pytest.raises(ValueError, match="got inf in row 9, column 1"):
        PreferenceData.from_arrays(features, [0] * 11)


def test_a_pair_judged_twice_is_allowed():
    data = items(chosen=[0, 0, 1], rejected=[1, 1, 0], annotator=[0, 0, 0])
    assert data.n_comparisons == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": torch.tensor([0, 2, 1, 3])}, "indptr: expected a non-decreasing pointer, got 2 before 1 at position 2"),
        ({"indptr": torch.tensor([0, 2])}, "indptr: expected to run from 0 to 3, got 0 to 2"),
        ({"indptr": torch.tensor([0, 3], dtype=torch.int32)}, r"indptr: expected int64 of shape \(n \+ 1,\)"),
        ({"choice_indptr": torch.tensor([0, 1, 1, 3])}, "choice_indptr: expected an increasing pointer"),
        ({"weight": torch.ones(2)}, r"weight: expected shape \(3,\), got \(2,\)"),
        ({"annotators_": np.arange(5)}, r"annotators_: expected shape \(1,\), got \(5,\)"),
        ({"chosen": torch.tensor([0, 1, 9])}, "chosen, rejected: expected both or neither"),
        ({"chosen": torch.tensor([0, 1, 9]), "rejected": torch.tensor([1, 2, 0])}, r"chosen: .* got 9 in row 2"),
    ],
)  # fmt: skip
def test_layout_is_checked_in_the_class_itself(change, message):
    layout = {
        "features": torch.ones(3, 2),
        "indptr": torch.tensor([0, 3]),
        "annotators_": np.arange(1),
        "order": torch.arange(3),
    }
    PreferenceData(**layout)
    with pytest.raises(ValueError, match=message):
        PreferenceData(**{**layout, **change})


def sample_sets(n=300, n_annotators=12, seed=0):
    """Choice sets of 1 to 4 rows over 10 items: (chosen, rejected, annotator, comparison, weight)."""
    rng = np.random.default_rng(seed)
    out = []
    for c in range(n):
        who, size = rng.integers(n_annotators), rng.integers(2, 6)
        drawn = rng.permutation(10)[:size]
        out += [(drawn[0], other, who, c, float(c % 3)) for other in drawn[1:]]
    rng.shuffle(out)
    return (np.array(column) for column in zip(*out, strict=True))


@pytest.mark.parametrize("indexed", [True, False])
def test_selections(indexed):
    chosen, rejected, annotator, comparison, weight = sample_sets()
    annotator, comparison = annotator.astype(int), comparison.astype(int)
    table = np.random.default_rng(1).standard_normal((10, 3))
    if indexed:
        data = PreferenceData.from_items(
            table, chosen, rejected, annotator, comparison=comparison, weight=weight
        )
    else:
        rows = table[chosen] - table[rejected]
        data = PreferenceData.from_arrays(rows, annotator, comparison=comparison, weight=weight)
    want = rows_of(data)

    some = data.select_annotators([5, 0, 7])
    assert rows_of(some) == {who: want[who] for who in data.annotators_[[5, 0, 7]].tolist()}
    np.testing.assert_array_equal(some.weight, weight[some.order[some.choice_indptr[:-1]]])
    if indexed:
        assert some.features is data.features
        np.testing.assert_array_equal(some.chosen, chosen[some.order])
        np.testing.assert_array_equal(some.rejected, rejected[some.order])
    else:
        np.testing.assert_array_equal(some.features, rows[some.order])
    mask = np.isin(np.arange(12), [5, 0, 7])
    assert rows_of(data.select_annotators(torch.from_numpy(mask))) == rows_of(some)

    keep = np.random.default_rng(2).random(data.n_comparisons) < 0.5
    keep[data.comparison_annotator == 3] = False
    half = data.select_comparisons(keep)
    kept = iter(keep)
    assert rows_of(half) == {
        who: [rows for rows in sets if next(kept)] for who, sets in want.items()
    }
    assert half.indptr.diff()[3] == 0
    nobody = data.select_comparisons(np.zeros_like(keep))
    assert nobody.n_comparisons == nobody.n_rows == 0 and nobody.n_annotators == 12

    with pytest.raises(ValueError, match=r"mask: expected \(300,\) booleans"):
        data.select_comparisons(keep[1:])
    with pytest.raises(ValueError, match="which: expected every annotator at most once"):
        data.select_annotators([1, 1])
    with pytest.raises(ValueError, match=r"which: expected indices in \[0, 12\), got 12"):
        data.select_annotators([12])


def test_selecting_pairs_out_of_sets_drops_the_pointer():
    data = items(annotator=[0, 0, 0], comparison=[1, 2, 2], chosen=[0, 1, 1], rejected=[1, 2, 3])
    assert data.select_comparisons(np.array([True, False])).choice_indptr is None


def test_a_million_rows_take_seconds():
    rng = np.random.default_rng(0)
    n = 1_000_000
    names = np.array([f"w{i}" for i in range(5000)], dtype=object)[rng.integers(0, 5000, n)]
    features = rng.standard_normal((n, 4), dtype=np.float32)
    start = time.perf_counter()
    data = PreferenceData.from_arrays(features, names, comparison=np.arange(n) // 3)
    assert (
        time.perf_counter() - start < 10
    )  # about .6 s on an idle core; a loop over rows takes far longer
    assert data.n_annotators == 5000


def test_import_is_light():
    code = (
        "import sys, maxmin_rlhf; assert 'torch' not in sys.modules; maxmin_rlhf.PreferenceData; "
        "print([m for m in ('pandas', 'pyarrow', 'scipy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(importlib.import_module("maxmin_rlhf"), "nothing")  # noqa: B009


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, "U3", "S3"])
@pytest.mark.parametrize("run", [1, 3, 7])
def test_ids_in_runs_are_numbered_as_one_by_one(dtype, run):
    rng = np.random.default_rng(run)
    ids = np.repeat(rng.integers(0, 6, 20).astype(dtype), run)  # an annotator comes back later
    features = rng.standard_normal((len(ids), 2))
    data = PreferenceData.from_arrays(features, ids)
    slow = PreferenceData.from_arrays(features, list(ids.tolist()))
    assert data.annotators_.dtype == ids.dtype
    assert data.annotators_.tolist() == slow.annotators_.tolist()
    for name in ("indptr", "order", "features"):
        assert torch.equal(getattr(data, name), getattr(slow, name))

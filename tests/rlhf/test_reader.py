"""PreferenceData.read: every format and form, what it says to bad files, and real data where it is at hand."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from maxmin_rlhf import PreferenceData

pa = pytest.importorskip("pyarrow")

DATA = os.environ.get("MAXMIN_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="MAXMIN_DATA names no folder of data sets")

FRAME = pd.DataFrame(
    {
        "who": ["ann", "bob", "ann", "bob"],
        "task": [1, 1, 1, 2],
        "won": ["x", "z", "x", "y"],
        "lost": ["y", "x", "z", "z"],
        "price": [1, 2, 3, 4],
        "speed": [0.5, 0.25, -1.0, 2.0],
        "other_price": [0, 0, 1, 0],
        "other_speed": [1.0, 0.0, 0.0, 0.0],
        "importance": [1.0, 2.0, 1.0, 0.5],
        "emb": [[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [6.0, 7.0]],
        "other_emb": [[1.0, 1.0], [1.0, 2.0], [1.0, 3.0], [1.0, 4.0]],
    }
)
FLAT = FRAME.drop(columns=["emb", "other_emb"])


def write(frame, path):
    """The frame in the format that the name asks for."""
    name = str(path)
    if name.endswith((".parquet", ".pq")):
        frame.to_parquet(path)
    elif ".jsonl" in name or ".ndjson" in name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.pq", "a.jsonl", "a.ndjson", "a.jsonl.gz", "a.csv", "a.CSV", "a.csv.gz"])  # fmt: skip
def test_formats(tmp_path, name):
    path = write(FLAT, tmp_path / name)
    data = PreferenceData.read(
        path,
        annotator="who",
        features=["price", "speed"],
        comparison="task",
        weight="importance",
    )
    assert data.annotators_.tolist() == ["ann", "bob"] and data.order.tolist() == [
        0,
        2,
        1,
        3,
    ]
    assert data.features.tolist() == [[1, 0.5], [3, -1], [2, 0.25], [4, 2]]
    assert data.choice_indptr.tolist() == [0, 2, 3, 4] and data.weight.tolist() == [
        1,
        2,
        0.5,
    ]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_embeddings_in_lists(tmp_path, name):
    path = write(FRAME, tmp_path / name)
    data = PreferenceData.read(path, annotator="who", features="emb")
    assert data.features.tolist() == [[0, 1], [0, 1], [2, 3], [6, 7]]
    data = PreferenceData.read(path, annotator="who", chosen="emb", rejected="other_emb")
    assert data.features.tolist() == [[-1, 0], [-1, -2], [1, 1], [5, 3]]
    sets = PreferenceData.read(
        path, annotator="who", chosen="emb", rejected="other_emb", comparison="task"
    )
    assert sets.choice_indptr.tolist() == [0, 2, 3, 4]
    with pytest.raises(
        ValueError, match="chosen: a choice set with two chosen items, in rows 0 and 2"
    ):
        PreferenceData.read(
            path, annotator="who", chosen="other_emb", rejected="emb", comparison="task"
        )


def test_sides_of_numeric_columns(tmp_path):
    path = write(FLAT, tmp_path / "a.csv")
    data = PreferenceData.read(
        path,
        annotator="who",
        chosen=["price", "speed"],
        rejected=["other_price", "other_speed"],
    )
    assert data.features.tolist() == [[1, -0.5], [2, -1], [2, 0.25], [4, 2]]


@pytest.mark.parametrize("kind", ["float", "halffloat", "double", "large_list", "fixed"])
def test_list_types_keep_their_precision(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = {"halffloat": pa.float16(), "double": pa.float64()}.get(kind, pa.float32())
    lists = {"large_list": pa.large_list(number), "fixed": pa.list_(number, 2)}
    values = pa.array(np.float16(FRAME.emb.tolist()).tolist(), lists.get(kind, pa.list_(number)))
    table = pa.table({"who": pa.array(FRAME.who).dictionary_encode(), "emb": values})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    data = PreferenceData.read(tmp_path / "a.parquet", annotator="who", features="emb")
    want = {"halffloat": torch.float16, "double": torch.float64}.get(kind, torch.float32)
    assert data.dtype == want and data.features.tolist() == [
        [0, 1],
        [0, 1],
        [2, 3],
        [6, 7],
    ]


def test_ids_alone_are_one_hot_in_sorted_order(tmp_path):
    path = write(FLAT, tmp_path / "a.jsonl")
    data = PreferenceData.read(
        path, annotator="who", chosen="won", rejected="lost", comparison="task"
    )
    assert data.item_ids.tolist() == ["x", "y", "z"] and torch.equal(
        data.features, torch.eye(3).double()
    )
    assert data.chosen.tolist() == [0, 0, 2, 1] and data.rejected.tolist() == [
        1,
        2,
        0,
        2,
    ]
    assert data.choice_indptr.tolist() == [0, 2, 3, 4]


def test_many_ids(tmp_path):
    n = 1025
    frame = pd.DataFrame({"who": 0, "won": np.arange(n), "lost": (np.arange(n) + 1) % n})
    path = write(frame, tmp_path / "a.parquet")
    data = PreferenceData.read(path, annotator="who", chosen="won", rejected="lost")
    assert data.dtype == torch.float32 and data.n_features == n
    frame = pd.DataFrame({"who": 0, "won": np.arange(10_001), "lost": -1})
    path = write(frame, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="10,002 different ids are too many for one-hot features"):
        PreferenceData.read(path, annotator="who", chosen="won", rejected="lost")


def test_item_tables(tmp_path):
    path = write(FLAT, tmp_path / "a.csv")
    table = pd.DataFrame({"a": [1.0, 2, 3, 4], "key": list("zyxw"), "text": "…", "b": [5, 6, 7, 8]})
    named = write(table, tmp_path / "items.csv")
    plain = write(table[["key", "a", "b"]], tmp_path / "items.parquet")
    for items in ((named, "key", ["a", "b"]), plain, (str(plain), "key", ["a", "b"])):
        data = PreferenceData.read(
            path, annotator="who", chosen="won", rejected="lost", items=items
        )
        assert data.item_ids.tolist() == list("zyxw")
        assert data.features.tolist() == [[1, 5], [2, 6], [3, 7], [4, 8]]
        assert data.chosen.tolist() == [2, 2, 0, 1] and data.rejected.tolist() == [
            1,
            0,
            2,
            0,
        ]
    with pytest.raises(TypeError, match="expected numbers in column 'text', got (large_)?string"):
        PreferenceData.read(
            path,
            annotator="who",
            chosen="won",
            rejected="lost",
            items=(named, "key", ["text"]),
        )
    write(table[["key", "a"]][:2], plain)
    with pytest.raises(ValueError, match="chosen: 'x' in row 0 is not among the 2 ids of items"):
        PreferenceData.read(path, annotator="who", chosen="won", rejected="lost", items=plain)
    write(pd.concat([table, table])[["key", "a"]], plain)
    with pytest.raises(ValueError, match="items: expected every id once"):
        PreferenceData.read(path, annotator="who", chosen="won", rejected="lost", items=plain)


@pytest.mark.parametrize("index", ["none", "rows", "ids"])
def test_row_indexes_of_pandas_are_no_features(tmp_path, index):
    path = write(FLAT, tmp_path / "a.csv")
    table = pd.DataFrame({"key": list("zyx"), "a": [1.0, 2, 3], "b": [5, 6, 7]})
    if index == "rows":
        table.index = [7, 8, 9]
    elif index == "ids":
        table = table.set_index("key")
    table.to_parquet(tmp_path / "items.parquet")
    data = PreferenceData.read(
        path, annotator="who", chosen="won", rejected="lost", items=tmp_path / "items.parquet"
    )
    assert data.item_ids.tolist() == list("zyx")
    assert data.features.tolist() == [[1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize("kind", ["csv", "csv read back", "parquet of csv", "two levels"])
def test_saved_row_indexes_are_refused(tmp_path, kind):
    path, items = write(FLAT, tmp_path / "a.csv"), tmp_path / "items.csv"
    table = pd.DataFrame({"key": list("zyx"), "a": [1.0, 2, 3]})
    if kind == "two levels":
        table.index = pd.MultiIndex.from_tuples([(0, 1), (0, 2), (1, 1)])
    table.to_csv(items)
    if kind == "csv read back":
        pd.read_csv(items).to_csv(items, index=False)
    elif kind == "parquet of csv":
        items = write(pd.read_csv(items), tmp_path / "items.parquet")
    sides = {"annotator": "who", "chosen": "won", "rejected": "lost"}
    with pytest.raises(ValueError, match="items.* looks like a saved row index: write .* index=False"):  # fmt: skip
        PreferenceData.read(path, **sides, items=items)
    # Named columns are what they are named.
    data = PreferenceData.read(path, **sides, items=(items, "key", ["a"]))
    assert data.features.tolist() == [[1], [2], [3]]


def test_item_arrays(tmp_path):
    frame = pd.DataFrame({"who": list("aab"), "won": [0, 3, 1], "lost": [1, 2, 3]})
    path = write(frame, tmp_path / "a.csv")
    table = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float16)
    np.save(tmp_path / "items.npy", table)
    for items in (tmp_path / "items.npy", table, pd.DataFrame(table)):
        data = PreferenceData.read(
            path, annotator="who", chosen="won", rejected="lost", items=items
        )
        assert data.chosen.tolist() == [0, 3, 1] and data.item_ids.tolist() == [
            0,
            1,
            2,
            3,
        ]
        np.testing.assert_array_equal(data.features.numpy(), table)
    with pytest.raises(ValueError, match=r"chosen: expected indices in \[0, 2\), got 3 in row 1"):
        PreferenceData.read(path, annotator="who", chosen="won", rejected="lost", items=table[:2])
    path = write(FLAT, tmp_path / "b.csv")
    with pytest.raises(ValueError, match="items: row numbers are its ids, expected integers"):
        PreferenceData.read(path, annotator="who", chosen="won", rejected="lost", items=table)


def changed(column, values):
    return FLAT.assign(**{column: values})


BAD = {
    "unknown annotator": (FLAT, {"annotator": "worker", "features": ["price"]},
                          "annotator: no column 'worker' in .*; it has who, task, won, lost, price"),
    "unknown feature": (FLAT, {"annotator": "who", "features": ["price", "size"]}, "features: no column 'size'"),
    "missing ids": (changed("who", ["ann", None, None, "bob"]), {"annotator": "who", "features": ["price"]},
                    "column 'who' has 2 missing values, the first in row 1"),
    "missing features": (changed("speed", [1, 2, None, 4]), {"annotator": "who", "features": ["speed"]},
                         "(column 'speed' has 1 missing values, the first|got nan) in row 2"),
    "missing weight": (changed("importance", [None, 1, 1, 1]),
                       {"annotator": "who", "features": ["price"], "weight": "importance"}, "in row 0"),
    "negative weight": (changed("importance", [1, -1, 1, 1]),
                        {"annotator": "who", "features": ["price"], "weight": "importance"}, "got -1.0 in row 1"),
    "two chosen": (changed("won", ["x", "z", "y", "y"]),
                   {"annotator": "who", "chosen": "won", "rejected": "lost", "comparison": "task"},
                   "chosen: a choice set with two chosen items"),
    "no rows": (FLAT[:0], {"annotator": "who", "features": ["price"]}, "empty file: no rows"),
    "nothing asked": (FLAT, {"annotator": "who"}, "either features, or both chosen and rejected"),
    "one side": (FLAT, {"annotator": "who", "chosen": "won"}, "either features, or both chosen and rejected"),
    "both": (FLAT, {"annotator": "who", "features": ["price"], "chosen": "won", "rejected": "lost"}, "either features"),
    "items too many": (FLAT, {"annotator": "who", "features": ["price"], "items": "x.csv"}, "items: expected ids"),
    "items of sides": (FLAT, {"annotator": "who", "chosen": ["price"], "rejected": ["speed"], "items": "x.csv"},
                       "items: expected chosen and rejected to name columns of item ids"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path, name, case):
    frame, options, message = BAD[case]
    path = write(frame, tmp_path / name)
    if case == "no rows" and name == "a.jsonl":
        message = "empty file"
    with pytest.raises(ValueError, match=message):
        PreferenceData.read(path, **options)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_empty_and_broken_files(tmp_path, name):
    path = tmp_path / name
    path.touch()
    with pytest.raises(ValueError, match="empty file"):
        PreferenceData.read(path, annotator="who", features=["price"])
    path.write_bytes(b'{"a": \n"b,c\x00')
    with pytest.raises(ValueError, match=str(path)):
        PreferenceData.read(path, annotator="who", features=["price"])
    with pytest.raises(FileNotFoundError):
        PreferenceData.read(tmp_path / f"no_{name}", annotator="who", features=["price"])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_broken_archives_are_named(tmp_path, name):
    whole = gzip.compress(write(FLAT, tmp_path / name).read_bytes() * 100)
    for broken in (b"no archive", whole[: len(whole) // 2]):
        (tmp_path / f"{name}.gz").write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{name}.gz: "):
            PreferenceData.read(tmp_path / f"{name}.gz", annotator="who", features=["price"])


def test_arrays_of_items_that_are_none(tmp_path):
    path, items = write(FLAT, tmp_path / "a.csv"), tmp_path / "items.npy"
    for write_items in (
        lambda: np.save(items, np.array([{}], dtype=object), allow_pickle=True),
        lambda: items.write_bytes(b""),
        lambda: items.write_text("words"),
        lambda: np.savez(items.open("wb"), np.eye(2)),
    ):
        write_items()
        with pytest.raises(ValueError, match=r"items.npy: expected (an array of numbers|one array)"):  # fmt: skip
            PreferenceData.read(path, annotator="who", chosen="won", rejected="lost", items=items)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_columns_of_one_name(tmp_path, name):
    path = tmp_path / name
    frame = pd.DataFrame([["ann", 1.0, 2.0, 3]], columns=["who", "x", "x", "y"])
    if name == "a.csv":
        frame.to_csv(path, index=False)
    else:
        pa.parquet.write_table(pa.Table.from_arrays([pa.array(["ann"]), *[pa.array([1.0])] * 3], names=list(frame)), path)  # fmt: skip
    with pytest.raises(ValueError, match=f"{name}: expected every column once, got 2 named 'x'"):
        PreferenceData.read(path, annotator="who", features=["x", "y"])
    assert PreferenceData.read(path, annotator="who", features=["y"]).n_features == 1
    votes = write(FLAT, tmp_path / "votes.csv")
    with pytest.raises(ValueError, match=f"{name}: expected every column once, got 2 named 'x'"):
        PreferenceData.read(votes, annotator="who", chosen="won", rejected="lost", items=path)


def test_a_csv_in_another_encoding(tmp_path):
    path = tmp_path / "a.csv"
    FLAT.replace("ann", "änn").to_csv(path, index=False, encoding="latin-1")
    sides = {"chosen": ["price"], "rejected": ["speed"]}
    with pytest.raises(ValueError, match=r"a\.csv: expected text in UTF-8, got other bytes in column 'who'"):  # fmt: skip
        PreferenceData.read(path, annotator="who", **sides)
    assert PreferenceData.read(path, annotator="task", **sides).n_rows == 4
    FLAT.rename(columns={"who": "wär"}).to_csv(path, index=False, encoding="latin-1")
    with pytest.raises(ValueError, match=r"a\.csv: expected names of columns in UTF-8"):
        PreferenceData.read(path, annotator="wär", **sides)


def test_an_empty_archive(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "w"):
        pass
    with pytest.raises(ValueError, match="a.jsonl.gz: Empty JSON file"):
        PreferenceData.read(tmp_path / "a.jsonl.gz", annotator="who", features=["price"])


@pytest.mark.parametrize("name", ["a.pkl", "a.json", "a.xlsx", "a.parquet.gz", "a"])
def test_unsupported_file_types(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"unsupported file type, expected \.parquet, \.jsonl or"):
        PreferenceData.read(tmp_path / name, annotator="who", features=["price"])


def test_lists_of_unequal_length_and_with_holes(tmp_path):
    frame = pd.DataFrame({"who": [1, 2, 3], "emb": [[1.0, 2], [3.0], [4.0, 5]]})
    path = write(frame, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column 'emb', got 2 in row 0 and 1 in row 1"):
        PreferenceData.read(path, annotator="who", features="emb")
    (tmp_path / "a.jsonl").write_text('{"who": 1, "emb": [1, 2]}\n{"who": 1, "emb": [1, null]}\n')
    with pytest.raises(ValueError, match="a missing value in a list of column 'emb', in row 1"):
        PreferenceData.read(tmp_path / "a.jsonl", annotator="who", features="emb")


def test_long_lines_of_json(tmp_path):
    lines = [f'{{"who": {i % 2}, "text": "{"x" * 2_000_000}", "x": {i}.5}}\n' for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    data = PreferenceData.read(tmp_path / "a.jsonl", annotator="who", features=["x"])
    assert data.features[:, 0].tolist() == [0.5, 2.5, 1.5]


def test_without_pyarrow_the_extra_is_named(tmp_path):
    path = write(FLAT, tmp_path / "a.csv")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from maxmin_rlhf import PreferenceData\n"
        f"PreferenceData.read({str(path)!r}, annotator='who', features=['price'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "ImportError: reading files needs pyarrow: pip install 'maxmin-kernels[data]'"
        in done.stderr
    )


# Real data -----------------------------------------------------------------------------------------------------------


@needs_data
def test_jester():
    path = Path(DATA) / "jester5k" / "pairs.parquet"
    data = PreferenceData.read(
        path, annotator="annotator_id", chosen="chosen_id", rejected="rejected_id"
    )
    frame = pd.read_parquet(path, columns=["annotator_id", "chosen_id", "rejected_id"])
    assert (data.n_rows, data.n_annotators, data.n_features) == (399_750, 3_999, 100)
    assert data.item_ids.tolist() == list(range(100))
    order = data.order.numpy()
    np.testing.assert_array_equal(data.chosen, frame.chosen_id.to_numpy()[order])
    np.testing.assert_array_equal(data.rejected, frame.rejected_id.to_numpy()[order])
    np.testing.assert_array_equal(
        data.annotators_[data.comparison_annotator],
        frame.annotator_id.astype(str).to_numpy()[order],
    )
    by_text = PreferenceData.read(
        path, annotator="annotator_id", chosen="chosen", rejected="rejected"
    )
    assert by_text.n_features == 100  # texts are ids too


@needs_data
def test_mt_bench_models():
    data = PreferenceData.read(
        Path(DATA) / "mt_bench_human" / "pairs.parquet",
        annotator="annotator_id",
        chosen="chosen_model",
        rejected="rejected_model",
    )
    assert (data.n_rows, data.n_annotators) == (2_565, 65)
    assert data.item_ids.tolist() == ["alpaca-13b", "claude-v1", "gpt-3.5-turbo", "gpt-4", "llama-13b", "vicuna-13b-v1.2"]  # fmt: skip
    wins = torch.bincount(data.chosen, minlength=6) / torch.bincount(
        torch.cat([data.chosen, data.rejected]), minlength=6
    )
    assert data.item_ids[int(wins.argmax())] == "gpt-4"


@needs_data
def test_train_by_columns_of_both_sides(tmp_path):
    frame = pd.read_parquet(Path(DATA) / "train_stated_choice" / "choices.parquet")
    scale = {"price": 2.20371 / 100, "time": 1 / 60, "change": 1.0, "comfort": 1.0}
    sides = {"annotator_id": frame.annotator_id}
    for name, unit in scale.items():
        a, b = frame[f"{name}_A"] * unit, frame[f"{name}_B"] * unit
        sides[f"{name}_won"] = a.where(frame.choice == "A", b)
        sides[f"{name}_lost"] = b.where(frame.choice == "A", a)
    path = write(pd.DataFrame(sides), tmp_path / "train.csv")
    data = PreferenceData.read(
        path,
        annotator="annotator_id",
        chosen=[f"{name}_won" for name in scale],
        rejected=[f"{name}_lost" for name in scale],
    )
    assert (data.n_rows, data.n_annotators, data.n_features) == (2_929, 235, 4)
    head = torch.tensor([-0.06736, -1.72055, -0.32634, -0.94573], dtype=torch.float64)
    margins = data.features @ head  # the published fit, whose log-likelihood is known
    assert torch.nn.functional.logsigmoid(margins).sum().item() == pytest.approx(-1724.15, abs=0.01)
    miss = torch.sigmoid(-margins)
    curvature = data.features.T @ (data.features * (miss * (1 - miss))[:, None])
    step = torch.linalg.solve(curvature, (data.features * miss[:, None]).sum(0))
    assert step.abs().max() < 1e-5  # and it is the optimum to its five digits


@needs_data
def test_hh_embeddings_by_row_number():
    folder = Path(DATA) / "hh_objectives"
    data = PreferenceData.read(
        folder / "pairs_human.parquet",
        annotator="annotator_id",
        chosen="chosen_emb",
        rejected="rejected_emb",
        items=folder / "emb_minilm_f16.npy",
    )
    assert (data.n_rows, data.n_annotators, data.features.shape) == (
        4_035,
        102,
        (8_086, 384),
    )
    assert data.dtype == torch.float16


@needs_data
def test_ukp_arguments():
    folder = Path(DATA) / "ukp_convarg1"
    items = pd.read_parquet(folder / "items.parquet")
    data = PreferenceData.read(
        folder / "pairs.parquet",
        annotator="annotator_id",
        chosen="chosen_id",
        rejected="rejected_id",
    )
    assert (data.n_rows, data.n_annotators, data.n_features) == (65_335, 3_801, 1_052)
    assert set(data.item_ids) == set(items.id) and data.dtype == torch.float32

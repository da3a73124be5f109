"""The command line: what it prints, what it writes, how it fails."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from maxmin_rlhf import PreferenceData, PreferenceMixture
from maxmin_rlhf.cli import main

COLUMNS = ["--annotator", "who", "--features", "x0", "x1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Preferences of 40 annotators in two opposed groups, as a csv; with a mixture fitted by the CLI."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    heads = np.array([[3.0, 0.5], [-3.0, 0.5]])
    rows = []
    for annotator in range(40):
        x = rng.standard_normal((15, 2))
        taken = rng.random(15) < 1 / (1 + np.exp(-x @ heads[annotator % 2]))
        rows += [(f"a{annotator}", *values) for values in np.where(taken[:, None], x, -x).tolist()]
    write_csv(folder / "prefs.csv", ["who", "x0", "x1"], rows)
    assert main(["fit", str(folder / "prefs.csv"), *COLUMNS, "--groups", "2", "--restarts", "2",
                 "-o", str(folder / "two.safetensors")]) == 0  # fmt: skip
    return folder


@pytest.fixture
def votes(tmp_path):
    """Ids of three models; every annotator ranks them a > b > c."""
    rows = [(w, *pair) for w in range(6) for pair in ("ab", "bc", "ac", "ab")]
    write_csv(tmp_path / "votes.csv", ["judge", "winner", "loser"], rows)
    return tmp_path / "votes.csv"


def write_csv(path, head, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def failure(capsys, argv):
    """The exit code and the one line on stderr."""
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("maxmin: error: ") and err.count("\n") == 1
    return code, err


def test_fit_saves_what_it_says(folder, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    code = main(["fit", str(folder / "prefs.csv"), *COLUMNS, "--groups", "2", "--restarts", "2", "--l2", "2",
                 "--json", "-o", str(out)])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0 and captured.err == ""
    facts = json.loads(captured.out)
    assert facts["data"] == {"annotators": 40, "comparisons": 600, "features": 2}
    mixture = PreferenceMixture.load(out)
    assert (mixture.n_groups, mixture.l2) == (2, 2.0)
    assert facts["mixtures"][0]["log_likelihood"] == mixture.log_likelihood_
    assert np.sign(mixture.heads_[:, 0]).tolist() in ([1, -1], [-1, 1])


def test_fit_of_several_selects(folder, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    argv = ["fit", str(folder / "prefs.csv"), *COLUMNS, "--groups", "1-2", "--restarts", "1"]
    assert main([*argv, "--l2", "1", "--folds", "3", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "40 annotators" in text and "* 2" in text and "2 groups: K=2 gains" in text
    assert f"wrote {out}: groups of" in text
    assert PreferenceMixture.load(out).n_groups == 2


def test_fit_of_several_without_selection(folder, tmp_path, capsys):
    argv = ["fit", str(folder / "prefs.csv"), *COLUMNS, "--groups", "1,2", "--restarts", "1", "--no-select"]  # fmt: skip
    code, err = failure(capsys, [*argv, "-o", tmp_path / "m.safetensors"])
    assert code == 2 and "--output: expected '{groups}' in the name" in err
    assert main([*argv, "-o", str(tmp_path / "m{groups}.safetensors")]) == 0
    assert "log-likelihood" in capsys.readouterr().out
    assert [PreferenceMixture.load(tmp_path / f"m{k}.safetensors").n_groups for k in (1, 2)] == [1, 2]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_assign(folder, tmp_path, capsys, kind):
    out = tmp_path / f"groups.{kind}"
    argv = ["assign", str(folder / "two.safetensors"), str(folder / "prefs.csv"), *COLUMNS]
    assert main([*argv, "-o", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    if kind == "csv":
        with open(out, newline="") as file:
            rows = list(csv.DictReader(file))
    elif kind == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = pa.parquet.read_table(out).to_pylist()
    assert list(rows[0]) == ["annotator", "group", "p0", "p1"]
    assert [row["annotator"] for row in rows] == [f"a{i}" for i in range(40)]
    groups = [int(row["group"]) for row in rows]
    assert groups in ([0, 1] * 20, [1, 0] * 20)
    assert facts["counts"] == [20, 20] and facts["file"] == str(out)
    mixture = PreferenceMixture.load(folder / "two.safetensors")
    data = PreferenceData.read(folder / "prefs.csv", annotator="who", features=["x0", "x1"])
    found = np.array([[float(row["p0"]), float(row["p1"])] for row in rows])
    np.testing.assert_allclose(found, mixture.predict_proba(data))


def test_assign_to_stdout(folder, capsys):
    argv = ["assign", str(folder / "two.safetensors"), str(folder / "prefs.csv"), *COLUMNS]
    assert main(argv) == 0
    assert len(capsys.readouterr().out.splitlines()) == 41
    assert main([*argv, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 40


def test_free_rewards_of_ids_find_their_items_again(votes, tmp_path, capsys):
    columns = ["--annotator", "judge", "--chosen", "winner", "--rejected", "loser"]
    out = tmp_path / "m.safetensors"
    assert main(["fit", str(votes), *columns, "--groups", "1", "-o", str(out)]) == 0
    capsys.readouterr()
    # Here c comes without a: one-hot features of this file alone would be others.
    write_csv(tmp_path / "new.csv", ["judge", "winner", "loser"], [(9, "c", "b")])
    assert main(["assign", str(out), str(tmp_path / "new.csv"), *columns]) == 0
    assert capsys.readouterr().out == "annotator,group,p0\n9,0,1.0\n"
    write_csv(tmp_path / "new.csv", ["judge", "winner", "loser"], [(9, "c", "z")])
    code, err = failure(capsys, ["assign", out, tmp_path / "new.csv", *columns])
    assert code == 2 and "'z' is not among the 3 items" in err
    policy = tmp_path / "policy.csv"
    assert main(["solve", "--mixture", str(out), "--beta", "0.5", "-o", str(policy)]) == 0
    with open(policy, newline="") as file:
        chances = {row["item"]: float(row["probability"]) for row in csv.DictReader(file)}
    assert list(chances) == ["a", "b", "c"] and chances["a"] > chances["b"] > chances["c"]


def test_ids_need_the_items_they_were_fitted_with(folder, votes, capsys):
    columns = ["--annotator", "judge", "--chosen", "winner", "--rejected", "loser"]
    code, err = failure(capsys, ["assign", folder / "two.safetensors", votes, *columns])
    assert code == 2 and "--items: " in err and "give their table" in err


def test_solve_array(tmp_path, capsys):
    rewards = np.array([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.6]]])
    np.save(tmp_path / "r.npy", rewards)
    policy = tmp_path / "policy.csv"
    argv = ["solve", str(tmp_path / "r.npy"), "--beta", "0.05", "--calibrate", "none"]
    assert main([*argv, "--json", "-o", str(policy)]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    np.testing.assert_allclose(facts["weights"], [0.5, 0.5], atol=1e-4)
    assert facts["gap"] <= 1e-6 and facts["groups"] == 2 and facts["prompts"] == 1
    with open(policy, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["prompt", "sample", "probability"]
    assert float(rows[2]["probability"]) > 0.7
    assert main(argv) == 0
    assert "certificate: no policy gives the worst-off group more" in capsys.readouterr().out
    assert main([*argv, "--objective", "per_sample_min", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gap"] is None  # NaN is no JSON


def test_solve_every_objective(tmp_path, capsys):
    from maxmin_rlhf.welfare.dual import OBJECTIVES

    rng = np.random.default_rng(0)
    np.save(tmp_path / "r.npy", rng.standard_normal((3, 40, 3)))
    np.save(tmp_path / "more.npy", rng.standard_normal((3, 40, 3)))
    argv = ["solve", str(tmp_path / "r.npy"), "--beta", "1", "--shares", "0.5", "0.3", "0.2"]
    options = {
        "softmin": ["--tau", "0.2"], "power": ["--p", "-1"], "cvar": ["--alpha", "0.4"],
        "kl": ["--radius", "0.2"], "chi2": ["--radius", "0.2"], "tv": ["--radius", "0.2"],
        "floor": ["--floor", "0.1", "0.1", "0"], "owa": ["--rank-weights", "3", "2", "1"],
    }  # fmt: skip
    values = {}
    for objective in OBJECTIVES:
        method = "win_rate" if objective in ("nash", "power") else "center"
        more = ["--objective", objective, "--calibrate", method, *options.get(objective, [])]
        certified = objective not in ("per_sample_min", "batch_argmin")
        more += ["--fresh", str(tmp_path / "more.npy")] if certified else []
        assert main([*argv, *more, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        values[objective] = facts["value"]
        if certified:
            assert facts["relative_gap"] <= 1e-6
            assert objective == "mean" or facts["fresh_gap"] > 1e-6
    assert values["maxmin"] <= values["kl"] <= values["mean"]
    assert (
        main([*argv, *options["tv"], "--objective", "tv", "--fresh", str(tmp_path / "more.npy")])
        == 0
    )
    out = capsys.readouterr().out
    assert "certificate: no policy is worth more than" in out and "on the second sample: " in out
    assert main([*argv, "--min-mass", "0.25", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["left_out"] == [2]
    assert "groups [2] have a smaller share than min_mass" in captured.err
    assert main([*argv, "--calibrate", "regret"]) == 0
    capsys.readouterr()
    code, err = failure(capsys, [*argv, "--objective", "softmin"])
    assert code == 2 and "tau: expected a number for kind 'softmin'" in err
    code, err = failure(capsys, [*argv, "--objective", "max"])
    assert code == 2 and "invalid choice: 'max'" in err


def test_solve_table_with_prompts_of_unequal_size(tmp_path, capsys):
    rows = [("p", 1.0, 0.0), ("q", 0.0, 1.0), ("p", 0.0, 1.0), ("p", 0.2, 0.3)]
    write_csv(tmp_path / "r.csv", ["prompt", "r0", "r1"], rows)
    policy = tmp_path / "policy.jsonl"
    argv = ["solve", str(tmp_path / "r.csv"), "--prompt", "prompt", "--beta", "1", "--json"]
    assert main([*argv, "-o", str(policy)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["prompts"], facts["samples"], facts["groups"]) == (2, 3, 2)
    written = [json.loads(line) for line in policy.read_text().splitlines()]
    assert [(row["prompt"], row["sample"]) for row in written] == [("p", 0), ("q", 0), ("p", 1), ("p", 2)]  # fmt: skip
    assert written[1]["probability"] == 1.0
    assert main([*argv, "--rewards", "r1"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == 1


def test_solve_takes_no_row_index_for_rewards(folder, tmp_path, capsys):
    table = pd.DataFrame({"prompt": [3, 3, 4, 4], "r0": [1.0, 2, 3, 4], "r1": [4.0, 3, 2, 1]})
    for i, frame in enumerate((table, table[::-1], table.set_index("prompt"))):
        frame.to_parquet(tmp_path / f"{i}.parquet")
        assert main(["solve", str(tmp_path / f"{i}.parquet"), "--beta", "1", "--prompt", "prompt", "--json"]) == 0  # fmt: skip
        facts = json.loads(capsys.readouterr().out)
        assert (facts["prompts"], facts["samples"], facts["groups"]) == (2, 2, 2)
    table.to_csv(tmp_path / "r.csv")
    code, err = failure(capsys, ["solve", tmp_path / "r.csv", "--beta", "1", "--prompt", "prompt"])
    assert code == 2 and "r.csv" in err and "looks like a saved row index" in err
    argv = ["solve", str(tmp_path / "r.csv"), "--beta", "1", "--rewards", "r0", "r1"]
    assert main(argv) == 0


def test_solve_menu_of_a_mixture(folder, tmp_path, capsys):
    write_csv(tmp_path / "menu.csv", ["id", "x0", "x1"], [("u", 1, 0), ("v", -1, 0), ("w", 0, 1)])
    argv = ["solve", "--mixture", str(folder / "two.safetensors"), "--beta", "0.1"]
    policy = tmp_path / "policy.csv"
    assert main([*argv, "--items", str(tmp_path / "menu.csv"), "-o", str(policy), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["samples"] == 3 and facts["groups"] == 2
    assert [row.split(",")[0] for row in policy.read_text().splitlines()] == ["item", "u", "v", "w"]
    code, err = failure(capsys, argv)
    assert code == 2 and "--items: expected the menu" in err
    write_csv(tmp_path / "menu.csv", ["id", "x0"], [("u", 1)])
    code, err = failure(capsys, [*argv, "--items", tmp_path / "menu.csv"])
    assert code == 2 and "expected 2 features as fitted" in err


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_assign_writes_long_and_large_ids(folder, tmp_path, capsys, kind):
    for ids in ([2**63 + 1, 5, 2**63 + 2], ["x" * 1000, "x" * 1001, "y"]):
        frame = pd.DataFrame({"who": ids, "x0": [1.0, 2, 3], "x1": [0.0, 1, 0]})
        frame.to_parquet(tmp_path / "p.parquet")
        out = tmp_path / f"out.{kind}"
        assert main(["assign", str(folder / "two.safetensors"), str(tmp_path / "p.parquet"), *COLUMNS,
                     "-o", str(out)]) == 0  # fmt: skip
        read = {"csv": pd.read_csv, "parquet": pd.read_parquet}.get(kind)
        found = read(out) if read else pd.DataFrame(map(json.loads, out.read_text().splitlines()))
        assert found["annotator"].astype(str).tolist() == list(map(str, ids))


def test_a_menu_has_every_id_once(folder, tmp_path, capsys):
    argv = ["solve", "--mixture", folder / "two.safetensors", "--beta", "1", "--items"]
    write_csv(tmp_path / "menu.csv", ["id", "x0", "x1"], [("a", 1.0, 0.0), ("b", 0.0, 1.0), ("a", 1.0, 1.0)])  # fmt: skip
    code, err = failure(capsys, [*argv, tmp_path / "menu.csv"])
    assert code == 2 and "items: expected every id once, got 'a' in rows 0 and 2" in err


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["maxmin_kernels"] and facts["versions"]["torch"]
    assert facts["backends"]["reference"] == {"available": True, "reason": None}
    assert all(bool(b["reason"]) != b["available"] for b in facts["backends"].values())
    assert facts["operations"]["em_pass"]["fwd"]["reference"] is None
    assert set(facts["operations"]["em_pass"]["fwd"]) == {"reference", "cpu", "triton", "cuda"}
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "em_pass" in text and "reference" in text
    for name, backend in facts["backends"].items():
        assert backend["available"] or f"{name}: {backend['reason']}" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: command"),
        (["dance"], "invalid choice: 'dance'"),
        (["fit", "x.csv"], "the following arguments are required: --annotator, --groups"),
        (["fit", "x.csv", "--annotator", "a", "--groups", "0-3", "-o", "m"], "expected numbers of groups like"),
        (["fit", "x.csv", "--annotator", "a", "--groups", "3-1", "-o", "m"], "expected numbers of groups like"),
        (["fit", "x.csv", "--annotator", "a", "--groups", "many", "-o", "m"], "expected numbers of groups like"),
        (["fit", "no.csv", "--annotator", "a", "--features", "x", "--groups", "1", "-o", "m"], "no.csv"),
        (["fit", "no.csv", "--annotator", "a", "--groups", "1", "-o", "m"], "either features, or both chosen and rejected"),
        (["assign", "no.safetensors", "x.csv", "--annotator", "a", "--features", "x"], "no.safetensors: no such file"),
        (["assign", "m", "x.csv", "--annotator", "a", "--features", "x", "-o", "y.txt"], "--output: expected a name that ends in .csv"),
        (["solve", "r.npy"], "the following arguments are required: --beta"),
        (["solve", "--beta", "1"], "expected either a file of rewards, or --mixture"),
        (["solve", "no.npy", "--beta", "1"], "no.npy"),
        (["solve", "no.csv", "--beta", "1"], "no.csv"),
        (["solve", "r.npy", "--beta", "1", "--items", "i.csv"], "--items: expected --mixture beside it"),
        (["solve", "r.npy", "--beta", "1", "--prompt", "p"], "--rewards, --prompt: expected a table"),
        (["solve", "--mixture", "m", "--beta", "1", "--prompt", "p"], "--rewards, --prompt: expected a file of rewards"),
        (["demo", "--panel", "no.whl", "--out", "d"], "no.whl"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_2(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    code, err = failure(capsys, argv)
    assert code == 2 and message in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "missing/m.safetensors"], "--output: expected a folder that is there, got missing"),
        (["-o", "there"], "--output: expected the name of a file, got the folder there"),
        (["-o", "prefs.csv/m"], "--output: expected a folder that is there, got prefs.csv"),
        (["-o", "read-only/m"], "--output: expected a folder that can be written to, got read-only"),
        (["-o", "m", "--checkpoint", "gone/c"], "--checkpoint: expected a folder that is there, got gone"),
        (["-o", "m", "--checkpoint", "there"], "--checkpoint: expected the name of a file, got the folder there"),
        (["-o", "m1", "--checkpoint", "there/../m1"], "--checkpoint: expected another file than --output"),
        (["-o", "m{groups}", "--checkpoint", "m2", "--groups", "1-3"], "--checkpoint: expected another file"),
        (["-o", "in{groups}/m", "--groups", "2,3"], "--output: expected a folder that is there, got in1"),
    ],
)  # fmt: skip
def test_places_to_write_to_are_checked_before_anything_is_read(
    tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "prefs.csv").write_text("")
    (tmp_path / "read-only").mkdir()
    may = os.access  # for root nothing is read-only
    monkeypatch.setattr(os, "access", lambda path, mode: path != "read-only" and may(path, mode))
    code, err = failure(capsys, ["fit", "unread.csv", *COLUMNS, "--groups", "1", *flags])
    assert code == 2 and message in err
    for command in (["solve", "unread.npy", "--beta", "1"], ["assign", "unread", "unread.csv", *COLUMNS]):  # fmt: skip
        code, err = failure(capsys, [*command, "-o", "missing/x.csv"])
        assert code == 2 and "--output: expected a folder that is there, got missing" in err
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        code, err = failure(capsys, [*command, "-o", "folder.csv"])
        assert code == 2 and "--output: expected the name of a file, got the folder folder.csv" in err  # fmt: skip


@pytest.mark.parametrize("groups", ["2", "1-2"])
def test_a_checkpoint_stays_until_the_mixture_is_saved(
    folder, tmp_path, monkeypatch, capsys, groups
):
    monkeypatch.setattr("maxmin_rlhf.mixture.progress.CHECKPOINT_SECONDS", 0.0)
    kept, out = tmp_path / "fit.ckpt", tmp_path / "m.safetensors"
    argv = ["fit", folder / "prefs.csv", *COLUMNS, "--groups", groups, "--restarts", "1", "--l2", "1", "--folds", "2",
            "--checkpoint", kept, "-o", out]  # fmt: skip

    def full(*_):
        raise OSError(28, "No space left on device", str(out))

    with monkeypatch.context() as patch:
        patch.setattr("maxmin_rlhf.commands._input.keep_encoder", full)  # after the mixture itself
        code, err = failure(capsys, argv)
    assert code == 1 and "No space left" in err and kept.exists()
    assert main([str(a) for a in argv]) == 0
    assert out.exists() and not kept.exists()


@pytest.mark.parametrize("device", ["foo", "cuda", "cuda:99"])
@pytest.mark.parametrize("command", ["fit", "select", "assign", "encode", "bench"])
def test_a_device_that_is_not_here(folder, tmp_path, capsys, command, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is here")
    write_csv(tmp_path / "texts.csv", ["who", "chosen", "rejected"], [("a", "yes", "no")])
    out = ["--restarts", "1", "-o", tmp_path / "m"]
    argv = {
        "fit": ["fit", folder / "prefs.csv", *COLUMNS, "--groups", "1", *out],
        "select": ["fit", folder / "prefs.csv", *COLUMNS, "--groups", "1-2", *out],
        "assign": ["assign", folder / "two.safetensors", folder / "prefs.csv", *COLUMNS],
        "encode": ["encode", tmp_path / "texts.csv", "--annotator", "who", "--model", "none", "-o", tmp_path / "s"],
        "bench": ["bench"],
    }  # fmt: skip
    code, err = failure(capsys, [*argv[command], "--device", device])
    assert code == 2 and f"device: expected one that is here, like 'cpu' or 'cuda', got '{device}'" in err  # fmt: skip


def test_no_restarts_are_refused(tmp_path, capsys):
    argv = ["fit", "unread.csv", *COLUMNS, "--groups", "1", "-o", tmp_path / "m", "--restarts"]
    for n in ("0", "-3"):
        code, err = failure(capsys, [*argv, n])
        assert code == 2 and f"--restarts: expected at least 1, got {n}" in err


def test_columns_may_be_named_one_flag_each(folder, tmp_path, capsys):
    argv = ["fit", str(folder / "prefs.csv"), "--annotator", "who", "--groups", "1", "--json",
            "-o", str(tmp_path / "m")]  # fmt: skip
    assert main([*argv, "--features", "x0", "--features", "x1"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["features"] == 2
    write_csv(tmp_path / "r.csv", ["r0", "r1", "r2"], [(1.0, 2.0, 0.0), (2.0, 1.0, 0.0)])
    argv = ["solve", str(tmp_path / "r.csv"), "--beta", "1", "--json", "--objective", "mean"]
    assert main([*argv, "--rewards", "r0", "r2", "--rewards", "r1", "--shares", "0.5", "--shares", "0.2", "0.3"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["weights"] == pytest.approx([0.5, 0.2, 0.3])
    assert main([*argv, "--rewards", "r1"]) == 0  # nothing is left of the last time
    assert json.loads(capsys.readouterr().out)["groups"] == 1
    code, err = failure(capsys, ["encode", "x.csv", "--annotator", "who", "--chosen", "a", "--chosen", "b", "-o", "s"])  # fmt: skip
    assert code == 2 and "--chosen: expected one column of texts, got 2" in err


def test_bad_files_are_one_line_and_2(folder, tmp_path, capsys):
    out = ["--groups", "1", "-o", tmp_path / "m.safetensors"]
    code, err = failure(capsys, ["fit", folder / "prefs.csv", "--annotator", "nobody", "--features", "x0", *out])  # fmt: skip
    assert code == 2 and "annotator: no column 'nobody'" in err
    (tmp_path / "empty.csv").write_text("")
    code, err = failure(capsys, ["fit", tmp_path / "empty.csv", *COLUMNS, *out])
    assert code == 2 and "empty file" in err
    code, err = failure(capsys, ["fit", folder / "prefs.csv", *COLUMNS, "--groups", "99", *out[2:]])
    assert code == 2 and "n_groups: expected at most 40" in err
    whole = (folder / "two.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    code, err = failure(capsys, ["assign", tmp_path / "cut.safetensors", folder / "prefs.csv", *COLUMNS])  # fmt: skip
    assert code == 2 and "truncated" in err
    np.save(tmp_path / "flat.npy", np.zeros((2, 2)))
    code, err = failure(capsys, ["solve", tmp_path / "flat.npy", "--beta", "1"])
    assert code == 2 and "expected shape (prompts, samples, groups), got (2, 2)" in err
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    code, err = failure(capsys, ["solve", tmp_path / "objects.npy", "--beta", "1"])
    assert code == 2 and "objects.npy: expected an array" in err
    np.save(tmp_path / "r.npy", np.zeros((1, 2, 2)))
    code, err = failure(capsys, ["solve", tmp_path / "r.npy", "--beta", "0"])
    assert code == 2 and "beta" in err
    write_csv(tmp_path / "r.csv", ["r0"], [(1,)])
    code, err = failure(capsys, ["solve", tmp_path / "r.csv", "--beta", "1", "--prompt", "p"])
    assert code == 2 and "--prompt: no column 'p'" in err


def test_names_of_strangers_do_not_steer_the_terminal(tmp_path, capsys):
    write_csv(tmp_path / "p.csv", ["\x1b[31mwho", "x0"], [("a", 1.0)])
    code, err = failure(capsys, ["fit", tmp_path / "p.csv", "--annotator", "who", "--features", "x0",
                                 "--groups", "1", "-o", tmp_path / "m"])  # fmt: skip
    assert code == 2 and "\x1b" not in err


def test_other_errors_are_1(monkeypatch, tmp_path, capsys):
    np.save(tmp_path / "r.npy", np.zeros((1, 2, 2)))
    argv = ["solve", str(tmp_path / "r.npy"), "--beta", "1"]
    monkeypatch.setattr("maxmin_rlhf.commands.solve.run", lambda args: 1 / 0)
    code, err = failure(capsys, argv)
    assert code == 1 and "ZeroDivisionError: division by zero" in err
    with pytest.raises(ZeroDivisionError):
        main(["--traceback", *argv])

    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("maxmin_rlhf.commands.solve.run", interrupt)
    assert main(argv) == 130
    assert capsys.readouterr().err == "maxmin: interrupted\n"


def test_warnings_are_one_line_each(tmp_path, capsys):
    np.save(tmp_path / "r.npy", np.zeros((1, 8, 2)))
    assert main(["solve", str(tmp_path / "r.npy"), "--beta", "1", "--calibrate", "scale"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("maxmin: warning: ") and err.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["fit"], ["assign"], ["solve"], ["demo"], ["info"]])
def test_help_has_examples(command, capsys):
    assert main([*command, "--help"]) == 0
    assert "examples:\n  maxmin " in capsys.readouterr().out


def test_help_imports_neither_torch_nor_numpy():
    program = (
        "import sys; from maxmin_rlhf.cli import main; code = main(['--help']); "
        "assert not {'torch', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early(folder):
    argv = [sys.executable, "-m", "maxmin_rlhf.cli", "assign", str(folder / "two.safetensors")]
    argv += [str(folder / "prefs.csv"), *COLUMNS]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")

"""``maxmin bench``: small, since nothing here is about speed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from maxmin_rlhf.cli import main
from maxmin_rlhf.commands import _cases, _parser, bench

TINY = 1e-4  # gigabytes


def failure(capsys, argv):
    code = main(argv)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return code, err


def test_table_json_and_figure(tmp_path, capsys):
    argv = ["bench", "--op", "maxmin_reduce", "--op", "reward_heads", "--rounds", "2", "--memory", str(TINY)]  # fmt: skip
    files = tmp_path / "b.json", tmp_path / "b.svg"
    assert main([*argv, "--json", str(files[0]), "--plot", str(files[1])]) == 0
    out, err = capsys.readouterr()
    assert "reward_heads" in out and "maxmin_reduce" in out and "em_pass" not in out and err == ""
    facts = json.loads(files[0].read_text())
    assert [c["op"] for c in facts["cases"]] == ["maxmin_reduce", "reward_heads"]
    for c in facts["cases"]:
        assert c["ms"] > 0 and c["floor_ms"] > 0 and c["ratio"] > 0
    assert files[1].read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize("operation", _cases.OPERATIONS)
def test_every_case_agrees_with_plain_pytorch(operation):
    for make in _cases.cases(operation, TINY * 1e9).values():
        case = make()
        bench.agree(case, case.plain)
        assert case.n_bytes > 0 and all(size > 0 for size in case.shape.values())


def test_a_wrong_answer_is_not_timed():
    case = _cases.cases("reward_heads", TINY * 1e9)["reward_heads"]()
    wrong = dataclasses.replace(case, plain=lambda: 1.1 * torch.as_tensor(case.ours()))
    with pytest.raises(RuntimeError, match="reward_heads .*differ by 0.091"):
        bench.agree(case, wrong.plain)


@pytest.mark.native
def test_floor_is_the_longer_of_bytes_and_arithmetic():
    case = _cases.cases("reward_heads", TINY * 1e9)["reward_heads"]()
    flops = int(torch.ops.maxmin_native.probe_fma_cpu(torch.zeros(1), bench._FMA_ROUNDS))
    busy = dataclasses.replace(case, flops=2 * flops)
    times = {"read": np.array([3.0, 1.0]), "fma": np.array([1.0, 1.0])}
    assert bench.floor_of(busy, times).tolist() == [3.0, 2.0]
    assert bench.floor_of(busy, {"read": times["read"]}).tolist() == [3.0, 1.0]


def test_shapes_are_whole_or_what_memory_allows():
    shape = _cases.SHAPES["prism"]
    assert shape.fitting(1e12) == shape.rows == 75_000 and shape.heads == 36
    cut = shape.fitting(1e7)
    assert 0 < cut < shape.rows and cut % shape.each == 0
    assert shape.fitting(1.0) == shape.each


def test_the_parser_knows_the_operations():
    assert _parser._BENCHED == _cases.OPERATIONS


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--memory", "0"], "--memory: expected gigabytes > 0, got 0.0"),
        (["--plot", "x.txt"], "--plot: expected a name that ends in .png, .svg, .pdf, got x.txt"),
        (["--op", "sum"], "argument --op: invalid choice: 'sum'"),
    ],
)
def test_bad_options(capsys, argv, message):
    code, err = failure(capsys, ["bench", *argv])
    assert code == 2 and message in err

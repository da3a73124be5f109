"""The benchmarks' own arithmetic: what a figure in the README traces to, and when bench-check fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_peers, check, report
from benchmarks.tables import _markdown, fits

ROOT = Path(__file__).resolve().parents[2]
FIGURE = re.compile(r"\d[\d.,]*\s?(?:ms|s|%|×|GB|GiB|MB|TB/s|GFLOP/s)(?![\w])")


def outside(page: str) -> str:
    """Without the parts that results write, and without code."""
    page = re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", "", page, flags=re.S)
    return re.sub(r"```.*?```|`[^`]*`", "", page, flags=re.S)


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_no_figure_is_typed_by_hand(name: str) -> None:
    assert FIGURE.findall(outside((ROOT / name).read_text())) == []
    assert FIGURE.search("it takes 2.1 s") and FIGURE.search("83 % of it")


def test_every_figure_of_the_results_comes_from_a_file(tmp_path: Path, monkeypatch) -> None:
    before = {name: report.PARTS[name]() for name in ("results", "peers", "scaling")}
    for path in _markdown.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_text(json.dumps(changed(json.loads(path.read_text()))))
    monkeypatch.setattr(_markdown, "RESULTS", tmp_path)
    for name, text in before.items():
        pairs = list(zip(figures(text), figures(report.PARTS[name]()), strict=True))
        assert pairs and all(a != b for a, b in pairs), f"{name}: not from a file"


def changed(value):
    """Everything measured in the file, otherwise."""
    if isinstance(value, dict):
        # Of the setting, not measured.
        same = {"shape", "usual", "starts", "n_init", "groups", "within", "rounds", "reached"}
        return {
            k: v
            if k in same - {"groups"} or (k == "groups" and isinstance(v, list))
            else changed(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [changed(v) for v in value]
    return value * 1.37 if isinstance(value, float) else value


def figures(text: str) -> list[str]:
    """Seconds and ratios."""
    return re.findall(r"(?<!… )\b\d+(?:\.\d+)?(?: s\b| ×)(?! \d)", text)


# ---- peers


def test_the_common_score_is_the_log_likelihood() -> None:
    class Panel:
        offers = np.array([[[0.0], [1.0]], [[2.0], [0.0]], [[0.0], [1.0]]])
        chosen = np.array([1, 0, 0])
        household = np.array([0, 0, 1])
        n_households = 2

    sure = np.log([0.25, 0.75])
    value = bench_peers.log_likelihood(Panel, [[0.0], [1.0]], sure)
    up, down = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))
    expected = np.log(0.25 / 4 + 0.75 * up * down) + np.log(0.25 / 2 + 0.75 * (1 - up))
    assert value == pytest.approx(expected, rel=1e-12)


def test_a_peer_finds_the_likelihood_that_we_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    household = np.repeat(np.arange(30), 8)
    offers = rng.normal(size=(240, 3, 2))
    heads = np.array([[2.0, 0.0], [-1.0, 1.0]])
    utility = (offers * heads[household % 2][:, None]).sum(2) + rng.gumbel(size=(240, 3))

    class Panel:
        chosen = utility.argmax(1)
        n_households = 30

    Panel.offers, Panel.household = offers, household
    np.savez(
        tmp_path / "d.npz", offers=offers, chosen=Panel.chosen, household=household,
        starts2=rng.normal(size=(4, 2, 2)),
    )  # fmt: skip
    worker = bench_peers.Worker(bench_peers.PEERS["numpy"], tmp_path / "d.npz", tmp_path)
    answer = worker.ask(2, 0, 4)
    worker.end()
    assert answer is not None and answer["starts"] == 4 and answer["peak_mb"] > 0
    score = bench_peers.log_likelihood(Panel, answer["heads"], answer["log_weights"])
    assert score == pytest.approx(max(answer["ends"]), abs=1e-8)
    pooled = bench_peers.log_likelihood(Panel, [heads.mean(0)], [0.0])
    assert score > pooled + 20


def test_summary_compares_the_same_number_of_starts() -> None:
    ours = [{"seconds": 1.0, "starts": 16}, {"seconds": 2.0, "starts": 16}]
    found = [{"seconds": 3.0, "starts": 4, "passes": 6, "peak_mb": 9, "before_mb": 5, "log_likelihood": -3.0}]  # fmt: skip
    line = bench_peers.summary("lccm", found, None, ours, -2.95)
    assert (line["seconds"], line["ratio"], line["start_seconds"], line["pass_ms"]) == (12.0, 12.0, 0.75, 500.0)  # fmt: skip
    assert line["reached"] == 1
    assert bench_peers.summary("lccm", found, None, ours, -2.8)["reached"] == 0
    assert bench_peers.given_up("searchlogit", ours)["ratio"] == 1920.0


# ---- bench-check


def test_a_ratio_that_falls_twice_fails() -> None:
    before = {"a": 10.0, "b": 0.8}
    runs = iter([{"a": 5.0, "b": 0.8}, {"a": 6.0, "b": 0.7}])
    lines, fallen = check.compare(before, lambda: next(runs), 0.35)
    assert fallen == 1 and "FELL" in lines[0] and lines[1].endswith("ok")
    runs = iter([{"a": 5.0, "b": 0.8}, {"a": 6.6, "b": 0.7}])
    assert check.compare(before, lambda: next(runs), 0.35)[1] == 0  # the second time it was well
    assert check.compare(before, lambda: {"a": 6.6, "b": 0.6}, 0.35)[1] == 0


def test_ratios_are_of_the_same_shape_and_dtype() -> None:
    def line(variant, ms, heads, floor=None):
        return {"variant": variant, "dtype": "float32", "shape": {"H": heads}, "median_ms": ms, "pct_floor": floor}  # fmt: skip

    records = [
        line("rows, cpu", 2.0, 8, 60),
        line("rows, eager", 9.0, 8),
        line("rows, eager", 5.0, 2),
    ]
    assert check.ratios(records) == {
        "rows, float32, H=8: eager / ours": 4.5,
        "rows, float32, H=8: floor / ours": 0.6,
    }


def test_a_machine_without_results_is_told_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(check, "device_name", lambda: "an abacus, 1 threads")
    monkeypatch.setattr("sys.argv", ["check"])
    assert check.main() == 0
    assert capsys.readouterr().out == (
        "bench-check: no result is stored for an abacus, 1 threads: nothing to compare (make bench stores one)\n"
    )


def test_a_peer_that_was_given_up_is_shown_as_slower_at_least(monkeypatch) -> None:
    ours = [{"seconds": 0.5, "starts": 16, "passes": None, "peak_mb": 9, "before_mb": 5, "log_likelihood": -3.0}]  # fmt: skip
    rows = [bench_peers.summary("ours", ours, 0.6, ours, -3.0), bench_peers.given_up("searchlogit", ours)]  # fmt: skip
    found = {
        "words": {"ours": "we", "searchlogit": "they"},
        "groups": {"3": rows},
        "absent": ["jax"],
    }
    monkeypatch.setattr(fits, "study", lambda name: found | {"device": "d", "starts": 16, "within": 0.1})  # fmt: skip
    lines = fits.peers().splitlines()
    assert "| we | 0.5 |  | 0.6 | 31 |  | 9 (4) | -3.00 | 1 of 1 | 16 |" in lines
    assert "| they | > 1920 | > 3840 × |  |  |  |  |  | given up after 120 s | 1 |" in lines
    assert lines[-1].endswith("Not installed there: jax.")

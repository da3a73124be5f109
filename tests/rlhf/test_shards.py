"""solve_maxmin on shards of prompts, one after the other or on two processes, against the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maxmin_rlhf import evaluate_maxmin, solve_maxmin
from maxmin_rlhf.welfare import shards as shards_module

pytestmark = pytest.mark.filterwarnings("ignore:solve_maxmin. ")

OBJECTIVES: dict[str, dict[str, Any]] = {
    "maxmin": {},
    "mean": {"group_weights": [3, 2, 1]},
    "softmin": {"tau": 0.2},
    "nash": {"calibrate": "win_rate"},
    "owa": {"rank_weights": [3, 2, 1]},
    "chi2": {"radius": 0.3},
    "tv": {"radius": 0.3, "calibrate": "scale"},
    "cvar": {"alpha": 0.5, "calibrate": "regret"},
}


def make_rewards() -> np.ndarray:
    r = np.random.default_rng(0).standard_normal((23, 7, 3)) * [1.0, 3.0, 0.3]
    r[4, 2, 1] = r[11, :, 0] = np.nan
    return r


def in_parts(r: np.ndarray) -> list[np.ndarray]:
    """Of unequal length, one of them empty."""
    return [r[:9], r[9:9], r[9:10], r[10:]]


def assert_alike(one: Any, other: Any) -> None:
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)
    np.testing.assert_allclose(one.utilities, other.utilities, atol=1e-6)
    assert one.value == pytest.approx(other.value, abs=1e-9)
    assert 0 <= one.gap + 1e-15 <= 1e-8


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_shards_are_as_the_whole(objective: str) -> None:
    r, options = make_rewards(), OBJECTIVES[objective] | {"objective": objective, "tol": 1e-10}
    whole = solve_maxmin(r, 0.5, **options)
    found = solve_maxmin(in_parts(r), 0.5, **options)
    assert_alike(found, whole)
    np.testing.assert_allclose(found.ess, whole.ess, rtol=1e-6)
    assert found.policy.shape == (0, 0)
    again = evaluate_maxmin(
        in_parts(r), found.weights, 0.5, **{k: v for k, v in options.items() if k != "tol"}
    )
    assert again.value == pytest.approx(found.value, abs=1e-12)


class Anew:
    """Iterable again and again."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts, self.passes = parts, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.parts)


def test_whatever_can_be_gone_through_again() -> None:
    r = make_rewards()
    whole = solve_maxmin(r, 0.5, tol=1e-10)
    parts = in_parts(r)
    asked = 0

    def generate() -> Iterator[torch.Tensor]:
        nonlocal asked
        asked += 1
        yield from map(torch.from_numpy, parts)

    forms: list[Any] = [tuple(parts), generate, Anew(parts), lambda: iter(parts)]
    for form in forms:
        assert_alike(solve_maxmin(form, 0.5, tol=1e-10), whole)
    assert 5 < asked < 50
    with pytest.raises(TypeError, match="gone through more than once"):
        solve_maxmin(generate(), 0.5)
    with pytest.raises(ValueError, match=r"rewards: expected at least one shard \(P, S, K\)"):
        solve_maxmin([], 0.5)
    with pytest.raises(TypeError, match="rewards: expected an array, or shards"):
        solve_maxmin(3.0, 0.5)


def test_shards_may_have_other_numbers_of_samples() -> None:
    r = make_rewards()
    short = r.copy()
    short[:9, 5:] = np.nan
    whole = solve_maxmin(short, 0.5, tol=1e-10)
    assert_alike(solve_maxmin([r[:9, :5], r[9:]], 0.5, tol=1e-10), whole)


def test_pieces_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    r = make_rewards()
    whole = solve_maxmin(r, 0.5, objective="kl", radius=0.1, tol=1e-10)
    monkeypatch.setattr(shards_module, "_BLOCK", 3 * 7 * 3)
    assert_alike(solve_maxmin(r, 0.5, objective="kl", radius=0.1, tol=1e-10), whole)


def test_groups_left_out_of_shards() -> None:
    r = make_rewards()
    options: dict[str, Any] = {"group_weights": [10, 1, 10], "min_mass": 0.1, "tol": 1e-10}
    whole = solve_maxmin(r, 0.5, **options)
    found = solve_maxmin(in_parts(r), 0.5, **options)
    assert found.left_out == (1,) and found.weights[1] == 0 and np.isnan(found.utilities[1])
    np.testing.assert_allclose(found.weights, whole.weights, atol=1e-6)


_RANK = """
import json, os, sys, warnings
import numpy as np, torch
from torch import distributed as dist
from maxmin_rlhf import solve_maxmin
warnings.simplefilter("ignore")
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
asked = json.loads(open(f"{folder}/asked.json").read())
r = np.load(f"{folder}/rewards.npy")
cut = asked.pop("cut")
mine = r[:cut] if rank == 0 else r[cut:]
found = {}
for objective, options in asked["objectives"].items():
    for form in ("array", "shards"):
        rewards = mine if form == "array" else [mine[i : i + 4] for i in range(0, len(mine), 4)]
        s = solve_maxmin(
            rewards, 0.5, objective=objective, tol=1e-10, process_group=dist.group.WORLD, **options
        )
        found[f"{objective} {form}"] = {
            "weights": s.weights.tolist(), "utilities": s.utilities.tolist(), "value": s.value, "gap": s.gap,
            "ess": s.ess.tolist(), "policy": list(s.policy.shape),
        }
open(f"{folder}/{rank}.json", "w").write(json.dumps(found))
dist.destroy_process_group()
"""


def _on_two_processes(folder: Path, cut: int) -> list[dict[str, Any]]:
    r = make_rewards()
    np.save(folder / "rewards.npy", r)
    (folder / "asked.json").write_text(json.dumps({"cut": cut, "objectives": OBJECTIVES}))
    path = os.pathsep.join(p for p in sys.path if p)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(folder), str(rank)],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("cut", [10, 23], ids=["both", "one of them without a prompt"])
def test_two_processes_are_as_one(tmp_path: Path, cut: int) -> None:
    first, second = _on_two_processes(tmp_path, cut)
    r = make_rewards()
    for objective, options in OBJECTIVES.items():
        whole = solve_maxmin(r, 0.5, objective=objective, tol=1e-10, **options)
        for form in ("array", "shards"):
            one, two = first[f"{objective} {form}"], second[f"{objective} {form}"]
            for name in ("weights", "utilities", "value", "gap"):
                assert one[name] == two[name], (objective, form, name)  # bit for bit
            np.testing.assert_allclose(one["weights"], whole.weights, atol=1e-6)
            assert one["value"] == pytest.approx(whole.value, abs=1e-9)
            np.testing.assert_allclose(one["ess"] + two["ess"], whole.ess, rtol=1e-6)
            assert two["policy"] == ([23 - cut, 7] if form == "array" else [0, 0])


@pytest.mark.slow
def test_a_hundred_thousand_prompts_in_little_memory() -> None:
    """Made anew at every pass, never held."""

    def shards(n: int = 20) -> Callable[[], Iterator[np.ndarray]]:
        def anew() -> Iterator[np.ndarray]:
            for i in range(n):
                yield np.random.default_rng(i).standard_normal((5000, 8, 4)).astype(np.float32)

        return anew

    found = solve_maxmin(shards(), 0.5)
    assert found.relative_gap <= 1e-6 and found.ess.shape == (100_000,)
    # Alike groups: the weights are about equal.
    np.testing.assert_allclose(found.weights, 0.25, atol=0.02)

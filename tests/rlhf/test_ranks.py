"""A fit over two processes is that of one; a process that is gone ends it, and its checkpoint goes on elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from maxmin_rlhf import PreferenceData, PreferenceMixture, fit_sweep

WORKER = """
import json, os, sys
import numpy as np
import torch.distributed as dist
from maxmin_rlhf import PreferenceData, fit_sweep
from maxmin_rlhf.mixture import progress

folder, rank, dies = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "dies"
dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{dies}", rank=rank, world_size=2)
kept = np.load(f"{folder}/data.npz")
mine = (kept["who"] < 17) == (rank == 0)
data = PreferenceData.from_arrays(kept["rows"][mine], kept["who"][mine])
checkpoint = None
if dies:
    checkpoint, progress.CHECKPOINT_SECONDS = f"{folder}/fit.safetensors", 0.0
    call, rounds = progress.Watch.__call__, [0]
    def counted(self, *args):
        call(self, *args)
        rounds[0] += 1
        if rounds[0] == 6 and rank == 1:
            os._exit(9)
    progress.Watch.__call__ = counted
fits = fit_sweep(
    data, [1, 2], n_init=3, random_state=0, checkpoint=checkpoint, process_group=dist.group.WORLD
)
found = {k: [f.heads_.tolist(), f.weights_.tolist(), f.lower_bound_, f.responsibilities_.tolist()] for k, f in fits.items()}
open(f"{folder}/found-{rank}.json", "w").write(json.dumps(found))
"""


def preferences(folder: Path) -> PreferenceData:
    """Forty annotators of two opposed tastes; some choices of one group more than of the other."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(40), rng.integers(5, 15, 40))
    rows = rng.standard_normal((who.size, 4))
    sign = np.where(who % 3 == 0, -1.0, 1.0)
    chance = 1 / (1 + np.exp(-2 * sign * rows[:, 0] - rows[:, 1]))
    rows *= np.where(rng.random(who.size) < chance, 1.0, -1.0)[:, None]
    np.savez(folder / "data.npz", rows=rows, who=who)
    return PreferenceData.from_arrays(rows, who)


def run(folder: Path, how: str) -> list[subprocess.CompletedProcess[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(rank), how],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = []
    for process in started:
        _, errors = process.communicate(timeout=300)
        ended.append(subprocess.CompletedProcess([], process.returncode, "", errors))
    return ended


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    data = preferences(tmp_path)
    assert [p.returncode for p in run(tmp_path, "lives")] == [0, 0]
    found: list[dict[str, Any]] = [
        json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)
    ]
    for k in (1, 2):
        one = PreferenceMixture(k, n_init=3, random_state=0).fit(data)
        (heads, weights, bound, resp), other = found[0][str(k)], found[1][str(k)]
        assert (heads, weights, bound) == tuple(other[:3])  # to the bit
        assert bound == pytest.approx(one.lower_bound_, rel=1e-9)
        np.testing.assert_allclose(heads, one.heads_, atol=2e-4)
        np.testing.assert_allclose(resp + other[3], one.responsibilities_, atol=2e-4)


def test_a_process_that_is_gone_and_its_checkpoint(tmp_path: Path) -> None:
    data = preferences(tmp_path)
    first, second = run(tmp_path, "dies")
    assert second.returncode == 9
    assert first.returncode == 1 and "another process of the group is gone" in first.stderr
    checkpoint = tmp_path / "fit.safetensors"
    assert checkpoint.exists()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    try:
        options: dict[str, Any] = {"n_init": 3, "random_state": 0}
        on = fit_sweep(
            data, [1, 2], checkpoint=checkpoint, process_group=dist.group.WORLD, **options
        )
    finally:
        dist.destroy_process_group()
    assert not checkpoint.exists()
    for k, fit in fit_sweep(data, [1, 2], **options).items():
        assert on[k].lower_bound_ == pytest.approx(fit.lower_bound_, rel=1e-9)

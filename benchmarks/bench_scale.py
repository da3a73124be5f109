"""Whole sweeps, and where their time goes: Jester's 399,750 stored pairs, all its 11.25 million, the electricity panel.

    MAXMIN_DATA=FOLDER python -m benchmarks.bench_scale [--rounds 3] [--only large]

Without MAXMIN_DATA the panel alone is fitted and nothing written. To convergence. Each sweep is a process of its own, so that its memory is its own; reading the data is not timed, making
``PreferenceData`` of them is, apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

import maxmin_kernels as mk
from benchmarks import panels
from benchmarks.harness import write_study
from maxmin_rlhf import PreferenceData, fit_sweep
from maxmin_rlhf.demo.panel import fetch, read_panel

# Numbers of groups, starts of each, ridge.
SWEEPS = {
    "electricity": (range(1, 7), 16, 0.0),
    "small": (range(1, 7), 8, 1.0),
    "large": (range(1, 5), 2, 1.0),
}
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def small() -> Columns:
    """The pairs as they are stored: annotator, chosen and rejected joke."""
    pairs = pd.read_parquet(
        panels.data_folder() / "jester5k/pairs.parquet",
        columns=["annotator_id", "chosen_id", "rejected_id"],
    )
    who = pd.factorize(pairs.annotator_id)[0]
    chosen, rejected = (pairs[name].astype(np.int64) for name in ("chosen_id", "rejected_id"))
    return who, chosen.to_numpy(), rejected.to_numpy()


def large() -> Columns:
    """Every pair of jokes that a rater rated differently."""
    ratings = pd.read_parquet(panels.data_folder() / "jester5k/ratings.parquet")
    who, chosen, rejected = [], [], []
    for rater, (_, own) in enumerate(ratings.groupby("annotator_id", observed=True)):
        item, rating = own["item"].to_numpy(np.int64), own["rating"].to_numpy()
        i, j = np.triu_indices(len(own), 1)
        i, j = i[rating[i] != rating[j]], j[rating[i] != rating[j]]
        first = rating[i] > rating[j]
        who.append(np.full(i.size, rater))
        chosen.append(np.where(first, item[i], item[j]))
        rejected.append(np.where(first, item[j], item[i]))
    return np.concatenate(who), np.concatenate(chosen), np.concatenate(rejected)


def megabytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


class Stopwatch:
    """Counts the passes and their seconds."""

    def __init__(self) -> None:
        self.calls, self.seconds, self.em_pass = 0, 0.0, mk.em_pass

    def __call__(self, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = self.em_pass(*args, **options)
        self.seconds += time.perf_counter() - began
        self.calls += 1
        return result


def sweep(name: str, seed: int) -> dict[str, Any]:
    """In this process."""
    if name == "electricity":
        panel = read_panel(fetch())
    else:
        who, chosen, rejected = {"small": small, "large": large}[name]()
    before = megabytes("VmRSS")
    began = time.perf_counter()
    if name == "electricity":
        data = panel.preferences()
    else:
        data = PreferenceData.from_items(np.eye(100, dtype=np.float32), chosen, rejected, who)
    made = time.perf_counter()
    sizes, n_init, l2 = SWEEPS[name]
    mk.em_pass = watch = Stopwatch()  # type: ignore[assignment]
    fits = fit_sweep(data, sizes, n_init=n_init, l2=l2, random_state=seed)
    return {
        "annotators": data.n_annotators,
        "comparisons": data.n_comparisons,
        "data_seconds": made - began,
        "seconds": time.perf_counter() - made,
        "pass_seconds": watch.seconds,
        "passes": watch.calls,
        "before_mb": before,
        "peak_mb": megabytes("VmHWM"),
        "lower_bound": {k: fit.lower_bound_ for k, fit in fits.items()},
        "converged": all(fit.converged_ for fit in fits.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(SWEEPS))
    parser.add_argument("--sweep", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sweep:
        print(json.dumps(sweep(options.sweep[0], int(options.sweep[1]))))
        return
    findings = {}
    if options.only is None and not os.environ.get("MAXMIN_DATA"):
        options.only = "electricity"
    for name, (sizes, n_init, l2) in SWEEPS.items():
        if options.only not in (None, name):
            continue
        runs = []
        for seed in range(options.rounds):
            command = [sys.executable, "-m", "benchmarks.bench_scale", "--sweep", name, str(seed)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout))
            print(name, runs[-1], flush=True)
        findings[name] = {
            "groups": list(sizes),
            "n_init": n_init,
            "l2": l2,
            "seconds": median(run["seconds"] for run in runs),
            "peak_mb": max(run["peak_mb"] for run in runs),
            "share_in_passes": median(run["pass_seconds"] / run["seconds"] for run in runs),
            "runs": runs,
        }
    if options.only is None:
        print(write_study("scale", findings))


if __name__ == "__main__":
    main()

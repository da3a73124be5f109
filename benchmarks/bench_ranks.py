"""Two processes against one, one thread each, in turns. Writes results/ranks.json.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.bench_ranks [--rows 1000000] [--rounds 7]

Planted preferences of two tastes, 64 features in bfloat16, in memory. Both processes meet by gloo; in every round the first
one makes a pass over all annotators (16 heads) while the other sleeps, then both make one over half of them each, sums
and all; then the same of a short fit of four groups, and of a fit from a store that the system's cache holds. Reported: the
medians, and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.bench_stream import EACH, D, write
from benchmarks.harness import elsewhere, write_study
from maxmin_rlhf import PreferenceMixture, PreferenceStore
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.objective import Objective

MIXTURES, GROUPS = 4, 4  # of a pass
FIT = {"n_init": 2, "random_state": 0, "max_iter": 12}


def work(folder: Path, rank: int, rounds: int) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    everyone = dist.group.WORLD
    store = PreferenceStore(folder / "store")
    half = np.array_split(np.arange(store.n_annotators), 2)[rank]
    mine, own = store.select_annotators(half).load(), store.select_annotators(half)
    whole = store.load() if rank == 0 else mine
    heads = [torch.randn(GROUPS, D, dtype=torch.float64, generator=torch.manual_seed(i)) for i in range(MIXTURES)]  # fmt: skip
    bank = Bank.of(heads, [torch.zeros(GROUPS)] * MIXTURES, torch.ones(MIXTURES), GROUPS)
    alone, shared = Objective.of(whole), Objective.of(mine, everyone)

    def fit(data: Any, group: Any = None) -> Any:
        return PreferenceMixture(GROUPS, **FIT).fit(data, process_group=group)

    tasks: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "pass": (lambda: alone(bank), lambda: shared(bank)),
        "fit": (lambda: fit(whole), lambda: fit(mine, everyone)),
        "streamed fit": (lambda: fit(store), lambda: fit(own, everyone)),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in tasks}
    for i in range(rounds + 1):
        for name, (one, two) in tasks.items():
            spent = []
            for run in (one if rank == 0 else lambda: None, two):
                dist.barrier()
                began, busy = time.perf_counter(), time.process_time()
                run()
                spent += [time.perf_counter() - began, time.process_time() - busy]
            if i:  # the first to warm up
                times[name].append(spent)
    dist.barrier()
    if rank == 0:
        print(json.dumps(times))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(Path(args.worker[0]), int(args.worker[1]), args.rounds)
        return
    others = elsewhere()
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "store", args.rows)
        run = [sys.executable, "-m", "benchmarks.bench_ranks", "--rounds", str(args.rounds), "--worker", name]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        both = [subprocess.Popen([*run, str(rank)], env=environment, stdout=subprocess.PIPE) for rank in (0, 1)]  # fmt: skip
        out = [process.communicate()[0] for process in both]
    if any(process.returncode for process in both):
        raise SystemExit(1)
    findings: dict[str, Any] = {"rows": args.rows, "features": D, "pairs_an_annotator": EACH, "rounds": args.rounds, "others": round(others(), 2)}  # fmt: skip
    for task, spent in json.loads(out[0]).items():
        one, one_cpu, two, two_cpu = np.array(spent).T
        findings[task] = {
            "one_seconds": round(float(np.median(one)), 4),
            "two_seconds": round(float(np.median(two)), 4),
            "speedup": round(float(np.median(one / two)), 3),
            # Of the first process: what other programs on the machine disturb less.
            "cpu_ratio": round(float(np.median(one_cpu / two_cpu)), 3),
        }
        print(task, findings[task], flush=True)
    write_study("ranks", findings)


if __name__ == "__main__":
    main()

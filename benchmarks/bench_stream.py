"""A pass over preferences on disk against the disk itself and memory. Writes results/stream.json.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.bench_stream --folder DIR [--rows 100000000] [--rounds 3]

Two planted tastes, 20 pairs an annotator, 64 features in bfloat16: 128 bytes a row, written in blocks to DIR, where a store of
as many rows is used again. In every round, with files dropped from the system's cache before: one plain read of the files
from end to end and one pass of the fit over them (four heads), in turns, and one read of memory. The floor of a pass is the slower of the
two reads. Then passes over the first 1e4, 1e5, … rows, each as often, for what a row costs; the peak of a whole, short fit in
a process of its own; and a fit killed in the middle of a pass and gone on with, against one that was not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import elsewhere, floor_probes, write_study
from maxmin_rlhf import PreferenceData, PreferenceStore
from maxmin_rlhf.data import row_files
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.objective import Objective

D, EACH, HEADS = 64, 20, 4
ROW = 2 * D  # bytes
SHARD = EACH * 50_000  # rows
MEMORY = 1 << 29  # bytes read in memory
PEAK_ROUNDS = 2


def write(folder: Path, n_rows: int) -> None:
    """The planted store; nothing is done where it is there."""
    done = 0
    if (folder / "index.json").exists():
        done = sum(s["rows"] for s in json.loads((folder / "index.json").read_text())["shards"])
    if done > n_rows:
        raise SystemExit(f"--folder: expected at most {n_rows} rows in {folder}, got {done}")
    torch.manual_seed(0)
    base = torch.randn(SHARD, D).bfloat16()
    tastes = torch.randn(D, 2) / D**0.5 * 2
    while done < n_rows:
        n = min(SHARD, n_rows - done)
        rng = np.random.default_rng(done)
        rows = base[:n].roll(done // SHARD % D, 1)  # each shard another
        margins = rows.float() @ tastes
        who = np.arange(done, done + n) // EACH
        margin = margins[torch.arange(n), torch.from_numpy(who % 3 == 0).long()]
        lost = margin < torch.from_numpy(rng.logistic(size=n))
        rows = torch.where(lost[:, None], -rows, rows)
        data = PreferenceData(
            features=rows,
            indptr=torch.arange(0, n + 1, EACH),
            annotators_=np.arange(done // EACH, (done + n) // EACH),
            order=torch.arange(n),
        )
        PreferenceStore.append(folder, data)
        done += n


def drop(folder: Path) -> None:
    """Out of the system's cache."""
    for path in folder.glob("shard-*"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_files(folder: Path, n_bytes: int) -> int:
    """The first bytes of the shards, one plain read after the other into one buffer."""
    buffer, done = memoryview(bytearray(8 << 20)), 0
    for path in sorted(folder.glob("shard-*")):
        with open(path, "rb", buffering=0) as file:
            while done < n_bytes and (got := file.readinto(buffer)):
                done += got
    return done


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def passes(folder: Path, n_rows: int, rounds: int) -> dict[str, Any]:
    """Medians of the rounds, and the median share of the floor."""
    store = PreferenceStore(folder).select_annotators(np.arange(n_rows // EACH))
    objective = Objective.of(store)
    heads = torch.randn(HEADS, D, dtype=torch.float64)
    bank = Bank.of([heads], [torch.zeros(HEADS)], torch.ones(1), HEADS)
    memory = torch.ones(MEMORY, dtype=torch.uint8).view(torch.bfloat16).view(-1, D)
    read_memory = floor_probes(memory)["read"]
    n_bytes = n_rows * ROW
    rates: dict[str, list[float]] = {"disk": [], "memory": [], "pass": []}
    busy: list[float] = []  # of the processor: other programs disturb it less
    for i in range(rounds + 1):
        taken = {}
        # The disk may remember what was read last, whatever the system forgets: each goes first in turn.
        for name in ("disk", "pass") if i % 2 else ("pass", "disk"):
            drop(folder)
            began = time.process_time()
            run = (
                (lambda: read_files(folder, n_bytes))
                if name == "disk"
                else (lambda: objective(bank))
            )
            taken[name] = n_bytes / seconds(run)
            if name == "pass":
                spent = time.process_time() - began
        ram = MEMORY / seconds(read_memory)
        if i:  # the first to warm up
            busy.append(spent)
            for name, rate in (*taken.items(), ("memory", ram)):
                rates[name].append(rate)
    share = [p / min(d, m) for p, d, m in zip(rates["pass"], rates["disk"], rates["memory"], strict=True)]  # fmt: skip
    found = {f"{name}_gb_s": round(float(np.median(r)) / 1e9, 3) for name, r in rates.items()}
    return {
        "rows": n_rows,
        **found,
        "pass_seconds": float(np.median([n_bytes / r for r in rates["pass"]])),
        "pass_cpu_seconds": float(np.median(busy)),
        "share_of_floor": round(float(np.median(share)), 3),
        "shares": [round(s, 3) for s in share],
    }


def by_size(folder: Path, whole: dict[str, Any], rounds: int) -> list[dict[str, float]]:
    """Cold passes over the first rows, all sizes in every round, and each over the line through the ends."""
    n_rows = whole["rows"]
    store = PreferenceStore(folder)
    heads = torch.randn(HEADS, D, dtype=torch.float64)
    bank = Bank.of([heads], [torch.zeros(HEADS)], torch.ones(1), HEADS)
    sizes = [n for n in (10**4, 10**5, 10**6, 10**7, 10**8) if n < n_rows]
    parts = {n: Objective.of(store.select_annotators(np.arange(n // EACH))) for n in sizes}
    times: dict[int, list[float]] = {n: [] for n in sizes}
    busy: dict[int, list[float]] = {n: [] for n in sizes}
    for i in range(rounds + 1):
        for n, objective in parts.items():
            drop(folder)
            began = time.process_time()
            spent = seconds(lambda objective=objective: objective(bank))
            if i:
                times[n].append(spent)
                busy[n].append(time.process_time() - began)
    found = {n: float(np.median(t)) for n, t in times.items()} | {n_rows: whole["pass_seconds"]}
    cpu = {n: float(np.median(t)) for n, t in busy.items()} | {n_rows: whole["pass_cpu_seconds"]}
    first = min(found)
    slope = (found[n_rows] - found[first]) / max(1, n_rows - first)
    line = {n: found[first] + slope * (n - first) for n in found}
    return [
        {
            "rows": n,
            "seconds": seconds,
            "ns_a_row": round(1e9 * seconds / n, 1),
            "cpu_ns_a_row": round(1e9 * cpu[n] / n, 1),
            "of_line": round(seconds / line[n], 3),
        }
        for n, seconds in found.items()
    ]


CHILD = """
import json, os, re, signal, sys
import numpy as np
from benchmarks.bench_stream import EACH
from maxmin_rlhf import PreferenceData, PreferenceMixture, PreferenceStore
from maxmin_rlhf.data import row_files
from maxmin_rlhf.mixture import progress
folder, n_rows, rounds, checkpoint, dies = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "dies"
def peak():  # ru_maxrss would be inherited
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
def fit(data, rounds, checkpoint=None):
    return PreferenceMixture(2, n_init=1, random_state=0, max_iter=rounds).fit(data, checkpoint)
small = np.random.default_rng(0).standard_normal((10_000, 64), dtype=np.float32)
fit(PreferenceData.from_arrays(small, np.arange(10_000) // EACH), 2)  # code, threads, the allocator's own
before = peak()
data = PreferenceStore(folder)
data = data.select_annotators(np.arange(n_rows // EACH))
if dies:
    progress.CHECKPOINT_SECONDS = 0.0
    call, seen, read = progress.Watch.__call__, [], row_files.RowFiles.read
    def watch(self, *args):
        call(self, *args)
        seen.append(1)
    def killed(self, first, *args):
        if len(seen) == rounds + 2 and first:
            os.kill(os.getpid(), signal.SIGKILL)
        read(self, first, *args)
    progress.Watch.__call__, row_files.RowFiles.read = watch, killed
found = fit(data, rounds, checkpoint or None)
print(json.dumps({"before": before, "peak": peak(), "heads": found.heads_.tolist(), "bounds": found.lower_bounds_.tolist()}))
"""


def child(folder: Path, n_rows: int, rounds: int, checkpoint: str = "", how: str = "lives") -> Any:
    argv = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), str(n_rows), str(rounds), checkpoint, how]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True)
    if how == "dies" and done.returncode == -signal.SIGKILL:
        return None
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10**8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    others = elsewhere()
    row_files.CACHE_SHARE = 0.0  # nothing stays in the system's cache
    folder = args.folder / f"pairs-{args.rows}"
    began = time.perf_counter()
    write(folder, args.rows)
    print(f"written in {time.perf_counter() - began:.0f} s", flush=True)
    large = passes(folder, args.rows, args.rounds)
    print(large, flush=True)
    sizes = by_size(folder, large, max(5, args.rounds))
    print(sizes, flush=True)
    began = time.perf_counter()
    whole = child(folder, args.rows, PEAK_ROUNDS)
    n_annotators, block = args.rows // EACH, PreferenceStore(folder).block_bytes
    memory = {
        "peak_bytes": whole["peak"],
        "grown_bytes": whole["peak"] - whole["before"],
        "two_blocks_bytes": 2 * block,
        "data_bytes": args.rows * ROW,
        "bytes_an_annotator": (whole["peak"] - whole["before"] - 2 * block) / n_annotators,
        "fit_seconds": round(time.perf_counter() - began, 1),
    }
    print(memory, flush=True)
    n = min(args.rows, 10**7)
    with tempfile.TemporaryDirectory() as kept:
        expected = child(folder, n, 4)
        checkpoint = str(Path(kept) / "fit.safetensors")
        died = child(folder, n, 4, checkpoint, "dies") is None and os.path.exists(checkpoint)
        again = child(folder, n, 4, checkpoint)
    same = all(again[name] == expected[name] for name in ("heads", "bounds"))
    resumed = {"rows": n, "killed": died, "to_the_bit": same}
    print(resumed, flush=True)
    findings = {
        "features": D,
        "pairs_an_annotator": EACH,
        "heads": HEADS,
        "rounds": args.rounds,
        "others": round(others(), 2),
        "pass": large,
        "by_size": sizes,
        "memory": memory,
        "killed_and_resumed": resumed,
    }
    write_study("stream", findings)


if __name__ == "__main__":
    main()

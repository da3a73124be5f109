"""How the time of em_pass grows: with features, heads, the skew of annotators' shares, threads.

    python -m benchmarks.bench_scaling [--rounds 9] [--smoke]

float32 pairs with features of their own; plain PyTorch and one read of the features take turns with it. Skew is Zipf's: the
r-th annotator has a share of the pairs that falls with r to that power. Threads are torch's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import maxmin_kernels as mk
from benchmarks import cases
from benchmarks.harness import floor_probes, fma_flops, interleaved, write_study

# What varies, and what it is otherwise.
USUAL = {"rows": 50_000, "features": 256, "heads": 8, "skew": 0.0, "threads": 0}
AXES: dict[str, tuple[float, ...]] = {
    "features": (16, 64, 256, 1024, 4096),
    "heads": (1, 2, 4, 8, 16, 32, 64),
    "skew": (0.0, 0.5, 1.0, 1.5, 2.0),
}
EACH = 20


def sizes(n_rows: int, skew: float) -> torch.Tensor:
    """(A,) pairs of each annotator: at least one, in random order."""
    n = n_rows // EACH
    share = np.arange(1, n + 1, dtype=float) ** -skew
    counts = 1 + np.floor((n_rows - n) * share / share.sum()).astype(np.int64)
    counts[0] += n_rows - counts.sum()
    return torch.from_numpy(np.random.default_rng(0).permutation(counts))


def measure(at: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Milliseconds of ours, plain PyTorch and the floor at one point."""
    torch.manual_seed(0)
    n, d, h = at["rows"], int(at["features"]), int(at["heads"])
    counts = sizes(n, at["skew"])
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    x, weight = torch.randn(n, d), torch.randn(h, d) / d**0.5
    log_weights = torch.full((h,), 1 / h).log()
    one, plan = cases.Mixtures.of((h,)), mk.em_plan(indptr)
    times = interleaved(
        {
            "ours": lambda: mk.em_pass(x, indptr, weight, log_weights, plan=plan),
            "eager": lambda: cases.plain_rows(x, weight, log_weights, owner, len(counts), one),
            **floor_probes(x),
        },
        rounds,
        warmup=1,
    )
    floor = np.maximum(times["read"], times["fma"] * 4 * n * d * h / fma_flops())
    return {
        "ms": float(np.median(times["ours"])),
        "eager_ms": float(np.median(times["eager"])),
        "floor_ms": float(np.median(floor)),
        "ratio": float(np.median(times["eager"] / times["ours"])),
    }


def threads() -> Iterator[int]:
    """1, 2, 4, ... and all there are."""
    count, most = 1, len(os.sched_getaffinity(0))
    while count < most:
        yield count
        count *= 2
    yield most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="few rows, and nothing is written")
    options = parser.parse_args()
    usual = USUAL | {"threads": torch.get_num_threads()}
    if options.smoke:
        usual["rows"] = 2_000
    findings: dict[str, Any] = {"usual": usual, "each": EACH}
    for axis, points in {**AXES, "threads": tuple(threads())}.items():
        findings[axis] = []
        for point in points:
            at = {**usual, axis: point}
            torch.set_num_threads(int(at["threads"]))
            findings[axis].append({axis: point, **measure(at, options.rounds)})
            print(findings[axis][-1], flush=True)
    torch.set_num_threads(int(usual["threads"]))
    if not options.smoke:
        print(write_study("scaling", findings))


if __name__ == "__main__":
    main()

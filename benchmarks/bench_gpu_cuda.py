"""The CUDA EM pass on a Hopper GPU beside Triton's, and how far it gets with each step: what bounds it.

    python -m benchmarks.bench_gpu_cuda [--pairs 500000] [--rounds 30]

Floors are what the features take at the copy bandwidth that this run measured, read once. Nothing is written: the figures
belong into csrc/cuda/README.md, version by version.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import maxmin_kernels as mk
from benchmarks.bench_gpu import Clock, copy_bandwidth
from maxmin_kernels import _cuda
from maxmin_kernels._cuda_heads import block_of

# Features, heads, pairs an annotator.
SHAPES = [
    (4096, 8, 32),
    (4096, 8, 4),
    (4096, 8, 256),
    (4096, 16, 32),
    (4096, 32, 32),
    (4096, 48, 32),
    (4096, 80, 32),
    (1024, 8, 32),
    (8192, 8, 32),
    (8192, 16, 32),
]
STEPS = {1: "loads", 2: "+ margins", 3: "+ exchange", 4: "+ posterior", 5: "whole"}


def problem(n_pairs: int, n_features: int, n_heads: int, size: int) -> tuple[torch.Tensor, ...]:
    n = n_pairs // size * size
    x = torch.randn(n, n_features, device="cuda", dtype=torch.bfloat16)
    indptr = torch.arange(0, n + 1, size, device="cuda")
    weight = torch.randn(n_heads, n_features, device="cuda") / n_features**0.5
    return x, indptr, weight, torch.zeros(n_heads, device="cuda")


def by(backend: str, given: tuple[torch.Tensor, ...]) -> Any:
    n_heads, n_features = given[2].shape
    size = min(n_heads, block_of(n_features))
    mixtures = torch.arange(0, n_heads + 1, size, device="cuda")
    with mk.backend(f"em_pass:{backend}"):
        return mk.em_pass(*given, mixture_indptr=mixtures)


def milliseconds(clock: Clock, run: Callable[[], Any], rounds: int) -> float:
    for _ in range(3):
        run()
    return float(np.median([clock.time(run) for _ in range(rounds)]))


def ladder(clock: Clock, given: tuple[torch.Tensor, ...], rounds: int, floor: float) -> None:
    """The kernel stopped after each step; without the launcher's host work, but with the joining of the parts."""
    x, indptr, weight, logs = given
    cut = _cuda._tiles_of(x, indptr, 8)
    begin, end = torch.zeros(8, dtype=torch.int32, device="cuda"), torch.full((8,), 8, dtype=torch.int32, device="cuda")  # fmt: skip
    args = (x, cut.tiles, cut.begin, cut.carry, cut.split_begin, cut.split_annotator, indptr.shape[0] - 1, weight, logs, begin, end, None, False, 0.0, False, 1.0, cut.n_chunks)  # fmt: skip
    for steps, name in STEPS.items():
        taken = milliseconds(clock, lambda s=steps: _cuda.native().em_pass_cuda(*args, s), rounds)
        print(f"  {name:12}{taken:8.3f} ms {100 * floor / taken:5.0f} % of the copy rate", flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("bench_gpu_cuda: no Hopper GPU here", file=sys.stderr)
        return 2
    if why_not := _cuda.load():
        print(f"bench_gpu_cuda: {why_not}", file=sys.stderr)
        return 2
    clock = Clock("cuda")
    bandwidth = copy_bandwidth(clock)
    print(f"{torch.cuda.get_device_name()}, copy {bandwidth / 1e12:.2f} TB/s", flush=True)
    for n_features, n_heads, size in SHAPES:
        given = problem(args.pairs, n_features, n_heads, size)
        ours, theirs = by("cuda", given), by("triton", given)
        scale = theirs.grad_weight.abs().max()
        error = float((ours.grad_weight - theirs.grad_weight).abs().max() / scale)
        clusters = _cuda.native().em_pass_clusters(given[0], 8 * -(-n_heads // 8), size > 32)
        floor = given[0].numel() * 2 / bandwidth * 1e3
        print(f"D={n_features} H={n_heads}, {size} pairs an annotator: {clusters} shares of the tiles, differs from Triton by {error:.1e}", flush=True)  # fmt: skip
        if not error < 1e-3:
            return 1
        for name in ("cuda", "triton"):
            taken = milliseconds(clock, lambda b=name, g=given: by(b, g), args.rounds)
            print(f"  {name:12}{taken:8.3f} ms {100 * floor / taken:5.0f} % of the copy rate", flush=True)  # fmt: skip
        if (n_features, n_heads, size) == SHAPES[0]:
            ladder(clock, given, args.rounds, floor)
        del given, ours, theirs
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""em_pass against the vectorised formula in PyTorch, eager and compiled, and against what the machine can do at best.

    python -m benchmarks.bench_em_pass [--rounds 15] [--smoke]

Rows: 400,000 pairs of 384 features, 20 an annotator. Indexed: 400,000 pairs of 100 items by 4,000 annotators, 84 heads in
24 mixtures. Without a plan, as a first call would be.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

import maxmin_kernels as mk
from benchmarks import cases
from benchmarks.harness import floor_probes, fma_flops, interleaved, record, write_records


def fastest(peers: Iterable[str], times: Mapping[str, np.ndarray]) -> str:
    return min(peers, key=lambda name: float(np.median(times[name])))


def check(ours: Any, theirs: Any) -> None:
    """A fast wrong answer is not timed."""
    for a, b in zip(ours, theirs, strict=True):
        difference = (a.double() - b.double()).abs().max() / b.double().abs().max()
        if not difference < 1e-3:
            raise SystemExit(f"em_pass and its peer differ by {difference:.2g}")


def rows(
    n_rows: int,
    n_features: int,
    n_heads: int,
    dtype: torch.dtype,
    rounds: int,
    compiled: bool = True,
) -> list[Any]:
    torch.manual_seed(0)
    each = cases.CPU_ROWS["each"]
    n = n_rows // each
    one = cases.Mixtures.of((n_heads,))
    x = torch.randn(n_rows, n_features).to(dtype)
    indptr = torch.arange(0, n_rows + 1, each)
    owner = torch.arange(n_rows) // each
    weight = torch.randn(n_heads, n_features) / n_features**0.5
    log_weights = torch.randn(n_heads).log_softmax(0)
    fused = torch.compile(cases.plain_rows)

    def ours() -> Any:
        return mk.em_pass(x, indptr, weight, log_weights)

    peers: dict[str, Callable[[], Any]] = {
        "eager": lambda: cases.plain_rows(x, weight, log_weights, owner, n, one),
    }
    if compiled:
        peers["torch.compile"] = lambda: fused(x, weight, log_weights, owner, n, one)
    check(ours(), peers["eager"]())
    times = interleaved({"ours": ours, **peers, **floor_probes(x)}, rounds)
    flops = 4 * n_rows * n_features * n_heads
    floor = np.maximum(times["read"], times["fma"] * flops / fma_flops())
    best = fastest(peers, times)
    shared = {
        "op": "em_pass",
        "dtype": dtype,
        "shape": {"N": n_rows, "D": n_features, "H": n_heads, "A": n},
        "n_bytes": x.numel() * x.element_size(),
        "flops": flops,
        "floor": floor,
    }
    return [
        record(times["ours"], variant="rows, cpu", peer=best, peer_times=times[best], **shared),
        *(record(times[name], variant=f"rows, {name}", **shared) for name in peers),
    ]


def indexed(n_rows: int, n_annotators: int, rounds: int, compiled: bool = True) -> list[Any]:
    torch.manual_seed(0)
    shape = cases.CPU_INDEXED
    n_items, n_heads = shape.items, shape.heads
    items = torch.eye(n_items)
    weight = torch.randn(n_heads, n_items)
    mixtures = cases.Mixtures.of(shape.groups)
    log_weights = -mixtures.sizes.float().log().repeat_interleave(mixtures.sizes)
    each = n_rows // n_annotators
    indptr = torch.arange(0, n_rows + 1, each)
    owner = torch.arange(n_rows) // each
    chosen = torch.randint(0, n_items, (n_rows,))
    rejected = (chosen + torch.randint(1, n_items, (n_rows,))) % n_items
    peer_arguments = (items, chosen, rejected, weight, log_weights, owner, n_annotators, mixtures)
    fused = torch.compile(cases.plain_indexed)

    def ours() -> Any:
        return mk.em_pass(
            items,
            indptr,
            weight,
            log_weights,
            chosen=chosen,
            rejected=rejected,
            mixture_indptr=mixtures.indptr,
        )

    peers: dict[str, Callable[[], Any]] = {
        "eager": lambda: cases.plain_indexed(*peer_arguments),
    }
    if compiled:
        peers["torch.compile"] = lambda: fused(*peer_arguments)
    check(ours(), peers["eager"]())
    times = interleaved({"ours": ours, **peers}, rounds)
    best = fastest(peers, times)
    shared = {
        "op": "em_pass",
        "dtype": torch.float32,
        "shape": {"N": n_rows, "M": n_items, "H": n_heads, "A": n_annotators},
        "n_bytes": 2 * 8 * n_rows,
    }
    return [
        record(times["ours"], variant="indexed, cpu", peer=best, peer_times=times[best], **shared),
        *(record(times[name], variant=f"indexed, {name}", **shared) for name in peers),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="small, and nothing is written")
    options = parser.parse_args()
    n = 4_000 if options.smoke else cases.CPU_ROWS["rows"]
    rounds = 1 if options.smoke else options.rounds
    records = []
    for n_heads in cases.CPU_ROWS["heads"]:
        for dtype in (torch.float32, torch.bfloat16):
            records += rows(n, cases.CPU_ROWS["features"], n_heads, dtype, rounds)
    n = 4_000 if options.smoke else cases.CPU_INDEXED.rows
    records += indexed(n, n // cases.CPU_INDEXED.each, rounds)
    for r in records:
        peer = f"{r['ratio']} x {r['peer']}" if r["ratio"] else ""
        floor = f"{r['pct_floor']:.0f} % of the floor" if r["pct_floor"] else ""
        print(f"{r['variant']:22} {r['dtype']:9} {r['shape']}: {r['median_ms']} ms {floor} {peer}")
    if not options.smoke:
        print(write_records(records))


if __name__ == "__main__":
    main()

"""em_pass against the vectorised formula in PyTorch, eager and compiled, and against what the machine can do at best.

    python -m benchmarks.bench_em_pass [--rounds 15] [--smoke]

Rows: 400,000 pairs of 384 features, 20 an annotator. Indexed: 400,000 pairs of 100 items by 4,000 annotators, 84 heads in
24 mixtures. Without a plan, as a first call would be.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import maxmin_kernels as mk
from benchmarks.harness import floor_probes, fma_flops, interleaved, record, write_records


def eager_rows(x: Tensor, weight: Tensor, log_weights: Tensor, owner: Tensor, n: int) -> Any:
    """One mixture: every formula once, on whole tensors, in float32."""
    x = x.to(weight.dtype)
    margins = x @ weight.T
    joint = log_weights + x.new_zeros(n, weight.shape[0]).index_add(0, owner, F.logsigmoid(margins))
    evidence = joint.logsumexp(1, keepdim=True)
    log_resp = joint - evidence
    resp = log_resp.exp()
    pull = resp[owner] * torch.sigmoid(-margins)
    return evidence.sum(), log_resp, resp.sum(0), pull.T @ x


def eager_indexed(
    items: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    owner: Tensor,
    n: int,
    slots: Tensor,
    back: Tensor,
) -> Any:
    """All mixtures at once: heads padded to (mixtures, most heads), a pad's log weight -inf."""
    scores = items @ weight.T
    margins = scores[chosen] - scores[rejected]
    joint = log_weights + items.new_zeros(n, weight.shape[0]).index_add(
        0, owner, F.logsigmoid(margins)
    )
    padded = F.pad(joint, (0, 1), value=-torch.inf)[:, slots]
    evidence = padded.logsumexp(2)
    log_resp = joint - evidence.repeat_interleave(back, dim=1, output_size=weight.shape[0])
    resp = log_resp.exp()
    pull = resp[owner] * torch.sigmoid(-margins)
    by_item = torch.zeros_like(scores).index_add(0, chosen, pull).index_add(0, rejected, -pull)
    return evidence.sum(0), log_resp, resp.sum(0), by_item.T @ items


def check(ours: Any, theirs: Any) -> None:
    """A fast wrong answer is not timed."""
    for a, b in zip(ours, theirs, strict=True):
        difference = (a.double() - b.double()).abs().max() / b.double().abs().max()
        if not difference < 1e-3:
            raise SystemExit(f"em_pass and its peer differ by {difference:.2g}")


def rows(n_rows: int, n_features: int, n_heads: int, dtype: torch.dtype, rounds: int) -> list[Any]:
    torch.manual_seed(0)
    n = n_rows // 20
    x = torch.randn(n_rows, n_features).to(dtype)
    indptr = torch.arange(0, n_rows + 1, 20)
    owner = torch.arange(n_rows) // 20
    weight = torch.randn(n_heads, n_features) / n_features**0.5
    log_weights = torch.randn(n_heads).log_softmax(0)
    compiled = torch.compile(eager_rows)

    def ours() -> Any:
        return mk.em_pass(x, indptr, weight, log_weights)

    peers: dict[str, Callable[[], Any]] = {
        "eager": lambda: eager_rows(x, weight, log_weights, owner, n),
        "torch.compile": lambda: compiled(x, weight, log_weights, owner, n),
    }
    check(ours(), peers["eager"]())
    times = interleaved({"ours": ours, **peers, **floor_probes(x)}, rounds)
    flops = 4 * n_rows * n_features * n_heads
    floor = np.maximum(times["read"], times["fma"] * flops / fma_flops())
    best = min(peers, key=lambda name: float(np.median(times[name])))
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


def indexed(n_rows: int, n_annotators: int, rounds: int) -> list[Any]:
    torch.manual_seed(0)
    n_items = 100
    sizes = torch.tensor([1, 2, 3, 4, 5, 6]).repeat(4)  # 84 heads
    n_heads = int(sizes.sum())
    items = torch.eye(n_items)
    weight = torch.randn(n_heads, n_items)
    ends = F.pad(sizes.cumsum(0), (1, 0))
    slots = torch.full((len(sizes), 6), n_heads)
    for g, size in enumerate(sizes.tolist()):
        slots[g, :size] = torch.arange(int(ends[g]), int(ends[g + 1]))
    log_weights = -sizes.float().log().repeat_interleave(sizes)
    each = n_rows // n_annotators
    indptr = torch.arange(0, n_rows + 1, each)
    owner = torch.arange(n_rows) // each
    chosen = torch.randint(0, n_items, (n_rows,))
    rejected = (chosen + torch.randint(1, n_items, (n_rows,))) % n_items
    peer_arguments = (
        *(items, chosen, rejected, weight, log_weights, owner, n_annotators, slots, sizes),
    )
    compiled = torch.compile(eager_indexed)

    def ours() -> Any:
        return mk.em_pass(
            items,
            indptr,
            weight,
            log_weights,
            chosen=chosen,
            rejected=rejected,
            mixture_indptr=ends,
        )

    peers: dict[str, Callable[[], Any]] = {
        "eager": lambda: eager_indexed(*peer_arguments),
        "torch.compile": lambda: compiled(*peer_arguments),
    }
    check(ours(), peers["eager"]())
    times = interleaved({"ours": ours, **peers}, rounds)
    shared = {
        "op": "em_pass",
        "dtype": torch.float32,
        "shape": {"N": n_rows, "M": n_items, "H": n_heads, "A": n_annotators},
        "n_bytes": 2 * 8 * n_rows,
    }
    return [
        record(
            times["ours"], variant="indexed, cpu", peer="eager", peer_times=times["eager"], **shared
        ),
        *(record(times[name], variant=f"indexed, {name}", **shared) for name in peers),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="small, and nothing is written")
    options = parser.parse_args()
    n = 4_000 if options.smoke else 400_000
    rounds = 1 if options.smoke else options.rounds
    records = []
    for n_heads in (2, 8, 32):
        for dtype in (torch.float32, torch.bfloat16):
            records += rows(n, 384, n_heads, dtype, rounds)
    records += indexed(n, n // 100, rounds)
    for r in records:
        peer = f"{r['ratio']} x {r['peer']}" if r["ratio"] else ""
        floor = f"{r['pct_floor']:.0f} % of the floor" if r["pct_floor"] else ""
        print(f"{r['variant']:22} {r['dtype']:9} {r['shape']}: {r['median_ms']} ms {floor} {peer}")
    if not options.smoke:
        print(write_records(records))


if __name__ == "__main__":
    main()

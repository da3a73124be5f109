"""Every operation on a GPU: plain calls and replays of a CUDA graph, beside plain PyTorch and the floor of the bytes moved.

    python -m benchmarks.bench_gpu [--only em_pass,welfare] [--rounds 30] [--smoke]

Variants of one case take turns, round by round; a buffer larger than the L2 cache is written between any two. The floor is
what the bytes would take at the copy bandwidth that this run measured. ``--smoke`` runs tiny shapes on whatever device there
is and writes nothing: does everything run?
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import maxmin_kernels as mk
from benchmarks import cases
from benchmarks.harness import RESULTS, environment, record, replace_file

Run = Callable[[], Any]


@dataclass
class Case:
    """An operation at a shape: ours and others, whose results must agree to ``rtol`` of their size."""

    op: str
    shape: dict[str, int]
    dtype: torch.dtype
    ours: Run
    peers: dict[str, Run]
    n_bytes: int
    direction: str = "forward"
    rtol: float = 2e-2


# ---- what is measured


def em_rows(device: str, smoke: bool) -> Iterator[Case]:
    for n, d, h in cases.GPU_ROWS:
        n, d = (256, 512) if smoke else (n, d)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        x = torch.randn(n, d, device=device, dtype=dtype)
        indptr = torch.arange(0, n + 1, 32, device=device)
        owner = torch.arange(n, device=device) // 32
        weight = torch.randn(h, d, device=device) / d**0.5
        log_weights = torch.full((h,), 1 / h, device=device).log()

        def composed(
            x: Tensor = x, w: Tensor = weight, owner: Tensor = owner, lw: Tensor = log_weights, a: int = n // 32
        ) -> Any:  # fmt: skip
            """Products in the features' dtype with float32 sums: the fastest there is, at half the digits."""
            m = (x @ w.T.to(x.dtype)).float()
            joint = lw + m.new_zeros(a, m.shape[1]).index_add(0, owner, F.logsigmoid(m))
            z = joint.logsumexp(1, keepdim=True)
            resp = (joint - z).exp()
            pull = resp[owner] * torch.sigmoid(-m)
            return z.sum(), resp.sum(0), (pull.T.to(x.dtype) @ x).float()

        def ours(
            x: Tensor = x, indptr: Tensor = indptr, w: Tensor = weight, lw: Tensor = log_weights
        ) -> Any:
            out = mk.em_pass(x, indptr, w, lw)
            return out.log_likelihood[0], out.mass, out.grad_weight

        peers = {"eager": composed}
        if not smoke:
            peers["torch.compile"] = torch.compile(composed)
        size = x.numel() * x.element_size()
        yield Case("em_pass", {"N": n, "D": d, "H": h}, dtype, ours, peers, size)


def em_indexed(device: str, smoke: bool) -> Iterator[Case]:
    n, m, d, h = (256, 50, 64, 4) if smoke else cases.GPU_INDEXED
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    items = torch.randn(m, d, device=device, dtype=dtype)
    chosen, rejected = (torch.randint(0, m, (n,), device=device) for _ in range(2))
    indptr = torch.arange(0, n + 1, 32, device=device)
    owner = torch.arange(n, device=device) // 32
    weight = torch.randn(h, d, device=device) / d**0.5
    log_weights = torch.full((h,), 1 / h, device=device).log()
    plan = mk.em_plan(indptr, chosen=chosen, rejected=rejected, n_items=m)

    def composed() -> Any:
        scores = (items @ weight.T.to(items.dtype)).float()
        margin = scores[chosen] - scores[rejected]
        joint = log_weights + margin.new_zeros(n // 32, h).index_add(0, owner, F.logsigmoid(margin))
        z = joint.logsumexp(1, keepdim=True)
        resp = (joint - z).exp()
        pull = resp[owner] * torch.sigmoid(-margin)
        by = torch.zeros_like(scores).index_add(0, chosen, pull).index_add(0, rejected, -pull)
        return z.sum(), resp.sum(0), (by.T.to(items.dtype) @ items).float()

    def ours() -> Any:
        out = mk.em_pass(items, indptr, weight, log_weights, chosen=chosen, rejected=rejected, plan=plan)  # fmt: skip
        return out.log_likelihood[0], out.mass, out.grad_weight

    moved = 2 * items.numel() * items.element_size() + n * (2 * 4 + 2 * 4 + 4 * h * 4)
    yield Case("em_pass indexed", {"N": n, "M": m, "D": d, "H": h}, dtype, ours, {"eager": composed}, moved)  # fmt: skip


def likelihood(device: str, smoke: bool) -> Iterator[Case]:
    n, h = (256, 4) if smoke else (4_000_000, 8)
    margins = torch.randn(n, h, device=device, requires_grad=True)
    indptr = torch.arange(0, n + 1, 32, device=device)
    owner = torch.arange(n, device=device) // 32
    log_weights = torch.full((h,), 1 / h, device=device).log()

    def composed() -> Any:
        joint = log_weights + margins.new_zeros(n // 32, h).index_add(0, owner, F.logsigmoid(margins))  # fmt: skip
        return torch.autograd.grad(joint.logsumexp(1).sum(), margins)

    def ours() -> Any:
        return torch.autograd.grad(mk.mixture_log_likelihood(margins, indptr, log_weights)[0].sum(), margins)  # fmt: skip

    yield Case("mixture_log_likelihood", {"N": n, "H": h}, torch.float32, ours, {"eager": composed}, 3 * n * h * 4, "forward+backward")  # fmt: skip


def heads(device: str, smoke: bool) -> Iterator[Case]:
    b, t, d, h = (4, 8, 64, 3) if smoke else (64, 2048, 4096, 8)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    hidden = torch.randn(b, t, d, device=device, dtype=dtype)
    weight = torch.randn(h, d, device=device, dtype=dtype) / d**0.5
    token = torch.randint(0, t, (b,), device=device)
    rows = torch.arange(b, device=device)
    upstream = torch.randn(b, h, device=device)

    def gathered(x: Tensor, w: Tensor) -> Tensor:
        return mk.reward_heads(x, w, token_index=token)

    def every_token(x: Tensor, w: Tensor) -> Tensor:
        """As ``AutoModelForSequenceClassification`` does it."""
        return F.linear(x, w)[rows, token].float()

    shape = {"B": b, "T": t, "D": d, "H": h}
    gather_bytes = b * d * hidden.element_size()
    yield Case("reward_heads", shape, dtype, lambda: gathered(hidden, weight), {"all tokens": lambda: every_token(hidden, weight)}, gather_bytes)  # fmt: skip
    w = weight.clone().requires_grad_()

    def back(head: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Run:
        wanted = [t for t in (w, x) if t.requires_grad]
        return lambda: torch.autograd.grad(head(x, w), wanted, upstream)

    yield Case("reward_heads", shape, dtype, back(gathered, hidden), {"all tokens": back(every_token, hidden)}, 2 * gather_bytes, "forward+backward, frozen trunk")  # fmt: skip
    x = hidden.clone().requires_grad_()
    yield Case("reward_heads", shape, dtype, back(gathered, x), {"all tokens": back(every_token, x)}, 2 * gather_bytes + hidden.numel() * hidden.element_size(), "forward+backward")  # fmt: skip


def welfares(device: str, smoke: bool) -> Iterator[Case]:
    p, s, k = (4, 3, 3) if smoke else (512, 16, 8)
    u = torch.rand(p, s, k, device=device) + 0.5
    shares = torch.full((k,), 1 / k, device=device)
    options: dict[str, dict[str, Any]] = {
        "min": {},
        "softmin": {"tau": 0.5},
        "nash": {"group_weights": shares},
        "cvar": {"alpha": 0.3},
        "kl": {"radius": 0.2, "group_weights": shares},
        "chi2": {"radius": 0.2, "group_weights": shares},
        "tv": {"radius": 0.2, "group_weights": shares},
    }
    for kind, given in options.items():

        def ours(kind: str = kind, given: dict[str, Any] = given) -> Any:
            return tuple(mk.welfare(u, kind, **given))

        def plain(kind: str = kind, given: dict[str, Any] = given) -> Any:
            with mk.backend("reference"):
                return tuple(mk.welfare(u, kind, **given))

        shape = {"P": p, "S": s, "K": k}
        yield Case(f"welfare {kind}", shape, u.dtype, ours, {"eager": plain}, 2 * u.numel() * 4)
    batch = u.flatten(0, 1)

    def reduce() -> Any:
        return tuple(mk.maxmin_reduce(batch, "softmin", tau=0.5))

    def reduce_plain() -> Any:
        with mk.backend("reference"):
            return reduce()

    yield Case("maxmin_reduce softmin", {"B": p * s, "K": k}, u.dtype, reduce, {"eager": reduce_plain}, u.numel() * 4)  # fmt: skip
    for scale in ("group", "batch"):

        def advantages(scale: str = scale) -> Any:
            return mk.maxmin_advantages(u, shares, scale=scale)

        def advantages_plain(run: Run = advantages) -> Any:
            with mk.backend("reference"):
                return run()

        yield Case(f"maxmin_advantages {scale}", {"P": p, "S": s, "K": k}, u.dtype, advantages, {"eager": advantages_plain}, u.numel() * 4)  # fmt: skip


def dual(device: str, smoke: bool) -> Iterator[Case]:
    p, s, k = (6, 4, 3) if smoke else (4096, 16, 8)
    rewards = torch.randn(p, s, k, device=device) + torch.linspace(-0.2, 0.2, k, device=device)

    def ours() -> Any:
        solution = mk.maxmin_dual(rewards, 0.5, max_iter=24)
        return solution.value, solution.utilities

    def plain() -> Any:
        with mk.backend("reference"):
            solution = mk.maxmin_dual(rewards, 0.5, max_iter=60)
        return solution.value, solution.utilities

    size = rewards.numel() * 8 * 12  # a dozen steps read float64
    yield Case("maxmin_dual", {"P": p, "S": s, "K": k}, rewards.dtype, ours, {"eager": plain}, size)


FAMILIES: dict[str, Callable[[str, bool], Iterator[Case]]] = {
    "em_pass": em_rows,
    "em_indexed": em_indexed,
    "mixture_log_likelihood": likelihood,
    "reward_heads": heads,
    "welfare": welfares,
    "maxmin_dual": dual,
}

# ---- how


class Clock:
    """Milliseconds of a call: events around it on a GPU, the L2 cache written over before."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.flush = torch.empty(1 << 26 if device == "cuda" else 1, device=device)

    def time(self, run: Run) -> float:
        if self.device != "cuda":
            began = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - began)
        self.flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


def captured(run: Run) -> Run | None:
    """Replay of a CUDA graph of ``run``; None where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        print(f"  not captured: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return graph.replay


def agree(case: Case) -> None:
    """Ours and the first peer find the same, to what half precision allows."""
    ours, peer = (torch.utils._pytree.tree_leaves(run()) for run in (case.ours, next(iter(case.peers.values()))))  # fmt: skip
    for a, b in zip(ours, peer, strict=True):
        size = b.double().abs().max().clamp_min(1e-30)
        error = float((a.double() - b.double()).abs().max() / size)
        if not error <= case.rtol:
            raise SystemExit(f"{case.op}: differs from plain PyTorch by {error:.2g} of its size")


def measure(case: Case, clock: Clock, rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    agree(case)
    runs = {"ours": case.ours, **case.peers}
    if clock.device == "cuda":
        for name in list(runs):
            graph = captured(runs[name])
            if graph is not None:
                runs[f"{name}, replayed"] = graph
    for run in runs.values():
        run()
    times = {name: np.empty(rounds) for name in runs}
    for i in range(rounds):
        for name, run in runs.items():
            times[name][i] = clock.time(run)
    floor = np.full(rounds, case.n_bytes / bandwidth * 1e3)
    lines = []
    for name, taken in times.items():
        replayed = name.endswith("replayed")
        others = [n for n in times if not n.startswith("ours") and n.endswith("replayed") == replayed]  # fmt: skip
        best = min(others, key=lambda n: float(np.median(times[n])), default=None)
        lines.append(
            record(
                taken,
                op=case.op,
                variant=name,
                dtype=case.dtype,
                shape=case.shape,
                direction=case.direction,
                n_bytes=case.n_bytes,
                floor=floor,
                peer=best if name.startswith("ours") else None,
                peer_times=times[best] if best else None,
            )
        )
    return lines


def copy_bandwidth(clock: Clock) -> float:
    """Bytes a second of a large copy, reads and writes counted."""
    source = torch.empty(1 << 30 if clock.device == "cuda" else 1 << 20, dtype=torch.uint8, device=clock.device)  # fmt: skip
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / (np.median([clock.time(lambda: target.copy_(source)) for _ in range(20)]) / 1e3)  # fmt: skip


def gpu_facts() -> dict[str, Any]:
    """Of the device instead of the host's."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]  # fmt: skip
    except FileNotFoundError:
        driver = ""
    return {**environment(), "device": torch.cuda.get_device_name(), "driver": driver or None}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, nothing is written")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.smoke:
        print("bench_gpu: no GPU here (--smoke tries everything without one)", file=sys.stderr)
        return 2
    names = [n for n in args.only.split(",") if n] or list(FAMILIES)
    if set(names) - set(FAMILIES):
        parser.error(f"--only: expected some of {', '.join(FAMILIES)}, got {args.only}")
    clock = Clock(device)
    bandwidth = copy_bandwidth(clock)
    print(f"copy: {bandwidth / 1e12:.2f} TB/s", flush=True)
    lines: list[dict[str, Any]] = []
    for name in names:
        for case in FAMILIES[name](device, args.smoke):
            for line in measure(case, clock, 2 if args.smoke else args.rounds, bandwidth):
                lines.append(line)
                ratio = f"{line['ratio']:.1f} x {line['peer']}" if line["ratio"] else ""
                print(f"{line['op']:28}{line['direction']:32}{line['variant']:24}{line['median_ms']:10.4g} ms {line['pct_floor']:7.3g} % {ratio}", flush=True)  # fmt: skip
            del case
            if device == "cuda":
                torch.cuda.empty_cache()
    if not args.smoke:
        facts = gpu_facts()
        slug = facts["device"].lower().replace(" ", "-")
        path = RESULTS / f"{slug}.json"
        kept = json.loads(path.read_text())["records"] if path.exists() else []
        fresh = [{**line, **facts} for line in lines]
        measured = {(r["op"], r["direction"]) for r in fresh}
        kept = [r for r in kept if (r["op"], r["direction"]) not in measured]
        body = ",\n".join(json.dumps(r) for r in [*kept, *fresh])
        replace_file(path, f'{{"copy_bytes_per_s": {bandwidth:.4g}, "records": [\n{body}\n]}}\n')
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``maxmin bench``."""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maxmin_kernels import _native
from maxmin_rlhf.commands import _output
from maxmin_rlhf.commands._cases import OPERATIONS, Case, Run, cases
from maxmin_rlhf.data._arrays import as_device

_FMA_ROUNDS = 1 << 15
_FIGURES = (".png", ".svg", ".pdf")
_WORDS = {"torch": "plain PyTorch", "compile": "torch.compile"}


def run(args: argparse.Namespace) -> None:
    """Time the operations and say what was found."""
    if args.rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {args.rounds}")
    if not args.memory > 0:
        raise ValueError(f"--memory: expected gigabytes > 0, got {args.memory}")
    if args.plot and not args.plot.lower().endswith(_FIGURES):
        raise ValueError(f"--plot: expected a name that ends in {', '.join(_FIGURES)}, got {args.plot}")  # fmt: skip
    as_device(args.device)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    makers = [m for op in args.op or OPERATIONS for m in cases(op, args.memory * 1e9, device).values()]  # fmt: skip
    lines = []
    for i, make in enumerate(makers):
        case = make()
        _say(f"{i + 1} of {len(makers)}: {case.op} {case.name}")
        lines.append(measure(case, args.vs, args.rounds, device))
    _say("")
    facts = {"device": _device_name(device), "torch": torch.__version__, "vs": args.vs, "rounds": args.rounds, "cases": lines}  # fmt: skip
    if args.json:
        _output.keep_json(args.json, facts)
    if args.plot:
        _plot(args.plot, facts)
    print(_text(facts))


def measure(case: Case, vs: str, rounds: int, device: str) -> dict[str, Any]:
    """One case: milliseconds of ours, of the other and of the floor, the three taking turns."""
    keep_memory()
    other = torch.compile(case.plain) if vs == "compile" else case.plain
    agree(case, other)
    runs: dict[str, Run] = {"ours": case.ours, "other": other, **_probes(case, device)}
    times = take_turns(runs, rounds, device)
    floor = floor_of(case, times)
    ours, theirs = times["ours"], times["other"]
    return {
        "op": case.op,
        "case": case.name,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "ms": float(np.median(ours)),
        "other_ms": float(np.median(theirs)),
        "ratio": float(np.median(theirs / ours)),
        "floor_ms": float(np.median(floor)),
        "share_of_floor": float(np.median(floor / ours)),
    }


def keep_memory() -> None:
    """Freed memory stays with the process, by glibc's malloc. Else a call may or may not pay for pages that the system took
    back after the call before, which was somebody else's."""
    trim_threshold, mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def agree(case: Case, other: Run) -> None:
    """A fast wrong answer is not timed."""
    leaves = torch.utils._pytree.tree_leaves
    for a, b in zip(leaves(case.ours()), leaves(other()), strict=True):
        size = float(b.double().abs().max().clamp_min(1e-30))
        error = float((a.double() - b.double()).abs().max()) / size
        if not error <= case.rtol:
            raise RuntimeError(f"{case.op} ({case.name}) and plain PyTorch differ by {error:.2g}")


def take_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, device: str
) -> dict[str, NDArray[np.float64]]:
    """{name: (rounds,) milliseconds}, one call of each a round, after a call that does not count."""

    def clock(call: Callable[[], Any]) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)

    for call in runs.values():
        clock(call)
    times = {name: np.empty(rounds) for name in runs}
    for i in range(rounds):
        for name, call in runs.items():
            times[name][i] = clock(call)
    return times


def _probes(case: Case, device: str) -> dict[str, Run]:
    """What the machine can do at best: read the bytes of the case once; multiply and add."""
    if device == "cpu" and _native.load() is None:
        data = torch.zeros(max(1, case.n_bytes // 4))
        native = torch.ops.maxmin_native
        return {
            "read": lambda: native.probe_read_cpu(data),
            "fma": lambda: native.probe_fma_cpu(data[:1], _FMA_ROUNDS),
        }
    half = torch.zeros(max(1, case.n_bytes // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(half)
    return {"read": lambda: target.copy_(half)}


def floor_of(case: Case, times: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """(rounds,) the larger of the time for the bytes and, where it is known, for the arithmetic."""
    if "fma" not in times:
        return times["read"]
    flops = int(torch.ops.maxmin_native.probe_fma_cpu(torch.zeros(1), _FMA_ROUNDS))
    return np.maximum(times["read"], times["fma"] * case.flops / flops)


def _device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line:<60}\r", end="", file=sys.stderr, flush=True)


def _text(facts: dict[str, Any]) -> str:
    rows = [
        (
            f"{c['op']}, {c['case']}",
            ", ".join(f"{name}={value:,}" for name, value in c["shape"].items()),
            c["dtype"],
            _short(c["ms"]),
            _short(c["floor_ms"]),
            f"{100 * c['share_of_floor']:.0f} %",
            _short(c["other_ms"]),
            f"{c['ratio']:.1f} x",
        )
        for c in facts["cases"]
    ]
    head = ("", "shape", "dtype", "ms", "floor", "of it", _WORDS[facts["vs"]], "faster")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in (0, 1)]
    cells = [(row[0].ljust(widths[0]), row[1].ljust(widths[1]), *row[2:]) for row in [head, *rows]]
    return (
        f"{facts['device']}, torch {facts['torch']}; medians of {facts['rounds']} rounds, milliseconds\n\n"
        + _output.as_text(cells[0], cells[1:])
        + "\n\nfloor: one read of the data, or the arithmetic at this machine's rate where that is longer"
    )


def _short(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _plot(path: str, facts: dict[str, Any]) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'maxmin-kernels[report]'") from error  # fmt: skip
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = facts["cases"][::-1]
    at = np.arange(len(lines))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.8 * len(lines)), layout="constrained")
    bars = (("other_ms", _WORDS[facts["vs"]], "#b0b0b0"), ("ms", "maxmin_kernels", "#1f6fb4"), ("floor_ms", "floor", "#222222"))  # fmt: skip
    for i, (key, label, colour) in enumerate(bars):
        axes.barh(at + 0.26 * (1 - i), [c[key] for c in lines], 0.24, label=label, color=colour)
    axes.set_yticks(at, [f"{c['op']}\n{c['case']}" for c in lines])
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds")
    axes.set_title(facts["device"])
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)

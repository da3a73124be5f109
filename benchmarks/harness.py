"""How everything here is timed and written down.

Variants of one computation take turns, round by round, so that whatever else the machine does falls on all of them; what
is reported is the median of each and the median of the per-round ratios. Floors come from probes in the same rounds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maxmin_kernels import _native

RESULTS = Path(__file__).parent / "results"
FIELDS = (
    *("op", "variant", "direction", "dtype", "shape", "median_ms", "p20", "p80"),
    *("bytes", "flops", "floor_ms", "pct_floor", "peer", "ratio"),
    *("commit", "device", "torch", "triton", "driver"),
)


def environment() -> dict[str, Any]:
    """What a number depends on beside the code."""
    return {
        "commit": _commit(),
        "device": device_name(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "driver": None,
    }


def device_name() -> str:
    """Processor, instruction set in use, threads."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        model = found[1] if found else model
    return f"{model.strip()} {_instruction_set()}, {torch.get_num_threads()} threads"


def _instruction_set() -> str:
    try:
        from maxmin_kernels import _core
    except ImportError:
        return "no kernels"
    return str(_core.build_info()["instruction_set"])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parent
    run = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def interleaved(
    variants: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2
) -> dict[str, np.ndarray]:
    """{variant: (rounds,) milliseconds}, one call of each a round."""
    from maxmin_rlhf.commands.bench import keep_memory  # reports need no more than torch

    keep_memory()
    for _ in range(warmup):
        for run in variants.values():
            run()
    times = {name: np.empty(rounds) for name in variants}
    for i in range(rounds):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            times[name][i] = 1e3 * (time.perf_counter() - began)
    return times


def floor_probes(data: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """One read of ``data``, and a known number of multiply-adds at the peak rate, by the kernels' own instructions."""
    reason = _native.load()
    if reason is not None:
        raise SystemExit(f"benchmarks: expected the compiled library, {reason}")
    native = torch.ops.maxmin_native
    return {
        "read": lambda: native.probe_read_cpu(data),
        "fma": lambda: native.probe_fma_cpu(data[:1], FMA_ROUNDS),
    }


FMA_ROUNDS = 1 << 15


def fma_flops() -> int:
    """Of one call of the ``fma`` probe."""
    return int(torch.ops.maxmin_native.probe_fma_cpu(torch.zeros(1), FMA_ROUNDS))


def record(
    times: np.ndarray,
    *,
    op: str,
    variant: str,
    dtype: torch.dtype,
    shape: Mapping[str, int],
    direction: str = "forward",
    n_bytes: int | None = None,
    flops: int | None = None,
    floor: np.ndarray | None = None,
    peer: str | None = None,
    peer_times: np.ndarray | None = None,
) -> dict[str, Any]:
    """One line of the result schema. ``ratio`` is the peer's time over this one's, the median of the rounds'."""
    facts: dict[str, Any] = dict.fromkeys(FIELDS)
    facts |= {
        "op": op,
        "variant": variant,
        "direction": direction,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": dict(shape),
        "median_ms": _digits(np.median(times)),
        "p20": _digits(np.percentile(times, 20)),
        "p80": _digits(np.percentile(times, 80)),
        "bytes": n_bytes,
        "flops": flops,
    }
    if floor is not None:
        facts["floor_ms"] = _digits(np.median(floor))
        facts["pct_floor"] = _digits(100 * np.median(floor / times))
    if peer is not None and peer_times is not None:
        facts |= {"peer": peer, "ratio": _digits(np.median(peer_times / times))}
    return facts | environment()


def _digits(x: float) -> float:
    return float(f"{x:.4g}")


def write_records(records: list[dict[str, Any]]) -> Path:
    """Merge into this device's file: a new record replaces that of the same op, variant, direction, dtype, shape."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text())["records"] if path.exists() else []

    def key(r: dict[str, Any]) -> str:
        return json.dumps([r[f] for f in ("op", "variant", "direction", "dtype", "shape")])

    merged = {key(r): r for r in [*kept, *records]}
    lines = ",\n".join(json.dumps(merged[k], ensure_ascii=False) for k in sorted(merged))
    replace_file(path, f'{{"records": [\n{lines}\n]}}\n')
    return path


def elsewhere() -> Callable[[], float]:
    """Starts to watch; the function says how many processors other programs have kept busy since, on average.

    What this process and the children it has waited for used is not counted.
    """

    def spent() -> tuple[float, float]:
        user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split()[1:5])
        every = (user + nice + system) / os.sysconf("SC_CLK_TCK")
        return every - sum(os.times()[:4]), time.monotonic()

    others, began = spent()

    def average() -> float:
        now, ended = spent()
        return max(0.0, (now - others) / (ended - began))

    return average


def write_study(name: str, findings: dict[str, Any]) -> Path:
    """What a study found, with its environment, to ``results/<name>.json``."""
    path = RESULTS / f"{name}.json"
    text = json.dumps({"study": name, **environment(), **findings}, indent=1, ensure_ascii=False)
    replace_file(path, text + "\n")
    return path


def replace_file(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)

"""Is em_pass still as fast, beside plain PyTorch and beside the floor, as the stored results of such a machine say?

    python -m benchmarks.check [--rounds 9] [--tolerance 0.35]

Ratios are compared, never times: both sides are measured in the same rounds, so that another load or clock falls on both. A
ratio below the stored one by more than the tolerance, in two runs of two, fails. A machine is of the same kind if processor,
instruction set and threads are the same; for any other nothing can be said, and that is said.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import bench_em_pass, cases
from benchmarks.harness import RESULTS, device_name

HEADS, TOLERANCE = (2, 8), 0.35


def stored(device: str) -> list[dict[str, Any]]:
    """The records of em_pass of one kind of machine."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        found += [
            r
            for r in json.loads(path.read_text()).get("records", [])
            if r["op"] == "em_pass" and r["device"] == device
        ]
    return found


def ratios(records: list[dict[str, Any]]) -> dict[str, float]:
    """{what: ratio}, the higher the better: eager PyTorch's time over ours, the floor's over ours."""
    time = {_key(r): r["median_ms"] for r in records}
    found = {}
    for r in records:
        form, way = r["variant"].split(", ")
        if way != "cpu":
            continue
        what = f"{form}, {r['dtype']}, H={r['shape']['H']}"
        eager = time.get(_key({**r, "variant": f"{form}, eager"}))
        if eager:
            found[f"{what}: eager / ours"] = eager / r["median_ms"]
        if r["pct_floor"]:
            found[f"{what}: floor / ours"] = r["pct_floor"] / 100
    return found


def _key(r: dict[str, Any]) -> str:
    return json.dumps([r["variant"], r["dtype"], r["shape"]])


def measure(rounds: int) -> dict[str, float]:
    """The same ratios now, of a part of the shapes."""
    n = cases.CPU_ROWS["rows"]
    records = []
    for heads in HEADS:
        for dtype in (torch.float32, torch.bfloat16):
            records += bench_em_pass.rows(n, cases.CPU_ROWS["features"], heads, dtype, rounds, compiled=False)  # fmt: skip
    shape = cases.CPU_INDEXED
    records += bench_em_pass.indexed(shape.rows, shape.rows // shape.each, rounds, compiled=False)
    return ratios(records)


def compare(
    before: dict[str, float], again: Callable[[], dict[str, float]], tolerance: float
) -> tuple[list[str], int]:
    """Lines of a table, and how many ratios have fallen too far; ``again`` measures, a second time where some have."""
    now = again()

    def low(found: dict[str, float]) -> set[str]:
        return {
            name
            for name in before
            if name in found and found[name] < (1 - tolerance) * before[name]
        }

    fallen = low(now)
    if fallen:
        second = again()
        now = {name: max(value, second.get(name, value)) for name, value in now.items()}
        fallen = low(now)
    lines = [
        f"{name:44} stored {before[name]:7.2f}   now {now[name]:7.2f}   {'FELL' if name in fallen else 'ok'}"
        for name in before
        if name in now
    ]
    return lines, len(fallen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"(default: {TOLERANCE})"
    )
    options = parser.parse_args()
    device = device_name()
    before = ratios(stored(device))
    if not before:
        print(
            f"bench-check: no result is stored for {device}: nothing to compare (make bench stores one)"
        )
        return 0
    lines, fallen = compare(before, lambda: measure(options.rounds), options.tolerance)
    print(
        f"{device}; allowed: {100 * options.tolerance:.0f} % below what is stored\n"
        + "\n".join(lines)
    )
    if fallen:
        print(
            f"bench-check: {fallen} of {len(lines)} ratios fell by more than {100 * options.tolerance:.0f} %"
        )
    return int(fallen > 0)


if __name__ == "__main__":
    sys.exit(main())

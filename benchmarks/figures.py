"""Draw what the results say: docs/roofline and docs/scaling, .svg and .png.

    python -m benchmarks.figures

The roofs are the floors of the same rounds: the fastest read of the data and the most multiply-adds a second that any
of them saw.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "maxmin"  # the same bytes each time
from matplotlib import pyplot as plt  # noqa: E402

RESULTS = Path(__file__).parent / "results"
DOCS = RESULTS.parent.parent / "docs"
LOOKS = {"cpu": ("maxmin_kernels", "#1f6fb4", "o"), "torch.compile": ("torch.compile", "#c2571a", "s"), "eager": ("PyTorch eager", "#8a8a8a", "^")}  # fmt: skip


def row_records() -> list[dict[str, Any]]:
    """em_pass over rows on the processor that has most of them."""
    by_device: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        if "copy_bytes_per_s" in found:
            continue
        for r in found.get("records", []):
            if r["op"] == "em_pass" and r["flops"] and r["floor_ms"]:
                by_device.setdefault(r["device"], []).append(r)
    if not by_device:
        raise SystemExit("figures: no record of em_pass yet (python -m benchmarks.bench_em_pass)")
    return max(by_device.values(), key=len)


def roofline() -> Any:
    records = row_records()
    bandwidth = max(r["bytes"] / r["floor_ms"] for r in records) / 1e6  # GB/s
    peak = max(r["flops"] / r["floor_ms"] for r in records) / 1e6  # GFLOP/s
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    x = np.geomspace(0.7, 300, 200)
    axes.plot(x, np.minimum(peak, bandwidth * x), color="black", lw=1.5)
    axes.text(x[3], bandwidth * x[3] * 1.15, f"one read at {bandwidth:.0f} GB/s", rotation=38, rotation_mode="anchor", fontsize=8)  # fmt: skip
    axes.text(x[-1], peak * 1.08, f"{peak:.0f} GFLOP/s of float32", ha="right", fontsize=8)
    for way, (label, colour, marker) in LOOKS.items():
        for dtype, face in (("float32", colour), ("bfloat16", "white")):
            points = sorted(
                (r["flops"] / r["bytes"], r["flops"] / r["median_ms"] / 1e6, r["shape"]["H"])
                for r in records
                if r["variant"] == f"rows, {way}" and r["dtype"] == dtype
            )
            if not points:
                continue
            axes.plot(
                [p[0] for p in points], [p[1] for p in points], marker, ms=7, color=colour, mfc=face,
                label=f"{label}, {dtype}",
            )  # fmt: skip
            if way == "cpu":
                for intensity, rate, heads in points:
                    axes.annotate(f"H={heads}", (intensity, rate), (6, -9), textcoords="offset points", fontsize=7, color=colour)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("arithmetic a byte of features, FLOP / byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"em_pass over rows, {records[0]['device']}", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def scaling() -> Any:
    found = json.loads((RESULTS / "scaling.json").read_text())
    words = {"features": "features D", "heads": "heads H", "skew": "skew of annotators' shares (Zipf's exponent)", "threads": "threads"}  # fmt: skip
    figure, grid = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for axes, (axis, label) in zip(grid.flat, words.items(), strict=True):
        at = [point[axis] for point in found[axis]]
        for key, name, colour, style in (("eager_ms", "PyTorch eager", "#8a8a8a", "^-"), ("ms", "maxmin_kernels", "#1f6fb4", "o-"), ("floor_ms", "floor", "black", "--")):  # fmt: skip
            axes.plot(at, [point[key] for point in found[axis]], style, color=colour, label=name)
        if axis != "skew":
            axes.set_xscale("log", base=2)
            axes.set_xticks(at, [str(x) for x in at])
            axes.minorticks_off()
        if axis in ("features", "heads"):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0)
        axes.set_xlabel(label)
        axes.set_ylabel("ms")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(fontsize=8, frameon=False)
    usual = found["usual"]
    figure.suptitle(f"em_pass, {usual['rows']:,} pairs, D = {usual['features']}, H = {usual['heads']}, {found['device']}", fontsize=10)  # fmt: skip
    return figure


def main() -> None:
    for name, draw in (("roofline", roofline), ("scaling", scaling)):
        figure = draw()
        figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})
        figure.savefig(DOCS / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
        print(f"wrote {DOCS / name}.svg and .png")


if __name__ == "__main__":
    main()

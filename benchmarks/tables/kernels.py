"""Operations: what serves them and how fast."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.tables._markdown import MISSING, every_file, short, study, table

# What a backward without an op of its own does.
BACKWARD = {
    "em_pass": "of log_likelihood, by the gradient it returns",
    "last_token_index": "none: indices",
    "maxmin_advantages": "none: advantages are constants",
    "weighted_gram": "none",
    "welfare": "by the weights it returns",
}


def operations() -> str:
    """What serves what, from the registry itself."""
    from maxmin_kernels.ops import backends_of, operations, opt_in

    rows = []
    for operation in sorted(operations()):
        by_direction = backends_of(operation)
        backward = by_direction.get("bwd")
        rows.append(
            [
                f"`{operation}`",
                ", ".join(
                    f"{name} (when forced)" if opt_in(operation, name) else name
                    for name in by_direction["fwd"]
                ),
                ", ".join(backward) if backward else BACKWARD[operation],
            ]
        )
    return table(["operation", "backends", "backward"], rows)


def results() -> str:
    """Speed of the kernels and fits."""
    parts = []
    for found in every_file():
        records = [r for r in found.get("records", []) if r["ratio"] is not None]
        if not records or "copy_bytes_per_s" in found:
            continue
        rows = [
            [
                f"`{r['op']}` {r['variant']}, {r['dtype']}",
                ", ".join(f"{k}={v:,}" for k, v in r["shape"].items()),
                f"{r['median_ms']:g}",
                f"{r['pct_floor']:.0f} %" if r["pct_floor"] else "",
                f"{r['ratio']:.1f} × {r['peer']}",
            ]
            for r in sorted(records, key=lambda r: (r["variant"], r["dtype"], r["shape"]["H"]))
        ]
        parts.append(
            f"{records[0]['device']}; one forward pass with gradient, no plan; floor: the larger of one read of the "
            "features and the multiply-adds at the peak rate, probed in the same rounds; ratio: median of per-round "
            "ratios to the faster of eager PyTorch and torch.compile.\n\n"
            + table(["operation", "shape", "ms", "of the floor", "faster than"], rows)
        )
    fits = study("fits")
    if fits:
        electricity = fits["electricity"]
        seconds = [s["seconds"] for s in electricity["sweeps"]]
        spread = max(
            max(s["lower_bound"][k] for s in electricity["sweeps"])
            - min(s["lower_bound"][k] for s in electricity["sweeps"])
            for k in electricity["sweeps"][0]["lower_bound"]
        )
        parts.append(
            f"Electricity panel (361 households, 4,308 choices), K = 1 … 6 with 16 starts each in one `fit_sweep`: "
            f"{median(seconds):.1f} s (median of {len(seconds)} seeds), every seed at the same optimum of each K "
            f"to {spread:.2g} in log-likelihood ({fits['device']})."
        )
        if "jester" in fits:
            seconds = [s["seconds"] for s in fits["jester"]["sweeps"]]
            parts.append(
                f"Jester (3,999 raters, 399,750 pairs of 100 jokes), K = 1 … 6 with 4 starts each, ridge 1: "
                f"{median(seconds):.1f} s."
            )
    sweeps = study("scale")
    if sweeps:
        large = sweeps["large"]
        parts.append(
            f"All {large['runs'][0]['comparisons']:,} pairs of Jester, K = {large['groups'][0]} … {large['groups'][-1]} with "
            f"{large['n_init']} starts each, to convergence: {large['seconds']:.0f} s, {large['peak_mb'] / 1024:.1f} GiB at most."
        )
    others = study("peers")
    if others:
        at = {k: {fit["name"]: fit for fit in fits} for k, fits in others["groups"].items()}
        words = {"lcl": "lcl-choice", "lccm": "lccm", "jax": "EM in JAX", "numpy": "EM in NumPy"}
        of = [
            f"{text} by {' and '.join(short(fits[name]['ratio']) + ' ×' for fits in at.values() if name in fits)}"
            for name, text in words.items()
            if any(name in fits for fits in at.values())
        ]
        parts.append(
            f"The electricity panel, {others['starts']} starts, K = {' and '.join(at)}: faster than {', '.join(of)}; what each of "
            "them reaches is in docs/performance.md."
        )
    return "\n\n".join(parts) or MISSING


def real_work() -> str:
    """What `maxmin bench` shows on the machine of the results."""
    found = study("operations")
    if not found:
        return MISSING
    both: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for case in found["cases"]:
        both.setdefault((case["op"], case["case"]), {})[case["vs"]] = case
    rows = []
    for (op, name), by in both.items():
        case = by["torch"]
        rows.append(
            [
                f"`{op}`, {name}",
                ", ".join(f"{k}={v:,}" for k, v in case["shape"].items()),
                case["dtype"],
                f"{case['ms']:.3g}",
                f"{100 * case['share_of_floor']:.0f} %",
                f"{case['ratio']:.1f} ×",
                f"{by['compile']['ratio']:.1f} ×",
            ]
        )
    head = ["operation", "shape", "dtype", "ms", "of the floor", "faster than eager", "than torch.compile"]  # fmt: skip
    return table(head, rows) + f"\n\n{found['device']}; medians of {found['rounds']} rounds."


def scaling() -> str:
    """Growth of one pass."""
    found = study("scaling")
    if not found:
        return MISSING
    words = {
        "features": "features D",
        "heads": "heads H",
        "skew": "Zipf's exponent",
        "threads": "threads",
    }
    rows = [
        [f"{words[axis]} = {p[axis]:g}", f"{p['ms']:.3g}", f"{p['floor_ms']:.3g}", f"{100 * p['floor_ms'] / p['ms']:.0f} %", f"{p['ratio']:.1f} × eager"]
        for axis in words
        for p in found[axis]
    ]  # fmt: skip
    usual = found["usual"]
    return table(["", "ms", "floor, ms", "of the floor", "faster than"], rows) + (
        f"\n\n{found['device']}; {usual['rows']:,} pairs, {found['each']} an annotator, D = {usual['features']}, H = {usual['heads']}, "
        f"{usual['threads']} threads, float32, except for what varies."
    )


def compiled() -> str:
    """What torch.compile and half the bytes bring, from the records of em_pass."""
    lines = []
    for found in every_file():
        if "copy_bytes_per_s" in found:
            continue
        time = {
            (r["variant"], r["dtype"], r["shape"]["H"]): r["median_ms"]
            for r in found.get("records", [])
            if r["op"] == "em_pass"
        }
        for (variant, dtype, heads), ms in sorted(time.items()):
            form, way = variant.split(", ")
            if way == "torch.compile":
                eager = time[f"{form}, eager", dtype, heads]
                ours = time[f"{form}, cpu", dtype, heads]
                lines.append(
                    [f"{form}, {dtype}, H={heads}", f"{eager:.3g}", f"{ms:.3g}", f"{ours:.3g}"]
                )
    if not lines:
        return MISSING
    return table(["em_pass", "eager, ms", "torch.compile, ms", "maxmin_kernels, ms"], lines)


# What a GPU is asked for: shape, and how fast it should be.
GPU_TARGETS = [
    ("`em_pass` rows", "N=500k, D=4096, H=8, bfloat16", "38 % of copy, features counted once"),
    ("`em_pass` rows, read once", "N=2M, D=1024, H=8, bfloat16", "65 % of copy; 1.6 × the best composition"),
    ("`em_pass` rows", "N=500k, D=4096, H=64, bfloat16", "30 % of copy"),
    ("`em_pass` indexed", "N=10M, M=100k, D=1024, H=32", "4 × eager"),
    ("`mixture_log_likelihood`, both directions", "N=4M, H=8", "60 % of copy"),
    ("`reward_heads`", "B=64, T=2048, D=4096, H=8", "20 × a head on all tokens"),
    ("`welfare`, `maxmin_reduce`, `maxmin_advantages`", "512 × 16 × 8", "5 × eager where that is 15 launches"),
    ("`maxmin_dual`", "P=4096, S=16, K=8", "1 ms, replayed .4 ms"),
    ("a whole fit", "500k pairs, D=4096, K=1 … 6 × 4", "10 s, host 10 %"),
]  # fmt: skip


def gpu() -> str:
    """Every GPU's results, or what is still to be measured."""
    parts = []
    for found in every_file():
        if "copy_bytes_per_s" not in found:
            continue
        rows = [
            [
                f"`{r['op']}` {r['direction']}, {r['dtype']}",
                ", ".join(f"{k}={v:,}" for k, v in r["shape"].items()),
                r["variant"],
                f"{r['median_ms']:g}",
                f"{r['pct_floor']:.0f} %",
                f"{r['ratio']:.1f} × {r['peer']}",
            ]
            for r in found["records"]
            if r["ratio"] is not None
        ]
        bandwidth = found["copy_bytes_per_s"] / 1e12
        parts.append(
            f"{found['records'][0]['device']}, copy at {bandwidth:.2f} TB/s; of the floor: of what the bytes would take at that rate.\n\n"
            + table(["operation", "shape", "how", "ms", "of the floor", "faster than"], rows)
        )
    if parts:
        return "\n\n".join(parts)
    rows = [[*target, "not yet measured"] for target in GPU_TARGETS]
    return "No kernel has run on a GPU yet. What is aimed at on an H200:\n\n" + table(
        ["operation", "shape", "aim", "measured"], rows
    )

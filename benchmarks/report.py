"""Write the generated parts of README.md and docs/ from benchmarks/results: no number there is typed by hand.

    python benchmarks/report.py [--check]

A part stands between ``<!-- name -->`` and ``<!-- /name -->``. With ``--check`` nothing is written and the exit code is 1
where a part is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    "README.md",
    "docs/fitting.md",
    "docs/selecting.md",
    "docs/welfare.md",
    "docs/gpu.md",
    "docs/language.md",
    "docs/training.md",
    "docs/plural.md",
    "docs/performance.md",
)
MISSING = "*(not measured yet)*"


def study(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


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
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
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


def starts() -> str:
    found = study("starts")
    if not found:
        return MISSING
    rows = [
        [
            r["n_groups"],
            f"{r['best']:.2f}",
            *(f"{100 * r[f'{how}_share']:.0f} %" for how in ("random", "annotators")),
            f"{r['random_passes']:.0f} ({r['random_passes_p90']:.0f})",
            f"{r['random_em_alone_passes']:.0f} ({r['random_em_alone_passes_p90']:.0f})",
            f"{100 * r['fit_share_without_moves']:.0f} %",
            f"{100 * r['fit_share']:.0f} %",
        ]
        for r in found["panel"]
    ]
    head = [
        "K",
        "best",
        "random",
        "annotators",
        "passes (p90)",
        "EM alone",
        "fits without moves",
        "fits",
    ]
    return (
        table(head, rows)
        + f"\n\n{found['starts']} single starts of each kind, {found['seeds']} seeds of whole fits."
    )


def stream() -> str:
    found = study("stream")
    if not found:
        return MISSING
    whole, memory = found["pass"], found["memory"]
    head = ["rows", "seconds a pass", "ns a row", "of the processors", "over the line"]
    rows = [[f"{r['rows']:,}", f"{r['seconds']:.3g}", f"{r['ns_a_row']:.0f}", f"{r['cpu_ns_a_row']:.0f}", f"{r['of_line']:.2f}"] for r in found["by_size"]]  # fmt: skip
    resumed = found["killed_and_resumed"]
    return (
        table(head, rows)
        + f"\n\nMedians of {found['rounds']} cold passes or more, {found['heads']} heads, {found['features']} features in bfloat16, "
        f"{found['pairs_an_annotator']} pairs an annotator; the line goes through the first and the last. {whole['rows']:,} rows "
        f"({whole['rows'] * 2 * found['features'] / 1e9:.3g} GB): {whole['pass_gb_s']:.2f} GB/s, a plain read of the files "
        f"{whole['disk_gb_s']:.2f}, of memory {whole['memory_gb_s']:.2f}; {100 * whole['share_of_floor']:.0f} % of the slower. A fit of them "
        f"added {memory['grown_bytes'] / 1e6:.0f} MB to the process, of which two blocks are {memory['two_blocks_bytes'] / 1e6:.0f}; the rest is {memory['bytes_an_annotator']:.0f} bytes an annotator. Killed in "
        f"a pass and gone on with ({resumed['rows']:,} rows), a fit was the same {'to the bit' if resumed['to_the_bit'] else 'no longer'}. "
        f"{found['device']}.{_busy(found)}"
    )


def _busy(found: dict[str, Any]) -> str:
    """What to think of the times."""
    if found["load"] < 0.5:
        return ""
    return f" Other programs ran on the machine meanwhile (load {found['load']:.1f}): times say little."


def ranks() -> str:
    found = study("ranks")
    if not found:
        return MISSING
    rows = [
        [task, *(f"{found[task][f'{n}_seconds']:.3g} s" for n in ("one", "two")), f"{found[task]['speedup']:.2f}", f"{found[task]['cpu_ratio']:.2f}"]
        for task in ("pass", "fit", "streamed fit")
    ]  # fmt: skip
    return (
        table(["", "one process", "two", "ratio", "of processor time"], rows)
        + f"\n\n{found['rows']:,} rows of {found['features']} features, one thread each, gloo; medians of {found['rounds']} rounds. {found['device']}.{_busy(found)}"
    )


def panels() -> str:
    found = study("panels")
    if not found:
        return MISSING
    rows = []
    for p in found["panels"]:
        best = max(p["results"], key=lambda r: r["score"])
        at = next(r for r in p["results"] if r["n_groups"] == p["best"])
        shown = at if p["best"] > 1 else best
        gain = "" if shown["n_groups"] == 1 else (
            f"K={shown['n_groups']}: {shown['gain']:.4f} ({shown['gain_low']:.4f} … {shown['gain_high']:.4f})"
        )  # fmt: skip
        control = "" if shown["n_groups"] == 1 else ", ".join(
            f"{name} {value:.4f}" for name, value in shown["control_gain"].items()
        )  # fmt: skip
        rows.append(
            [
                p["panel"],
                f"{p['annotators']:,} / {p['comparisons']:,}",
                p["split"],
                p["best"],
                gain,
                control,
                f"{p['seconds']:.0f} s",
            ]
        )
    head = [
        "panel",
        "annotators / comparisons",
        "split",
        "K",
        "gain a comparison over K = 1",
        "controls",
        "took",
    ]
    notes = "".join(
        f"\n\n{p['panel']}: {100 * p['recovered']:.0f} % of the pseudo-annotators are in their own crowd's group."
        for p in found["panels"]
        if "recovered" in p
    )
    return table(head, rows) + notes


def null() -> str:
    found = study("null_control")
    if not found:
        return MISSING
    return (
        f"Simulated from one shared reward, {len(found['by_design'])} designs in turn: one reward is the answer for "
        f"{found['one_reward']} of {found['sets']} data sets."
    )


def jester_policy() -> str:
    """MaxMin and the mean on jokes, judged by people nobody fitted."""
    found = study("jester_policy")
    if not found:
        return MISSING
    about = {
        "worst_group": "ratings as they are: mean rating of the worst-off group",
        "least_gain": "centred: least gain of a group over an even draw",
    }
    rows = []
    for share in sorted({s["judges_share"] for s in found["summary"]}):
        for measure, words in about.items():
            for shuffled in (False, True):
                some = [
                    s
                    for s in found["summary"]
                    if (s["judges_share"], s["about"], s["shuffled"]) == (share, measure, shuffled)
                ]
                runs = sum(s["runs"] for s in some)
                mean = sum(s["mean_gain"] * s["runs"] for s in some) / runs
                price = sum(s["mean_price"] * s["runs"] for s in some) / runs
                rows.append(
                    [
                        f"{100 * share:.0f} %",
                        words + (" (groups shuffled)" if shuffled else ""),
                        f"{sum(s['gains'] for s in some)} of {runs}",
                        f"{mean:.2f}",
                        f"{sum(s['intervals_above_zero'] for s in some)} / {sum(s['intervals_below_zero'] for s in some)}",
                        f"{price:.2f}",
                    ]
                )
    head = ["judges", "measure", "gains", "mean gain", "intervals above / below 0", "price in the overall mean"]  # fmt: skip
    return table(head, rows) + f"\n\n{found['raters']:,} raters; ratings from −10 to 10."


def interval(found: dict[str, float], scale: float = 1.0, digits: int = 2) -> str:
    """Value with its interval."""
    value, low, high = (scale * found[name] for name in ("value", "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def language() -> str:
    """The experiment with simulated populations."""
    found = study("language")
    if not found:
        return MISSING
    rows = []
    settings = [
        *found["balance"],
        *found["third"],
        *(c for c in found["controls"] if "policies" in c),
    ]
    for setting in settings:
        by = {p["policy"]: p for p in setting["policies"]}
        rows.append(
            [
                setting["name"],
                *(f"{by[name]['worst']['value']:.2f}" for name in by),
                interval(by["pooled"]["maxmin_gains"]["worst"]),
                interval(by["pooled"]["maxmin_gains"]["average"]),
                f"{setting['recovery']['mean']:.3f}",
                ", ".join(str(s["best"]) for s in setting["selections"]),
            ]
        )
    names = [p["policy"] for p in found["balance"][0]["policies"]]
    head = ["populations", *(f"worst-off: {n}" for n in names), "MaxMin over pooled, worst-off", "the average's price", "recovered", "K chosen"]  # fmt: skip
    alone = [
        f"{c['name']}: K = {', '.join(str(s['best']) for s in c['selections'])}."
        for c in found["controls"]
        if "policies" not in c
    ]
    fall = found["falls"]
    return (
        table(head, rows)
        + f"\n\nFrom {fall['from']} to {fall['to']} the minority loses {interval(fall['pooled'])} under the pooled reward, "
        f"{interval(fall['MaxMin'])} under MaxMin. Chosen sizes of the controls: {' '.join(alone)}\n\n"
        f"{found['method']['seeds']} seeds; intervals over questions and seeds, paired."
    )


def hh() -> str:
    """Two crowds from their texts."""
    found = study("hh_objectives")
    if not found:
        return MISSING

    def percent(entry: dict[str, Any]) -> str:
        low, high = (100 * x for x in entry["interval"])
        return f"{100 * entry['accuracy']:.1f} % ({low:.1f} … {high:.1f})"

    rows = [
        [
            {"pair": "response after its prompt", "response": "response alone"}[form],
            *(
                percent(found[form][name])
                for name in ("pooled", "mixture", "difference", "crowd known")
            ),
            f"{100 * found[form]['crowd_recovered']:.0f} %",
        ]
        for form in ("pair", "response")
    ]
    head = ["text", "one reward", "mixture", "difference", "crowd known", "in their crowd's group"]
    return table(head, rows) + (
        f"\n\n{found['pair']['annotators']} pseudo-annotators, {found['pair']['comparisons']:,} pairs. The crowd known: a reward "
        "for each crowd, and nobody to assign; the most a mixture of these features can reach."
    )


def rloo(name: str = "rloo_stories") -> str:
    """A language policy trained for three groups."""
    found = study(name)
    if not found:
        return MISSING
    names = {
        "maxmin": "MaxMin, exponentiated gradient",
        "softmin": "softmin of a running mean",
        "equal": "equal weights",
        "population": "the population's weights",
    }
    rows = []
    for method, words in names.items():
        if method not in found["summary"]:
            continue
        s = found["summary"][method]
        efficiency = ", ".join("not known" if e is None else f"{e:.2f}" for e in s["efficiency"])
        numbers = (s[key] for key in ("average", "kappa", "perplexity"))
        rows.append([words, f"{s['worst']:.2f}", efficiency, *(f"{x:.2f}" for x in numbers)])
    ahead, best = found["summary"]["ahead_of"], found["best"]
    head = ["weights", "worst-off group's gain", "efficiency, by seed", "average gain", "KL", "perplexity"]  # fmt: skip
    seeds = found["summary"]["maxmin"]["seeds"]
    return table(head, rows) + (
        f"\n\n{'One seed' if seeds == 1 else f'Means over {seeds} seeds'}. The best policy gives every group "
        f"{min(best['gains']):.2f}, with weights {', '.join(f'{w:.2f}' for w in best['weights'])}. MaxMin is ahead of equal "
        f"weights by {', '.join(f'{x:.2f}' for x in ahead['equal'])} and of the population's by "
        f"{', '.join(f'{x:.2f}' for x in ahead['population'])}; the average pays {found['summary']['price']:.2f} for it."
    )


def rloo_smollm2() -> str:
    """The same for a larger model."""
    return rloo("rloo_smollm2")


def live() -> str:
    """Two crowds, and a trunk that learns."""
    found = study("live_trunk")
    if not found or "summary" not in found:
        return MISSING
    parts = {n: p for n, p in found["summary"].items() if n in ("all", "helpful", "harmless")}

    def percent(entry: dict[str, Any]) -> str:
        low, high = (100 * x for x in entry["interval"])
        return f"{100 * entry['accuracy']:.1f} ({low:.1f} … {high:.1f})"

    words = {
        "pooled, frozen": "one reward, frozen trunk",
        "pooled, live": "one reward, the trunk learns",
        "mixture, frozen": "mixture, frozen trunk",
        "mixture, live": "mixture, the trunk learns",
        "mixture over pooled, live": "difference of the two that learn",
    }
    rows = [[title, *(percent(p[name]) for p in parts.values())] for name, title in words.items()]
    heads = {"all": "everybody", "helpful": "helpful crowd", "harmless": "harmless crowd"}
    runs, training = found["runs"], found["training"]
    gain = found["summary"]["all"]["live over frozen, mixture"]
    return table(["accuracy, %", *(heads[n] for n in parts)], rows) + (
        f"\n\n{found['summary']['annotators']} pseudo-annotators, held out in {found['summary']['folds']} of three folds, a seed each; MiniLM "
        f"of 22 million parameters, {training['adapters']}, {runs[0]['steps']} steps of {training['batch_pairs']} pairs, responses alone "
        f"cut to {training['max_length']} tokens; about {median(r['cpu_seconds'] for r in runs):.0f} s a run on one core. The step's size is "
        "chosen for each on training people. Held-out people's pairs are predicted from their other pairs, (11). What the "
        "learning trunk adds to the mixture: "
        f"{percent(gain)} points. Intervals: bootstrap over annotators."
    )


def active() -> str:
    """Pairs needed to place a new rater."""
    found = study("active_queries")
    if not found:
        return MISSING
    ways = {
        "active": "given pairs: best",
        "random": "at random",
        "wide active": "any pair: best",
        "wide random": "at random",
        "spread active": "any pair, jokes in turn: best",
        "spread random": "at random",
    }
    rows = [
        [
            run["groups"],
            *(
                f"{run[way]['pairs_needed']:.0f} ({run[way]['interval'][0]:.0f} … {run[way]['interval'][1]:.0f})"
                for way in ways
            ),
        ]
        for run in sorted(found["runs"], key=lambda r: int(r["groups"]))
    ]
    return (
        table(["K", *ways.values()], rows) + f"\n\n{found['raters']:,} raters, each held out once."
    )


def families() -> str:
    """One reward, groups, blends."""
    found = study("families")
    if not found:
        return MISSING

    def ranged(values: list[float], scale: float = 1.0, digits: int = 3) -> str:
        value, low, high = (scale * x for x in values)
        return f"{value:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"

    parts = []
    for name in ("jester", "hh_objectives"):
        panel = found[name]
        rows = [
            [
                family,
                ranged(f["gain_over_pooled"], digits=4),
                ranged(f["accuracy"], 100, 1),
                ranged(f["worst_group_accuracy"], 100, 1),
                f"{f['fit_seconds']:.1f}",
                f"{f['parameters']:,}",
            ]
            for family, f in panel["families"].items()
        ]
        head = [name, "gain a comparison over one reward", "accuracy, %", "of the worst group, %", "fit, s", "parameters"]  # fmt: skip
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def short(x: float) -> str:
    """Two digits, or the whole number."""
    return f"{x:.2g}" if x < 10 else f"{x:.0f}"


def peers() -> str:
    """The electricity panel by everybody."""
    found = study("peers")
    if not found:
        return MISSING
    parts = []
    for k, fits in found["groups"].items():
        best = max(value for fit in fits for value in fit.get("log_likelihood", []))
        rows = []
        for fit in fits:
            ended = "log_likelihood" in fit
            sign = "" if ended else "> "
            rows.append(
                [
                    found["words"][fit["name"]],
                    sign + short(fit["seconds"]),
                    "" if fit["name"] == "ours" else f"{sign}{short(fit['ratio'])} ×",
                    f"{fit['first_seconds']:.1f}" if fit.get("first_seconds") else "",
                    f"{1e3 * fit['start_seconds']:.0f}" if ended else "",
                    f"{fit['pass_ms']:.1f}" if fit.get("pass_ms") else "",
                    f"{fit['peak_mb']} ({fit['peak_mb'] - fit['before_mb']})" if ended else "",
                    f"{max(fit['log_likelihood']):.2f}" if ended else "",
                    f"{fit['reached']} of {fit['rounds']}"
                    if ended
                    else f"given up after {fit['given_up_after']:.0f} s",
                    str(fit["starts"]),
                ]
            )
        head = ["", "s", "ours is faster by", "first fit, s", "a start, ms", "a pass, ms", "MB at most (of the fit)", "best reached", "at the optimum", "starts run"]  # fmt: skip
        parts.append(f"K = {k}, best known {best:.2f}:\n\n" + table(head, rows))
    absent = f" Not installed there: {', '.join(found['absent'])}." if found["absent"] else ""
    return "\n\n".join(parts) + (
        f"\n\n{found['device']}. Seconds of {found['starts']} starts (reckoned from those run), compiled before; the first fit "
        f"compiles. At the optimum: rounds whose best is within {found['within']} of the best known, in log-likelihood.{absent}"
    )


def scale() -> str:
    """Sweeps, and where their time goes."""
    found = study("scale")
    if not found:
        return MISSING
    words = {
        "electricity": "electricity panel",
        "small": "Jester, stored pairs",
        "large": "Jester, all pairs",
    }
    rows = []
    for name, text in words.items():
        sweep = found[name]
        run = sweep["runs"][0]
        rows.append(
            [
                text,
                f"{run['annotators']:,} / {run['comparisons']:,}",
                f"{sweep['groups'][0]} … {sweep['groups'][-1]} × {sweep['n_init']}",
                f"{sweep['seconds']:.1f}",
                f"{100 * sweep['share_in_passes']:.0f} %",
                str(run["passes"]),
                f"{median(r['data_seconds'] for r in sweep['runs']):.2g}",
                f"{sweep['peak_mb'] / 1024:.2f}",
                "yes" if all(r["converged"] for r in sweep["runs"]) else "no",
            ]
        )
    head = ["", "annotators / choices", "K × starts", "s", "of it in passes", "passes", "PreferenceData, s", "GiB at most", "converged"]  # fmt: skip
    return table(head, rows) + f"\n\n{found['device']}."


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
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
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
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
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


PARTS: dict[str, Callable[[], str]] = {
    "operations": operations,
    "results": results,
    "starts": starts,
    "stream": stream,
    "ranks": ranks,
    "panels": panels,
    "null": null,
    "gpu": gpu,
    "peers": peers,
    "scale": scale,
    "scaling": scaling,
    "compiled": compiled,
    "active": active,
    "families": families,
    "rloo": rloo,
    "rloo_smollm2": rloo_smollm2,
    "language": language,
    "hh": hh,
    "live": live,
    "jester_policy": jester_policy,
}


def render(text: str) -> str:
    """``text`` with every part written anew."""

    def part(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{PARTS[match[1]]()}\n<!-- /{match[1]} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", part, text, flags=re.S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = 0
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        new = render(text)
        if new != text:
            stale += 1
            print(f"{name}: {'not what the results say' if check else 'written'}")
            if not check:
                page.write_text(new)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Whole fits: starts, panels, memory, processes, peers."""

from __future__ import annotations

from statistics import median

from benchmarks.tables._markdown import MISSING, busy, short, study, table


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
        f"{whole['disk_gb_s']:.2f}, of memory {whole['memory_gb_s']:.2f}; in no round less than "
        f"{100 * min(whole['shares']):.0f} % of the slower. A fit of them "
        f"added {memory['grown_bytes'] / 1e6:.0f} MB to the process, of which two blocks are {memory['two_blocks_bytes'] / 1e6:.0f}; the rest is {memory['bytes_an_annotator']:.0f} bytes an annotator. Killed in "
        f"a pass and gone on with ({resumed['rows']:,} rows), a fit was the same {'to the bit' if resumed['to_the_bit'] else 'no longer'}. "
        f"{found['device']}.{busy(found)}"
    )


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
        + f"\n\n{found['rows']:,} rows of {found['features']} features, one thread each, gloo; medians of {found['rounds']} rounds. {found['device']}.{busy(found)}"
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

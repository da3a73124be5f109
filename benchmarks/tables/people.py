"""What was found about people, and what a fair choice gives them."""

from __future__ import annotations

from typing import Any

from benchmarks.tables._markdown import MISSING, interval, study, table


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

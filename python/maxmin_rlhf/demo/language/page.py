"""The language demo's findings as a page, and in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maxmin_rlhf.report import card_page, html, svg
from maxmin_rlhf.report.html import escape, interval, number
from maxmin_rlhf.report.svg import Point, Series

_LINES: tuple[tuple[str, int | str, bool], ...] = (("pooled", "grey", False), ("mean of groups", 2, True), ("per-sample minimum", 1, True), ("MaxMin", 0, False))  # fmt: skip


def page(metrics: Mapping[str, Any]) -> str:
    """The whole page."""
    study = metrics["study"]
    method = study["method"]
    return html.page(
        "One reward, or one for each kind of people?",
        [
            "<h1>One reward, or one for each kind of people?</h1>",
            html.paragraph(
                f"Simulated people judge responses of a 135-million-parameter language model: {method['prompts']} everyday questions, "
                f"{method['responses']} responses each. Some like a response the more positive it is (VADER's sentiment), others the "
                f"shorter it is (number of tokens). 200 of them judge 25 pairs each, with noise, on {method['judged_prompts']} "
                "questions; policies then choose among the responses to the other questions. Nothing is told about who is who.",
                "lead",
            ),
            html.verdict(sentences(study)),
            *_balance(study),
            *_third(study),
            *_controls(study),
            *_method(study),
            "<h2>One run, as <code>maxmin report</code> shows it</h2>",
            html.paragraph(
                "The mixture of the first run at 6:1, described by its fitted rewards alone, as it would be where the truth is not "
                "known. The items are the responses to the held-out questions."
            ),
            html.verdict(card_page.sentences(metrics["card"])),
            *card_page.sections(metrics["card"]),
        ],
    )


def _row(setting: Mapping[str, Any], policy: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(r for r in setting["policies"] if r["policy"] == policy)
    return found


def _inline(e: Mapping[str, float]) -> str:
    return f"{number(e['value'])} ({number(e['low'])} to {number(e['high'])})"


def _both(e: Mapping[str, float]) -> str:
    """Whether an interval says anything."""
    return "a tie" if e["low"] <= 0 <= e["high"] else "more" if e["value"] > 0 else "less"


def sentences(study: Mapping[str, Any]) -> list[str]:
    """What was found, in four sentences; ties are said to be ties."""
    last = study["balance"][-1]
    pooled = _row(last, "pooled")["maxmin_gains"]
    mean = _row(last, "mean of groups")["maxmin_gains"]["worst"]
    lost = study["falls"]
    sizes = [s["best"] for setting in study["balance"] for s in setting["selections"]]
    least = min(s["recovery"]["least"] for s in study["balance"])
    against_mean = {
        "a tie": "ties with the plain mean of the groups found",
        "more": "also beats the plain mean of the groups found",
        "less": "falls behind the plain mean of the groups found",
    }[_both(mean)]
    found = (
        "both populations"
        if all(k == 2 for k in sizes)
        else f"2 groups in {sizes.count(2)} of {len(sizes)} choices by held-out annotators"
    )
    return [
        f"At {last['name']} MaxMin changes what the worst-off population gets, against one pooled reward, by {_inline(pooled['worst'])} "
        f"standard deviations of its own utility; the average over people changes by {_inline(pooled['average'])}.",
        f"From {lost['from']} to {lost['to']} the minority loses {_inline(lost['pooled'])} under the pooled reward and "
        f"{_inline(lost['MaxMin'])} under MaxMin.",
        f"At {last['name']} MaxMin {against_mean}: a difference of {_inline(mean)} for the worst-off. Having found the groups is what helps "
        "there; what is then done with them matters more where three populations differ (below).",
        f"Held-out annotators point to {found}; at least {least:.1%} of the annotators of a run are put with their own kind.",
    ]


def _balance(study: Mapping[str, Any]) -> list[str]:
    settings = study["balance"]
    names = [s["name"] for s in settings]

    def series(key: str, which: int | None) -> list[Series]:
        found = []
        for policy, colour, dashed in _LINES:
            points = []
            for setting in settings:
                row = _row(setting, policy)
                e = row[key] if which is None else row[key][which]
                points.append(Point(e["value"], e["low"], e["high"]))
            found.append(Series(policy, points, colour, dashed))
        return found

    keys = list(_LINES)
    minority, average = series("utility", 1), series("average", None)
    return [
        "<h2>As one population outgrows the other</h2>",
        html.paragraph(
            "Positive people against concise ones, 1:1 to 10:1. Worth is in standard deviations of the population's own utility "
            f"within a question; 0 is a response drawn evenly. All policies are {number(study['method']['kl'])} nats a question from that."
        ),
        html.figures(
            html.figure(
                svg.lines(names, minority, "majority : minority", "worth to the concise"),
                "Worth to the concise, who become the minority; 95 % intervals.",
                keys,
            ),
            html.figure(
                svg.lines(names, average, "majority : minority", "worth on average"),
                "Worth on average over people: the price.",
                keys,
            ),
        ),
        *[part for s in settings for part in _setting(s)],
    ]


def _setting(setting: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in setting["policies"]:
        gains = row["maxmin_gains"]
        own = row["policy"] == "MaxMin"
        rows.append(
            [
                escape(row["policy"]),
                interval(row["worst"]),
                interval(row["average"]),
                *(number(u["value"]) for u in row["utility"]),
                f"{row['worst_wins']['value']:.0%}",
                "" if own else interval(gains["worst"]),
                "" if own else _both(gains["worst"]),
                "" if own else interval(gains["average"]),
            ]
        )
    mine = [i for i, r in enumerate(setting["policies"]) if r["policy"] == "MaxMin"]
    head = [
        "policy",
        "worst off",
        "average",
        *setting["populations"],
        "worst win rate",
        "MaxMin gains: worst off",
        "which is",
        "MaxMin gains: average",
    ]
    chosen = ", ".join(str(s["best"]) for s in setting["selections"]) or "not chosen"
    return [
        f"<h3>{escape(setting['name'])}: {escape(', '.join(setting['populations']))}</h3>",
        html.table(head, rows, mine),
        html.paragraph(
            f"{setting['seeds']} {'run' if setting['seeds'] == 1 else 'runs'}. Annotators in their own group: {setting['recovery']['mean']:.1%} (least "
            f"{setting['recovery']['least']:.1%}). Groups by held-out annotators: {escape(chosen)}. Largest certificate: "
            f"{setting['largest_gap']:.0e}. Win rate: against a response drawn evenly, ties half.",
            "note",
        ),
    ]


def _third(study: Mapping[str, Any]) -> list[str]:
    if not study["third"]:
        return []
    gains = []
    for setting in study["third"]:
        e = _row(setting, "mean of groups")["maxmin_gains"]["worst"]
        gains.append(f"{_inline(e)} at {setting['name']} ({_both(e)})")
    return [
        "<h2>With a third population</h2>",
        html.paragraph(
            "A third population likes responses that are positive and detailed (.6 and .8 of each). Two populations then agree "
            "about length, or do not mind it, and the concise are a sixth or a tenth of them. The plain mean of three groups counts "
            "the concise as one voice of three; MaxMin counts whoever is worst off. MaxMin against the mean of groups, for the worst-off: "
            + escape("; ".join(gains))
            + "."
        ),
        *[part for s in study["third"] for part in _setting(s)],
    ]


def _controls(study: Mapping[str, Any]) -> list[str]:
    if not study["controls"]:
        return []
    rows = []
    for setting in study["controls"]:
        best = ", ".join(str(s["best"]) for s in setting["selections"])
        row = [escape(setting["name"]), escape(best)]
        if "policies" in setting:
            gain = _row(setting, "pooled")["maxmin_gains"]["worst"]
            row += [f"{setting['recovery']['mean']:.1%}", interval(gain)]
        else:
            row += ["", ""]
        rows.append(row)
    return [
        "<h2>Controls and failures</h2>",
        html.table(
            [
                "setting",
                "groups by held-out annotators",
                "in their own group",
                "MaxMin gains: worst off",
            ],
            rows,
        ),
        html.paragraph(
            "A mixture is a description, no proof of types: a continuum of tastes, in which no two people want the same, is split as "
            "well. And groups that nobody can tell apart cannot be served: with 5 pairs an annotator the mixture puts everybody "
            "together (a share in their own group of the larger population's size is what no knowledge gives), held-out annotators "
            "point to one reward, and MaxMin over two groups that are not the people's helps nobody. Of four people among 200, "
            "held-out annotators see nothing either: who fits two groups all the same does so without evidence."
        ),
    ]


def _method(study: Mapping[str, Any]) -> list[str]:
    method = study["method"]
    return [
        "<h2>What the experiment is</h2>",
        html.paragraph(
            f"Utilities are standardised within a question (their mean correlation is {number(method['tastes_correlation'])}); a pair "
            f"is chosen by Bradley and Terry's rule, {number(method['sharpness'], 1)} log-odds a standard deviation. Rewards are linear in the response's "
            f"MiniLM embedding ({method['features']} numbers, length not among them), ridge {method['l2']:g}. "
            f"Every policy sees the same {200 * 25:,} pairs. The pooled reward is one reward fitted to all; the population mean weighs the found groups "
            "by size; the mean of groups weighs them alike; the per-sample minimum is what public MaxMin code trains on; oracle "
            "groups are MaxMin with everybody's group known. "
            f"Intervals are 95 %, over {method['seeds']} runs and the questions, resampled together and paired; the worst-off population is "
            "named in each run anew. The people are simulated: this says what happens if people are like that, not that they are."
        ),
    ]

"""The demo's findings as a page with two figures, and in three sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maxmin_rlhf.demo.groups import FIXED
from maxmin_rlhf.demo.panel import ATTRIBUTES, REQUIREMENT
from maxmin_rlhf.report import figures
from maxmin_rlhf.report.markdown import escape, table

HELD_OUT, TASTES = "held_out.png", "tastes.png"
_STABLE = 0.95
# Beyond it an amount paid says no more than that the price hardly matters.
_MOST_CENTS = 100.0


def write(metrics: Mapping[str, Any], out: Path) -> None:
    """``report.md`` and its figures, into an existing folder."""
    selection, groups = metrics["selection"], metrics["groups"]
    figures.held_out(out / HELD_OUT, selection["results"], selection["best"], "held-out choice")
    bounds = {
        bound: np.array([[t[bound] for t in group["tastes"].values()] for group in groups])
        for bound in ("value", "low", "high")
    }
    figures.tastes(
        out / TASTES,
        [label.replace(", ", ",\n") for label in groups[0]["tastes"]],
        bounds["value"],
        bounds["low"],
        bounds["high"],
        [
            f"{group['name']} ({group['share']['value']:.0%}): " + group["words"].replace(", ", ",\n")
            for group in groups
        ],
        "change in the log-odds of a choice",
    )  # fmt: skip
    (out / "report.md").write_text(page(metrics), encoding="utf-8")


def page(metrics: Mapping[str, Any]) -> str:
    """The report."""
    panel, method = metrics["panel"], metrics["method"]
    return "\n".join(
        [
            "# Who the households are, and what offer is fair to them\n",
            f"{panel['households']} households chose an electricity supplier {panel['choices']:,} times, each time among "
            f"{panel['offers_a_choice']} offers: a price in ¢/kWh, or time-of-day or seasonal rates; years of contract; "
            f"the local utility, a well-known company or an unknown one. The data are real, from `{REQUIREMENT}` on PyPI.\n",
            *_how_many(metrics["selection"]),
            *_who(metrics),
            *_offer(metrics),
            "## How these numbers were made\n",
            f"Intervals are 95 %: percentiles over resamples of households, for the groups {method['refits']} refits "
            f"from the groups found ({method['unconverged_refits']} had not converged). They take the number of groups "
            f"and the ridge ({method['l2']:.3g}) as given, so they are a little narrow. Seed {method['seed']}; "
            f"log-likelihood of the fit {method['log_likelihood']:.2f}.",
            "",
        ]
    )


def _how_many(selection: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            r["n_groups"],
            f"{r['score']:.4f} ± {r['score_se']:.4f}",
            _interval(r["gain"], r["gain_low"], r["gain_high"], 4) if r["n_groups"] > 1 else "",
            *(f"{gain:.4f}" for gain in r["control_gain"].values()),
            f"{r['bic']:.0f}",
            f"{r['icl']:.0f}",
            f"{r['l2']:.3g}",
        )
        for r in selection["results"]
    ]
    controls = [f"control ({name})" for name in selection["results"][0]["control_gain"]]
    best = selection["best"]
    limits = []
    if best == selection["largest_tried"] > 1:
        limits.append(
            f"{best} is the most that was tried: more may describe these households still better."
        )
    if best > 1:
        limits.append(
            "That several groups describe the panel better than one does not prove that there are so many kinds of "
            "people: a continuum of tastes is split too."
        )
    head = ["groups", "score a choice ± s.e.", "gain over one", *controls, "BIC", "ICL", "ridge"]
    return [
        "## How many groups\n",
        f"![Held-out score against the number of groups]({HELD_OUT})\n",
        table(head, rows),
        f"**{escape(selection['reason'])}** The score is the mean log-likelihood of choices that neither fitted the "
        "groups nor assigned their household to one; the control is the same procedure on choices redrawn from one "
        f"shared taste. {' '.join(limits)}\n",
    ]


def _who(metrics: Mapping[str, Any]) -> list[str]:
    groups = metrics["groups"]
    rows = [
        (
            f"{group['name']}: {group['words']}",
            _percent(group["share"]),
            *(_cents(group["worth"][name], 1) for name in ATTRIBUTES[1:4]),
            *(_cents(group["worth"][name], -1) for name in ATTRIBUTES[4:]),
        )
        for group in groups
    ]
    head = [
        "group",
        "share",
        "a year of contract",
        "local utility",
        "well-known company",
        "time-of-day rates",
        "seasonal rates",
    ]
    notes = [
        f"A household's group is known with {metrics['certainty']:.0%} certainty on average."
        if len(groups) > 1
        else "There is one group: everybody."
    ]
    indifferent = [g["name"] for g in groups if g["worth"][ATTRIBUTES[1]] is None]
    if indifferent:
        notes.append(
            f"For {', '.join(indifferent)} the interval of the price's coefficient reaches 0: the data do not say that "
            "they mind the price, so no amount can be named."
        )
    for pair in metrics["alike"]:
        notes.append(
            f"{pair['groups'][0]} and {pair['groups'][1]} rank the offers much alike (correlation "
            f"{pair['correlation']:.2f}): they differ in how decided they are more than in taste."
        )
    return [
        "## Who they are\n",
        f"![Tastes of the groups]({TASTES})\n",
        table(head, rows),
        "In ¢/kWh, with 95 % intervals over households. The first three are what the group would pay for a year of "
        "contract (below 0: what it would have to be given), for the local utility and for a well-known company, both "
        "rather than an unknown one. Offers with time-of-day or seasonal rates carry no price of their own in this "
        "panel (their price is in the rates), so the last two columns are the fixed price that the group finds just as "
        f"good: below {FIXED:g} ¢, the mean of the fixed prices, it likes such rates, above it avoids them.\n",
        " ".join(notes) + "\n",
    ]


def _offer(metrics: Mapping[str, Any]) -> list[str]:
    offers, groups, menu = metrics["offers"], metrics["groups"], metrics["menu"]
    average, fair, lottery = offers["average_best"], offers["worst_off_best"], offers["lottery"]
    columns = [("best on average", average), ("best for the worst-off", fair)]
    if offers["same"]:
        columns = [("best on average and for the worst-off", average)]
    columns.append(("MaxMin lottery", lottery))
    rows: list[list[object]] = [
        [f"{group['name']}: {group['words']}", *(_number(c["utilities"][k]) for _, c in columns)]
        for k, group in enumerate(groups)
    ]
    rows.append(["average, by shares", *(_number(c["average"]) for _, c in columns)])
    rows.append(["worst-off group", *(_number(c["worst_off"]) for _, c in columns)])
    drawn = [[menu[item["offer"]]["words"], f"{item['chance']:.0%}"] for item in lottery["offers"]]
    weights = ", ".join(
        f"{group['name']} {weight:.2f}"
        for group, weight in zip(groups, lottery["weights"], strict=True)
        if weight >= 0.005
    )
    return [
        "## One offer for all\n",
        f"The menu is the {len(menu)} distinct offers that the households were shown. An offer's worth to a group is "
        "given in spreads (standard deviations) of that group's own reward over the menu, 0 being its mean: rewards have "
        "no common unit of their own, and this one counts by how much better an offer is *for the group*, however "
        "decided it is. Amounts of money would not do: they divide by the price's coefficient, which is near 0 for some.\n",
        f"**{escape(_verdict(metrics))}**\n",
        table(["worth to", *(name for name, _ in columns)], rows),
        f"In {offers['stability']['same']:.0%} of the resamples the two best offers were one and the same; the offer best "
        f"on average was the one named here in {offers['stability']['average_best']:.0%}, the best for the worst-off in "
        f"{offers['stability']['worst_off_best']:.0%}. The least of several uncertain numbers is lower than it looks: every "
        "resample looks for its own worst-off group, so the intervals of that row reach further down than up.\n",
        "The MaxMin lottery draws the offer by chance, so that groups take turns:\n",
        table(["offer", "chance"], drawn),
        f"It maximises the worst-off group's expected worth, less β = {lottery['beta']:g} a nat of distance from drawing "
        f"evenly. Weights of the groups: {weights}. Certificate: no lottery does better on this by more than "
        f"{lottery['gap']:.1e} (for the fitted rewards; the intervals say how well those are known). Over the best single "
        f"offer the worst-off group gains {_number(lottery['gain_for_worst_off'])}.\n",
    ]


def _verdict(metrics: Mapping[str, Any]) -> str:
    offers, groups, menu = metrics["offers"], metrics["groups"], metrics["menu"]
    average, fair = offers["average_best"], offers["worst_off_best"]
    share = offers["stability"]["same"]
    if offers["same"]:
        sure = "" if share >= _STABLE else f", though only in {share:.0%} of the resamples"
        return (
            f"No price of fairness here: one offer is best on average and for the worst-off group{sure}: "
            f"{menu[average['offer']]['words']}."
        )
    price = offers["price"]
    sure = (
        "" if share <= 1 - _STABLE else f" In {share:.0%} of the resamples they are the same offer."
    )
    return (
        f"Fairness has a price here: best on average is {menu[average['offer']]['words']}; best for the worst-off group "
        f"({groups[average['worst_group']]['name']} under the former) is {menu[fair['offer']]['words']}, which costs "
        f"{_number(price['average_given_up'])} on average and gives the worst-off {_number(price['worst_off_gains'])}, "
        f"in spreads of a group's own reward.{sure}"
    )  # fmt: skip


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """What was found, three times honest."""
    selection, lottery = metrics["selection"], metrics["offers"]["lottery"]
    best = selection["best"]
    row = next(r for r in selection["results"] if r["n_groups"] == best)
    households = metrics["panel"]["households"]
    if best == 1:
        first = f"{households} households are best described by one taste: {selection['reason']}"
    else:
        control = max(row["control_gain"].values())
        most = ", the most that was tried" if best == selection["largest_tried"] else ""
        first = (
            f"{households} households are better described by {best} groups{most}, than by one: a held-out choice gains "
            f"{_interval(row['gain'], row['gain_low'], row['gain_high'], 3)} nats, the control {control:.3f}; that is no "
            "proof of as many kinds of people."
        )
    gain = lottery["gain_for_worst_off"]
    unsure = ", which may be nothing" if gain["low"] <= 0 <= gain["high"] else ""
    third = (
        f"Drawing offers by the MaxMin lottery changes the worst-off group's worth by {_number(gain)} against the best "
        f"single offer (in spreads of its reward over the menu, 95 % interval{unsure}), with a certified gap of {lottery['gap']:.0e} "
        f"at beta = {lottery['beta']:g}."
    )
    return [first, _verdict(metrics), third]


def _interval(value: float, low: float, high: float, digits: int) -> str:
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _number(estimate: Mapping[str, float]) -> str:
    return _interval(estimate["value"], estimate["low"], estimate["high"], 2)


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.0%} ({estimate['low']:.0%} to {estimate['high']:.0%})"


def _cents(estimate: Mapping[str, float] | None, sign: int) -> str:
    if estimate is None:
        return "not identified"
    ends = sorted((sign * estimate["low"], sign * estimate["high"]))
    low, high = (f"{e:.1f}" if abs(e) < _MOST_CENTS else ("over " if e > 0 else "below -") + f"{_MOST_CENTS:g}" for e in ends)  # fmt: skip
    return f"{sign * estimate['value']:.1f} ({low} to {high})"

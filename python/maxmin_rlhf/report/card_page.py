"""The report card of a mixture as HTML: one page, or sections of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maxmin_rlhf.report import html, one_reward, svg, taste
from maxmin_rlhf.report.card import CERTAIN, CHOICES
from maxmin_rlhf.report.html import escape, interval, number, quote
from maxmin_rlhf.report.svg import Point, Series

_LONGEST = 280  # letters of a text that are shown
_WORDS = {"mean": "best on average", "pooled": "best for one pooled reward", "MaxMin": "MaxMin"}


def page(facts: Mapping[str, Any], title: str) -> str:
    """The whole page."""
    data = facts["data"]
    return html.page(
        title,
        [
            f"<h1>{quote(title)}</h1>",
            html.paragraph(
                f"{data['annotators']:,} annotators, {data['comparisons']:,} comparisons, {data['features']:,} features.",
                "lead",
            ),
            html.verdict(sentences(facts)),
            *sections(facts),
        ],
    )


def sections(facts: Mapping[str, Any]) -> list[str]:
    """Everything but the title."""
    parts = [*_how_many(facts), *_who(facts), *taste.section(facts)]
    if facts["items"]:
        parts += _items(facts)
    if facts["choice"]:
        parts += _choice(facts)
    if facts.get("diversity"):
        parts += one_reward.section(facts)
    parts += _method(facts)
    return parts


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What was found, in up to four sentences."""
    groups, selection, choice = facts["groups"], facts["selection"], facts["choice"]
    said = []
    if selection is not None:
        said.append(selection["reason"])
    else:
        said.append(
            f"{_count(len(groups), 'group')}, a number that was given: nothing here says that it is the right one."
        )
    if len(groups) > 1:
        shares = ", ".join(f"{g['name']} is {g['share']:.0%}" for g in groups)
        said.append(
            f"{shares} of the annotators; the group of "
            f"{facts['certainty']['certain_share']:.0%} of them is known with at least {CERTAIN:.0%} certainty."
        )
    if choice is not None and len(groups) > 1:
        said.append(_verdict(choice))
    if facts.get("one_reward"):
        said.append(one_reward.sentence(facts))
    return said


def _verdict(choice: Mapping[str, Any]) -> str:
    gain, price = choice["price"]["worst_off_gains"], choice["price"]["average_given_up"]
    worst = choice["policies"]["mean"]["worst_group"]
    if gain["low"] <= 0:
        return (
            f"What is best on average and MaxMin tie for the worst-off group: the difference is {_inline(gain)} spreads of a "
            "group's own reward, which may be nothing."
        )
    return (
        f"MaxMin gives the worst-off group {_inline(gain)} more than what is best on average (where {worst} is worst off), in "
        f"spreads of a group's own reward, and costs {_inline(price)} on average."
    )


def _inline(e: Mapping[str, float]) -> str:
    return f"{number(e['value'])} ({number(e['low'])} to {number(e['high'])})"


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


def _colour(k: int) -> int | str:
    return k if k < 6 else "grey"


# ---- the sections


def _how_many(facts: Mapping[str, Any]) -> list[str]:
    selection = facts["selection"]
    if selection is None:
        return []
    results = selection["results"]
    names = list(results[0]["control_gain"])
    colours: tuple[int | str, ...] = ("grey", 1)
    series = [
        Series(
            "held-out annotators",
            [Point(r["gain"], r["gain_low"], r["gain_high"]) for r in results],
            0,
        )
    ] + [
        Series(f"control: {name}", [Point(r["control_gain"][name]) for r in results], colour, True)
        for name, colour in zip(names, colours, strict=False)
    ]
    drawing = svg.lines(
        [str(r["n_groups"]) for r in results],
        series,
        "number of groups",
        "gain over one group, nats a held-out comparison",
    )
    caption = (
        "Gain over one group in nats a held-out comparison, 95 % intervals over annotators. The controls are the same "
        f"procedure on data in which one reward is shared. Chosen: {selection['best']}."
    )
    rows = [
        [
            escape(r["n_groups"]),
            f"{number(r['score'], 4)}<small>± {number(r['score_se'], 4)}</small>",
            f"{number(r['gain'], 4)}<small>{number(r['gain_low'], 4)} to {number(r['gain_high'], 4)}</small>",
            *(number(r["control_gain"][name], 4) for name in names),
            f"{r['bic']:.0f}",
        ]
        for r in results
    ]
    head = ["groups", "score", "gain over one", *(f"control: {name}" for name in names), "BIC"]
    mine = [i for i, r in enumerate(results) if r["n_groups"] == selection["best"]]
    return [
        "<h2>How many groups</h2>",
        html.paragraph(
            "Scored on comparisons that neither fitted the groups nor assigned their annotator to one. Several groups that "
            "describe people better than one are no proof of as many kinds of people: a continuum of tastes is split too."
        ),
        html.figures(
            html.figure(drawing, caption, [(s.name, s.colour, s.dashed) for s in series]),
            html.table(head, rows, mine),
        ),
    ]


def _who(facts: Mapping[str, Any]) -> list[str]:
    groups, certainty = facts["groups"], facts["certainty"]
    drawing = svg.bars(
        [
            (g["name"], g["share"], f"{g['share']:.0%}, {g['annotators']:,}", _colour(k))
            for k, g in enumerate(groups)
        ],
        "sizes of the groups",
    )
    parts = [html.figure(drawing, "Share of each group, and annotators it is the likeliest for.")]
    if len(groups) == 1:
        return ["<h2>Who is in which group</h2>", html.figures(*parts)]
    bins = len(certainty["histogram"])
    edges = [f"{i / bins:.1g}" if i % 2 == 0 else "" for i in range(bins + 1)]
    parts.append(
        html.figure(
            svg.histogram(edges, certainty["histogram"], "uncertainty: 0 known, 1 anybody's guess"),
            "Annotators by the entropy of their responsibilities, as a share of the most there can be. "
            f"Mean {number(certainty['mean_entropy'])}.",
        )
    )
    least = certainty["least_certain"]
    table = html.table(
        ["annotator", "uncertainty", *(g["name"] for g in groups)],
        [
            [
                quote(_short(row["annotator"], 60)),
                number(row["entropy"]),
                *(number(p) for p in row["posterior"]),
            ]
            for row in least
        ],
        text=[0],
    )
    return [
        "<h2>Who is in which group</h2>",
        html.figures(*parts),
        *(
            [html.paragraph("The least certain, with the chance of each group:", "note"), table]
            if least
            else []
        ),
    ]


def _items(facts: Mapping[str, Any]) -> list[str]:
    groups, items = facts["groups"], facts["items"]
    rows = []
    for row in items:
        words = f"{quote(_short(row['text'] or row['item'], _LONGEST))}"
        if row["prompt"] is not None:
            words += f"<small>{quote(_short(row['prompt'], 120))}</small>"
        rows.append([words, *(number(r) for r in row["rewards"])])
    return [
        "<h2>What divides the groups most</h2>",
        html.paragraph(
            "What each group would gain by it, in spreads of the group's own reward; 0 is an even draw among its rivals.",
            "note",
        ),
        html.table(["item", *(g["name"] for g in groups)], rows, text=[0]),
    ]


def _choice(facts: Mapping[str, Any]) -> list[str]:
    choice, groups = facts["choice"], facts["groups"]
    policies = choice["policies"]

    def at(e: Mapping[str, float]) -> Point:
        return Point(e["value"], e["low"], e["high"])

    colours: dict[str, int | str] = {"mean": 1, "pooled": "grey", "MaxMin": 0}
    drawing = svg.forest(
        [
            (g["name"], [(at(policies[c]["utilities"][k]), colours[c]) for c in CHOICES])
            for k, g in enumerate(groups)
        ]
        + [("average", [(at(policies[c]["average"]), colours[c]) for c in CHOICES])],
        "worth to the group, spreads of its own reward",
    )
    rows = [
        [
            escape(_WORDS[c]),
            *(interval(e) for e in policies[c]["utilities"]),
            interval(policies[c]["worst_off"]),
            interval(policies[c]["average"]),
        ]
        for c in CHOICES
    ]
    weights = choice["weights"]
    parts = [
        "<h2>What a fair choice gives each group</h2>",
        html.paragraph(
            f"{choice['items']:,} items at {_count(choice['prompts'], 'prompt')}; every choice is {number(choice['kl'])} nats "
            "from an even draw, which is worth 0 to everybody. Worth is what the fitted rewards say, not what people were asked."
        ),
        html.figures(
            html.figure(
                drawing,
                f"95 % intervals over {choice['refits']} resamples of annotators.",
                [(_WORDS[c], colours[c], False) for c in CHOICES],
            ),
            html.table(["choice", *(g["name"] for g in groups), "worst off", "average"], rows, [2]),
        ),
    ]
    if len(groups) > 1:
        bars = svg.bars(
            [(g["name"], w, number(w), _colour(k)) for k, (g, w) in enumerate(zip(groups, weights, strict=True))],
            "weights of the groups in the MaxMin reward",
        )  # fmt: skip
        price = choice["price"]
        parts += [
            html.verdict([_verdict(choice)], warn=price["worst_off_gains"]["low"] <= 0),
            html.figures(
                html.figure(
                    bars,
                    "Weights w* of the groups' rewards in the one reward whose best policy is MaxMin's.",
                ),
                html.table(
                    ["", "spreads of reward"],
                    [
                        ["price: average given up", interval(price["average_given_up"])],
                        ["worst-off group gains", interval(price["worst_off_gains"])],
                        ["certificate: at most this much more is possible", f"{choice['gap']:.1g}"],
                    ],
                ),
            ),
            html.paragraph(
                "The certificate holds for these items and rewards: it is no statement about others. "
                "An interval of a minimum leans down, because whoever is worst off in a resample counts.",
                "note",
            ),
        ]
    return parts


def _method(facts: Mapping[str, Any]) -> list[str]:
    data = facts["data"]
    converged = "converged" if data["converged"] else "had not converged"
    return [
        "<h2>How these numbers were made</h2>",
        html.paragraph(
            f"A mixture of linear rewards over annotators, fitted by EM with ridge {data['l2']:.3g}; log-likelihood "
            f"{number(data['log_likelihood'])}, the fit {converged}. Rewards are centred at each prompt and divided by their spread there. "
            "Intervals take the number of groups, the ridge and the policies as given, so they are a little narrow.",
            "note",
        ),
    ]


def _short(text: Sequence[Any] | str, most: int) -> str:
    words = str(text)
    return words if len(words) <= most else words[: most - 1] + "…"

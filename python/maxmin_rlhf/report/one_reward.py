"""What one reward for everybody costs, in a report: numbers, the sentence that says it, and the section that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.report import html
from maxmin_rlhf.report.html import escape, interval, number
from maxmin_rlhf.welfare import diagnostics

Array = NDArray[np.float64]
_ERRORS = 1.96  # standard errors to each side: percentiles would lean up, for noise in a head looks like disagreement
_PUBLISHED_BETA = 1.0  # the published bounds are about rewards as fitted, in logits


def diversity_of(data: PreferenceData, heads: Array, seed: int) -> dict[str, Any]:
    """The diversity matrix over the comparisons made, with its interval over annotators."""
    found = diagnostics.diversity(data, heads, seed=seed)
    return {name: getattr(found, name).tolist() for name in ("matrix", "low", "high")}


def cost(rewards: Array, pooled: Array, beta: float) -> Array:
    """``(K + 1,)`` the gap (16) of a policy ``(P, S)`` for each group, and last what no single reward can avoid."""
    gaps = diagnostics.alignment_gap(rewards, pooled, beta)
    return np.append(gaps, diagnostics.unavoidable_gap(rewards, beta))


def described(rewards: Array, pooled: Array, beta: float, again: Sequence[Array]) -> dict[str, Any]:
    """:func:`cost` with intervals from the same of refits, the policy and beta as they are."""
    value = cost(rewards, pooled, beta)
    error = np.std(again, axis=0, ddof=1)
    low, high = np.maximum(value - _ERRORS * error, 0.0), value + _ERRORS * error
    found = [
        {"value": float(v), "low": float(a), "high": float(b)}
        for v, a, b in zip(value, low, high, strict=True)
    ]
    return {"beta": beta, "gaps": found[:-1], "unavoidable": found[-1]}


def published(
    features: Array, pooled: Array, heads: Array, shares: Array, diversity: Mapping[str, Any]
) -> dict[str, Any]:
    """The published bounds (17) beside what they bound, for rewards as they were fitted."""
    found = diagnostics.published_bounds(
        features, pooled, heads, shares, diversity["matrix"], _PUBLISHED_BETA
    )
    policy = diagnostics.policy_of(features @ pooled, _PUBLISHED_BETA)
    gap = diagnostics.alignment_gap(features @ heads.T, policy, _PUBLISHED_BETA)
    facts: dict[str, Any] = {"beta": _PUBLISHED_BETA, "gap": gap.tolist()}
    for name, value in vars(found).items():
        facts[name] = value.tolist() if isinstance(value, np.ndarray) else value
    return facts


def sentence(facts: Mapping[str, Any]) -> str:
    """For somebody who has to decide."""
    costs, names = facts["one_reward"], [g["name"] for g in facts["groups"]]
    worst = int(np.argmax([g["value"] for g in costs["gaps"]]))
    said = (
        f"One reward for everybody would cost group {names[worst]} {_inline(costs['gaps'][worst])} spreads of its own reward, "
        "against what is best for it alone"
    )
    least = costs["unavoidable"]
    if least["value"] < 0.005:
        return f"{said}; some other single reward would cost no group anything to speak of."
    return f"{said}; whatever the one reward, some group loses at least {_inline(least)}: no single reward can avoid it."


def _inline(e: Mapping[str, float]) -> str:
    return f"{number(e['value'])} ({number(e['low'])} to {number(e['high'])})"


def section(facts: Mapping[str, Any]) -> list[str]:
    """The diversity matrix and, with a menu, what one reward costs."""
    names, diversity, costs = (
        [g["name"] for g in facts["groups"]],
        facts["diversity"],
        facts["one_reward"],
    )
    rows = [
        [
            escape(name),
            *(
                "–"
                if i == j
                else interval({key: diversity[kept][i][j] for key, kept in _ENDS.items()})
                for j in range(len(names))
            ),
        ]
        for i, name in enumerate(names)
    ]
    parts = [
        "<h2>How far apart the groups are, and what one reward costs</h2>",
        html.paragraph(
            "How differently two groups would decide the comparisons that were made: 0 alike, 1 always opposed and certain "
            "(mean total variation of their choices; 95 % intervals over annotators, the groups as fitted).",
            "note",
        ),
        html.table(["", *names], rows),
    ]
    if costs is None:
        return parts
    bounds = costs["published"]
    paid = [
        [escape(name), interval(costs["gaps"][k]), *(f"{bounds[key][k]:.2g}" for key in _COLUMNS)]
        for k, name in enumerate(names)
    ]
    paid.append(["whatever the one reward, some group", interval(costs["unavoidable"]), *("" for _ in _COLUMNS)])  # fmt: skip
    return [
        *parts,
        html.verdict([sentence(facts)]),
        html.table(["group", "cost of the pooled reward", *_COLUMNS.values()], paid, [len(names)]),
        html.paragraph(
            f"The cost is what a group loses against its own best choice, in spreads of its reward and less {costs['beta']:.2g} "
            "times the distance from an even draw: exact for these items and rewards, which lean to more disagreement than there "
            "is where annotators are few. Intervals by refits. Right of it, rewards as they were "
            "fitted, with a penalty of 1: the same cost in logits; the lower bounds on it that Theorem 1 of the MaxMin-RLHF "
            "paper gives, as printed and as its proof suggests; the distance of the pooled head, and its bound by Lemma 1. "
            "The bounds are far from tight and can fail; the cost itself is what to go by.",
            "note",
        ),
    ]


_ENDS = {"value": "matrix", "low": "low", "high": "high"}
_COLUMNS = {
    "gap": "cost in logits",
    "theorem": "Theorem 1",
    "theorem_squared": "its proof's",
    "distance": "distance of the pooled head",
    "lemma": "Lemma 1",
}

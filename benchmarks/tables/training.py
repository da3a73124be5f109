"""Models that were trained."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

from benchmarks.tables._markdown import MISSING, study, table


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
    runs = found["runs"]

    def row(words: str, mine: list[dict[str, Any]]) -> list[str]:
        efficiency = ["not known" if r["efficiency"] is None else f"{r['efficiency']:.2f}" for r in mine]  # fmt: skip
        worst, average, kappa, perplexity = (
            mean(r[key] for r in mine) for key in ("worst", "average", "kappa", "perplexity")
        )
        pairs_of_words = mean(r["distinct"][1] for r in mine)
        numbers = (average, kappa, perplexity, pairs_of_words)
        return [words, f"{worst:.2f}", ", ".join(efficiency), *(f"{x:.2f}" for x in numbers)]

    rows = [
        row(words, mine)
        for method, words in names.items()
        if (mine := [r for r in runs if r["run"] == method])
    ]
    front = sorted((float(r["run"].split()[1]), r) for r in runs if r["run"].startswith("fixed"))
    opposed = found["groups"][-1]
    rows += [row(f"fixed, {b:.2f} on {opposed}", [r]) for b, r in front]
    ahead, best = found["summary"]["ahead_of"], found["best"]
    head = ["weights", "worst-off group's gain", "efficiency, by seed", "average gain", "KL", "perplexity", "distinct pairs of words"]  # fmt: skip
    seeds = found["summary"]["maxmin"]["seeds"]
    return table(head, rows) + (
        f"\n\n{'One seed' if seeds == 1 else f'Means over {seeds} seeds; of fixed weights one'}. The best policy gives every group "
        f"{min(best['gains']):.2f}, with weights {', '.join(f'{w:.2f}' for w in best['weights'])}. MaxMin is ahead of equal "
        f"weights by {', '.join(f'{x:.2f}' for x in ahead['equal'])} and of the population's by "
        f"{', '.join(f'{x:.2f}' for x in ahead['population'])}; the average pays {found['summary']['price']:.2f} for it. "
        f"Standard errors of gains: at most {max(r['standard_error'] for r in runs):.2f} a run."
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
        f"\n\n{found['summary']['annotators']} pseudo-annotators, {'each held out once: three folds' if found['summary']['folds'] == 3 else 'held out in some of three folds'}, a seed each; MiniLM "
        f"of 22 million parameters, {training['adapters']}, {runs[0]['steps']} steps of {training['batch_pairs']} pairs, responses alone "
        f"cut to {training['max_length']} tokens; about {median(r['cpu_seconds'] for r in runs):.0f} s a run on one core. The step's size is "
        "chosen for each on training people. Held-out people's pairs are predicted from their other pairs, (11). What the "
        "learning trunk adds to the mixture: "
        f"{percent(gain)} points. Intervals: bootstrap over annotators."
    )

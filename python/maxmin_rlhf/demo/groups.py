"""Who the groups are: their tastes, how sure that is, and words for it."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.demo.panel import ATTRIBUTES, Panel
from maxmin_rlhf.mixture import FitWarning, PreferenceMixture

Array = NDArray[np.float64]

INTERVAL = (2.5, 97.5)  # percentiles
FIXED = 8.0  # cents a kWh, the mean fixed price on the panel


@dataclass(frozen=True)
class Contrast:
    """A difference between two offers, and what people are said to do who like it or who do not."""

    label: str
    offer: tuple[float, ...]  # in ATTRIBUTES, against one of zeros
    liked: str
    disliked: str


CONTRASTS = (
    Contrast("2 ¢/kWh cheaper", (-2, 0, 0, 0, 0, 0), "want the lower price", "want the higher price"),
    Contrast("5-year contract", (0, 5, 0, 0, 0, 0), "like a long contract", "avoid a long contract"),
    Contrast("local utility", (0, 0, 1, 0, 0, 0), "want the local utility", "avoid the local utility"),
    Contrast("well-known company", (0, 0, 0, 1, 0, 0), "want a known name", "avoid a known name"),
    Contrast("time-of-day rates,\nnot 8 ¢ fixed", (-FIXED, 0, 0, 0, 1, 0), "accept time-of-day rates", "avoid time-of-day rates"),
    Contrast("seasonal rates,\nnot 8 ¢ fixed", (-FIXED, 0, 0, 0, 0, 1), "accept seasonal rates", "avoid seasonal rates"),
)  # fmt: skip


@dataclass(frozen=True)
class Refits:
    """The mixture on panels of households drawn with replacement.

    Attributes:
        heads: ``(B, K, D)``, groups matched with those of the fit to all households. shares: ``(B, K)``.
        unconverged: how many of the refits ended before they had converged.
    """

    heads: Array
    shares: Array
    unconverged: int


def refit(panel: Panel, mixture: PreferenceMixture, count: int, rng: np.random.Generator) -> Refits:
    """Bootstrap over households: each refit starts from the groups found, so K and they stay what they are."""
    heads, shares, unconverged = [], [], 0
    for _ in range(count):
        drawn = rng.integers(0, panel.n_households, panel.n_households)
        again = PreferenceMixture(
            mixture.n_groups, l2=mixture.l2, init=mixture.heads_, n_init=1, tol=1e-5, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)
            again.fit(panel.preferences(drawn))
        order = _matched(mixture.responsibilities_[drawn], again.responsibilities_)
        heads.append(again.heads_[order])
        shares.append(again.weights_[order])
        unconverged += not again.converged_
    return Refits(np.array(heads), np.array(shares), unconverged)


def _matched(known: Array, found: Array) -> NDArray[np.int64]:
    """(K,) which found group is each known one: the match that most households agree with."""
    shared = known.T @ found
    each = np.arange(len(shared))
    orders = np.array(list(itertools.permutations(each)))
    best: NDArray[np.int64] = orders[shared[each, orders].sum(1).argmax()]
    return best


def estimate(value: float, resampled: Array) -> dict[str, float]:
    """A number with its 95 % interval."""
    low, high = np.percentile(resampled, INTERVAL)
    return {"value": float(value), "low": float(low), "high": float(high)}


def describe_groups(mixture: PreferenceMixture, refits: Refits) -> list[dict[str, Any]]:
    """A dict for each group: ``name``, ``share``, ``words``, ``coefficients``, ``tastes`` and ``worth``, with intervals.

    ``tastes`` are the contrasts, in log-odds. ``worth`` is each coefficient over that of a lower price, in cents a kWh:
    what the group would pay for it; for the two kinds of rates, which come without a price of their own, its negative
    is the fixed price that they are as good as. None where the data do not say that the group minds the price at all.
    """
    contrasts = np.array([c.offer for c in CONTRASTS], dtype=np.float64)
    tastes, resampled = mixture.heads_ @ contrasts.T, refits.heads @ contrasts.T
    low, high = np.percentile(resampled, INTERVAL, axis=0)
    sure = (low > 0) | (high < 0)
    groups = []
    for k, head in enumerate(mixture.heads_):
        others = np.delete(np.arange(mixture.n_groups), k)
        apart = tastes[k]
        if others.size:
            apart = apart - np.average(tastes[others], axis=0, weights=mixture.weights_[others])
        worth: dict[str, Any] = dict.fromkeys(ATTRIBUTES[1:])
        if np.percentile(refits.heads[:, k, 0], INTERVAL[1]) < 0:
            for j, name in enumerate(ATTRIBUTES[1:], start=1):
                again = refits.heads[:, k]
                worth[name] = estimate(-head[j] / head[0], -again[:, j] / again[:, 0])
        groups.append(
            {
                "name": chr(ord("A") + k),
                "share": estimate(mixture.weights_[k], refits.shares[:, k]),
                "households": int((mixture.responsibilities_.argmax(1) == k).sum()),
                "words": _words(tastes[k], apart, sure[k]),
                "coefficients": {
                    name: estimate(head[j], refits.heads[:, k, j])
                    for j, name in enumerate(ATTRIBUTES)
                },
                "tastes": {
                    c.label.replace("\n", " "): estimate(tastes[k, j], resampled[:, k, j])
                    for j, c in enumerate(CONTRASTS)
                },
                "worth": worth,
            }
        )
    return groups


def _words(taste: Array, apart: Array, sure: NDArray[np.bool_]) -> str:
    """What sets the group apart most, then what matters most to it; only what the intervals support."""
    if not sure.any():
        return "no taste that the interval supports"
    first = int(np.where(sure, np.abs(apart), -1.0).argmax())
    rest = np.where(sure & (np.arange(sure.size) != first), np.abs(taste), -1.0)
    said = [first, int(rest.argmax())] if rest.max() >= 0 else [first]
    return ", ".join(CONTRASTS[j].liked if taste[j] > 0 else CONTRASTS[j].disliked for j in said)


def alike(rewards: Array, names: list[str], threshold: float = 0.9) -> list[dict[str, Any]]:
    """Pairs of groups whose rewards ``(M, K)`` of the menu correlate above the threshold: they differ in sharpness."""
    correlation = np.corrcoef(rewards.T).reshape(rewards.shape[1], rewards.shape[1])
    return [
        {"groups": [names[i], names[j]], "correlation": float(correlation[i, j])}
        for i, j in itertools.combinations(range(len(names)), 2)
        if correlation[i, j] > threshold
    ]

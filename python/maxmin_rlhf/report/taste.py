"""Do groups differ in what they like, or only in how sharply they choose: numbers of a report, and the section that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.mixture.objective import margins
from maxmin_rlhf.report import html
from maxmin_rlhf.report.html import escape, interval, number

Array = NDArray[np.float64]
ALIKE = 0.9  # cosine of margins above which two groups differ in sharpness rather than in taste
_INTERVAL = (2.5, 97.5)  # percentiles
_RESAMPLES = 1000


def name_of(group: int) -> str:
    """A, B, ..., for people."""
    return chr(ord("A") + group) if group < 26 else f"group {group}"


def described(data: PreferenceData, heads: Array, seed: int) -> dict[str, Any]:
    """How sharply groups choose, and how alike in taste two are, by the margins that they give the comparisons made.

    Not by the heads' own lengths and angles: those follow the features' units, which say nothing of people.
    """
    margin = margins(data, torch.from_numpy(heads)).double().numpy()
    label = data.comparison_annotator[data.row_comparison]
    products = np.empty((data.n_annotators, len(heads), len(heads)))
    for i, j in np.ndindex(products.shape[1:]):
        products[:, i, j] = np.bincount(label, margin[:, i] * margin[:, j], data.n_annotators)
    rng = np.random.default_rng([seed, 2])
    n = data.n_annotators
    times = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float)
    again = np.tensordot(times, products, 1)
    total = products.sum(0)
    cosines, again = _cosines(total), _cosines(again)
    low, high = np.percentile(again, _INTERVAL, axis=0)
    pairs: list[dict[str, Any]] = [
        {
            "groups": [name_of(i), name_of(j)],
            "cosine": float(cosines[i, j]),
            "low": float(low[i, j]),
            "high": float(high[i, j]),
        }
        for i in range(len(heads))
        for j in range(i + 1, len(heads))
    ]
    return {
        "sharpness": np.sqrt(np.diagonal(total) / max(1, len(margin))).tolist(),
        "cosines": cosines.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "alike": [pair for pair in pairs if pair["low"] > ALIKE],
        "unclear": [pair for pair in pairs if pair["low"] <= ALIKE < pair["high"]],
    }


def _cosines(products: Array) -> Array:
    """Of inner products ``(..., K, K)``; 0 with what has no length."""
    lengths = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    both = lengths[..., :, None] * lengths[..., None, :]
    cosines: Array = np.divide(products, both, out=np.zeros_like(products), where=both > 0)
    return cosines


def section(facts: Mapping[str, Any]) -> list[str]:
    """Of the page; nothing with one group."""
    heads, groups = facts["heads"], facts["groups"]
    names = [g["name"] for g in groups]
    if len(names) == 1:
        return []
    rows = [
        [
            escape(name),
            number(heads["sharpness"][k]),
            *(
                "–"
                if k == j
                else interval({key: heads[kept][k][j] for key, kept in _COSINES.items()})
                for j in range(len(names))
            ),
        ]
        for k, name in enumerate(names)
    ]
    said = [
        f"{' and '.join(pair['groups'])} have a cosine of {_inline(pair)}: they differ in how "
        "sharply they choose rather than in what they like."
        for pair in heads["alike"]
    ]
    said += [
        f"{' and '.join(pair['groups'])} have a cosine of {_inline(pair)}: whether they differ in "
        "what they like, or only in how sharply they choose, is not clear."
        for pair in heads["unclear"]
    ]
    warn = bool(said)
    if not said:
        said = [
            f"No two groups have a cosine above {ALIKE:g}: they differ in taste, not in sharpness alone."
        ]
    return [
        "<h2>Taste or sharpness</h2>",
        html.paragraph(
            "Sharpness is the usual size of a group's margins in the comparisons made: at 2 the favourite is chosen 88 times in 100. "
            "The cosine of two groups' margins is 1 where they want the same, −1 where they want the opposite (95 % intervals over "
            "annotators, the groups as fitted).",
            "note",
        ),
        html.verdict(said, warn=warn),
        html.table(["group", "sharpness", *(f"cosine with {name}" for name in names)], rows),
    ]


_COSINES = {"value": "cosines", "low": "low", "high": "high"}


def _inline(pair: Mapping[str, Any]) -> str:
    return f"{number(pair['cosine'])} ({number(pair['low'])} to {number(pair['high'])})"

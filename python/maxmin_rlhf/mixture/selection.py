"""How many groups are there, and should there be more than one at all?

K is chosen on annotators that the fit has not seen, by comparisons that did not assign them (11). A mixture is claimed
only where it beats one shared reward for the annotators of this panel and, by the same procedure, beats it by more than
on controls: data like these from people who do share one reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maxmin_rlhf.data.controls import redraw_choices, swap_judgments
from maxmin_rlhf.mixture import checkpoint as files
from maxmin_rlhf.mixture.arguments import (
    Preferences,
    as_dtype,
    check_count,
    check_counts,
    check_number,
    check_seed,
    fresh_seed,
)
from maxmin_rlhf.mixture.estimator import PreferenceMixture, fit_problems
from maxmin_rlhf.mixture.folds import Folds, Notes
from maxmin_rlhf.mixture.ranks import Ranks

Array = NDArray[np.float64]
L2_GRID = tuple(float(x) for x in np.logspace(-2, 2, 9))
# With fewer judgments moved the swap control is much the panel itself, groups and all, and would veto them.
_ENOUGH_SWAPPED = 0.25
_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Selection:
    """What `select_groups` found.

    Attributes:
        best_: the number of groups.
        best_mixture_: the mixture of that many, fitted to all annotators.
        results_: a dict for each K: ``n_groups``, ``l2``, held-out ``score`` a comparison and its ``score_se``
            (clustered by annotator), paired ``gain`` over K = 1 with its 95 % interval ``gain_low``, ``gain_high``
            (bootstrap over annotators), ``behind_low``, ``behind_high`` (interval of the paired difference to the best
            score), ``control_gain`` of each control, and of the fit to all ``log_likelihood``, ``bic``, ``icl``.
        reason_: a sentence that says why.
        split_: "item" or "comparison".
        swapped_share_: of the judgments that the swap control moved to another annotator; NaN without one.
    """

    best_: int
    best_mixture_: PreferenceMixture
    results_: list[dict[str, Any]]
    reason_: str
    split_: str
    swapped_share_: float


def select_groups(
    data: Preferences,
    n_groups: Sequence[int],
    *,
    n_init: int = 8,
    l2: float | None = None,
    split: str = "auto",
    n_folds: int = 5,
    backend: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    process_group: Any = None,
    random_state: int | None = None,
    verbose: int = 0,
) -> Selection:
    """Choose K on held-out annotators, and say whether to split at all.

    ``best_`` is the smallest K whose held-out score is not significantly below the best one's; and if that is more
    than 1, only when its gain over K = 1 has an interval above 0 and above the gain that the controls show. Controls:
    choices redrawn from the fitted K = 1 model on the same comparisons; where items have ids, also each judgment
    swapped with another annotator's on the same items, if a quarter of them or more found one.

    Args:
        data: the preferences; those of a `PreferenceStore` are read from disk in every pass.
        n_groups: numbers of groups to try; 1 is always tried too.
        n_init: starts climbed, of each K, in each fold.
        l2: lambda of (7) for all K; None: chosen for each K by the same folds from ``10^-2 ... 10^2``.
        split: "item", "comparison", or "auto": by item when items have ids (a split by comparison leaks through
            transitivity).
        n_folds: folds of annotators; at most as many as there are annotators.
        backend, device, dtype, random_state, verbose: as of `PreferenceMixture`.
        checkpoint: a file to keep the finished folds in and go on from; removed at the end.
        process_group: as of ``PreferenceMixture.fit``: each process brings annotators of its own. Besides sums their
            held-out scores travel, a number each. Judgments are swapped among the annotators of one process.

    Raises:
        ValueError: fewer than two annotators, nothing to score, K above the annotators that a fold leaves.
    """
    sizes = sorted({1, *check_counts("n_groups", n_groups)})
    check_count("n_init", n_init)
    if l2 is not None:
        check_number("l2", l2, 0.0)
    if split not in ("auto", "item", "comparison"):
        raise ValueError(f"split: expected 'auto', 'item' or 'comparison', got {split!r}")
    ranks = Ranks.of(data, process_group, device)
    n_annotators = ranks.n_annotators
    n_folds = min(check_count("n_folds", n_folds), n_annotators)
    if n_folds < 2:
        raise ValueError(
            f"data: expected at least 2 annotators and 2 folds, got {n_annotators} and {n_folds}"
        )
    smallest = n_annotators - math.ceil(n_annotators / n_folds)
    if sizes[-1] > smallest:
        raise ValueError(
            f"n_groups: expected at most {smallest}, the annotators a fold leaves, got {sizes[-1]}"
        )
    if split == "auto":
        split = "item" if data.has_items else "comparison"
    random_state = check_seed(random_state)
    seed = ranks.same(fresh_seed()) if random_state is None else random_state
    folds = Folds(
        ranks=ranks,
        n_folds=n_folds,
        n_init=n_init,
        split=split,
        backend=backend,
        device=device,
        dtype=as_dtype(dtype),
        seed=seed,
        notes=Notes(checkpoint, verbose, n_folds, ranks.first),
    )
    folds.notes.open(
        ranks,
        {
            "data": files.fingerprint(data)
            if process_group is None
            else [n_annotators, ranks.n_comparisons],
            "options": [sizes, n_init, l2, split, n_folds, str(dtype), random_state],
            "seed": random_state,
        },
    )
    folds.seed = folds.notes.seed(folds.seed)

    grid = L2_GRID if l2 is None else (float(l2),)
    totals, weight = folds.scores(data, "panel", [(k, grid) for k in sizes])
    if not weight.any():
        raise ValueError("weight: expected held-out comparisons that count, got weight 0 for all")
    by_ridge = totals.sum(0).reshape(len(sizes), len(grid))
    ridge = [grid[i] for i in by_ridge.argmax(1)]
    own = totals.reshape(-1, len(sizes), len(grid))[:, range(len(sizes)), by_ridge.argmax(1)]

    mixtures = [
        PreferenceMixture(
            k, n_init=n_init, l2=r, backend=backend, device=device, dtype=dtype,
            random_state=folds.seed, verbose=verbose if ranks.first else 0,
        )
        for k, r in zip(sizes, ridge, strict=True)
    ]  # fmt: skip
    fit_problems(mixtures, data, process_group=process_group)

    chosen = [(k, (r,)) for k, r in zip(sizes, ridge, strict=True)]
    head, rng = mixtures[0].heads_[0], folds.rng("redrawn")
    # Both take either kind of data, and return that.
    controls = {"redrawn": redraw_choices(data, head, rng, folds.place(data))}  # type: ignore[type-var]
    swapped_share = math.nan
    if data.has_items:
        swapped, share = swap_judgments(data, folds.rng("swapped"))  # type: ignore[type-var]
        swapped_share = folds.mean_share(share, data)
        if swapped_share >= _ENOUGH_SWAPPED:
            controls["swapped"] = swapped
    control_gains = {}
    for name, control in controls.items():
        control_totals, control_weight = folds.scores(control, name, chosen)
        score = control_totals.sum(0) / control_weight.sum()
        control_gains[name] = score - score[0]

    results = _compare(sizes, ridge, own, weight, control_gains, folds.rng("bootstrap"))
    for result, mixture in zip(results, mixtures, strict=True):
        result.update(folds.criteria(mixture))
    best, reason = _choose(results)
    folds.notes.close()
    mixture = mixtures[sizes.index(best)]
    mixture._warn(2)  # of the others nothing is said
    return Selection(best, mixture, results, reason, split, swapped_share)


def _compare(
    sizes: list[int],
    ridge: list[float],
    totals: Array,
    weight: Array,
    control_gains: dict[str, Array],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Scores, paired gains and their intervals, by resampling annotators."""
    # Who has nothing that counts is no part of the population: a resample of such people alone has no score.
    totals, weight = totals[weight > 0], weight[weight > 0]
    n_annotators = len(weight)
    score = totals.sum(0) / weight.sum()
    best = int(score.argmax())
    resampled = np.empty((_RESAMPLES, len(sizes)))
    block = max(1, 2**24 // n_annotators)
    for begin in range(0, _RESAMPLES, block):
        count = min(block, _RESAMPLES - begin)
        times = rng.multinomial(n_annotators, np.full(n_annotators, 1 / n_annotators), count)
        resampled[begin : begin + count] = (times @ totals) / (times @ weight)[:, None]
    gain = np.percentile(resampled - resampled[:, :1], _INTERVAL, axis=0)
    behind = np.percentile(resampled - resampled[:, best : best + 1], _INTERVAL, axis=0)
    return [
        {
            "n_groups": k,
            "l2": ridge[i],
            "score": float(score[i]),
            "score_se": float(resampled[:, i].std(ddof=1)),
            "gain": float(score[i] - score[0]),
            "gain_low": float(gain[0, i]),
            "gain_high": float(gain[1, i]),
            "behind_low": float(behind[0, i]),
            "behind_high": float(behind[1, i]),
            "control_gain": {name: float(g[i]) for name, g in control_gains.items()},
        }
        for i, k in enumerate(sizes)
    ]


def _choose(results: list[dict[str, Any]]) -> tuple[int, str]:
    """The rule of `select_groups`, and the sentence that says how it fell."""
    candidate = next(r for r in results if r["behind_high"] >= 0)
    k = candidate["n_groups"]
    top = max(results, key=lambda r: r["score"])["n_groups"]
    if k == 1:
        ahead = (
            "the best held-out score"
            if top == 1
            else f"no held-out score below K={top}'s beyond chance"
        )
        return 1, f"One reward: K=1 has {ahead}."
    gain = (
        f"K={k} gains {candidate['gain']:.4f} a held-out comparison over one reward "
        f"(95 % interval {candidate['gain_low']:.4f} to {candidate['gain_high']:.4f})"
    )
    name, control = max(candidate["control_gain"].items(), key=lambda item: item[1])
    null = f"the {name} control gains {control:.4f}"
    if candidate["gain_low"] <= 0:
        return 1, f"One reward: {gain}, which chance explains."
    if candidate["gain_low"] <= control:
        return 1, f"One reward: {gain}, but {null} where there is one reward."
    smallest = (
        "the best score" if k == top else f"the fewest groups not below K={top} beyond chance"
    )
    return k, f"{k} groups: {gain}; {null}; it has {smallest}."

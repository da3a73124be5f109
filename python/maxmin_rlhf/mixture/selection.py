"""How many groups are there, and should there be more than one at all?

K is chosen on annotators that the fit has not seen, by comparisons that did not assign them (11). A mixture is claimed
only where it beats one shared reward for the annotators of this panel and, by the same procedure, beats it by more than
on controls: data like these from people who do share one reward.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import maxmin_kernels as mk
from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.data.controls import redraw_choices, swap_judgments
from maxmin_rlhf.data.splits import annotator_folds
from maxmin_rlhf.mixture import checkpoint as files
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.estimator import (
    PreferenceMixture,
    as_dtype,
    check_count,
    check_number,
    check_seed,
    fit_problems,
    fresh_seed,
    place,
)
from maxmin_rlhf.mixture.fit import Fit, Problem
from maxmin_rlhf.mixture.heldout import held_out_score
from maxmin_rlhf.mixture.objective import Objective
from maxmin_rlhf.mixture.solver import climb, start

Array = NDArray[np.float64]
L2_GRID = tuple(float(x) for x in np.logspace(-2, 2, 9))
_MIDDLE = 1.0  # the ridge whose optima the others of the grid are reached from
# With fewer judgments moved the swap control is much the panel itself, groups and all, and would veto them.
_ENOUGH_SWAPPED = 0.25
_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)  # percentiles
_MAX_ITER = 500


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
    data: PreferenceData,
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
    random_state: int | None = None,
    verbose: int = 0,
) -> Selection:
    """Choose K on held-out annotators, and say whether to split at all.

    ``best_`` is the smallest K whose held-out score is not significantly below the best one's; and if that is more
    than 1, only when its gain over K = 1 has an interval above 0 and above the gain that the controls show. Controls:
    choices redrawn from the fitted K = 1 model on the same comparisons; where items have ids, also each judgment
    swapped with another annotator's on the same items, if a quarter of them or more found one.

    Args:
        data: the preferences.
        n_groups: numbers of groups to try; 1 is always tried too.
        n_init: starts climbed, of each K, in each fold.
        l2: lambda of (7) for all K; None: chosen for each K by the same folds from ``10^-2 ... 10^2``.
        split: "item", "comparison", or "auto": by item when items have ids (a split by comparison leaks through
            transitivity).
        n_folds: folds of annotators; at most as many as there are annotators.
        backend, device, dtype, random_state, verbose: as of `PreferenceMixture`.
        checkpoint: a file to keep the finished folds in and go on from; removed at the end.

    Raises:
        ValueError: fewer than two annotators, nothing to score, K above the annotators that a fold leaves.
    """
    sizes = sorted({1, *(check_count("n_groups", k) for k in n_groups)})
    check_count("n_init", n_init)
    if l2 is not None:
        check_number("l2", l2, 0.0)
    if split not in ("auto", "item", "comparison"):
        raise ValueError(f"split: expected 'auto', 'item' or 'comparison', got {split!r}")
    n_folds = min(check_count("n_folds", n_folds), data.n_annotators)
    if n_folds < 2:
        raise ValueError(
            f"data: expected at least 2 annotators and 2 folds, got {data.n_annotators} and {n_folds}"
        )
    smallest = data.n_annotators - math.ceil(data.n_annotators / n_folds)
    if sizes[-1] > smallest:
        raise ValueError(
            f"n_groups: expected at most {smallest}, the annotators a fold leaves, got {sizes[-1]}"
        )
    if split == "auto":
        split = "item" if data.has_items else "comparison"
    random_state = check_seed(random_state)
    seed = fresh_seed() if random_state is None else random_state
    folds = _Folds(
        data=data,
        n_folds=n_folds,
        n_init=n_init,
        split=split,
        backend=backend,
        device=device,
        dtype=as_dtype(dtype),
        seed=seed,
        notes=_Notes(checkpoint, verbose, n_folds),
    )
    folds.notes.open(
        {
            "data": files.fingerprint(data),
            "options": [sizes, n_init, l2, split, n_folds, str(dtype), random_state],
            "seed": random_state,
        }
    )
    folds.seed = folds.notes.seed(folds.seed)

    grid = L2_GRID if l2 is None else (float(l2),)
    totals, weight = folds.scores(data, "panel", [(k, grid) for k in sizes])
    by_ridge = totals.sum(0).reshape(len(sizes), len(grid))
    ridge = [grid[i] for i in by_ridge.argmax(1)]
    own = totals.reshape(-1, len(sizes), len(grid))[:, range(len(sizes)), by_ridge.argmax(1)]

    mixtures = [
        PreferenceMixture(
            k, n_init=n_init, l2=r, backend=backend, device=device, dtype=dtype,
            random_state=folds.seed, verbose=verbose,
        )
        for k, r in zip(sizes, ridge, strict=True)
    ]  # fmt: skip
    fit_problems(mixtures, data)

    chosen = [(k, (r,)) for k, r in zip(sizes, ridge, strict=True)]
    controls = {"redrawn": redraw_choices(data, mixtures[0].heads_[0], folds.rng("redrawn"))}
    swapped_share = math.nan
    if data.has_items:
        swapped, swapped_share = swap_judgments(data, folds.rng("swapped"))
        if swapped_share >= _ENOUGH_SWAPPED:
            controls["swapped"] = swapped
    control_gains = {}
    for name, control in controls.items():
        control_totals, control_weight = folds.scores(control, name, chosen)
        score = control_totals.sum(0) / control_weight.sum()
        control_gains[name] = score - score[0]

    results = _compare(sizes, ridge, own, weight, control_gains, folds.rng("bootstrap"))
    for result, mixture in zip(results, mixtures, strict=True):
        result.update(
            log_likelihood=mixture.log_likelihood_, bic=mixture.bic(data), icl=mixture.icl(data)
        )
    best, reason = _choose(results)
    folds.notes.close()
    mixture = mixtures[sizes.index(best)]
    mixture._warn(2)  # of the others nothing is said
    return Selection(best, mixture, results, reason, split, swapped_share)


@dataclass
class _Folds:
    """Fit on the other annotators, score the held-out ones, in every fold."""

    data: PreferenceData
    n_folds: int
    n_init: int
    split: str
    backend: str | None
    device: str | torch.device | None
    dtype: torch.dtype | None
    seed: int
    notes: _Notes

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers of their own for each purpose."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def scores(
        self, data: PreferenceData, name: str, wanted: Sequence[tuple[int, tuple[float, ...]]]
    ) -> tuple[Array, Array]:
        """Totals (A, mixtures) and weights (A,) of each annotator's scored comparisons.

        ``wanted``: each number of groups with its ridges; mixtures come in that order.
        """
        fold_of = annotator_folds(data.n_annotators, self.n_folds, self.rng("folds"))
        totals = np.zeros((data.n_annotators, sum(len(ridges) for _, ridges in wanted)))
        weight = np.zeros(data.n_annotators)
        for fold in range(self.n_folds):
            out = fold_of == fold
            unit = f"{name} {fold}"
            kept = self.notes.recall(unit)
            if kept is None:
                with mk.backend(self.backend):
                    bank = self._fit(data.select_annotators(~out), wanted, fold)
                    # The same comparisons are hidden on every data set: the comparison is paired.
                    held = held_out_score(
                        place(data.select_annotators(out), self.device, self.dtype),
                        bank,
                        self.split,
                        self.rng(f"split {fold}"),
                    )
                kept = (held.total, held.weight)
                self.notes.keep(unit, *kept)
            totals[out], weight[out] = kept
        return totals, weight

    def _fit(
        self, data: PreferenceData, wanted: Sequence[tuple[int, tuple[float, ...]]], fold: int
    ) -> Bank:
        objective = Objective.of(place(data, self.device, self.dtype))
        middle = [
            min(ridges, key=lambda r: abs(math.log(max(r, 1e-9) / _MIDDLE))) for _, ridges in wanted
        ]
        problems = [Problem(k, r) for (k, _), r in zip(wanted, middle, strict=True)]
        fit = Fit(
            objective, problems, n_init=self.n_init, max_iter=_MAX_ITER, seed=(self.seed, fold)
        )
        best = fit.run()
        if all(len(ridges) == 1 for _, ridges in wanted):
            return best.bank
        index = torch.tensor([i for i, (_, ridges) in enumerate(wanted) for _ in ridges])
        ridges = torch.tensor([r for _, ridges in wanted for r in ridges], dtype=torch.float64)
        index = index.to(best.theta.device)
        path = Bank(best.theta[index], best.mask[index], ridges.to(best.theta))
        steer = fit.preconditioner
        state = start(objective, path, steer)
        return climb(objective, state, steer, max_iter=_MAX_ITER, tol=fit.tol).bank


def _compare(
    sizes: list[int],
    ridge: list[float],
    totals: Array,
    weight: Array,
    control_gains: dict[str, Array],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Scores, paired gains and their intervals, by resampling annotators."""
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


class _Notes:
    """Finished folds on disk, and a line on a terminal."""

    def __init__(self, path: str | PathLike[str] | None, verbose: int, n_folds: int) -> None:
        self.path, self.verbose, self.n_folds = path, verbose, n_folds
        self.facts: dict[str, Any] = {}
        self.units: dict[str, torch.Tensor] = {}
        self.drawn = False

    def open(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        if self.path is None or not os.path.exists(self.path):
            return
        self.units, kept = files.read(self.path, "checkpoint of a selection")
        for name in ("data", "options"):
            if kept[name] != facts[name]:
                raise ValueError(
                    f"{os.fspath(self.path)}: expected a checkpoint with {name} = {facts[name]!r}, "
                    f"got {kept[name]!r}; remove it to start anew"
                )
        self.facts = kept

    def seed(self, fresh: int) -> int:
        """The seed that the kept folds were made with."""
        self.facts["seed"] = fresh if self.facts["seed"] is None else self.facts["seed"]
        return int(self.facts["seed"])

    def recall(self, unit: str) -> tuple[Array, Array] | None:
        """Totals and weights of a fold that is done."""
        if f"{unit} total" not in self.units:
            return None
        return self.units[f"{unit} total"].numpy(), self.units[f"{unit} weight"].numpy()

    def keep(self, unit: str, total: Array, weight: Array) -> None:
        """A fold is done."""
        self.units[f"{unit} total"] = torch.from_numpy(total)
        self.units[f"{unit} weight"] = torch.from_numpy(weight)
        if self.path is not None:
            files.write(self.path, "checkpoint of a selection", self.units, self.facts)
        line = f"{unit.split()[0]}: fold {int(unit.split()[1]) + 1} of {self.n_folds} done"
        if sys.stderr.isatty():
            print(f"\r{line}   ", end="", file=sys.stderr, flush=True)
            self.drawn = True
        elif self.verbose:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.drawn:
            print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
        if self.path is not None and os.path.exists(self.path):
            os.unlink(self.path)

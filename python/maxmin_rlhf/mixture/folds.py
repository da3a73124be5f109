"""The folds of a choice of K: fitted on the other annotators, scored on the held-out ones, kept on disk as they are done."""

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
from maxmin_rlhf.data.controls import Place
from maxmin_rlhf.data.splits import annotator_folds
from maxmin_rlhf.mixture import checkpoint as files
from maxmin_rlhf.mixture.arguments import Preferences, place
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.estimator import PreferenceMixture
from maxmin_rlhf.mixture.fit import Fit, Problem
from maxmin_rlhf.mixture.heldout import HeldOut, held_out_score
from maxmin_rlhf.mixture.objective import Objective
from maxmin_rlhf.mixture.ranks import Ranks
from maxmin_rlhf.mixture.solver import climb, start

Array = NDArray[np.float64]
_MIDDLE = 1.0  # the ridge whose optima the others of the grid are reached from
MAX_ITER = 500


@dataclass
class Folds:
    """Fit on the other annotators, score the held-out ones, in every fold."""

    ranks: Ranks
    n_folds: int
    n_init: int
    split: str
    backend: str | None
    device: str | torch.device | None
    dtype: torch.dtype | None
    seed: int
    notes: Notes

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers of their own for each purpose."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def scores(
        self, data: Preferences, name: str, wanted: Sequence[tuple[int, tuple[float, ...]]]
    ) -> tuple[Array, Array]:
        """Totals (A, mixtures) and weights (A,) of each annotator's scored comparisons, of all processes.

        ``wanted``: each number of groups with its ridges; mixtures come in that order.
        """
        ranks = self.ranks
        fold_of = annotator_folds(ranks.n_annotators, self.n_folds, self.rng("folds"))
        totals = np.zeros((ranks.n_annotators, sum(len(ridges) for _, ridges in wanted)))
        weight = np.zeros(ranks.n_annotators)
        mine = slice(ranks.first_annotator, ranks.first_annotator + data.n_annotators)
        for fold in range(self.n_folds):
            out = fold_of == fold
            unit = f"{name} {fold}"
            kept = self.notes.recall(unit)
            if kept is None:
                here = out[mine]
                with mk.backend(self.backend):
                    bank = self._fit(data.select_annotators(~here), wanted, fold)
                    # The same comparisons are hidden on every data set: the comparison is paired.
                    held = held_out_score(
                        place(data.select_annotators(here), self.device, self.dtype),
                        bank,
                        self.split,
                        self.rng(f"split {fold}"),
                        ranks=ranks,
                    )
                kept = self._gathered(held, int(out[: mine.start].sum()), int(out.sum()))
                self.notes.keep(unit, *kept)
            totals[out], weight[out] = kept
        return totals, weight

    def _gathered(self, held: HeldOut, first: int, n: int) -> tuple[Array, Array]:
        """Scores of the ``n`` held-out annotators of all processes, of whom this one's are the ``first`` and following."""
        if self.ranks.group is None:
            return held.total, held.weight
        device = self.ranks.device
        own = torch.from_numpy(np.column_stack([held.total, held.weight])).to(device)
        every = torch.zeros(n, own.shape[1], dtype=torch.float64, device=device)
        every[first : first + len(own)] = own
        found = self.ranks.sum(every)[0].cpu().numpy()
        return np.ascontiguousarray(found[:, :-1]), np.ascontiguousarray(found[:, -1])

    def place(self, data: Preferences) -> Place | None:
        """Of this process's comparisons."""
        if self.ranks.group is None:
            return None
        first_row = self.ranks.before(data.n_rows)
        return Place(self.ranks.first_comparison, first_row, self.ranks.n_comparisons)

    def mean_share(self, share: float, data: Preferences) -> float:
        """Of the judgments of all processes."""
        own = torch.tensor(
            [share * data.n_comparisons], dtype=torch.float64, device=self.ranks.device
        )
        return float(self.ranks.sum(own)[0]) / max(1, self.ranks.n_comparisons)

    def criteria(self, mixture: PreferenceMixture) -> dict[str, float]:
        """Of a fit to all: log-likelihood, BIC, ICL, from what the fit left behind."""
        resp = mixture.responsibilities_
        own = -(resp * np.log(np.where(resp > 0, resp, 1.0))).sum()
        own = torch.tensor([own], dtype=torch.float64, device=self.ranks.device)
        entropy = float(self.ranks.sum(own)[0])
        log_likelihood = mixture.log_likelihood_
        bic = -2.0 * log_likelihood + mixture.n_parameters * math.log(self.ranks.n_annotators)
        return {"log_likelihood": log_likelihood, "bic": bic, "icl": bic + 2.0 * entropy}

    def _fit(
        self, data: Preferences, wanted: Sequence[tuple[int, tuple[float, ...]]], fold: int
    ) -> Bank:
        objective = Objective.of(place(data, self.device, self.dtype), self.ranks.group)
        middle = [
            min(ridges, key=lambda r: abs(math.log(max(r, 1e-9) / _MIDDLE))) for _, ridges in wanted
        ]
        problems = [Problem(k, r) for (k, _), r in zip(wanted, middle, strict=True)]
        fit = Fit(
            objective, problems, n_init=self.n_init, max_iter=MAX_ITER, seed=(self.seed, fold)
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
        return climb(objective, state, steer, max_iter=MAX_ITER, tol=fit.tol).bank


class Notes:
    """Finished folds on disk, and a line on a terminal."""

    def __init__(
        self, path: str | PathLike[str] | None, verbose: int, n_folds: int, first: bool
    ) -> None:
        self.path, self.verbose, self.n_folds, self.first = path, verbose, n_folds, first
        self.facts: dict[str, Any] = {}
        self.units: dict[str, torch.Tensor] = {}
        self.drawn = False

    def open(self, ranks: Ranks, facts: dict[str, Any]) -> None:
        """Recall what is there; ``facts`` of another selection are an error, and a file that not all processes see."""
        self.facts = facts
        there = self.path is not None and os.path.exists(self.path)
        if ranks.group is not None:
            found = float(ranks.sum(torch.tensor([float(there)], device=ranks.device))[0])
            if found % ranks.group.size():
                raise ValueError(
                    "checkpoint: expected the same file for every process, some have none"
                )
        if self.path is None or not there:
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
        if not self.first:
            return
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
        if self.first and self.path is not None:
            files.discard(self.path)

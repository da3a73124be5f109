"""The fit of a bank of problems: starts, screening, ascent, split-and-merge, the best of each.

A problem is a number of groups and a ridge. All problems and their restarts share every pass over the data:

1. ``pooled``    K = 1 from zero: the head that serves everybody and its curvature.
2. ``screen``    four times as many starts as asked for, a few rounds each; the best go on.
3. ``climb``     to convergence.
4. ``move``      split-and-merge moves around each problem's best, screened and climbed; again while it gains.

Each phase depends on the results before it and on random numbers of its own, so a fit that was stopped goes on to the
very same result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maxmin_rlhf.mixture.bank import Bank, put, take
from maxmin_rlhf.mixture.objective import Objective
from maxmin_rlhf.mixture.solver import Preconditioner, State, climb, start
from maxmin_rlhf.mixture.starts import Landscape

_POOL = 4  # starts looked at for each that is climbed
_SCREEN = 8  # rounds of a look
_MOVES = 30  # split-and-merge moves of a problem looked at
_MOVED = 4  # of them, climbed
_REPEATS = 3  # times that a problem may be moved from a better optimum
_PHASES = ("pooled", "screen", "climb", "moves", "climb moves", "done")


@dataclass(frozen=True)
class Problem:
    """One mixture to be found."""

    n_groups: int
    l2: float


@dataclass
class Progress:
    """What a stopped fit needs to go on."""

    phase: str = "pooled"
    repeat: int = 0  # of the moves
    state: State | None = None  # of the phase's mixtures; None before its first round
    owner: Tensor | None = None  # (G,) the problem of each of them
    pooled: State | None = None
    best: State | None = None  # one mixture a problem
    improved: Tensor | None = None  # (problems,) by the last climb


@dataclass
class Fit:
    """Problems on one data set. `run` finds the best mixture of each."""

    objective: Objective
    problems: Sequence[Problem]
    n_init: int = 16
    init: str | Sequence[Tensor] = "auto"
    max_iter: int = 500
    tol: float = 1e-7
    seed: Sequence[int] = (0,)
    on_round: Callable[[Fit, Callable[[], State]], None] | None = None
    progress: Progress = field(default_factory=Progress)

    def run(self) -> State:
        """One mixture a problem, in their order."""
        progress = self.progress
        while progress.phase != "done":
            if progress.state is None:
                self._begin()
            assert progress.state is not None
            looks = progress.phase in ("screen", "moves")
            progress.state = climb(
                self.objective,
                progress.state,
                self._preconditioner(),
                max_iter=min(_SCREEN, self.max_iter) if looks else self.max_iter,
                tol=self.tol,
                on_round=self._report,
            )
            self._end()
        assert progress.best is not None
        return progress.best

    def _report(self, whole: Callable[[], State]) -> None:
        if self.on_round is not None:
            self.on_round(self, whole)

    # ---- the phases

    def _begin(self) -> None:
        """The mixtures that the phase starts from."""
        progress = self.progress
        owner: list[int] = []
        heads: list[Tensor] = []
        log_weights: list[Tensor] = []
        rng = np.random.default_rng([*self.seed, _PHASES.index(progress.phase), progress.repeat])
        if progress.phase == "pooled":
            n_features = self.objective.data.n_features
            owner, heads = [0], [torch.zeros(1, n_features, dtype=torch.float64)]
            log_weights = [torch.zeros(1, dtype=torch.float64)]
        elif progress.phase == "screen":
            for i, problem in enumerate(self.problems):
                for start_heads in self._starts(problem, rng):
                    owner.append(i)
                    heads.append(start_heads)
                    log_weights.append(start_heads.new_zeros(problem.n_groups))
        else:
            assert progress.best is not None and progress.improved is not None
            for i in progress.improved.nonzero()[:, 0].tolist():
                theta = progress.best.theta[i, : self.problems[i].n_groups]
                for moved, weights in self.landscape.split_and_merge(theta, _MOVES, rng):
                    owner.append(i)
                    heads.append(moved)
                    log_weights.append(weights)
        device = self.objective.data.device
        progress.owner = torch.tensor(owner, device=device)
        l2 = torch.tensor([self.problems[i].l2 for i in owner], dtype=torch.float64, device=device)
        width = max(problem.n_groups for problem in self.problems)
        heads, log_weights = [h.to(device) for h in heads], [w.to(device) for w in log_weights]
        bank = Bank.of(heads, log_weights, l2, width)
        progress.state = start(self.objective, bank, self._preconditioner())

    def _end(self) -> None:
        """Take the phase's results over and say what comes next."""
        progress = self.progress
        state, owner = progress.state, progress.owner
        assert state is not None and owner is not None
        if progress.phase == "pooled":
            progress.pooled, progress.state, progress.phase = state, None, "screen"
        elif progress.phase in ("screen", "moves"):
            keep = self.n_init if progress.phase == "screen" else _MOVED
            best = self._best(state, owner, keep)
            progress.state, progress.owner = take(state, best), owner[best]
            progress.phase = "climb" if progress.phase == "screen" else "climb moves"
        else:
            self._adopt(take(state, self._best(state, owner, 1)), owner)
            progress.state, progress.owner = None, None
            first = progress.phase == "climb"
            progress.repeat = 0 if first else progress.repeat + 1
            assert progress.improved is not None
            more = progress.repeat < _REPEATS and bool(progress.improved.any())
            progress.phase = "moves" if more and isinstance(self.init, str) else "done"

    def _adopt(self, candidates: State, owner: Tensor) -> None:
        """Replace the best of a problem by a better one; note where a move may still gain."""
        progress = self.progress
        several = torch.tensor([p.n_groups > 1 for p in self.problems], device=owner.device)
        if progress.best is None:
            progress.best, progress.improved = candidates, several
            return
        index = torch.unique(owner)
        gain = candidates.value - progress.best.value[index]
        # Smaller gains are the same optimum, reached a little closer.
        better = gain > 10 * self.tol * candidates.value.abs().clamp_min(1.0)
        progress.best = put(progress.best, index[gain > 0], take(candidates, gain > 0))
        progress.improved = torch.zeros_like(several)
        progress.improved[index[better]] = True

    @staticmethod
    def _best(state: State, owner: Tensor, count: int) -> Tensor:
        """Indices of each problem's ``count`` highest, problems in order."""
        kept = []
        for problem in torch.unique(owner):
            members = (owner == problem).nonzero()[:, 0]
            value = state.value[members].nan_to_num(-torch.inf)
            kept.append(members[value.argsort(descending=True, stable=True)[:count]])
        return torch.cat(kept)

    def _starts(self, problem: Problem, rng: np.random.Generator) -> list[Tensor]:
        if not isinstance(self.init, str):
            return [torch.as_tensor(h, dtype=torch.float64) for h in self.init]
        if problem.n_groups == 1:
            return [self.landscape.head[None]]
        return self.landscape.draw(self.init, problem.n_groups, _POOL * self.n_init, rng)

    # ---- what steers them

    @functools.cached_property
    def landscape(self) -> Landscape:
        """Around the pooled head."""
        rng = np.random.default_rng([*self.seed, len(_PHASES)])
        return Landscape.of(self.objective, self._pooled_head, self._curvature, rng)

    @property
    def _pooled_head(self) -> Tensor:
        assert self.progress.pooled is not None
        return self.progress.pooled.theta[0, 0, :-1]

    @functools.cached_property
    def _curvature(self) -> Tensor:
        return self.objective.pooled_curvature(self._pooled_head)

    @functools.cached_property
    def _flat(self) -> Preconditioner:
        n_features, device = self.objective.data.n_features, self.objective.data.device
        zero = torch.zeros(n_features, dtype=torch.float64, device=device)
        return Preconditioner.of(self.objective, self.objective.pooled_curvature(zero))

    @functools.cached_property
    def preconditioner(self) -> Preconditioner:
        """From the curvature at the pooled head."""
        return Preconditioner.of(self.objective, self._curvature)

    def _preconditioner(self) -> Preconditioner:
        return self._flat if self.progress.phase == "pooled" else self.preconditioner

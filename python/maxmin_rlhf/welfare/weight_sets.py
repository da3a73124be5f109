"""The sets that weights come from: mixtures of capped simplices, and what a divergence adds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.welfare.objectives import Objective, divergence

Array = NDArray[np.float64]


@dataclass(frozen=True)
class WeightSet:
    """``w = Σ_j part_j q_j``, each q_j on the simplex with ``low_j <= q_j <= high_j``.

    Attributes:
        part: (J,) of sum 1, all > 0.
        low, high: (J, K); a high of infinity where the simplex is the cap.
        start: (J, K) inside.
        tau: of ``tau KL(w‖shares)``, added to what is minimised; 0: nothing. With a single part only, as the next.
        radius: of ``div(w‖shares) <= radius``, infinite: everywhere.
        div: "kl" or "chi2".
        shares: (K,)
    """

    part: Array
    low: Array
    high: Array
    start: Array
    shares: Array
    tau: float = 0.0
    radius: float = math.inf
    div: str = "kl"

    @property
    def free(self) -> NDArray[np.bool_]:
        """(J, K) what is not fixed by its bounds."""
        return self.high > self.low

    @property
    def n_bounds(self) -> int:
        """How many inequalities there are."""
        capped = self.free & np.isfinite(self.high)
        return int(self.free.sum() + capped.sum()) + (self.radius < math.inf) or 1

    def slack(self, q: Array) -> float:
        """What is left of the radius at (1, K) weights, infinite without one."""
        if math.isinf(self.radius):
            return math.inf
        some = self.shares > 0
        return self.radius - divergence(q[0, some], self.shares[some], self.div)

    def div_derivatives(self, q: Array, div: str) -> tuple[Array, Array]:
        """First and (diagonal of the) second of the divergence by (1, K) weights."""
        eta = np.where(self.shares > 0, self.shares, 1.0)
        safe = np.where(self.shares > 0, q, 1.0)
        if div == "chi2":
            return 2 * (safe / eta - 1), np.broadcast_to(2 / eta, q.shape)
        return np.log(safe / eta), 1 / safe


def weight_set(objective: Objective) -> WeightSet:
    """Of a welfare whose weights sum to one; the table under (13')."""
    kind, eta, counts = objective.kind, objective.shares, objective.counts
    cap = np.where(counts, 1.0, 0.0)
    even = counts / counts.sum()
    if kind == "owa":
        return _by_rank(objective)
    if kind == "tv":
        # What is moved goes to the worst; what is left is a worst part of the population.
        moved = min(objective.param, 1.0)
        left = (1 - moved, eta / (1 - moved), eta) if moved < 1 else (0.0, cap, even)
        return _mixture([(moved, cap, even), left], eta)
    if kind == "cvar":
        return _mixture([(1.0, eta / objective.param, eta)], eta)
    if kind == "softmin":
        return replace(_mixture([(1.0, cap, eta)], eta), tau=objective.param)
    if kind in ("kl", "chi2", "floor"):
        return _ball(objective)
    return _mixture([(1.0, cap, even)], eta)


def _mixture(rows: list[tuple[float, Array, Array]], shares: Array) -> WeightSet:
    """Of (part, high, start) with lows of 0."""
    part, high, start = (np.array(x) for x in zip(*[r for r in rows if r[0] > 0], strict=True))
    # No weight on the simplex is above one.
    return WeightSet(part, np.zeros_like(high), np.where(high >= 1, np.inf, high), start, shares)


def _by_rank(objective: Objective) -> WeightSet:
    """Rank weights as a mixture of means over the j worst, for each j at which they fall."""
    assert objective.rank_weights is not None
    ranks = objective.rank_weights
    n = len(ranks)
    falls = ranks - np.append(ranks[1:], 0)
    even = np.full(n, 1 / n)
    rows = [(j * falls[j - 1], np.full(n, 1 / j), even) for j in range(1, n + 1)]
    mixed = _mixture(rows, objective.shares)
    # The mean over all leaves no choice: its bounds meet.
    point = mixed.high == mixed.start
    return replace(mixed, low=np.where(point, even, 0.0), high=np.where(point, even, mixed.high))


def _ball(objective: Objective) -> WeightSet:
    """Weights above a floor, if any, and within a radius of the shares."""
    eta, counts = objective.shares, objective.counts
    low = np.zeros(len(eta)) if objective.floor is None else np.where(counts, objective.floor, 0.0)
    room = 1 - low.sum()
    if room <= 1e-12:
        return WeightSet(np.ones(1), eta[None], eta[None], eta[None], eta)
    high = np.where(counts, np.inf, 0.0)
    made = WeightSet(
        *(np.ones(1), low[None], high[None], eta[None], eta),
        radius=objective.param,
        div="chi2" if objective.kind == "chi2" else "kl",
    )
    # The shares may lie on their floors: start a little further in.
    step, centre = 0.5, low + room * counts / counts.sum()
    while True:
        start = ((1 - step) * eta + step * centre)[None]
        if made.slack(start) > 0.5 * made.radius or math.isinf(made.radius):
            return replace(made, start=start)
        step /= 2

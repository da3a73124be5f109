"""The sets that weights come from: mixtures of capped simplices, and what a divergence adds."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """Of a welfare whose weights sum to one; MATH's table under (13')."""
    kind, eta, counts = objective.kind, objective.shares, objective.counts
    cap = np.where(counts, np.inf, 0.0)
    even = counts / counts.sum()
    zero = np.zeros(len(eta))
    if kind == "owa":
        return _by_rank(objective)
    if kind == "tv":
        # What is moved goes to the worst; what is left is a worst share of the population.
        rho = min(objective.param, 1.0)
        capped = eta / (1 - rho) if rho < 1 else zero
        rows = [(rho, cap, even), (1 - rho, capped, eta)]
        return _mixture([row for row in rows if row[0] > 0], eta)
    if kind == "cvar":
        return _mixture([(1.0, eta / objective.param, eta)], eta)
    if kind == "softmin":
        return WeightSet(np.ones(1), zero[None], cap[None], eta[None], eta, tau=objective.param)
    if kind in ("kl", "chi2", "floor"):
        low = zero if objective.floor is None else np.where(counts, objective.floor, 0.0)
        room = 1 - low.sum()
        div = "chi2" if kind == "chi2" else "kl"
        if room <= 1e-12:
            return WeightSet(np.ones(1), eta[None], eta[None], eta[None], eta)
        inside = WeightSet(
            np.ones(1), low[None], cap[None], eta[None], eta, 0.0, objective.param, div
        )
        # The shares may lie on their floors: start a little further in.
        step, centre = 0.5, low + room * even
        while (
            inside.slack(((1 - step) * eta + step * centre)[None]) <= 0.5 * inside.radius < math.inf
        ):
            step /= 2
        start = ((1 - step) * eta + step * centre)[None]
        return WeightSet(np.ones(1), low[None], cap[None], start, eta, 0.0, objective.param, div)
    return _mixture([(1.0, cap, even)], eta)


def _mixture(rows: list[tuple[float, Array, Array]], shares: Array) -> WeightSet:
    """Of (part, high, start) with lows of 0."""
    part, high, start = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    high = np.where(high >= 1, np.inf, high)
    return WeightSet(part, np.zeros_like(high), high, start, shares)


def _by_rank(objective: Objective) -> WeightSet:
    """Rank weights as a mixture of means over the j worst, for each j at which they fall."""
    assert objective.rank_weights is not None
    counts = objective.counts
    n = int(counts.sum())
    falls = objective.rank_weights[counts] - np.append(objective.rank_weights[counts][1:], 0)
    even = counts / n
    rows = []
    for j in np.flatnonzero(falls > 0) + 1:
        # The mean over all is one point; the worst alone has no cap.
        high = even if j == n else np.where(counts, np.inf if j == 1 else 1 / j, 0.0)
        rows.append((j * falls[j - 1], high, even))
    made = _mixture(rows, objective.shares)
    if n in np.flatnonzero(falls > 0) + 1:
        low = made.low.copy()
        low[-1] = even
        high = made.high.copy()
        high[-1] = even
        made = WeightSet(made.part, low, high, made.start, made.shares)
    return made

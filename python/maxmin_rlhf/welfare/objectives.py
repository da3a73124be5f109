"""What is maximised: each welfare of section 5 by its dual (13'), its value and its certificate (15')."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maxmin_kernels import functional

Array = NDArray[np.float64]

# Of the kernels' welfare, by the kind's name there. With a KL penalty the MaxMin policy is unique: leximin, which breaks
# ties of MaxMin in favour of the next worst-off, has none to break.
_SAME = ("mean", "softmin", "nash", "power", "cvar", "owa", "kl", "chi2", "tv", "floor")
KINDS = {"maxmin": "min", **{kind: kind for kind in _SAME}, "leximin": "min"}
# The number that a kind takes.
PARAMETERS = {
    "softmin": "tau",
    "power": "p",
    "cvar": "alpha",
    **dict.fromkeys(("kl", "chi2", "tv", "floor"), "radius"),
}
# A power mean has its weights at a distance from zero, and so a dual of another form.
HOMOGENEOUS = ("nash", "power")
# Groups without a share count here.
_EVERY_GROUP = ("min", "owa", "tv")


@dataclass(frozen=True)
class Objective:
    """A welfare of K groups. All arrays are float64.

    Attributes:
        kind: as in `maxmin_kernels.welfare`.
        shares: (K,) of the groups, of sum 1.
        counts: (K,) the groups that matter; the others have weight 0.
        param: the kind's tau, p, alpha or radius; infinite without a radius.
        floor, rank_weights: (K,) or None.
    """

    kind: str
    shares: Array
    counts: NDArray[np.bool_]
    param: float = 0.0
    floor: Array | None = None
    rank_weights: Array | None = None

    def welfare(self, utilities: Array) -> float:
        """W of (13') at (K,) utilities, NaN outside its domain."""
        options: dict[str, Any] = {}
        if self.kind in PARAMETERS:
            options[PARAMETERS[self.kind]] = self.param
        if self.kind == "floor":
            options["floor"] = _tensor(self.floor, self.counts)
        if self.kind == "owa":
            options["rank_weights"] = _tensor(self.rank_weights, self.counts)
        shares = _tensor(self.shares, self.counts)
        u = torch.as_tensor(utilities[self.counts])
        return float(functional.welfare(u, self.kind, group_weights=shares, **options).value)

    def dual(self, weights: Array, best: float) -> float:
        """The dual's value at (K,) weights on the simplex whose D of (13) is ``best``."""
        q, eta = weights[self.counts], self.shares[self.counts]
        if self.kind == "softmin":
            return best + self.param * divergence(q, eta, "kl")
        if self.kind not in HOMOGENEOUS:
            return best
        if best <= 0:
            return -math.inf  # no policy has a positive utility for every group
        with np.errstate(divide="ignore"):
            if self.kind == "nash" or self.param == 0:
                log_value = math.log(best) + float((eta * (np.log(eta) - np.log(q))).sum())
                return log_value if self.kind == "nash" else math.exp(log_value)
            return best / conjugate_mean(q, eta, self.param)

    def gap(self, weights: Array, best: float, utilities: Array) -> float:
        """(15'): no policy is worth more than this above the one of these weights.

        Args:
            weights: (K,) on the simplex.
            best: D of (13) there.
            utilities: (K,) expected rewards under the policy, without the KL term.
        """
        if self.kind in HOMOGENEOUS:
            welfare = self.welfare(utilities - (weights @ utilities - best))
            return math.inf if math.isnan(welfare) else self.dual(weights, best) - welfare
        # A constant moves both sides alike: without it fewer digits cancel.
        above = utilities - utilities[self.counts].min()
        return float(weights @ above + self.dual(weights, 0.0) - self.welfare(above))


def conjugate_mean(q: Array, eta: Array, p: float) -> float:
    """``(Σ η (q/η)^p')^(1/p')``, p' = p/(p-1): what the least utilities of power mean 1 cost at prices q."""
    if p == 1:
        return float((q / eta).min())
    dual_p = p / (p - 1)
    log_x = np.log(eta) + dual_p * (np.log(q) - np.log(eta))
    top = log_x.max()
    if not np.isfinite(top):  # a weight of 0 with p' < 0
        return 0.0
    return math.exp((top + math.log(np.exp(log_x - top).sum())) / dual_p)


def divergence(q: Array, eta: Array, kind: str) -> float:
    """KL or chi-squared of q from eta > 0, as a sum of terms >= 0."""
    excess = q / eta - 1
    if kind == "chi2":
        return float((eta * excess**2).sum())
    log = np.log1p(np.maximum(excess, -1 + 1e-300), where=q > 0, out=np.zeros_like(q))
    return float((eta * ((1 + excess) * log - excess)).sum())


def objective_of(
    kind: str,
    shares: Array,
    kept: NDArray[np.int64],
    *,
    tau: float | None = None,
    p: float | None = None,
    alpha: float | None = None,
    radius: float | None = None,
    floor: Any = None,
    rank_weights: Any = None,
) -> Objective:
    """Of the groups kept, checked by the rules of `maxmin_kernels.welfare`.

    Args:
        kind: as there.
        shares: (K,) of all groups.
        kept: (K',) the groups that are not left out.
        floor: (K,).
        rank_weights: (K,), of which the first K' count.
    """
    eta = shares[kept] / shares[kept].sum()
    lows = None if floor is None else _vector("floor", floor, len(shares))[kept]
    ranks = None
    if rank_weights is not None:
        ranks = _vector("rank_weights", rank_weights, len(shares))[: len(kept)]
        if not ranks.sum() > 0:
            raise ValueError(f"rank_weights: expected a positive sum, got {float(ranks.sum()):g}")
        ranks = ranks / ranks.sum()
    every = np.ones(len(kept), np.bool_)
    functional.welfare(
        torch.ones(len(kept), dtype=torch.float64),
        kind,
        group_weights=_tensor(eta, every),
        **{k: _plain(v) for k, v in {"tau": tau, "p": p, "alpha": alpha, "radius": radius}.items()},
        floor=_tensor(lows, every),
        rank_weights=_tensor(ranks, every),
        validate=True,
    )
    param = next((float(x) for x in (tau, p, alpha, radius) if x is not None), math.inf)
    ball = PARAMETERS.get(kind) == "radius"
    if (kind, param) in (("power", 1.0), ("cvar", 1.0)) or (ball and param == 0):
        kind = "mean"  # as it is there; without an interior
    return Objective(kind, eta, every if kind in _EVERY_GROUP else eta > 0, param, lows, ranks)


def _plain(number: Any) -> Any:
    """NumPy's numbers as Python's."""
    return number.item() if isinstance(number, np.generic) else number


def _vector(name: str, values: Any, n_groups: int) -> Array:
    vector = np.asarray(values, np.float64)
    if vector.shape != (n_groups,):
        raise ValueError(f"{name}: expected shape ({n_groups},), got {vector.shape}")
    return vector


def _tensor(values: Array | None, counts: NDArray[np.bool_]) -> torch.Tensor | None:
    return None if values is None else torch.as_tensor(values[counts])

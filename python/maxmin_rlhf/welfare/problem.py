"""What is to be solved: rewards, checked, calibrated and cut to the groups that count, and the welfare of those."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from maxmin_rlhf.reward.calibration import calibrate as _calibrate
from maxmin_rlhf.welfare.objectives import KINDS, Objective, objective_of
from maxmin_rlhf.welfare.shards import Shards, calibrated_reader, checked, reader

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Of K groups, of which K' are kept.

    Attributes:
        shards: rewards of the groups kept.
        objective: over the groups kept.
        kept: (K',) numbers of those groups.
        n_groups: K.
        raw, whole: (P, S, K) rewards as given and calibrated; None if they came in shards.
    """

    shards: Shards
    objective: Objective
    kept: NDArray[np.int64]
    n_groups: int
    raw: Tensor | None
    whole: Tensor | None

    @property
    def left_out(self) -> tuple[int, ...]:
        return tuple(int(k) for k in np.setdiff1d(np.arange(self.n_groups), self.kept))

    def scatter(self, values: Array, fill: float = 0.0) -> Array:
        """(K',) to (K,)."""
        out = np.full(self.n_groups, fill)
        out[self.kept] = values
        return out


def pose(
    rewards: Any,
    name: str,
    *,
    calibrate: str | None,
    group_weights: Any = None,
    min_mass: float = 0.0,
    process_group: dist.ProcessGroup | None = None,
    parameters: Mapping[str, Any],
) -> Problem:
    """The problem that `maxmin_rlhf.solve_maxmin` is asked to solve; its arguments and errors."""
    if not 0 <= min_mass < 1:
        raise ValueError(f"min_mass: expected a number in [0, 1), got {min_mass}")
    read, raw, whole = reader(rewards), None, None
    if read is None:
        raw = checked(rewards)
    if raw is not None and process_group is None:
        whole = _calibrate(raw, calibrate)
        anew, n_groups = (lambda: iter([whole])), whole.shape[2]
    else:
        anew, n_groups = calibrated_reader(read or (lambda: [raw]), calibrate, process_group)
        if raw is not None:
            whole = next(anew())
    shares = _shares(group_weights, n_groups)
    kept = np.flatnonzero(shares >= min_mass)
    if not kept.size:
        raise ValueError(
            f"min_mass: expected at most the largest share {shares.max():g}, got {min_mass:g}"
        )
    objective = objective_of(KINDS.get(name, "min"), shares, kept, **parameters)
    columns = kept.tolist()
    cut = anew if len(columns) == n_groups else lambda: (r[..., columns] for r in anew())
    # One array is held anyway, and MaxMin over it is solved by a kernel: a pass or two here.
    keep = read is None and objective.kind != "min"
    shards = Shards(cut, len(columns), keep=keep, group=process_group)
    if not shards.n_prompts:
        empty = kept[shards.n_judged == 0].tolist()
        never = f"; groups {empty} have no reward at all" if empty else ""
        raise ValueError(
            f"rewards: expected at least one sample with a reward for every group, got none{never}"
        )
    return Problem(shards, objective, kept, n_groups, raw, whole)


def _shares(group_weights: Any, n_groups: int) -> Array:
    if group_weights is None:
        return np.full(n_groups, 1 / n_groups)
    shares = np.asarray(group_weights, np.float64)
    if shares.shape != (n_groups,):
        raise ValueError(f"group_weights: expected shape ({n_groups},), got {shares.shape}")
    if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise ValueError(
            f"group_weights: expected numbers >= 0 with a positive sum, got {shares.tolist()}"
        )
    return shares / shares.sum()


def positive(name: str, number: Any) -> float:
    """A number > 0, NumPy's as Python's."""
    number = number.item() if isinstance(number, np.generic) else number
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(number).__name__}")
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a number in (0, inf), got {number}")
    return float(number)

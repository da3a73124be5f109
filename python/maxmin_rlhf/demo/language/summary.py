"""Numbers with intervals, from several runs of a setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.demo.language.experiment import POLICIES, Run, Setting

Array = NDArray[np.float64]
RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)  # percentiles


class Resamples:
    """Seeds and questions drawn with replacement, the same draws for everything that is compared.

    Args:
        runs: of each setting the runs, a seed each, in the same order of seeds.
        n_prompts: of which each run held some out.
    """

    def __init__(self, n_seeds: int, n_prompts: int, rng: np.random.Generator) -> None:
        self.seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), RESAMPLES)
        self.prompts = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), RESAMPLES)

    def means(self, runs: Sequence[Run], of: str) -> tuple[Array, Array]:
        """``(C, T, seeds)`` mean over the questions of each run, and ``(B, C, T, seeds)`` the same resampled."""
        values, again = [], []
        for run in runs:
            each: Array = getattr(run, of)
            times = self.prompts[:, run.held_out]
            values.append(each.mean(2))
            again.append(np.einsum("ctp,bp->bct", each, times) / times.sum(1)[:, None, None])
        return np.stack(values, -1), np.stack(again, -1)

    def over_seeds(self, again: Array) -> Array:
        """``(B, ...)`` from ``(B, ..., seeds)``."""
        weights = self.seeds / self.seeds.sum(1, keepdims=True)
        return np.einsum("b...s,bs->b...", again, weights)


def estimate(value: Any, again: Array) -> dict[str, float]:
    """A number with its 95 % interval."""
    low, high = np.percentile(again, _INTERVAL)
    return {"value": float(value), "low": float(low), "high": float(high)}


def summarise(setting: Setting, runs: Sequence[Run], resamples: Resamples) -> dict[str, Any]:
    """What each policy gives the populations of a setting, and how MaxMin compares with each."""
    shares = np.array(setting.ratio) / sum(setting.ratio)
    utility, utility_again = resamples.means(runs, "utility")
    wins, wins_again = resamples.means(runs, "wins")
    # The worst-off population is named anew in each run: that a run's luck decides who it is does not average out.
    worst = utility.min(1).mean(-1)
    worst_again = resamples.over_seeds(utility_again.min(2))
    average = np.einsum("cts,t->c", utility, shares) / utility.shape[-1]
    average_again = np.einsum("bct,t->bc", resamples.over_seeds(utility_again), shares)
    least_wins = wins.min(1).mean(-1)
    least_wins_again = resamples.over_seeds(wins_again.min(2))
    fair = POLICIES.index("MaxMin")
    each = utility.mean(-1)
    each_again = resamples.over_seeds(utility_again)
    rows = [
        {
            "policy": name,
            "utility": [estimate(each[c, t], each_again[:, c, t]) for t in range(len(shares))],
            "wins": [float(w) for w in wins[c].mean(-1)],
            "worst": estimate(worst[c], worst_again[:, c]),
            "worst_wins": estimate(least_wins[c], least_wins_again[:, c]),
            "average": estimate(average[c], average_again[:, c]),
            "maxmin_gains": {
                "worst": estimate(worst[fair] - worst[c], worst_again[:, fair] - worst_again[:, c]),
                "average": estimate(
                    average[fair] - average[c], average_again[:, fair] - average_again[:, c]
                ),
                "worst_wins": estimate(
                    least_wins[fair] - least_wins[c],
                    least_wins_again[:, fair] - least_wins_again[:, c],
                ),
            },
        }
        for c, name in enumerate(POLICIES)
    ]
    return {
        "name": setting.name,
        "populations": list(setting.tastes),
        "ratio": list(setting.ratio),
        "annotators": setting.count,
        "pairs": setting.pairs,
        "seeds": len(runs),
        "policies": rows,
        "recovery": {
            "mean": float(np.mean([r.recovery for r in runs])),
            "least": float(min(r.recovery for r in runs)),
        },
        "weights": np.mean([np.sort(r.weights)[::-1] for r in runs], axis=0).tolist(),
        "largest_gap": float(max(r.gap for r in runs)),
        "divergence": [float(d) for d in np.mean([r.divergence for r in runs], axis=0)],
    }


def falls(even: Sequence[Run], uneven: Sequence[Run], resamples: Resamples) -> dict[str, Any]:
    """How much the second population loses between two settings of the same seeds, under pooled reward and MaxMin."""
    first, first_again = resamples.means(even, "utility")
    second, second_again = resamples.means(uneven, "utility")
    lost = (first - second)[:, 1].mean(-1)
    lost_again = resamples.over_seeds((first_again - second_again)[:, :, 1])
    pooled, fair = POLICIES.index("pooled"), POLICIES.index("MaxMin")
    return {
        "pooled": estimate(lost[pooled], lost_again[:, pooled]),
        "MaxMin": estimate(lost[fair], lost_again[:, fair]),
    }

"""Real people judge: jokes told by MaxMin or by the mean, rated by people whom nobody fitted.

MAXMIN_DATA=... python -m benchmarks.study_jester [--seeds 5]

Groups are learned from the pairs that some raters make of half of the jokes. Over the other half a policy is chosen, by
MaxMin and by the mean of the groups' rewards (the fitted raters' mean ratings there, weighted by their groups), both as
far from drawing evenly. The judges are other raters: placed by the first half of the jokes, heard on the second.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import panels
from benchmarks.harness import write_study
from maxmin_rlhf import PreferenceData, PreferenceMixture, calibrate
from maxmin_rlhf.welfare.at_kl import best_for, fairest

Array = np.ndarray
KLS = (1.0, 2.0, 3.0)  # nats from an even draw, of both policies; one joke alone is 3.9
JUDGES = (0.3, 0.5)  # shares of raters who are not fitted
PAIRS = 100  # of a rater, at most
APART = 1.0  # least difference of two ratings that are a pair
RESAMPLES = 1000


def ratings(folder: Path) -> Array:
    """(raters, jokes), from -10 to 10, NaN where there is none."""
    table = pd.read_parquet(folder / "jester5k/ratings.parquet")
    return table.pivot(index="annotator_id", columns="item", values="rating").to_numpy(np.float64)


def pairs(r: Array, rng: np.random.Generator) -> PreferenceData:
    """Some pairs of each rater's own ratings (raters, jokes); raters without one are an error of the caller's."""
    first, second = np.triu_indices(r.shape[1], 1)
    won, lost, who = [], [], []
    for rater, own in enumerate(r):
        difference = own[first] - own[second]
        usable = np.flatnonzero(np.abs(difference) >= APART)
        some = rng.choice(usable, min(PAIRS, usable.size), replace=False)
        ahead = difference[some] > 0
        won.append(np.where(ahead, first[some], second[some]))
        lost.append(np.where(ahead, second[some], first[some]))
        who.append(np.full(some.size, rater))
    return PreferenceData.from_items(np.eye(r.shape[1]), *map(np.concatenate, (won, lost, who)))


def group_means(r: Array, share: Array, times: Array | None = None) -> Array:
    """(..., jokes, K) mean rating of each joke in each group, raters counting by their share (raters, K), and each
    ``times`` (..., raters)."""
    there = ~np.isnan(r)
    filled = np.where(there, r, 0.0)
    times = np.ones(len(r)) if times is None else times
    means = [
        ((times * own) @ filled) / np.maximum((times * own) @ there.astype(float), 1e-12)
        for own in share.T
    ]
    return np.stack(means, -1)


class Judges:
    """Raters who were not fitted, each in one group; and resamples of them."""

    def __init__(self, r: Array, group: Array, rng: np.random.Generator) -> None:
        n = len(r)
        times = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
        times = np.concatenate([np.ones((1, n)), times])  # first as they are
        self.by_group = group_means(r, group, times)
        self.overall = group_means(r, np.ones((n, 1)), times)[..., 0]

    def compare(self, maxmin: Array, mean: Array) -> dict[str, Any]:
        """Of two policies (jokes,): the worst-off group's mean rating, the overall mean, and the gain on an even draw
        of the group that gains least; with intervals of the differences."""
        even = self.by_group.mean(1)
        found = {}
        for name, value in {
            "worst_group": lambda p: np.einsum("j,bjk->bk", p, self.by_group).min(1),
            "overall": lambda p: self.overall @ p,
            "least_gain": lambda p: (np.einsum("j,bjk->bk", p, self.by_group) - even).min(1),
        }.items():
            fair, usual = value(maxmin), value(mean)
            interval = np.percentile((fair - usual)[1:], [2.5, 97.5])
            found[name] = {
                "maxmin": round(float(fair[0]), 3),
                "mean": round(float(usual[0]), 3),
                "difference": round(float(fair[0] - usual[0]), 3),
                "interval": interval.round(3).tolist(),
            }
        return found


def study(r: Array, n_groups: int, judges_share: float, seed: int) -> list[dict[str, Any]]:
    """One split of raters and jokes: rows for what is calibrated how, and for groups that are shuffled."""
    rng = np.random.default_rng(seed)
    jokes = rng.permutation(r.shape[1])
    known, told = jokes[: r.shape[1] // 2], jokes[r.shape[1] // 2 :]
    spread = np.nanmax(r[:, known], 1) - np.nanmin(r[:, known], 1)
    raters = rng.permutation(np.flatnonzero((spread >= APART) & ~np.isnan(r[:, told]).all(1)))
    cut = int(judges_share * len(raters))
    judges, fitted = raters[:cut], raters[cut:]
    data = pairs(r[np.ix_(fitted, known)], rng)
    mixture = PreferenceMixture(n_groups, n_init=8, random_state=seed).fit(data)
    share = mixture.predict_proba(data)
    group = np.eye(n_groups)[mixture.predict(pairs(r[np.ix_(judges, known)], rng))]
    rows = []
    for shuffled in (False, True):
        if shuffled:
            share, group = rng.permutation(share), rng.permutation(group)
        heard = Judges(r[np.ix_(judges, told)], group, rng)
        rewards = group_means(r[np.ix_(fitted, told)], share)[None]
        weights = share.mean(0)
        for method, kl in itertools.product((None, "center"), KLS):
            some = calibrate(rewards, method)
            fair = fairest(some, kl)
            rows.append(
                {
                    "groups": n_groups,
                    "judges_share": judges_share,
                    "seed": seed,
                    "shuffled": shuffled,
                    "calibrate": method,
                    "kl": kl,
                    "shares": weights.round(3).tolist(),
                    "maxmin_weights": np.round(fair.weights, 3).tolist(),
                    "judges": group.sum(0).astype(int).tolist(),
                    **heard.compare(fair.chances[0], best_for(some @ weights, kl).chances[0]),
                }
            )
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds: ratings as they are are about the worst-off group's rating, centred ones about the least gain."""
    table = []
    for row in rows:
        about = "worst_group" if row["calibrate"] is None else "least_gain"
        found = row[about]
        table.append(
            {
                **{key: row[key] for key in ("shuffled", "judges_share", "groups", "kl")},
                "about": about,
                "gain": found["difference"],
                "above": found["interval"][0] > 0,
                "below": found["interval"][1] < 0,
                "price": -row["overall"]["difference"],
            }
        )
    by = ["shuffled", "about", "judges_share", "groups", "kl"]
    return [
        {
            **dict(zip(by, key, strict=True)),
            "runs": len(some),
            "gains": int((some.gain > 0).sum()),
            "intervals_above_zero": int(some.above.sum()),
            "intervals_below_zero": int(some.below.sum()),
            "mean_gain": round(float(some.gain.mean()), 3),
            "mean_price": round(float(some.price.mean()), 3),
        }
        for key, some in pd.DataFrame(table).groupby(by)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    n_seeds = parser.parse_args().seeds
    r = ratings(panels.data_folder())
    rows = []
    for n_groups, judges, seed in itertools.product((3, 4), JUDGES, range(n_seeds)):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a group that is always the worst off is a finding here
            rows += study(r, n_groups, judges, seed)
        print(f"K={n_groups}, {judges:g} judge, seed {seed}", flush=True)
    found = summary(rows)
    for row in found:
        print(row)
    write_study("jester_policy", {"raters": len(r), "summary": found, "runs": rows})


if __name__ == "__main__":
    main()

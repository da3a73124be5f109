"""Real people judge: jokes told by MaxMin or by the mean, rated by people whom nobody fitted.

MAXMIN_DATA=... python -m benchmarks.study_jester [--seeds 5]

Groups are learned from the pairs that some raters make of half of the jokes. Over the other half a policy is chosen, by
MaxMin and by the mean of the groups' rewards (the fitted raters' mean ratings there, weighted by their groups), both as
far from drawing evenly. The judges are other raters: placed by the first half of the jokes, heard on the second.
"""

from __future__ import annotations

import argparse
import itertools
import time
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
JUDGES = 0.5  # share of raters who are not fitted
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


def group_means(r: Array, share: Array) -> Array:
    """(jokes, K) mean rating of each joke in each group, raters counting by their share (raters, K)."""
    there = ~np.isnan(r)
    return (np.where(there, r, 0.0).T @ share) / np.maximum(there.T.astype(float) @ share, 1e-12)


def judged(r: Array, share: Array, policies: dict[str, Array]) -> dict[str, Array]:
    """{policy: worst-off group's mean rating, overall mean, and gain of the group that gains least}."""
    by_group, overall = group_means(r, share), group_means(r, np.ones((len(r), 1)))[:, 0]
    even = by_group.mean(0)
    return {
        name: np.array([(p @ by_group).min(), p @ overall, (p @ by_group - even).min()])
        for name, p in policies.items()
    }


def compare(
    r: Array, share: Array, policies: dict[str, Array], rng: np.random.Generator
) -> dict[str, Any]:
    """What the judges say, with intervals over resampled judges."""
    found = judged(r, share, policies)
    lead = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(r), len(r))
        again = judged(r[drawn], share[drawn], policies)
        lead.append(again["maxmin"] - again["mean"])
    low, high = np.percentile(lead, [2.5, 97.5], axis=0)
    names = ("worst_group", "overall", "least_gain")
    return {
        name: {
            "maxmin": round(float(found["maxmin"][i]), 3),
            "mean": round(float(found["mean"][i]), 3),
            "difference": round(float(found["maxmin"][i] - found["mean"][i]), 3),
            "interval": [round(float(low[i]), 3), round(float(high[i]), 3)],
        }
        for i, name in enumerate(names)
    }


def study(r: Array, n_groups: int, seed: int) -> list[dict[str, Any]]:
    """One split of raters and jokes: a row for each calibration, and for groups that are shuffled."""
    rng = np.random.default_rng(seed)
    jokes = rng.permutation(r.shape[1])
    known, told = jokes[: r.shape[1] // 2], jokes[r.shape[1] // 2 :]
    spread = np.nanmax(r[:, known], 1) - np.nanmin(r[:, known], 1)
    raters = rng.permutation(np.flatnonzero((spread >= APART) & ~np.isnan(r[:, told]).all(1)))
    cut = int(JUDGES * len(raters))
    judges, fitted = raters[:cut], raters[cut:]
    began = time.perf_counter()
    data = pairs(r[np.ix_(fitted, known)], rng)
    mixture = PreferenceMixture(n_groups, n_init=8, random_state=seed).fit(data)
    seconds = time.perf_counter() - began
    share = mixture.predict_proba(data)
    # A judge is in one group, the likeliest.
    group = np.eye(n_groups)[mixture.predict(pairs(r[np.ix_(judges, known)], rng))]
    rows = []
    for control in (False, True):
        if control:
            share, group = rng.permutation(share), rng.permutation(group)
        rewards = group_means(r[np.ix_(fitted, told)], share)[None]
        weights = share.mean(0)
        for method, kl in itertools.product((None, "center"), KLS):
            some = calibrate(rewards, method)
            fair = fairest(some, kl)
            policies = {"maxmin": fair.chances[0], "mean": best_for(some @ weights, kl).chances[0]}
            rows.append(
                {
                    "groups": n_groups,
                    "seed": seed,
                    "shuffled": control,
                    "calibrate": method,
                    "kl": kl,
                    "shares": weights.round(3).tolist(),
                    "maxmin_weights": np.round(fair.weights, 3).tolist(),
                    "judges": group.sum(0).astype(int).tolist(),
                    "fit_seconds": round(seconds, 1),
                    **compare(r[np.ix_(judges, told)], group, policies, rng),
                }
            )
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over runs: ratings as they are are about the worst-off group's rating, centred ones about the least gain."""
    table = pd.DataFrame(
        {
            **{key: row[key] for key in ("shuffled", "groups", "kl")},
            "about": "worst_group" if row["calibrate"] is None else "least_gain",
            "gain": row["worst_group" if row["calibrate"] is None else "least_gain"]["difference"],
            "above_zero": row["worst_group" if row["calibrate"] is None else "least_gain"][
                "interval"
            ][0]
            > 0,
            "price": -row["overall"]["difference"],
        }
        for row in rows
    )
    return [
        {
            **dict(zip(("shuffled", "about", "groups", "kl"), key, strict=True)),
            "runs": len(some),
            "gains": int((some.gain > 0).sum()),
            "gains_with_interval_above_zero": int(some.above_zero.sum()),
            "mean_gain": round(float(some.gain.mean()), 3),
            "mean_price": round(float(some.price.mean()), 3),
        }
        for key, some in table.groupby(["shuffled", "about", "groups", "kl"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    n_seeds = parser.parse_args().seeds
    r = ratings(panels.data_folder())
    rows = []
    for n_groups in (3, 4):
        for seed in range(n_seeds):
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # a group that is always the worst off is a finding here
                new = study(r, n_groups, seed)
            rows += new
            for row in new:
                worst, overall, gain = (row[k] for k in ("worst_group", "overall", "least_gain"))
                print(
                    f"K={n_groups} seed {seed} kl {row['kl']:g} {row['calibrate']!s:6} {'shuffled' if row['shuffled'] else '':8} worst "
                    f"{worst['mean']:.2f} -> {worst['maxmin']:.2f} {worst['interval']}, overall {overall['mean']:.2f} -> "
                    f"{overall['maxmin']:.2f}, least gain {gain['mean']:.2f} -> {gain['maxmin']:.2f} {gain['interval']}",
                    flush=True,
                )
    write_study("jester_policy", {"raters": len(r), "summary": summary(rows), "runs": rows})


if __name__ == "__main__":
    main()

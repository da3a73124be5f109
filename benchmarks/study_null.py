"""How often does select_groups see groups where there are none? Data of one shared reward, five designs in turn.

python -m benchmarks.study_null [--sets 100]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter

import numpy as np

from benchmarks.harness import write_study
from maxmin_rlhf import PreferenceData, select_groups

# annotators, comparisons of each, offers in each, features, items (0: every offer is new)
DESIGNS = {
    "pairs": (100, 20, 2, 5, 0),
    "pairs, many features": (300, 10, 2, 20, 0),
    "sets of four": (100, 12, 4, 6, 0),
    "one-hot items": (150, 30, 2, 20, 20),
    "items": (100, 40, 2, 8, 40),
}


def one_reward(design: str, rng: np.random.Generator) -> PreferenceData:
    """Choices of people who share one reward, of random sharpness."""
    n_annotators, each, size, n_features, n_items = DESIGNS[design]
    owner = np.repeat(np.arange(n_annotators), each)
    head = rng.standard_normal(n_features) * rng.uniform(0.3, 2.0) / n_features**0.5
    if n_items:
        items = (
            np.eye(n_items) if n_items == n_features else rng.standard_normal((n_items, n_features))
        )
        if n_items == n_features:
            head *= n_features**0.5
        drawn = rng.random((owner.size, n_items)).argsort(1)[:, :size]
        utility = items[drawn] @ head + rng.gumbel(size=drawn.shape)
        chosen, rejected = np.take_along_axis(drawn, (-utility).argsort(1), 1).T
        return PreferenceData.from_items(items, chosen, rejected, owner)
    offers = rng.standard_normal((owner.size, size, n_features))
    utility = offers @ head + rng.gumbel(size=(owner.size, size))
    offers = np.take_along_axis(offers, (-utility).argsort(1)[..., None], 1)
    rows = (offers[:, :1] - offers[:, 1:]).reshape(-1, n_features)
    comparison = np.repeat(np.arange(owner.size), size - 1)
    return PreferenceData.from_arrays(rows, np.repeat(owner, size - 1), comparison=comparison)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=100)
    n_sets = parser.parse_args().sets
    rows = []
    for seed in range(n_sets):
        design = list(DESIGNS)[seed % len(DESIGNS)]
        data = one_reward(design, np.random.default_rng(seed))
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # groups that stay empty are as it should be
            selection = select_groups(data, range(1, 5), random_state=seed)
        rows.append(
            {
                "design": design,
                "seed": seed,
                "best": selection.best_,
                "gains": [round(r["gain"], 5) for r in selection.results_],
                "seconds": round(time.perf_counter() - began, 2),
            }
        )
        if selection.best_ > 1:
            print(f"{design}, seed {seed}: {selection.reason_}", flush=True)
    right = sum(row["best"] == 1 for row in rows)
    print(f"one reward in {right} of {n_sets}")
    by_design = Counter(row["design"] for row in rows if row["best"] == 1)
    write_study(
        "null_control", {"sets": n_sets, "one_reward": right, "by_design": by_design, "runs": rows}
    )


if __name__ == "__main__":
    main()

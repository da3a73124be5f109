"""Two crowds, helpful and harmless, from their texts alone: how well one reward predicts, and how well a mixture does.

    MAXMIN_DATA=... python -m benchmarks.study_hh [--store out/hh_store] [--splits 10]

Writes results/hh_objectives.json. Annotators are held out in five folds. On the other folds the number of groups and the
ridges are selected, as `maxmin fit --groups 1-2 --split comparison` does. Then 30 % of each held-out annotator's comparisons are predicted, by
one reward and by the mixture, whose groups know him from the other 70 %; over several such splits. Intervals: bootstrap over
annotators. Annotators of these data are synthetic, 40 comparisons of one crowd each; the crowd is the truth to recover.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.harness import write_study
from benchmarks.panels import data_folder
from maxmin_rlhf import PreferenceData, PreferenceMixture, TextPreferences, encode, select_groups
from maxmin_rlhf.data import annotator_folds, held_out_masks
from maxmin_rlhf.encoding import EncodeProgress
from maxmin_rlhf.mixture import FitWarning

Array = NDArray[np.float64]
FOLDS = 5
RESAMPLES = 10_000


def hits(mixture: PreferenceMixture, data: PreferenceData, splits: int, seed: int) -> tuple[Array, Array]:  # fmt: skip
    """(A,) comparisons predicted rightly, and predicted, of each annotator, over several splits."""
    assert data.chosen is not None and data.rejected is not None
    reward = mixture.reward(data.features)
    margin = reward[data.chosen.numpy()] - reward[data.rejected.numpy()]
    share = 1 / (1 + np.exp(-margin))
    right, total = np.zeros(data.n_annotators), np.zeros(data.n_annotators)
    for split in range(splits):
        visible, scored, _ = held_out_masks(data, "comparison", seed + split)
        posterior = mixture.predict_proba(data.select_comparisons(visible))
        who = data.comparison_annotator
        probability = (posterior[who] * share).sum(1)
        right += np.bincount(who[scored], probability[scored] > 0.5, data.n_annotators)
        total += np.bincount(who[scored], minlength=data.n_annotators)
    return right, total


def held_out(data: PreferenceData, crowd: NDArray[np.bool_], splits: int, seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """Accuracy on held-out annotators of one reward and of the selected mixture."""
    fold = annotator_folds(data.n_annotators, FOLDS, seed)
    right = np.zeros((3, data.n_annotators))
    total = np.zeros(data.n_annotators)
    recovered = np.zeros(data.n_annotators)
    sizes, ridges = [], []
    for k in range(FOLDS):
        known, new = data.select_annotators(fold != k), data.select_annotators(fold == k)
        found = select_groups(known, (1, 2), split="comparison", random_state=seed)
        by_size = {r["n_groups"]: r["l2"] for r in found.results_}
        pooled = PreferenceMixture(1, l2=by_size[1], random_state=seed).fit(known)
        mixture = found.best_mixture_
        for i, fitted in enumerate((pooled, mixture)):
            right[i, fold == k], total[fold == k] = hits(fitted, new, splits, seed)
        for side in (True, False):  # what there is to gain, were everybody's crowd known
            of_crowd = known.select_annotators(crowd[fold != k] == side)
            fitted = PreferenceMixture(1, l2=mixture.l2, random_state=seed).fit(of_crowd)
            his = (fold == k) & (crowd == side)
            right[2, his] = hits(fitted, data.select_annotators(his), splits, seed)[0]
        recovered[fold == k] = _recovered(mixture, known, crowd[fold != k], new, crowd[fold == k])
        sizes.append(found.best_)
        ridges.append({"pooled": by_size[1], "mixture": by_size[found.best_]})
        print(f"fold {k + 1}: {found.reason_}", flush=True)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(data.n_annotators, size=(RESAMPLES, data.n_annotators))
    share = right[:, drawn].sum(2) / total[drawn].sum(1)
    middle = right.sum(1) / total.sum()

    def interval(x: Array) -> list[float]:
        return [round(float(v), 4) for v in np.percentile(x, (2.5, 97.5))]

    return {
        "pooled": {"accuracy": round(float(middle[0]), 4), "interval": interval(share[0])},
        "mixture": {"accuracy": round(float(middle[1]), 4), "interval": interval(share[1])},
        "crowd known": {"accuracy": round(float(middle[2]), 4), "interval": interval(share[2])},
        "difference": {
            "accuracy": round(float(middle[1] - middle[0]), 4),
            "interval": interval(share[1] - share[0]),
        },
        "groups_by_fold": sizes,
        "l2_by_fold": ridges,
        "crowd_recovered": round(float(recovered.mean()), 4),
    }


def _recovered(mixture: PreferenceMixture, known: PreferenceData, crowd: Any, new: PreferenceData, truth: Any) -> Any:  # fmt: skip
    """Whose group is his crowd's, groups named after the crowd that most of their known annotators are."""
    groups = mixture.predict(known)
    named = np.array([(groups == k).any() and crowd[groups == k].mean() > 0.5 for k in range(mixture.n_groups)])  # fmt: skip
    return named[mixture.predict(new)] == truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("out/hh_store"))
    parser.add_argument("--splits", type=int, default=10)
    args = parser.parse_args()
    warnings.simplefilter("ignore", FitWarning)
    path = data_folder() / "hh_objectives/pairs_human.parquet"
    table = pd.read_parquet(path, columns=["annotator_id", "group"])
    by_annotator = table.groupby("annotator_id", observed=True)["group"].first()
    findings: dict[str, Any] = {"splits": args.splits, "folds": FOLDS}
    for form in ("pair", "response"):
        prefs = TextPreferences.read(path, annotator="annotator_id", form=form)
        began, lately = time.perf_counter(), [0.0]

        def say(at: EncodeProgress, lately: list[float] = lately) -> None:
            if time.perf_counter() - lately[0] > 30:
                lately[0] = time.perf_counter()
                print(f"{at.texts} of {at.n_texts} texts, {at.tokens / at.n_tokens:.0%}", flush=True)  # fmt: skip

        store = encode(prefs.texts, store=args.store, progress=say)
        seconds = time.perf_counter() - began
        data = prefs.over(store)
        crowd = (by_annotator.loc[list(data.annotators_)] == "helpful").to_numpy()
        found = held_out(data, crowd, args.splits)
        findings |= {"encoder": store.encoder}
        findings[form] = {
            "texts": len(prefs.texts),
            "annotators": data.n_annotators,
            "comparisons": data.n_comparisons,
            "encode_seconds": round(seconds, 1),  # next to nothing where the store had them
            **found,
        }
        print({form: findings[form]}, flush=True)
        write_study("hh_objectives", findings)


if __name__ == "__main__":
    main()

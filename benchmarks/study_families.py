"""Families of plural rewards on new annotators, one table: one pooled reward, a mixture of groups, the same with heads of
low rank, simplex weights, a variational latent.

    MAXMIN_DATA=... python -m benchmarks.study_families [--raters 2000] [--data jester,hh_objectives]

Writes results/families.json. Annotators are held out in folds. Options of each family are chosen on a fifth of the other
annotators, then it is fitted to all of those; held-out annotators are known by some of their comparisons and scored on the
others (11): Jester by item, one fold of three; hh_objectives, whose annotators are synthetic, by comparison, five folds of
five. Groups for the worst-group accuracy are no family's own: the true crowds in hh_objectives; in Jester four clusters by
k-means of the ratings of visible jokes. Intervals: bootstrap over annotators. Time is that of one fit with the options chosen,
on a machine that others used too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import panels
from benchmarks.harness import RESULTS, write_study
from benchmarks.study_jester import ratings
from maxmin_rlhf import PreferenceData, PreferenceMixture
from maxmin_rlhf.data import annotator_folds, held_out_masks
from maxmin_rlhf.mixture.objective import margins
from maxmin_rlhf.mixture.simplex import SimplexWeights
from maxmin_rlhf.mixture.variational import VariationalPreferences

Array = NDArray[np.float64]
# (C,) log predictive of choices, given those known of the same annotators
Predict = Callable[[PreferenceData, PreferenceData], Array]
Options = dict[str, Any]
RESAMPLES = 2000


def by_groups(mixture: PreferenceMixture, see: Callable[[PreferenceData], PreferenceData]) -> Predict:  # fmt: skip
    """Posterior predictive of a mixture; ``see`` gives the features that it was fitted to."""

    def predict(rest: PreferenceData, known: PreferenceData) -> Array:
        log_resp = np.log(np.maximum(mixture.predict_proba(see(known)), 1e-300))
        m = margins(see(rest), torch.from_numpy(mixture.heads_)).double().numpy()
        total = log_resp[rest.comparison_annotator] - np.logaddexp(0, -m)
        return np.logaddexp.reduce(total, 1)

    return predict


def mixture_of(data: PreferenceData, o: Options, seed: int) -> tuple[Predict, int]:
    mixture = PreferenceMixture(o["groups"], l2=o["l2"], n_init=4, random_state=seed).fit(data)
    return by_groups(mixture, lambda d: d), mixture.n_parameters


def low_rank(data: PreferenceData, o: Options, seed: int) -> tuple[Predict, int]:
    """Heads in the span of the first right singular vectors of a mixture's: fitted again within it."""
    full = PreferenceMixture(o["groups"], l2=o["l2"], n_init=4, random_state=seed).fit(data)
    basis = torch.from_numpy(np.linalg.svd(full.heads_)[2][: o["rank"]].T.copy())

    def see(d: PreferenceData) -> PreferenceData:
        return replace(d, features=d.features @ basis.to(d.features.dtype))

    fitted = PreferenceMixture(o["groups"], l2=o["l2"], n_init=4, random_state=seed).fit(see(data))
    return by_groups(fitted, see), fitted.n_parameters + basis.numel()


def simplex(data: PreferenceData, o: Options, seed: int) -> tuple[Predict, int]:
    model = SimplexWeights(o["heads"], l2=o["l2"], spread=o["spread"], random_state=seed, tol=1e-7).fit(data)  # fmt: skip
    return lambda rest, known: model.log_prob(rest, model.predict_weights(known)), model.n_parameters  # fmt: skip


def variational(data: PreferenceData, o: Options, seed: int) -> tuple[Predict, int]:
    model = VariationalPreferences(o["latent"], l2=o["l2"], max_epochs=o["epochs"], patience=8, random_state=seed).fit(data)  # fmt: skip
    return model.log_prob, model.n_parameters


def grid(**options: tuple[Any, ...]) -> list[Options]:
    return [dict(zip(options, some, strict=True)) for some in itertools.product(*options.values())]


def families(name: str) -> dict[str, tuple[Any, list[Options]]]:
    """How each is fitted, and the options it may choose from."""
    if name == "jester":
        ridge, groups, heads, ranks, epochs = (1.0, 10.0), (2, 3, 4, 6), (3, 6), (2, 3), (60,)
    else:
        ridge, groups, heads, ranks, epochs = (0.1, 0.3, 1.0, 3.0), (2, 3), (2, 3), (1, 2), (100,)
    return {
        "pooled": (mixture_of, grid(groups=(1,), l2=(*ridge, 10 * ridge[-1]))),
        "mixture": (mixture_of, grid(groups=groups, l2=ridge)),
        "low-rank heads": (low_rank, grid(groups=groups[-2:], l2=ridge, rank=ranks)),
        "simplex weights": (simplex, grid(heads=heads, l2=ridge, spread=(0.3, 1.0))),
        "variational": (
            variational,
            grid(latent=(2, 4), l2=(ridge[0], ridge[-1], 10 * ridge[-1]), epochs=epochs),
        ),
    }


def judged(data: PreferenceData, predict: Predict, split: str, seed: int) -> dict[str, Array]:
    """(A,) summed log predictive, comparisons predicted rightly, and scored, of each annotator."""
    visible, scored, _ = held_out_masks(data, split, seed)
    rest = data.select_comparisons(scored)
    log_p = predict(rest, data.select_comparisons(visible))
    who, n = rest.comparison_annotator, data.n_annotators
    return {
        "score": np.bincount(who, log_p, n),
        "right": np.bincount(who, (log_p > np.log(0.5)).astype(float), n),
        "n": np.bincount(who, minlength=n).astype(float),
    }


def table(name: str, data: PreferenceData, groups: NDArray[np.int64], split: str, folds: int, used: int, seed: int, only: set[str]) -> dict[str, Any]:  # fmt: skip
    """One row a family of ``only`` and pooled; ``groups`` (A,) of each annotator for the worst-group accuracy."""
    fold = annotator_folds(data.n_annotators, folds, seed)
    out = fold < used
    kept: dict[str, dict[str, Array]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for family, (fit, options) in families(name).items():
        if only and family not in only | {"pooled"}:
            continue
        kept[family] = {key: np.zeros(data.n_annotators) for key in ("score", "right", "n")}
        chosen, seconds, sizes = [], [], []
        began = time.perf_counter()
        for f in range(used):
            known = data.select_annotators(fold != f)
            inner = annotator_folds(known.n_annotators, 5, seed + 1) == 0
            some, other = known.select_annotators(~inner), known.select_annotators(inner)
            scores = [judged(other, fit(some, o, seed)[0], split, seed)["score"].sum() for o in options]  # fmt: skip
            best = options[int(np.argmax(scores))]
            fit_began = time.perf_counter()
            predict, n_parameters = fit(known, best, seed)
            seconds.append(time.perf_counter() - fit_began)
            found = judged(data.select_annotators(fold == f), predict, split, seed)
            for key, values in found.items():
                kept[family][key][fold == f] = values
            chosen.append(best)
            sizes.append(n_parameters)
        facts[family] = {
            "fit_seconds": round(float(np.median(seconds)), 2),
            "parameters": int(np.median(sizes)),
            "chosen": chosen,
        }
        print(name, family, kept[family]["score"].sum() / kept[family]["n"].sum(), kept[family]["right"].sum() / kept[family]["n"].sum(), f"{time.perf_counter() - began:.0f} s", facts[family], flush=True)  # fmt: skip
    for family, row in intervals(kept, groups, out, seed).items():
        facts[family] = row | facts[family]
    return {
        "annotators": data.n_annotators,
        "new_annotators": int(out.sum()),
        "comparisons": data.n_comparisons,
        "features": data.n_features,
        "split": split,
        "group_sizes": np.bincount(groups[out]).tolist(),
        "families": facts,
    }


def intervals(kept: dict[str, dict[str, Array]], groups: NDArray[np.int64], out: NDArray[np.bool_], seed: int) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Score, its gain over pooled, accuracy and that of the worst group, with intervals over annotators."""
    rng, n = np.random.default_rng(seed), int(out.sum())
    times = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
    times = np.concatenate([np.ones((1, n)), times])  # first as they are
    member = np.eye(groups.max() + 1)[groups[out]]

    def estimate(values: Array) -> list[float]:
        low, high = np.percentile(values[1:], (2.5, 97.5))
        return [round(float(x), 4) for x in (values[0], low, high)]

    rows, base = {}, None
    for family, sums in kept.items():
        score, right, count = (sums[key][out] for key in ("score", "right", "n"))
        mean = (times @ score) / (times @ count)
        base = mean if base is None else base
        by_group = (times @ (member * right[:, None])) / (times @ (member * count[:, None]))
        rows[family] = {
            "score": estimate(mean),
            "gain_over_pooled": estimate(mean - base),
            "accuracy": estimate((times @ right) / (times @ count)),
            "worst_group_accuracy": estimate(by_group.min(1)),
            "accuracy_by_group": by_group[0].round(4).tolist(),
        }
    return rows


def clusters(r: Array, visible: NDArray[np.bool_], k: int, seed: int) -> NDArray[np.int64]:
    """(raters,) by k-means of ratings (raters, jokes) where visible, each rater's and each joke's mean taken off."""
    r = np.where(visible, r, np.nan)
    r = r - np.nanmean(r, 1, keepdims=True)
    r = np.nan_to_num(r - np.nanmean(r, 0))
    rng, best, label = np.random.default_rng(seed), np.inf, np.zeros(len(r), int)
    for _ in range(5):
        centres = r[rng.choice(len(r), k, replace=False)]
        for _ in range(50):
            far = ((r[:, None] - centres) ** 2).sum(2)
            near = far.argmin(1)
            centres = np.stack([r[near == j].mean(0) if (near == j).any() else centres[j] for j in range(k)])  # fmt: skip
        if far.min(1).sum() < best:
            best, label = far.min(1).sum(), near
    return label


def jester(n: int, seed: int) -> tuple[PreferenceData, NDArray[np.int64]]:
    """Some raters, and their clusters by the jokes that the split of :func:`judged` shows."""
    import pandas as pd

    folder = panels.data_folder()
    data = panels.jester(folder)
    if n:
        data = data.select_annotators(np.random.default_rng(seed).permutation(data.n_annotators)[:n])  # fmt: skip
    ids = np.sort(pd.read_parquet(folder / "jester5k/ratings.parquet", columns=["annotator_id"]).annotator_id.unique())  # fmt: skip
    r = ratings(folder)[np.searchsorted(ids, data.annotators_)]
    # What is visible depends on who is split together: only raters of the one fold in use are clustered by it.
    fold = annotator_folds(data.n_annotators, 3, seed)
    shown = np.ones(r.shape, bool)
    new = data.select_annotators(fold == 0)
    visible, _, _ = held_out_masks(new, "item", seed)
    seen = np.zeros((new.n_annotators, r.shape[1]), bool)
    for side in (new.chosen, new.rejected):
        seen[new.comparison_annotator[visible], side.numpy()[visible]] = True  # type: ignore[union-attr]
    shown[fold == 0] = seen
    return data, clusters(r, shown, 4, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raters", type=int, default=2000, help="of Jester; 0: all")
    parser.add_argument("--data", default="hh_objectives,jester")
    parser.add_argument("--only", default="", help="families to run again; others stay as they are")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    findings: dict[str, Any] = {"seed": 0}
    only = set(filter(None, args.only.split(",")))
    before = json.loads((RESULTS / "families.json").read_text()) if only else {}
    findings |= {name: before[name] for name in ("hh_objectives", "jester") if name in before}
    for name in args.data.split(","):
        if name == "jester":
            data, groups = jester(args.raters, 0)
            found = table(name, data, groups, "item", 3, 1, 0, only)
        else:
            data, crowd = panels.hh_objectives(panels.data_folder())
            found = table(name, data, crowd.astype(int), "comparison", 5, 5, 0, only)
        if only:
            found["families"] = before[name]["families"] | found["families"]
        findings[name] = found
        write_study("families", findings)


if __name__ == "__main__":
    main()

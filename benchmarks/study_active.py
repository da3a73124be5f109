"""How many questions place a new rater, asked well or at random: Jester's held-out raters.

    MAXMIN_DATA=... python -m benchmarks.study_active [--groups 2,3,4,6]

Writes results/active_queries.json. Raters are held out in five folds. Of each, 30 % of his jokes are hidden; questions are
his comparisons without a hidden joke, scored are the others, by the posterior predictive (11). "Active" asks the comparison
that is expected to tell most about his group, answers being his own; "random" is a mean over several orders. After all
questions both know the same. Pairs needed: the fewest after which the mean score has made 90 % of the gain that all of them
make over none. Intervals: bootstrap over raters. "wide" lets both choose among all pairs of the visible jokes; "spread"
does so too, but asks next only about jokes that were asked about least.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import panels
from benchmarks.harness import write_study
from benchmarks.study_jester import APART, ratings
from maxmin_rlhf import PreferenceData, PreferenceMixture
from maxmin_rlhf.data import annotator_folds, held_out_masks
from maxmin_rlhf.mixture.newcomers import assign, expected_information

Array = NDArray[np.float64]
FOLDS, ORDERS, MOST = 5, 8, 40  # MOST questions are followed one by one
REACH = 0.9
RESAMPLES = 2000
WAYS = ("active", "random", "wide active", "wide random", "spread active", "spread random")
L2 = 1.0


def log_choice(margin: Array) -> Array:
    return -np.logaddexp(0.0, -margin)


def path(
    prior: Array,
    margins: Array,
    active: bool,
    rng: np.random.Generator,
    jokes: NDArray[np.int64] | None = None,
) -> Array:
    """(MOST + 1, K) log-joint after 0, 1, ... answers; margins (n, K) of chosen over rejected. Few: the last stays.

    With the ``jokes`` (n, 2) of each pair only those whose jokes were asked about least may be next.
    """
    joint = np.log(prior)
    steps = np.empty((MOST + 1, len(prior)))
    steps[0] = joint
    left = rng.permutation(len(margins))  # ties of an active choice fall at random
    uses = np.zeros(0 if jokes is None else jokes.max(initial=0) + 1, np.int64)
    for n in range(1, MOST + 1):
        if left.size:
            may = np.arange(left.size)
            if jokes is not None:
                asked = uses[jokes[left]].sum(1)
                may = np.flatnonzero(asked == asked.min())
            at = int(may[0])
            if active:
                posterior = np.exp(joint - joint.max())
                told = expected_information(posterior / posterior.sum(), margins[left[may]])
                at = int(may[told.argmax()])
            joint = joint + log_choice(margins[left[at]])
            if jokes is not None:
                uses[jokes[left[at]]] += 1
            left = np.delete(left, at)
        steps[n] = joint
    return steps


def predictive(joint: Array, scored: Array) -> Array:
    """(n,) mean log predictive of scored comparisons (m, K) after each step (n, K)."""
    gamma = joint - np.logaddexp.reduce(joint, 1)[:, None]
    return np.logaddexp.reduce(gamma[:, None] + log_choice(scored)[None], 2).sum(1)


def every_pair(own: Array, items: NDArray[np.int64], heads: Array) -> tuple[Array, NDArray[np.int64]]:  # fmt: skip
    """(n, K) margins of all pairs of some jokes that a rater's ratings tell apart, and the pairs (n, 2)."""
    first, second = items[np.array(np.triu_indices(items.size, 1))]
    difference = own[first] - own[second]
    first, second = first[np.abs(difference) >= APART], second[np.abs(difference) >= APART]
    ahead = np.sign(own[first] - own[second])
    return ahead[:, None] * (heads[:, first] - heads[:, second]).T, np.stack([first, second], 1)


def follow(data: PreferenceData, k: int, wide: Array | None, seed: int) -> dict[str, Array]:
    """(A, MOST + 1) summed score of each way after each answer, (A, 1) after all; and who is placed after how many."""
    fold = annotator_folds(data.n_annotators, FOLDS, seed)
    visible, scored, _ = held_out_masks(data, "item", seed)
    chosen, rejected = data.chosen.numpy(), data.rejected.numpy()  # type: ignore[union-attr]
    ends = data.indptr.numpy()
    size = (data.n_annotators, MOST + 1)
    ways = WAYS if wide is not None else WAYS[:2]
    out: dict[str, Array] = {way: np.zeros(size) for way in ways}
    out |= {"known " + way: np.zeros(size) for way in ways} | {"agree " + way: np.zeros(size) for way in ways}  # fmt: skip
    out |= {"all": np.zeros((size[0], 1)), "weight": np.zeros(size[0])}
    for f in range(FOLDS):
        mixture = PreferenceMixture(k, n_init=4, l2=L2, random_state=seed).fit(data.select_annotators(fold != f))  # fmt: skip
        heads, prior = mixture.heads_, mixture.weights_
        for a in np.flatnonzero(fold == f):
            rng = np.random.default_rng([seed, a])
            own = slice(ends[a], ends[a + 1])
            margins = (heads[:, chosen[own]] - heads[:, rejected[own]]).T
            asked, judged = margins[visible[own]], margins[scored[own]]
            seen = np.unique(np.concatenate([chosen[own][visible[own]], rejected[own][visible[own]]]))  # fmt: skip
            final = np.log(prior) + log_choice(asked).sum(0)
            out["all"][a] = predictive(final[None], judged)
            out["weight"][a] = len(judged)
            for way in ways:
                pool, jokes = asked, None
                if wide is not None and not way.startswith(("active", "random")):
                    pool, jokes = every_pair(wide[a], seen, heads)
                    jokes = jokes if way.startswith("spread") else None
                active = way.endswith("active")
                times = 1 if active else ORDERS
                for _ in range(times):
                    joint = path(prior, pool, active, rng, jokes)
                    out[way][a] += predictive(joint, judged) / times
                    posterior = np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None])
                    placed = assign(posterior)
                    out["known " + way][a] += (placed >= 0) / times
                    out["agree " + way][a] += (placed == final.argmax()) / times
    return out


def needed(gain: Array, final: float) -> int:
    reached = np.flatnonzero(gain >= REACH * final)
    return int(reached[0]) if reached.size else MOST + 1


def summary(found: dict[str, Array], seed: int) -> dict[str, Any]:
    """Pairs needed, with intervals, and the curves."""
    rng = np.random.default_rng(seed)
    n = found["weight"].size
    times = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
    times = np.concatenate([np.ones((1, n)), times])  # first as they are
    weight = times @ found["weight"]
    nothing = times @ found["random"][:, 0]
    final = (times @ found["all"][:, 0] - nothing) / weight
    facts: dict[str, Any] = {
        "gain_of_all_questions": round(float(final[0]), 5),
        "score_of_all_questions": round(float((times[0] @ found["all"][:, 0]) / weight[0]), 5),
    }
    needs = {}
    for way in [w for w in found if w.endswith(("active", "random")) and not w.startswith(("known", "agree"))]:  # fmt: skip
        gain = (times @ found[way] - nothing[:, None]) / weight[:, None]
        needs[way] = np.array([needed(g, e) for g, e in zip(gain, final, strict=True)])
        known = found["known " + way].mean(0)
        facts[way] = {
            "pairs_needed": int(needs[way][0]),
            "interval": np.percentile(needs[way][1:], (2.5, 97.5)).tolist(),
            "gain": gain[0].round(5).tolist(),
            "known_share": known.round(4).tolist(),
            "known_and_as_after_all": (found["agree " + way].mean(0) / np.maximum(known, 1e-9)).round(4).tolist(),
        }  # fmt: skip
    for prefix in ("", "wide ", "spread "):
        if prefix + "active" in needs:
            saved = needs[prefix + "random"] - needs[prefix + "active"]
            facts[prefix + "pairs_saved"] = {
                "value": int(saved[0]),
                "interval": np.percentile(saved[1:], (2.5, 97.5)).tolist(),
            }
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", default="2,3,4,6")
    parser.add_argument("--raters", type=int, default=0, help="only so many; 0: all")
    args = parser.parse_args()
    data = panels.jester(panels.data_folder())
    wide = ratings(panels.data_folder())
    if args.raters:
        data = data.select_annotators(np.arange(args.raters))
    # The rater of each row of the pivoted ratings is known by his id.
    order = np.searchsorted(_raters(), data.annotators_)
    runs = []
    for k in [int(part) for part in args.groups.split(",")]:
        began = time.perf_counter()
        found = summary(follow(data, k, wide[order], 0), 0)
        runs.append({"groups": k, "seconds": round(time.perf_counter() - began, 1), **found})
        say = {way: (v["pairs_needed"], v["interval"]) for way, v in found.items() if isinstance(v, dict) and "pairs_needed" in v}  # fmt: skip
        print(k, found["gain_of_all_questions"], say, runs[-1]["seconds"], flush=True)
        write_study(
            "active_queries",
            {
                "raters": data.n_annotators,
                "folds": FOLDS,
                "random_orders": ORDERS,
                "reach": REACH,
                "l2": L2,
                "runs": runs,
            },
        )


def _raters() -> NDArray[Any]:
    """Ids in the order of :func:`benchmarks.study_jester.ratings`."""
    import pandas as pd

    path = panels.data_folder() / "jester5k/ratings.parquet"
    return np.sort(pd.read_parquet(path, columns=["annotator_id"]).annotator_id.unique())


if __name__ == "__main__":
    main()

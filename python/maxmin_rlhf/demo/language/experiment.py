"""One run: annotators judge, groups are found, every policy chooses for questions that nobody judged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.demo.language import annotators
from maxmin_rlhf.demo.language.responses import Responses
from maxmin_rlhf.mixture import FitWarning, PreferenceMixture, Selection, fit_sweep, select_groups
from maxmin_rlhf.mixture.matching import match_groups
from maxmin_rlhf.reward import calibrate
from maxmin_rlhf.welfare.at_kl import Policy, best_for, divergence, fairest

Array = NDArray[np.float64]
KL = 1.0  # nats a question, of every policy from drawing evenly
L2 = 1.0  # the estimator's default, for every reward alike
TRAINED = 64  # questions that are judged; the others are held out
POLICIES = ("pooled", "population mean", "mean of groups", "per-sample minimum", "oracle groups", "MaxMin")  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Who judges, and how much.

    Attributes:
        name: for people.
        tastes: of the populations (`maxmin_rlhf.demo.language.annotators.tastes`); none: a continuum.
        ratio: their sizes, the largest first.
        pairs: judged by each of ``count`` annotators.
    """

    name: str
    tastes: tuple[str, ...] = ("positive", "concise")
    ratio: tuple[int, ...] = (1, 1)
    count: int = 200
    pairs: int = 25


BALANCE = tuple(Setting(f"{n}:1", ratio=(n, 1)) for n in (1, 2, 6, 10))
# Two kinds of people who do not mind length, or like it, and few who want it short.
_THREE = ("positive", "detailed and positive", "concise")
THIRD = (
    Setting("3:3:1, so 6:1", _THREE, (3, 3, 1)),
    Setting("5:5:1, so 10:1", _THREE, (5, 5, 1)),
)
CONTROLS = (
    Setting("one population", ("positive",), (1,)),
    Setting("a continuum of tastes", ()),
    Setting("5 pairs an annotator, 6:1", ratio=(6, 1), pairs=5),
    Setting("4 minority annotators of 200", ratio=(49, 1)),
)


@dataclass(frozen=True)
class Run:
    """What came out.

    Attributes:
        held_out: ``(P',)`` the questions chosen for.
        utility: ``(len(POLICIES), T, P')`` true utility of each policy to each population at each of them, in standard
            deviations within a prompt; 0 is what drawing evenly gives. wins: likewise, the chance that the population
            prefers it to an evenly drawn response, ties counting half.
        recovery: share of annotators whose group was found. weights: of MaxMin's dual. gap: its certificate.
        divergence: ``(len(POLICIES),)`` KL from drawing evenly.
    """

    held_out: NDArray[np.int64]
    utility: Array
    wins: Array
    recovery: float
    weights: Array
    gap: float
    divergence: Array


def draw(
    responses: Responses, setting: Setting, seed: int
) -> tuple[annotators.Judgments, Array, NDArray[np.int64]]:
    """The judgments, the tastes behind them ``(T, P, S)``, and the questions held out. The split is the seed's alone."""
    shuffled = np.random.default_rng(seed).permutation(len(responses.prompts))
    rng = np.random.default_rng([seed, 1])
    if setting.tastes:
        utilities = annotators.tastes(responses, list(setting.tastes))
        group = np.repeat(
            np.arange(len(setting.ratio)), annotators.sizes(setting.ratio, setting.count)
        )
    else:
        utilities = annotators.continuum(responses, setting.count)
        group = np.arange(setting.count)
    judged = annotators.judge(
        responses, utilities, group, np.sort(shuffled[:TRAINED]), setting.pairs, rng
    )
    return judged, utilities, np.sort(shuffled[TRAINED:])


def choose_size(data: PreferenceData, seed: int, sizes: Sequence[int] = (1, 2, 3)) -> Selection:
    """How many groups there are, by held-out annotators."""
    return select_groups(data, sizes, n_init=2, n_folds=3, l2=L2, random_state=seed)


def run(responses: Responses, setting: Setting, seed: int) -> Run:
    """Fit as many groups as there are populations, choose with every policy, and ask the populations."""
    judged, utilities, held_out = draw(responses, setting, seed)
    n_groups = len(utilities)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        fits = fit_sweep(judged.data, [1, n_groups], n_init=8, l2=L2, random_state=seed)
        oracle = [
            PreferenceMixture(1, n_init=1, l2=L2, random_state=seed).fit(
                judged.data.select_annotators(judged.group == k)
            )
            for k in range(n_groups)
        ]
    found, pooled = fits[n_groups], fits[1]
    rewards = calibrated(found.heads_, responses.features[held_out])
    alone = calibrated(pooled.heads_, responses.features[held_out])[..., 0]
    known = calibrated(np.concatenate([m.heads_ for m in oracle]), responses.features[held_out])
    fair = fairest(rewards, KL)
    chosen: dict[str, Policy] = {
        "pooled": best_for(alone, KL),
        "population mean": best_for(rewards @ found.weights_, KL),
        "mean of groups": best_for(rewards.mean(2), KL),
        "per-sample minimum": best_for(rewards.min(2), KL),
        "oracle groups": fairest(known, KL),
        "MaxMin": fair,
    }
    chances = np.stack([chosen[name].chances for name in POLICIES])
    worth = utilities[:, held_out]
    better = worth[..., :, None] > worth[..., None, :]
    equal = worth[..., :, None] == worth[..., None, :]
    beats = (better + 0.5 * equal).mean(-1)
    assert fair.weights is not None and fair.gap is not None
    return Run(
        held_out=held_out,
        utility=np.einsum("cps,tps->ctp", chances, worth),
        wins=np.einsum("cps,tps->ctp", chances, beats),
        recovery=recovered(found.responsibilities_.argmax(1), judged.group),
        weights=fair.weights,
        gap=fair.gap,
        divergence=np.array([divergence(c) for c in chances]),
    )


def calibrated(heads: Array, features: Array) -> Array:
    """``(P, S, K)`` rewards with mean 0 at each prompt and spread 1."""
    return calibrate(features @ heads.T, "scale")


def recovered(found: NDArray[np.int64], known: NDArray[np.int64]) -> float:
    """Share of annotators in their own group, under the best match of the names; groups may be missed or split."""
    table = np.zeros((max(found.max(), known.max()) + 1,) * 2)
    np.add.at(table, (found, known), 1.0)
    return float(table[np.arange(len(table)), match_groups(table)].sum() / known.size)


def describe(selection: Selection) -> dict[str, Any]:
    """The parts of a selection that are kept."""
    return {
        "best": selection.best_,
        "reason": selection.reason_,
        "split": selection.split_,
        "results": selection.results_,
    }

"""What a report says of a fitted mixture: a plain dict of numbers, which the page shows and metrics.json keeps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.data._arrays import pointer, ranges
from maxmin_rlhf.mixture import FitWarning, PreferenceMixture
from maxmin_rlhf.mixture.arguments import check_count
from maxmin_rlhf.mixture.matching import match_groups
from maxmin_rlhf.report import one_reward, taste
from maxmin_rlhf.report.taste import name_of
from maxmin_rlhf.reward import calibrate
from maxmin_rlhf.welfare.at_kl import Policy, best_for, divergence, fairest

Array = NDArray[np.float64]
CERTAIN = 0.9  # posterior from which an annotator's group counts as known
_INTERVAL = (2.5, 97.5)  # percentiles
_BINS = 10
_LEAST_REFITS = 20  # fewer say nothing of an interval
_SHOWN = 10  # items, annotators
CHOICES = ("mean", "pooled", "MaxMin")


@dataclass(frozen=True)
class Menu:
    """What there is to choose from.

    Attributes:
        features: ``(M, D)`` of the items. ids: ``(M,)``.
        prompt: ``(M,)`` which items compete with each other; None: all do.
        texts: ``(M,)`` words to show for them; None: their ids.
    """

    features: Array
    ids: NDArray[Any]
    prompt: NDArray[Any] | None = None
    texts: NDArray[Any] | None = None

    def places(self) -> NDArray[np.int64]:
        """``(P, S)`` the item at each place of each prompt, -1 where there is none."""
        code = np.zeros(len(self.ids), np.int64)
        if self.prompt is not None:
            known: dict[Any, int] = {}
            code = np.array([known.setdefault(p, len(known)) for p in self.prompt.tolist()])
        sizes = np.bincount(code)
        order = np.argsort(code, kind="stable")
        at = np.full((sizes.size, int(sizes.max())), -1)
        at[code[order], np.arange(code.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = order
        return at


def describe(
    mixture: PreferenceMixture,
    data: PreferenceData,
    *,
    menu: Menu | None = None,
    selection: Mapping[str, Any] | None = None,
    kl: float | None = None,
    n_refits: int = 50,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The numbers of a report.

    Args:
        mixture: fitted. data: the preferences it was fitted to, or others with the same features.
        menu: the items to choose from; None: nothing is chosen.
        selection: ``best``, ``reason``, ``results`` of `maxmin_rlhf.select_groups`; None: the number of groups
            was given.
        kl: nats a prompt between every choice and an even one; None: 1, or half the most there is.
        n_refits: bootstrap samples of annotators behind the intervals, at least 20.
        seed: of everything random.
        say: is told what is going on.

    Returns:
        ``data``, ``groups``, ``certainty``, ``heads``, ``diversity``, ``items``, ``choice``, ``one_reward``,
        ``selection``: JSON through and through. ``items``, ``choice`` and ``one_reward`` are None without a menu;
        ``items``, ``diversity`` and ``one_reward`` with one group.
    """
    check_count("refits", n_refits, _LEAST_REFITS)
    posterior = mixture.predict_proba(data)
    facts: dict[str, Any] = {
        "data": {
            "annotators": data.n_annotators,
            "comparisons": data.n_comparisons,
            "features": data.n_features,
            "l2": mixture.l2,
            "log_likelihood": mixture.log_likelihood_,
            "converged": mixture.converged_,
        },
        "groups": _groups(mixture, posterior),
        "certainty": _certainty(posterior, data.annotators_),
        "heads": taste.described(data, mixture.heads_, seed),
        "diversity": None,
        "items": None,
        "choice": None,
        "one_reward": None,
        "selection": None if selection is None else dict(selection),
    }
    if mixture.n_groups > 1:
        facts["diversity"] = one_reward.diversity_of(data, mixture.heads_, seed)
    if menu is not None:
        facts["items"] = _divisive(mixture, menu) if mixture.n_groups > 1 else None
        facts["choice"], facts["one_reward"] = _choice(
            mixture, data, menu, kl, n_refits, seed, say, facts["diversity"]
        )
    return facts


def _groups(mixture: PreferenceMixture, posterior: Array) -> list[dict[str, Any]]:
    likeliest = posterior.argmax(1)
    return [
        {
            "name": name_of(k),
            "share": float(share),
            "annotators": int((likeliest == k).sum()),
            "certain": int(((likeliest == k) & (posterior[:, k] >= CERTAIN)).sum()),
        }
        for k, share in enumerate(mixture.weights_)
    ]


def _certainty(posterior: Array, annotators: NDArray[Any]) -> dict[str, Any]:
    """Entropy of the responsibilities as a share of the most there can be: 0 known, 1 anybody's guess."""
    n_groups = posterior.shape[1]
    logs = np.log(np.where(posterior > 0, posterior, 1.0))
    entropy = -(posterior * logs).sum(1) / max(math.log(n_groups), 1e-300)
    if n_groups == 1:
        entropy = np.zeros(len(posterior))
    counts = np.histogram(entropy, bins=_BINS, range=(0.0, 1.0 + 1e-9))[0]
    least = np.argsort(-entropy, kind="stable")[:_SHOWN]
    return {
        "mean_entropy": float(entropy.mean()),
        "certain_share": float((posterior.max(1) >= CERTAIN).mean()),
        "histogram": counts.tolist(),
        "least_certain": [
            {
                "annotator": str(annotators[a]),
                "entropy": float(entropy[a]),
                "posterior": posterior[a].tolist(),
            }
            for a in least
            if entropy[a] > 0.01
        ],
    }


def _at_menu(heads: Array, menu: Menu, places: NDArray[np.int64]) -> Array:
    """``(P, S, K)`` calibrated rewards, NaN where there is no item."""
    rewards = _shown(menu.features @ heads.T, places)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="rewards: groups .* are indifferent")
        return calibrate(rewards, "scale")


def _shown(values: Array, places: NDArray[np.int64]) -> Array:
    """``(P, S, ...)`` of items ``(M, ...)``, NaN where there is no item."""
    shown = values[places]
    shown[places < 0] = np.nan
    return shown


def _divisive(mixture: PreferenceMixture, menu: Menu) -> list[dict[str, Any]]:
    """The items whose worth to the groups differs most, in spreads of a group's own reward."""
    places = menu.places()
    rewards = _at_menu(mixture.heads_, menu, places)
    apart = np.nan_to_num(rewards.max(2) - rewards.min(2), nan=-1.0)
    order = np.argsort(-apart, axis=None, kind="stable")[:_SHOWN]
    found = []
    for p, s in zip(*np.unravel_index(order, apart.shape), strict=True):
        item = int(places[p, s])
        if item < 0:
            continue
        found.append(
            {
                "item": str(menu.ids[item]),
                "text": None if menu.texts is None else str(menu.texts[item]),
                "prompt": None if menu.prompt is None else str(menu.prompt[item]),
                "rewards": rewards[p, s].tolist(),
                "apart": float(apart[p, s]),
            }
        )
    return found


def _choice(
    mixture: PreferenceMixture,
    data: PreferenceData,
    menu: Menu,
    kl: float | None,
    n_refits: int,
    seed: int,
    say: Callable[[str], None],
    diversity: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Best on average, best for the pooled reward, best for the worst-off group, all equally far from an even choice.

    And what the pooled one costs each group; None with one group.
    """
    places = menu.places()
    most = float(np.log((places >= 0).sum(1)).mean())
    if most <= 0:
        raise ValueError("items: expected at least two to choose from at some prompt")
    if kl is None:
        kl = min(1.0, most / 2)
    elif not 0 < kl < most:
        raise ValueError(f"kl: expected a number above 0 and below {most:.3g}, the most these items allow, got {kl:g}")  # fmt: skip
    rewards = _at_menu(mixture.heads_, menu, places)
    shares = mixture.weights_
    pooled = _refit(mixture, data, 1, None, seed)
    alone = _at_menu(pooled.heads_, menu, places)[..., 0]
    fair = fairest(rewards, kl)
    chosen: dict[str, Policy] = {
        "mean": best_for(rewards @ shares, kl),
        "pooled": best_for(alone, kl),
        "MaxMin": fair,
    }
    worth = np.stack([_worth(chosen[name].chances, rewards) for name in CHOICES])
    again, again_shares, again_cost = [], [], []
    rng = np.random.default_rng([seed, 1])
    for count in range(n_refits):
        if count % 10 == 0:
            say(f"refitting on resampled annotators: {count} of {n_refits}")
        drawn = rng.integers(0, data.n_annotators, data.n_annotators)
        other = _refit(mixture, _resampled(data, drawn), mixture.n_groups, mixture.heads_, seed)
        order = _matched(mixture.heads_, other.heads_)
        rewards_again = _at_menu(other.heads_[order], menu, places)
        again.append([_worth(chosen[name].chances, rewards_again) for name in CHOICES])
        again_shares.append(other.weights_[order])
        if diversity is not None:
            again_cost.append(one_reward.cost(rewards_again, chosen["pooled"].chances, fair.beta))
    costs = None
    if diversity is not None:
        costs = one_reward.described(rewards, chosen["pooled"].chances, fair.beta, again_cost)
        costs["published"] = one_reward.published(
            _shown(menu.features, places), pooled.heads_[0], mixture.heads_, shares, diversity
        )
    choice = _compared(worth, shares, np.array(again), np.array(again_shares), chosen) | {
        "kl": kl,
        "refits": n_refits,
        "prompts": places.shape[0],
        "items": len(menu.ids),
        "weights": [] if fair.weights is None else fair.weights.tolist(),
        "gap": fair.gap,
        "beta": fair.beta,
        "divergence": {n: divergence(p.chances, places >= 0) for n, p in chosen.items()},
        "calibrate": "scale",
    }
    return choice, costs


def _worth(chances: Array, rewards: Array) -> Array:
    """``(K,)`` mean reward of each group under a policy."""
    usable = np.asarray(~np.isnan(rewards).any(axis=2)).any(axis=1)
    worth: Array = np.einsum("ps,psk->pk", chances, np.nan_to_num(rewards))[usable].mean(0)
    return worth


def _compared(
    worth: Array, shares: Array, again: Array, again_shares: Array, chosen: Mapping[str, Policy]
) -> dict[str, Any]:
    """Utilities, the worst-off group and the price of fairness; ``again`` is ``(B, 3, K)``, the policies as they are."""

    def estimate(value: Any, resampled: Array) -> dict[str, float]:
        low, high = np.percentile(resampled, _INTERVAL)
        return {"value": float(value), "low": float(low), "high": float(high)}

    average, average_again = worth @ shares, np.einsum("bck,bk->bc", again, again_shares)
    worst, worst_again = worth.min(1), again.min(2)
    mean, fair = CHOICES.index("mean"), CHOICES.index("MaxMin")
    return {
        "policies": {
            name: {
                "utilities": [estimate(worth[c, k], again[:, c, k]) for k in range(len(shares))],
                "worst_off": estimate(worst[c], worst_again[:, c]),
                "worst_group": name_of(int(worth[c].argmin())),
                "average": estimate(average[c], average_again[:, c]),
            }
            for c, name in enumerate(chosen)
        },
        "price": {
            "average_given_up": estimate(
                average[mean] - average[fair], average_again[:, mean] - average_again[:, fair]
            ),
            "worst_off_gains": estimate(
                worst[fair] - worst[mean], worst_again[:, fair] - worst_again[:, mean]
            ),
        },
    }


def _refit(
    mixture: PreferenceMixture, data: PreferenceData, n_groups: int, heads: Array | None, seed: int
) -> PreferenceMixture:
    again = PreferenceMixture(
        n_groups,
        l2=mixture.l2,
        label_noise=mixture.label_noise,
        init="auto" if heads is None else heads,
        n_init=1,
        tol=1e-5,
        backend=mixture.backend,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return again.fit(data)


def _resampled(data: PreferenceData, drawn: NDArray[np.int64]) -> PreferenceData:
    """The comparisons of annotators who may be drawn repeatedly, each time as another annotator."""
    indptr = data.indptr.numpy()
    counts = np.diff(indptr)[drawn]
    return data._take(ranges(indptr[drawn], counts), pointer(counts), np.arange(drawn.size))


def _matched(known: Array, found: Array) -> NDArray[np.int64]:
    """``(K,)`` which found head is each known one."""
    return match_groups(-((known[:, None] - found[None]) ** 2).sum(2))

"""The computation of the demo: a panel in, a plain dict of numbers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np

from maxmin_rlhf.demo.groups import alike, describe_groups, refit
from maxmin_rlhf.demo.offers import BETA, describe_offer, fair_choice
from maxmin_rlhf.demo.panel import ATTRIBUTES, Panel
from maxmin_rlhf.mixture import select_groups


def study(
    panel: Panel,
    *,
    n_groups: Sequence[int] = range(1, 7),
    n_init: int = 8,
    l2: float | None = None,
    n_refits: int = 200,
    beta: float = BETA,
    seed: int = 0,
    checkpoint: str | PathLike[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Who the households are and what is fair to them.

    Args:
        panel: the choices.
        n_groups, n_init, l2, checkpoint: of `maxmin_rlhf.select_groups`.
        n_refits: bootstrap samples of households, for the intervals of all that is said about groups and offers.
        beta: of `maxmin_rlhf.solve_maxmin`, in calibrated units.
        seed: of everything random.
        say: is told what is going on.

    Returns:
        ``panel``, ``selection``, ``groups``, ``alike``, ``offers``, ``method``, ``seconds``: JSON through and through.
    """
    began = time.perf_counter()
    say(f"choosing the number of groups among {', '.join(map(str, n_groups))}")
    data = panel.preferences()
    selection = select_groups(
        data, n_groups, n_init=n_init, l2=l2, checkpoint=checkpoint, random_state=seed
    )
    mixture = selection.best_mixture_
    selected = time.perf_counter()
    say(f"refitting {mixture.n_groups} groups on {n_refits} resamples of the households")
    refits = refit(panel, mixture, n_refits, np.random.default_rng([seed, 1]))
    refitted = time.perf_counter()
    say("looking for the fair offer")
    rewards = mixture.reward(panel.menu)
    groups = describe_groups(mixture, refits)
    offers = fair_choice(
        rewards,
        mixture.weights_,
        np.einsum("md,bkd->bmk", panel.menu, refits.heads),
        refits.shares,
        beta=beta,
    )
    menu = [
        {"words": describe_offer(offer), **dict(zip(ATTRIBUTES, offer.tolist(), strict=True))}
        for offer in panel.menu
    ]
    ended = time.perf_counter()
    return {
        "panel": {
            "households": panel.n_households,
            "choices": len(panel.chosen),
            "offers_a_choice": panel.offers.shape[1],
        },
        "selection": {
            "best": selection.best_,
            "largest_tried": max(n_groups),
            "reason": selection.reason_,
            "split": selection.split_,
            "results": selection.results_,
        },
        "groups": groups,
        "certainty": float(mixture.responsibilities_.max(1).mean()),
        "alike": alike(rewards, [group["name"] for group in groups]),
        "menu": menu,
        "offers": offers,
        "method": {
            "seed": seed,
            "l2": mixture.l2,
            "log_likelihood": mixture.log_likelihood_,
            "refits": n_refits,
            "unconverged_refits": refits.unconverged,
            "calibrate": "scale",
        },
        "seconds": {
            "selection": selected - began,
            "refits": refitted - selected,
            "offers": ended - refitted,
        },
    }

"""One offer for everybody: the best on average, the best for the worst-off group, and the MaxMin lottery."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.demo.groups import estimate
from maxmin_rlhf.reward import calibrate
from maxmin_rlhf.welfare import solve_maxmin

Array = NDArray[np.float64]

BETA = 0.05  # calibrated units: what a nat of distance from drawing offers evenly costs
LISTED = 0.01  # chance from which an offer of the lottery is named


def fair_choice(
    rewards: Array,
    shares: Array,
    resampled_rewards: Array,
    resampled_shares: Array,
    *,
    beta: float = BETA,
) -> dict[str, Any]:
    """Compare the offers of a menu.

    Args:
        rewards: ``(M, K)`` of each offer to each group. shares: ``(K,)`` of the groups.
        resampled_rewards, resampled_shares: ``(B, M, K)``, ``(B, K)``, the same in B refits.
        beta: of `maxmin_rlhf.solve_maxmin`.

    Returns:
        ``average_best``, ``worst_off_best`` and ``lottery``, each with the utilities of the groups, the average and the
        worst-off group's, in spreads of a group's own reward over the menu, 0 the menu's mean; ``same``; ``price``,
        what the fair offer costs on average and gives to the worst-off group; ``stability`` over the refits. The
        utilities of the offers and of the lottery found here are evaluated anew with each refit.
    """
    utilities = calibrate(rewards[None], "scale")[0]
    again = np.stack([calibrate(r[None], "scale")[0] for r in resampled_rewards])
    with warnings.catch_warnings():
        # The menu is all there is to choose from: few offers behind the lottery are no lack of samples.
        warnings.filterwarnings("ignore", message=".*samples are behind the policy")
        solution = solve_maxmin(rewards[None], beta, group_weights=shares, calibrate="scale")

    def worth(policy: Array) -> dict[str, Any]:
        each, each_again = policy @ utilities, np.einsum("m,bmk->bk", policy, again)
        averages = (each_again * resampled_shares).sum(1)
        return {
            "utilities": [estimate(u, a) for u, a in zip(each, each_again.T, strict=True)],
            "average": estimate(each @ shares, averages),
            "worst_off": estimate(each.min(), each_again.min(1)),
            "worst_group": int(each.argmin()),
        }

    on_average, fair = int((utilities @ shares).argmax()), int(utilities.min(1).argmax())
    average_best = worth(np.eye(len(rewards))[on_average])
    worst_off_best = worth(np.eye(len(rewards))[fair])
    on_average_again = np.einsum("bmk,bk->bm", again, resampled_shares)
    worst_again = again.min(2)
    policy = solution.policy[0]
    lottery = worth(policy)
    lottery |= {
        "beta": beta,
        "weights": solution.weights.tolist(),
        "value": solution.value,
        "gap": solution.gap,
        "offers": [
            {"offer": int(m), "chance": float(policy[m])}
            for m in np.argsort(-policy, kind="stable")
            if policy[m] >= LISTED
        ],
        "gain_for_worst_off": estimate(
            lottery["worst_off"]["value"] - worst_off_best["worst_off"]["value"],
            (np.einsum("m,bmk->bk", policy, again)).min(1) - worst_again[:, fair],
        ),
    }
    best_again, fair_again = on_average_again.argmax(1), worst_again.argmax(1)
    return {
        "average_best": {"offer": on_average, **average_best},
        "worst_off_best": {"offer": fair, **worst_off_best},
        "same": on_average == fair,
        "price": {
            "average_given_up": estimate(
                average_best["average"]["value"] - worst_off_best["average"]["value"],
                on_average_again[:, on_average] - on_average_again[:, fair],
            ),
            "worst_off_gains": estimate(
                worst_off_best["worst_off"]["value"] - average_best["worst_off"]["value"],
                worst_again[:, fair] - worst_again[:, on_average],
            ),
        },
        "lottery": lottery,
        "stability": {
            "same": float((best_again == fair_again).mean()),
            "average_best": float((best_again == on_average).mean()),
            "worst_off_best": float((fair_again == fair).mean()),
        },
    }


def describe_offer(offer: Array) -> str:
    """``price, contract, local, well-known, time-of-day, seasonal`` in words."""
    price, years, local, known, by_day, by_season = (float(x) for x in offer)
    rate = (
        "time-of-day rates"
        if by_day
        else "seasonal rates"
        if by_season
        else f"{price:g} ¢/kWh fixed"
    )
    who = "local utility" if local else "well-known company" if known else "unknown company"
    term = f"contract of {years:g} year{'' if years == 1 else 's'}" if years else "no contract"
    return f"{rate}, {who}, {term}"

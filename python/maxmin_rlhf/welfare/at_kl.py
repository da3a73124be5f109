"""Policies over given candidates, all at the same distance from drawing evenly, so that they can be compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.welfare.dual import solve_maxmin

Array = NDArray[np.float64]
_LEAST, _MOST = 1e-3, 1e3  # strengths of the KL penalty that are looked at
_HALVINGS = 30


@dataclass(frozen=True)
class Policy:
    """What is drawn how often.

    Attributes:
        chances: ``(P, S)`` of each candidate, 0 for those left out.
        beta: the strength of the KL penalty it is best for.
        weights, gap: of `maxmin_rlhf.welfare.Solution`, None for the best policy of one reward.
    """

    chances: Array
    beta: float
    weights: Array | None = None
    gap: float | None = None


def divergence(chances: Array, usable: NDArray[np.bool_] | None = None) -> float:
    """Mean over prompts of the KL of ``(P, S)`` chances from drawing evenly among the usable candidates (None: all)."""
    count = np.full(len(chances), chances.shape[1]) if usable is None else usable.sum(1)
    logs = np.log(np.where(chances > 0, chances, 1.0)) + np.log(np.maximum(count, 1))[:, None]
    return float((chances * logs).sum(1)[count > 0].mean())


def best_for(reward: Array, kl: float) -> Policy:
    """The policy that is best for one reward ``(P, S)`` among those ``kl`` nats a prompt away from drawing evenly.

    A candidate with a NaN is left out. Where no policy is that far away, the furthest of the best ones is given.
    """
    usable = np.isfinite(reward)
    score = np.where(usable, reward, -np.inf)
    score = score - np.where(usable.any(1), score.max(1), 0.0)[:, None]

    def tilt(beta: float) -> Policy:
        chances = np.exp(score / beta)
        return Policy(chances / np.maximum(chances.sum(1, keepdims=True), 1e-300), beta)

    return _at(kl, usable, tilt)


def fairest(rewards: Array, kl: float) -> Policy:
    """The MaxMin policy of ``(P, S, K)`` calibrated rewards, ``kl`` nats a prompt away from drawing evenly."""

    def solve(beta: float) -> Policy:
        with warnings.catch_warnings():
            # The candidates are all there is to choose from: few behind the policy are no lack of samples.
            warnings.filterwarnings("ignore", message=".*samples are behind the policy")
            found = solve_maxmin(rewards, beta, calibrate=None)
        return Policy(found.policy, beta, found.weights, found.gap)

    usable = np.asarray(np.isfinite(rewards).all(axis=2))
    return _at(kl, usable, solve)


def _at(kl: float, usable: NDArray[np.bool_], make: Callable[[float], Policy]) -> Policy:
    """Bisection on log beta: the distance falls as the penalty rises."""
    low, high = float(np.log(_LEAST)), float(np.log(_MOST))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if divergence(make(float(np.exp(middle))).chances, usable) > kl:
            low = middle
        else:
            high = middle
    return make(float(np.exp(high)))

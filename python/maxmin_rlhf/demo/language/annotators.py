"""Simulated annotators: what they value is known, their choices are noisy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.demo.language.responses import Responses, standardise

Array = NDArray[np.float64]
SHARPNESS = 2.0  # log-odds of a choice for each standard deviation of utility between two responses


@dataclass(frozen=True)
class Judgments:
    """Pairs chosen by simulated annotators.

    Attributes:
        data: the pairs, features of the responses, ids of the items being their places in ``(P, S)``.
        group: ``(A,)`` whose tastes each annotator has, in the order of ``data.annotators_``.
    """

    data: PreferenceData
    group: NDArray[np.int64]


def tastes(responses: Responses, names: list[str]) -> Array:
    """``(T, P, S)`` what each response is worth to each kind of people, in standard deviations within a prompt."""
    known = {
        "positive": responses.positive,
        "concise": responses.concise,
        "detailed and positive": standardise(0.6 * responses.positive - 0.8 * responses.concise),
    }
    return np.stack([known[name] for name in names])


def continuum(responses: Responses, count: int) -> Array:
    """``(A, P, S)`` everybody has a taste of their own, anywhere between positive and concise."""
    angle = np.linspace(0.0, np.pi / 2, count)[:, None, None]
    mixed = np.cos(angle) * responses.positive + np.sin(angle) * responses.concise
    return np.stack([standardise(each) for each in mixed])


def sizes(ratio: tuple[int, ...], count: int) -> list[int]:
    """``count`` annotators in the given proportions, the rounding going to the first."""
    small = [round(count * part / sum(ratio)) for part in ratio[1:]]
    return [count - sum(small), *small]


def judge(
    responses: Responses,
    utilities: Array,
    group: NDArray[np.int64],
    prompts: NDArray[np.int64],
    pairs: int,
    rng: np.random.Generator,
) -> Judgments:
    """Every annotator compares two responses to a prompt, ``pairs`` times.

    Args:
        utilities: ``(T, P, S)``. group: ``(A,)`` which of them each annotator has.
        prompts: those that are shown.
    """
    n_samples = responses.features.shape[1]
    who = np.repeat(np.arange(group.size), pairs)
    prompt = rng.choice(prompts, who.size)
    first = rng.integers(0, n_samples, who.size)
    second = (first + rng.integers(1, n_samples, who.size)) % n_samples
    worth = utilities[group[who], prompt]
    rows = np.arange(who.size)
    gain = SHARPNESS * (worth[rows, first] - worth[rows, second])
    taken = rng.random(who.size) < 1 / (1 + np.exp(-gain))
    at = prompt * n_samples
    data = PreferenceData.from_items(
        responses.features.reshape(-1, responses.features.shape[2]),
        at + np.where(taken, first, second),
        at + np.where(taken, second, first),
        who,
    )
    return Judgments(data, group)

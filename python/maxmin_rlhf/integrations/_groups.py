"""K groups' reward functions on a batch, strictly: who does not judge says None, and anything else is a finite number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maxmin_rlhf.welfare import MaxMinWeights

Functions = dict[str, Callable[..., Any]]


def named_functions(reward_funcs: Any) -> Functions:
    """``{group's name: function}`` of a RewardBank, a mapping, or a sequence of functions (their own names, if distinct)."""
    found = getattr(reward_funcs, "reward_functions", reward_funcs)
    if not isinstance(found, Mapping):
        functions = list(found)
        names = [getattr(f, "__name__", f"group_{k}") for k, f in enumerate(functions)]
        if len(set(names)) < len(names):
            names = [f"group_{k}" for k in range(len(functions))]
        found = dict(zip(names, functions, strict=True))
    if not found:
        raise ValueError("reward_funcs: expected at least one function, got none")
    for name, function in found.items():
        if not callable(function):
            raise TypeError(f"reward_funcs: expected functions, got {function!r} for group {name!r}")  # fmt: skip
    return dict(found)


def group_rewards(
    functions: Functions, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> Tensor:
    """``(B, K)`` float64, NaN where a group said None.

    Raises:
        ValueError: no completions; another number of rewards; NaN or an infinite one.
    """
    if not len(completions):
        raise ValueError("completions: expected at least one, got none")
    out = torch.full((len(completions), len(functions)), math.nan, dtype=torch.float64)
    for k, (name, function) in enumerate(functions.items()):
        rewards = function(prompts=prompts, completions=completions, **columns)
        if len(rewards) != len(completions):
            raise ValueError(
                f"group {name!r}: expected {len(completions)} rewards, got {len(rewards)}"
            )
        for row, reward in enumerate(rewards):
            out[row, k] = number(reward, name, f"completion {row}")
    return out


def number(reward: Any, group: str, where: str) -> float:
    """A reward as float; NaN for None."""
    if reward is None:
        return math.nan
    try:
        found = float(reward)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(
            f"group {group!r}: expected a finite number or None for {where}, got {reward!r}"
        )
    return found


def fitting(weights: MaxMinWeights | None, names: Sequence[str]) -> MaxMinWeights:
    """``weights``, or new ones, for groups of these names.

    Raises:
        ValueError: they are of another number of groups.
    """
    if weights is None:
        weights = MaxMinWeights(len(names))
    if weights.n_groups != len(names):
        raise ValueError(
            f"weights: expected {len(names)} groups ({', '.join(names)}), got {weights.n_groups}"
        )
    return weights


def distinct(names: Sequence[Any], argument: str) -> list[str]:
    """Names of groups, checked."""
    found = [names] if isinstance(names, str) else list(names)
    if not found or not all(isinstance(n, str) and n for n in found):
        raise ValueError(f"{argument}: expected names of groups, got {found!r}")
    name, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{argument}: expected distinct names, got {name!r} {times} times")
    return found


def measures(weights: MaxMinWeights, names: Sequence[str]) -> dict[str, float]:
    """What trainers log of the weights."""
    worst = float(weights.utilities.min())
    out = {"maxmin/worst": worst, "maxmin/gap": float(weights.weights @ weights.utilities) - worst}
    for name, w, u in zip(names, weights.weights.tolist(), weights.utilities.tolist(), strict=True):
        out |= {f"maxmin/weight/{name}": w, f"maxmin/utility/{name}": u}
    return out

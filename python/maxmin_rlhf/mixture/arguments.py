"""What the estimators here take: checked numbers and seeds, dtypes by name, preferences on a device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from maxmin_rlhf.data import PreferenceData, PreferenceStore
from maxmin_rlhf.data._arrays import as_device

Preferences = PreferenceData | PreferenceStore
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_count(name: str, value: Any, low: int = 1) -> int:
    """A whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name}: expected at least {low}, got {value}")
    return int(value)


def check_counts(name: str, values: Any) -> list[int]:
    """Several of these, each once, in their order."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected several whole numbers, got {type(values).__name__}")
    return list(dict.fromkeys(check_count(name, value) for value in values))


def check_seed(value: Any) -> int | None:
    """A whole number of at least 0, or None."""
    return None if value is None else check_count("random_state", value, 0)


def check_number(name: str, value: Any, low: float, open_low: bool = False) -> float:
    """A finite number of at least (or above) ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or number < low or (open_low and number == low):
        sign = ">" if open_low else ">="
        raise ValueError(f"{name}: expected a finite number {sign} {low:g}, got {value}")
    return number


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype by itself or by name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in _DTYPES:
        raise ValueError(f"dtype: expected float64, float32, bfloat16 or float16, got {dtype!r}")
    return found


def check_preferences(data: Any) -> None:
    """Rows of numbers do not say whose they are."""
    if not isinstance(data, Preferences):
        raise TypeError(f"data: expected PreferenceData or a PreferenceStore, got {type(data).__name__}")  # fmt: skip


def fresh_seed() -> int:
    """From the system's entropy."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def place(
    data: Preferences, device: str | torch.device | None, dtype: torch.dtype | None
) -> Preferences:
    """``data`` on a device, with features in ``dtype``; itself where nothing changes."""
    check_preferences(data)
    target = as_device(device) or data.device
    if isinstance(data, PreferenceStore):
        return data.to(target, dtype)
    features = data.features.to(target, dtype or data.features.dtype)
    if features is data.features:
        return data
    moved = {
        name: getattr(data, name).to(target)
        for name in ("indptr", "chosen", "rejected", "choice_indptr", "weight")
        if getattr(data, name) is not None
    }
    return replace(data, features=features, **moved)

"""Who disagrees with whom, and what is fair to all of them: preferences by annotator, mixtures of rewards, MaxMin.

Names are imported when first used, so ``import maxmin_rlhf`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxmin_rlhf.data import FeatureStore, PreferenceData, PreferenceStore, TextPreferences
    from maxmin_rlhf.encoding import encode
    from maxmin_rlhf.mixture import (
        FitWarning,
        PreferenceMixture,
        Selection,
        fit_sweep,
        select_groups,
    )
    from maxmin_rlhf.reward import RewardBank, calibrate, reward_model, save_reward_model
    from maxmin_rlhf.welfare import MaxMinWeights, evaluate_maxmin, solve_maxmin

__all__ = [
    "FeatureStore",
    "FitWarning",
    "MaxMinWeights",
    "PreferenceData",
    "PreferenceMixture",
    "PreferenceStore",
    "RewardBank",
    "Selection",
    "TextPreferences",
    "calibrate",
    "encode",
    "evaluate_maxmin",
    "fit_sweep",
    "reward_model",
    "save_reward_model",
    "select_groups",
    "solve_maxmin",
]

_HOME = {
    "FeatureStore": "maxmin_rlhf.data",
    "FitWarning": "maxmin_rlhf.mixture",
    "MaxMinWeights": "maxmin_rlhf.welfare",
    "PreferenceData": "maxmin_rlhf.data",
    "PreferenceMixture": "maxmin_rlhf.mixture",
    "PreferenceStore": "maxmin_rlhf.data",
    "RewardBank": "maxmin_rlhf.reward",
    "Selection": "maxmin_rlhf.mixture",
    "TextPreferences": "maxmin_rlhf.data",
    "calibrate": "maxmin_rlhf.reward",
    "encode": "maxmin_rlhf.encoding",
    "evaluate_maxmin": "maxmin_rlhf.welfare",
    "fit_sweep": "maxmin_rlhf.mixture",
    "reward_model": "maxmin_rlhf.reward",
    "save_reward_model": "maxmin_rlhf.reward",
    "select_groups": "maxmin_rlhf.mixture",
    "solve_maxmin": "maxmin_rlhf.welfare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

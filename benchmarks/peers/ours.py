"""PreferenceMixture, as a user calls it."""

from __future__ import annotations

from typing import Any

import numpy as np

from maxmin_rlhf import PreferenceData, PreferenceMixture


def prepare(problem: Any) -> None:
    global data
    n_choices, n_others, n_features = problem.differences.shape
    data = PreferenceData.from_arrays(
        problem.differences.reshape(-1, n_features),
        np.repeat(problem.household, n_others),
        comparison=np.repeat(np.arange(n_choices), n_others),
    )


data: Any = None


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    mixture = PreferenceMixture(n_groups, n_init=n_starts, l2=0.0, random_state=seed).fit(data)
    return {
        "heads": mixture.heads_,
        "log_weights": np.log(mixture.weights_),
        "passes": None,
        "starts": n_starts,
        "ends": [],
    }

"""Another alternative takes the place of the chosen one: what the controls do to a data set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from maxmin_rlhf.data._arrays import Int
from maxmin_rlhf.data.preferences import PreferenceData


def first_rows(data: PreferenceData) -> Int:
    """(C,) the first row of each comparison."""
    if data.choice_indptr is None:
        return np.arange(data.n_rows)
    return data.choice_indptr.numpy()[:-1]


def choose(data: PreferenceData, pick: Int) -> PreferenceData:
    """Makes the alternative rejected in row ``pick[c]`` the chosen one of comparison c; −1 leaves it as it is.

    That row then holds the alternative that was chosen before.
    """
    moved = pick[data.row_comparison]
    rows = torch.from_numpy(np.flatnonzero(moved >= 0))
    to = torch.from_numpy(moved)[rows]
    turned = torch.from_numpy(pick[pick >= 0])
    if data.chosen is not None and data.rejected is not None:
        chosen, rejected = data.chosen.clone(), data.rejected.clone()
        chosen[rows] = data.rejected[to]
        rejected[turned] = data.chosen[turned]
        return replace(data, chosen=chosen, rejected=rejected)
    features = data.features.clone()
    if data.choice_indptr is not None:  # new - other = (old - other) - (old - new)
        features[rows] -= data.features[to]
    features[turned] = -data.features[turned]
    return replace(data, features=features)

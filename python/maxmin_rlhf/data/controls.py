"""The same comparisons as if there were one shared reward: the nulls that a mixture must beat (docs/math.md, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from maxmin_rlhf.data._arrays import Int
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.splits import Seed, item_set_keys


def swap_judgments(data: PreferenceData, rng: Seed = None) -> tuple[PreferenceData, float]:
    """Deals the judgments of each set of items anew, at random, among the annotators who judged that same set.

    What was chosen, with its weight, moves; who compared which items stays. So every item pair keeps its votes, and the
    pooled likelihood of any one reward is unchanged, but an annotator's answers no longer hang together.

    Args:
        data: indexed form, pairs or choice sets.
        rng: seed or generator.

    Returns:
        The data, comparisons in the same order, and the share of judgments that came from another annotator. Sets
        judged by one annotator alone stay as they are: a low share means a weak control.
    """
    if data.chosen is None or data.rejected is None:
        raise ValueError("data: expected items with ids (from_items), got rows of differences")
    keys = item_set_keys(data)
    generator = np.random.default_rng(rng)
    source = np.empty(keys.size, dtype=np.int64)
    # Both orders bring equal keys together; inside, one keeps the order and the other is random.
    source[np.argsort(keys, kind="stable")] = np.lexsort((generator.random(keys.size), keys))
    first = _first_rows(data)
    code, owner = data.item_codes, data.row_comparison
    chosen = code[data.chosen.numpy()[first]]
    wanted = chosen[source]
    rows = np.flatnonzero(
        (code[data.rejected.numpy()] == wanted[owner]) & (wanted != chosen)[owner]
    )
    pick = np.full(keys.size, -1)
    pick[owner[rows]] = rows
    swapped = _choose(data, pick)
    if data.weight is not None:
        swapped = replace(swapped, weight=data.weight[torch.from_numpy(source)])
    annotator = data.comparison_annotator
    share = float((annotator[source] != annotator).mean()) if keys.size else 0.0
    return swapped, share


def redraw_choices(data: PreferenceData, weight: Any, rng: Seed = None) -> PreferenceData:
    """Chooses anew in every comparison, by the logit model (3) of one shared head.

    Args:
        data: either form, pairs or choice sets.
        weight: ``(D,)`` the head, say of a fitted mixture of one group.
        rng: seed or generator.

    Returns:
        The data with the same annotators, comparisons and weights in the same order. In the rows form the differences
        are those against the new choice: a pair's turns its sign, a set's are taken anew, in the features' dtype.
    """
    head = torch.as_tensor(weight).detach().cpu()
    if tuple(head.shape) != (data.n_features,):
        raise ValueError(f"weight: expected shape ({data.n_features},), got {tuple(head.shape)}")
    acc = torch.float64 if data.dtype == torch.float64 else torch.float32
    # In blocks, so that half-precision features are not copied as a whole.
    score = torch.cat(
        [block.to(acc) @ head.to(acc) for block in torch.split(data.features, 1 << 16)]
    )
    margin = score
    if data.chosen is not None and data.rejected is not None:
        margin = score[data.chosen] - score[data.rejected]
    generator = np.random.default_rng(rng)
    # Gumbel's trick: the largest of utility + noise is a draw from the logit model. The chosen one's utility is 0.
    stay = generator.gumbel(size=data.n_comparisons)
    leave = generator.gumbel(size=data.n_rows) - margin.double().numpy()
    if data.choice_indptr is None:
        return _choose(data, np.where(leave > stay, np.arange(data.n_rows), -1))
    best = np.maximum.reduceat(leave, _first_rows(data))
    owner = data.row_comparison
    rows = np.flatnonzero((leave == best[owner]) & (leave > stay[owner]))
    pick = np.full(data.n_comparisons, -1)
    pick[owner[rows]] = rows
    return _choose(data, pick)


def _first_rows(data: PreferenceData) -> Int:
    """(C,) the first row of each comparison."""
    if data.choice_indptr is None:
        return np.arange(data.n_rows)
    return data.choice_indptr.numpy()[:-1]


def _choose(data: PreferenceData, pick: Int) -> PreferenceData:
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

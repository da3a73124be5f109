"""The same comparisons as if there were one shared reward: the nulls that a mixture must beat (docs/math.md, section 3)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from maxmin_rlhf.data._arrays import Int
from maxmin_rlhf.data.choices import choose, first_rows
from maxmin_rlhf.data.preference_store import PreferenceStore
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.splits import Seed, item_set_keys, skip

Preferences = TypeVar("Preferences", PreferenceData, PreferenceStore)


def swap_judgments(data: Preferences, rng: Seed = None) -> tuple[Preferences, float]:
    """Deals the judgments of each set of items anew, at random, among the annotators who judged that same set.

    What was chosen, with its weight, moves; who compared which items stays. So every item pair keeps its votes, and the
    pooled likelihood of any one reward is unchanged, but an annotator's answers no longer hang together.

    Args:
        data: indexed form, pairs or choice sets; or a whole store of texts.
        rng: seed or generator.

    Returns:
        The data, comparisons in the same order, and the share of judgments that came from another annotator. Sets
        judged by one annotator alone stay as they are: a low share means a weak control.
    """
    if isinstance(data, PreferenceStore):
        labels = data.labels
        swapped, share = swap_judgments(labels, rng)
        assert swapped.chosen is not None and labels.chosen is not None
        turned = np.where((swapped.chosen != labels.chosen).numpy(), 0, -1)  # pairs
        return data.turned([turned], swapped.weight), share
    if data.chosen is None or data.rejected is None:
        raise ValueError("data: expected items with ids (from_items), got rows of differences")
    keys = item_set_keys(data)
    generator = np.random.default_rng(rng)
    source = np.empty(keys.size, dtype=np.int64)
    # Both orders bring equal keys together; inside, one keeps the order and the other is random.
    source[np.argsort(keys, kind="stable")] = np.lexsort((generator.random(keys.size), keys))
    first = first_rows(data)
    code, owner = data.item_codes, data.row_comparison
    chosen = code[data.chosen.numpy()[first]]
    wanted = chosen[source]
    rows = np.flatnonzero(
        (code[data.rejected.numpy()] == wanted[owner]) & (wanted != chosen)[owner]
    )
    pick = np.full(keys.size, -1)
    pick[owner[rows]] = rows
    swapped = choose(data, pick)
    if data.weight is not None:
        swapped = replace(swapped, weight=data.weight[torch.from_numpy(source)])
    annotator = data.comparison_annotator
    share = float((annotator[source] != annotator).mean()) if keys.size else 0.0
    return swapped, share


class Place(NamedTuple):
    """Where a process's comparisons stand among everybody's."""

    first_comparison: int
    first_row: int
    n_comparisons: int


def redraw_choices(
    data: Preferences, weight: Any, rng: Seed = None, place: Place | None = None
) -> Preferences:
    """Chooses anew in every comparison, by the logit model (3) of one shared head.

    Args:
        data: either form, pairs or choice sets; or a store, which is read once.
        weight: ``(D,)`` the head, say of a fitted mixture of one group.
        rng: seed or generator (for a store and with a place: NumPy's default one).
        place: of the data among those of other processes.

    Returns:
        The data with the same annotators, comparisons and weights in the same order. In the rows form the differences
        are those against the new choice: a pair's turns its sign, a set's are taken anew, in the features' dtype.
    """
    head = torch.as_tensor(weight).detach().cpu()
    if tuple(head.shape) != (data.n_features,):
        raise ValueError(f"weight: expected shape ({data.n_features},), got {tuple(head.shape)}")
    stay = leave = np.random.default_rng(rng)
    if place is not None or isinstance(data, PreferenceStore):
        # What is drawn for a comparison stands at its place, whoever draws it, and in whatever blocks.
        here = place or Place(0, 0, data.n_comparisons)
        stay = np.random.Generator(copy.deepcopy(leave.bit_generator))
        skip(stay, here.first_comparison)
        skip(leave, here.n_comparisons + here.first_row)
    if isinstance(data, PreferenceStore):
        return data.turned(_picks(block.data, head, stay, leave) for block in data.blocks())
    return choose(data, _picks(data, head, stay, leave))


def _picks(
    data: PreferenceData, head: torch.Tensor, stay: np.random.Generator, leave: np.random.Generator
) -> Int:
    """(C,) the row of each comparison whose alternative is chosen now, -1 for none."""
    acc = torch.float64 if data.dtype == torch.float64 else torch.float32
    # In blocks, so that half-precision features are not copied as a whole.
    score = torch.cat(
        [block.cpu().to(acc) @ head.to(acc) for block in torch.split(data.features, 1 << 16)]
    )
    margin = score
    if data.chosen is not None and data.rejected is not None:
        margin = score[data.chosen] - score[data.rejected]
    # Gumbel's trick: the largest of utility + noise is a draw from the logit model. The chosen one's utility is 0.
    staying = stay.gumbel(size=data.n_comparisons)
    leaving = leave.gumbel(size=data.n_rows) - margin.double().numpy()
    if data.choice_indptr is None:
        return np.where(leaving > staying, np.arange(data.n_rows), -1)
    best = np.maximum.reduceat(leaving, first_rows(data))
    owner = data.row_comparison
    rows = np.flatnonzero((leaving == best[owner]) & (leaving > staying[owner]))
    pick = np.full(data.n_comparisons, -1)
    pick[owner[rows]] = rows
    return pick

"""What is shown of an annotator and what is scored: held-out masks, and folds of annotators (docs/math.md, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.data._arrays import Int
from maxmin_rlhf.data.preference_store import PreferenceStore
from maxmin_rlhf.data.preferences import PreferenceData

Mask = NDArray[np.bool_]
Seed = int | np.random.Generator | None


def held_out_masks(
    data: PreferenceData | PreferenceStore,
    split: str = "auto",
    rng: Seed = None,
    fraction: float = 0.3,
) -> tuple[Mask, Mask, str]:
    """Which comparisons assign an annotator and which are scored, (11).

    By item, each annotator has ``fraction`` of the items that he judged hidden, at least one: visible are his
    comparisons without a hidden item, scored all others. By comparison, ``fraction`` of his comparisons are scored, at
    least one; equal ones (the same items again) stay on one side. Who has nothing visible left is scored from the prior.

    Args:
        data: A annotators, C comparisons.
        split: "item" (items with ids only), "comparison", or "auto": by item if there are ids.
        rng: seed or generator.
        fraction: the share that is hidden, in (0, 1).

    Returns:
        ``visible (C,)``, ``scored (C,)``, and the split that was made: "item" or "comparison".

    Note:
        Without item ids nothing tells that two rows compare the same items: a random split then leaks through
        transitivity, and a tie written as two opposite pairs may be cut in half.
    """
    if split not in ("auto", "item", "comparison"):
        raise ValueError(f'split: expected "auto", "item" or "comparison", got {split!r}')
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction: expected a number in (0, 1), got {fraction}")
    if split == "auto":
        split = "item" if data.has_items else "comparison"
    if split == "item" and not data.has_items:
        raise ValueError('split: "item" needs items with ids (from_items), got rows of differences')
    generator = np.random.default_rng(rng)
    # Numbers are drawn annotator by annotator: those of a store come out as if it were in memory.
    parts = data.outlines() if isinstance(data, PreferenceStore) else [data]
    hidden = [_scored(part, split, fraction, generator) for part in parts]
    scored = np.concatenate(hidden) if hidden else np.zeros(0, dtype=bool)
    return ~scored, scored, split


def held_out_units(data: PreferenceData | PreferenceStore, split: str) -> int:
    """How many random numbers `held_out_masks` draws."""
    parts = data.outlines() if isinstance(data, PreferenceStore) else [data]
    return sum(np.unique(_keys(*_what(part, split))).size for part in parts)


def _what(data: PreferenceData, split: str) -> tuple[Int, Int]:
    """What may be hidden, each with its annotator: items by row, chosen ones first, or comparisons."""
    if split == "item":
        assert data.chosen is not None and data.rejected is not None
        annotator = data.comparison_annotator[data.row_comparison]
        both = np.concatenate([data.chosen.cpu().numpy(), data.rejected.cpu().numpy()])
        return np.concatenate([annotator, annotator]), data.item_codes[both]
    what = np.arange(data.n_comparisons)
    if data.has_items:
        what = np.unique(item_set_keys(data), return_inverse=True)[1]
    return data.comparison_annotator, what


def _scored(data: PreferenceData, split: str, fraction: float, rng: np.random.Generator) -> Mask:
    hidden = _hide(*_what(data, split), fraction, rng)
    if split != "item":
        return hidden
    touched = hidden[: data.n_rows] | hidden[data.n_rows :]
    return np.bincount(data.row_comparison, touched, minlength=data.n_comparisons) > 0


def annotator_folds(n_annotators: int, n_folds: int, rng: Seed = None) -> Int:
    """(A,) the fold of each annotator: random, sizes differing by at most one."""
    if not 2 <= n_folds <= n_annotators:
        raise ValueError(
            f"n_folds: expected 2 to {n_annotators} (the number of annotators), got {n_folds}"
        )
    return np.random.default_rng(rng).permutation(np.arange(n_annotators) % n_folds)


def item_set_keys(data: PreferenceData) -> NDArray[np.uint64]:
    """(C,) a key of the items that a comparison is about, whoever judged it and whichever was chosen.

    A sum of one random 64-bit number an item: equal sets have equal keys, two unequal ones by a chance of 2^-64.
    """
    codes = data.item_codes
    assert data.chosen is not None and data.rejected is not None
    number: NDArray[np.uint64] = np.random.default_rng(0).integers(
        0, 2**64, codes.size, dtype=np.uint64
    )[codes]
    chosen, rejected = number[data.chosen.cpu().numpy()], number[data.rejected.cpu().numpy()]
    if data.choice_indptr is not None:
        first = data.choice_indptr.cpu().numpy()[:-1]
        chosen, rejected = chosen[first], np.add.reduceat(rejected, first)
    return np.asarray(chosen + rejected)


def _hide(annotator: Int, what: Int, fraction: float, rng: np.random.Generator) -> Mask:
    """(n,) True where ``what`` is among the ``fraction`` of its annotator's distinct ones that were drawn."""
    if annotator.size == 0:
        return np.zeros(0, dtype=bool)
    units, inverse = np.unique(_keys(annotator, what), return_inverse=True)
    owner = units // (int(what.max()) + 1)
    counts = np.bincount(owner)
    quota = np.maximum(1, np.rint(fraction * counts))
    shuffled = np.lexsort((rng.random(units.size), owner))  # annotators stay together
    rank = np.arange(units.size) - (np.cumsum(counts) - counts)[owner]
    hidden = np.empty(units.size, dtype=bool)
    hidden[shuffled] = rank < quota[owner]
    return hidden[inverse]


def _keys(annotator: Int, what: Int) -> Int:
    """(n,) a number for each pair, by annotator first."""
    keys: Int = annotator * (int(what.max(initial=0)) + 1) + what
    return keys


def skip(rng: np.random.Generator, count: int) -> None:
    """Go on as if so many numbers had been drawn: those that other processes draw, or other blocks."""
    rng.bit_generator.advance(count)  # type: ignore[attr-defined]  # NumPy's default generator has it

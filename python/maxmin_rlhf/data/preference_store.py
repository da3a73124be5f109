"""PreferenceStore: more comparisons than memory holds, in files, annotator by annotator; a fit reads them block by block."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maxmin_rlhf.data._arrays import as_index, pointer
from maxmin_rlhf.data.preference_shards import Source, open_shards
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.store_blocks import Block, StorePart

_ROWS = 65_536
# Near caches hold the smaller one; beyond the larger one nothing is gained.
_LEAST, _MOST = 8 << 20, 128 << 20


class PreferenceStore:
    """Preferences on disk, for `PreferenceMixture.fit`, `fit_sweep` and `select_groups` in place of `PreferenceData`.

    Rows of differences lie annotator by annotator. A pass reads them once, in blocks: one is worked on while the next one is
    read. In memory are two blocks, a number and an id for each annotator, and 8 bytes a comparison for its weight, and
    likewise for choice sets, where there are any.

    Args:
        path: a folder that `append` filled.
        block_bytes: of features that are read at once; None: those of 65,536 rows, at least 8 MiB, at most 128 MiB.
            Results depend on it by rounding alone. An annotator may have more.

    Attributes:
        annotators_: ``(A,)`` their ids. n_annotators, n_comparisons, n_rows, n_features, dtype: as of `PreferenceData`.

    Raises:
        FileNotFoundError: no such store. ValueError: a foreign or damaged one, an annotator in two places.
    """

    def __init__(self, path: str | PathLike[str], *, block_bytes: int | None = None) -> None:
        self._part = _whole(open_shards(Path(path)), block_bytes)

    @classmethod
    def _of(cls, part: StorePart) -> PreferenceStore:
        store = object.__new__(cls)
        store._part = part
        return store

    @classmethod
    def _of_source(cls, source: Source, block_bytes: int | None = None) -> PreferenceStore:
        return cls._of(_whole(source, block_bytes))

    @staticmethod
    def append(path: str | PathLike[str], data: PreferenceData) -> None:
        """Add the annotators of ``data`` to a store, made if it is not there. What is added is there whole, or not at all.

        An annotator with more comparisons than memory holds may be added in parts, one right after the other. Nothing is added
        twice: a loop of appends that was interrupted says at its first part that it is there.

        Args:
            data: in the rows form; its annotators are named by strings or whole numbers.

        Raises:
            ValueError: a table of items, other features than the store has, a foreign folder, an annotator or a part that is
                there already. TypeError: other ids, no `PreferenceData`.
        """
        from maxmin_rlhf.data.preference_writer import ShardWriter

        if not isinstance(data, PreferenceData):
            raise TypeError(f"data: expected PreferenceData, got {type(data).__name__}")
        if data.is_indexed:
            raise ValueError(
                "data: expected rows of differences (from_arrays, from_pairs), got a table of items, which is in memory"
            )
        dtype = str(data.dtype).removeprefix("torch.")
        with ShardWriter(path, {}, data.n_features, dtype) as writer:
            writer.add(data)

    @property
    def n_annotators(self) -> int:
        return self._part.indptr.size - 1

    @property
    def n_comparisons(self) -> int:
        return int(self._part.indptr[-1])

    @property
    def n_rows(self) -> int:
        return self._part.n_rows

    @property
    def n_features(self) -> int:
        return self._part.source.rows.n_features

    @property
    def dtype(self) -> torch.dtype:
        return self._part.dtype

    @property
    def device(self) -> torch.device:
        return self._part.device

    @property
    def features(self) -> Tensor:
        """Not in memory.

        Raises:
            AttributeError: always; it says what to do.
        """
        raise AttributeError("features: those of a PreferenceStore are on disk; load() brings a part of it into memory")  # fmt: skip

    @property
    def has_items(self) -> bool:
        return self._part.source.labels is not None

    @functools.cached_property
    def annotators_(self) -> NDArray[Any]:
        every, index = self._part.source.annotators, self._part.index
        return every if index is None else every[index]

    def __repr__(self) -> str:
        return (
            f"PreferenceStore({self.n_comparisons} comparisons of {self.n_annotators} annotators; rows on disk, "
            f"{self.n_features} features, {str(self.dtype).removeprefix('torch.')})"
        )

    def blocks(self) -> Iterator[Block]:
        """Everybody in turn, in blocks that last until the next one is asked for."""
        return self._part.blocks()

    def outlines(self) -> Iterator[PreferenceData]:
        """Who compared what, without features, many annotators at a time; between items where these are known."""
        return self._part.outlines()

    def select_annotators(self, which: Any) -> PreferenceStore:
        """Some annotators: ``(A,)`` mask, or their positions in ascending order. Nothing is read."""
        index = np.asarray(which)
        if index.dtype == bool:
            if index.shape != (self.n_annotators,):
                raise ValueError(
                    f"which: expected ({self.n_annotators},) booleans, got {index.shape}"
                )
            index = np.flatnonzero(index)
        else:
            index = as_index(
                "which", index if index.size else index.astype(np.int64), self.n_annotators
            )
        if (np.diff(index) <= 0).any():
            raise ValueError("which: expected ascending positions, as annotators lie on disk")
        if index.size == self.n_annotators:
            return self
        every = self._part.index
        return self._changed(index=index if every is None else every[index])

    def select_comparisons(self, mask: NDArray[np.bool_]) -> PreferenceStore:
        """Some comparisons, by ``(C,)`` mask, of all annotators. Nothing is read."""
        if mask.dtype != bool or mask.shape != (self.n_comparisons,):
            raise ValueError(
                f"mask: expected ({self.n_comparisons},) booleans, got {mask.shape} of dtype {mask.dtype}"
            )
        keep = self._part.owned
        if self._part.keep is not None:
            keep &= self._part.keep
        keep[keep] = mask
        return self._changed(keep=keep)

    def in_eighths(self) -> PreferenceStore:
        """With smaller blocks, for what makes copies of its rows."""
        return self._changed(block_bytes=max(1, self.block_bytes // 8))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> PreferenceStore:
        """Where blocks are handed out, and in what dtype."""
        return self._changed(device=device, dtype=dtype or self.dtype)

    @property
    def labels(self) -> PreferenceData:
        """Which items were compared, without their features.

        Raises:
            ValueError: not known; of a part of the comparisons.
        """
        part = self._part
        if part.source.labels is None or part.keep is not None:
            raise ValueError("data: expected a store with items (TextPreferences.stream)")
        every = part.source.labels
        return every if part.index is None else every.select_annotators(part.index)

    def turned(
        self, picks: Iterable[NDArray[np.int64]], weight: Tensor | None = None
    ) -> PreferenceStore:
        """With other choices.

        Args:
            picks: of each block in turn: ``(c,)`` the row of each comparison that is chosen now, -1 for none.
            weight: ``(C,)`` another weight of each comparison.

        Raises:
            ValueError: of a part of the comparisons; of a control.
        """
        part, source, first = self._part, self._part.source, 0
        if part.keep is not None or part.turned is not None:
            raise ValueError("data: expected all comparisons as they were read, got a part of them or a control")  # fmt: skip
        owned = slice(None) if part.index is None else part.owned
        sizes = None if source.choice_indptr is None else np.diff(source.choice_indptr)[owned]
        small = sizes is None or int(sizes.max(initial=1)) < 128
        chosen = np.empty(self.n_comparisons, np.int8 if small else np.int32)
        for pick in picks:
            here = slice(first, first + pick.size)
            at = 0 if sizes is None else pick - pointer(sizes[here])[:-1]
            chosen[here] = np.where(pick >= 0, at, -1)
            first += pick.size
        turned = np.full(source.indptr[-1], -1, chosen.dtype)
        turned[owned] = chosen
        if weight is not None:
            every = np.ones(turned.size)
            every[owned] = weight.numpy()
            source = replace(source, weight=every)
        return self._changed(source=source, turned=turned)

    def load(self) -> PreferenceData:
        """All of it in memory, in the rows form.

        Raises:
            ValueError: a part of a store whose comparisons were selected.
        """
        part = self._part
        whole = StorePart(replace(part.source, labels=None), part.block_bytes, part.device, part.dtype, part.index)  # fmt: skip
        if part.keep is not None:
            raise ValueError("load: expected all comparisons of the annotators, some are left out")
        rows = [torch.empty(0, self.n_features, dtype=self.dtype)]
        rows += [block.data.features.cpu().clone() for block in self.blocks()]
        return replace(whole.outline(), features=torch.cat(rows))

    @property
    def block_bytes(self) -> int:
        """Of features that are read at once."""
        return self._part.block_bytes

    def fingerprint(self) -> str:
        """Of everything that a fit or a split depends on."""
        part = self._part
        check = zlib.crc32(f"{part.source.identity} {part.dtype}".encode())
        for array in (part.index, part.keep, part.turned):
            check = zlib.crc32(b"-" if array is None else array.tobytes(), check)
        return f"{check:08x}"

    def _changed(self, **changes: Any) -> PreferenceStore:
        return self._of(replace(self._part, **changes))


def _whole(source: Source, block_bytes: int | None) -> StorePart:
    if block_bytes is None:
        block_bytes = min(max(_ROWS * source.rows.row_bytes, _LEAST), _MOST)
    elif isinstance(block_bytes, bool) or not isinstance(block_bytes, int):
        raise TypeError(f"block_bytes: expected a whole number, got {type(block_bytes).__name__}")
    elif block_bytes < 1:
        raise ValueError(f"block_bytes: expected at least 1, got {block_bytes}")
    return StorePart(source, block_bytes, torch.device("cpu"), source.rows.dtype)

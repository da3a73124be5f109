"""A part of a preference store, cut into blocks of whole annotators that are read one ahead of the other."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maxmin_rlhf.data._arrays import Int, pointer, ranges
from maxmin_rlhf.data.choices import choose
from maxmin_rlhf.data.preference_shards import Source, sums
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.read_ahead import ReadAhead

_OUTLINE = 1 << 20  # comparisons outlined at once


class Block(NamedTuple):
    """Some annotators in memory, in the rows form. A store's features last until its next block is asked for.

    ``first``: the place of its first annotator. ``part``: it has one annotator alone, and some of his comparisons; ``last``:
    there are no more of his.
    """

    data: PreferenceData
    first: int = 0
    part: bool = False
    last: bool = True


class _Cut(NamedTuple):
    """Annotators ``first … end - 1``; of one with too many rows, the source's comparisons ``begin … stop - 1``."""

    first: int
    end: int
    begin: int = -1
    stop: int = -1
    last: bool = True


@dataclass(frozen=True, eq=False)
class StorePart:
    """Some annotators and comparisons of a source, and how they are handed out.

    Attributes:
        block_bytes: of features, in a block.
        device, dtype: of the blocks.
        index: ``(A,)`` ascending, which annotators; None: all.
        keep: of all the source's comparisons, which stay; None: all.
        turned: of all the source's comparisons, whom a control chose: a row of the comparison, -1 as it was.
    """

    source: Source
    block_bytes: int
    device: torch.device
    dtype: torch.dtype
    index: Int | None = None
    keep: NDArray[np.bool_] | None = None
    turned: NDArray[Any] | None = None

    def blocks(self) -> Iterator[Block]:
        """Everybody, one block read ahead."""
        size = self._room * self.source.rows.row_bytes
        key = (str(self.device), size)
        if key not in self.source.readers:
            self.source.readers[key] = ReadAhead(size, self.device)
        for cut, read in self.source.readers[key](self._cuts, self._read):
            yield self._block(cut, read)

    def outlines(self) -> Iterator[PreferenceData]:
        """Everybody without features, many annotators at a time; between items where these are known."""
        first, indptr = 0, self.indptr
        while first < indptr.size - 1:
            end = int(np.searchsorted(indptr, indptr[first] + _OUTLINE, side="right")) - 1
            end = max(end, first + 1)
            yield self._outline(_Cut(first, end))
            first = end

    def outline(self) -> PreferenceData:
        """All of it without features."""
        return self._outline(_Cut(0, self.indptr.size - 1))

    @functools.cached_property
    def indptr(self) -> Int:
        """(A + 1) comparisons of each annotator."""
        counts = np.diff(self.source.indptr)
        if self.keep is not None:
            counts = sums(self.keep, self.source.indptr)
        return pointer(counts if self.index is None else counts[self.index])

    @functools.cached_property
    def n_rows(self) -> int:
        sets = self.source.choice_indptr
        if self.keep is None:
            return int(self._rows.sum())
        return int(self.indptr[-1] if sets is None else np.diff(sets)[self.keep & self.owned].sum())

    @property
    def owned(self) -> NDArray[np.bool_]:
        """Of the source's comparisons, those of these annotators."""
        mine = np.ones(self.source.annotators.size, bool)
        if self.index is not None:
            mine[:] = False
            mine[self.index] = True
        return np.repeat(mine, np.diff(self.source.indptr))

    # ---- cutting

    @functools.cached_property
    def _rows(self) -> Int:
        """(A,) of each annotator, those that do not stay too: they are read."""
        counts = np.diff(self.source.row_of)
        return counts if self.index is None else counts[self.index]

    @functools.cached_property
    def _room(self) -> int:
        """Rows of a block: what fits, but the largest choice set at least."""
        sets = self.source.choice_indptr
        longest = 1 if sets is None or sets.size < 2 else int(np.diff(sets).max())
        return max(self.block_bytes // self.source.rows.row_bytes, longest)

    @functools.cached_property
    def _cuts(self) -> list[_Cut]:
        ends, cuts, first = pointer(self._rows), [], 0
        while first < ends.size - 1:
            end = int(np.searchsorted(ends, ends[first] + self._room, side="right")) - 1
            if end > first:
                cuts.append(_Cut(first, end))
            else:
                end = first + 1
                cuts += self._pieces(first)
            first = end
        return cuts

    def _pieces(self, annotator: int) -> list[_Cut]:
        at = annotator if self.index is None else int(self.index[annotator])
        begin, end = (int(x) for x in self.source.indptr[at : at + 2])
        sets, pieces = self.source.choice_indptr, []
        while begin < end:
            stop = begin + self._room
            if sets is not None:
                stop = int(np.searchsorted(sets, sets[begin] + self._room, side="right")) - 1
            stop = min(stop, end)
            pieces.append(_Cut(annotator, annotator + 1, begin, stop, stop == end))
            begin = stop
        return pieces

    def _runs(self, cut: _Cut) -> tuple[Int, Int]:
        """The source's annotators of a cut: where each run of neighbours begins and ends."""
        if self.index is None or cut.first == cut.end:
            return np.array([cut.first]), np.array([cut.end])
        index = self.index[cut.first : cut.end]
        breaks = np.flatnonzero(np.diff(index) > 1) + 1
        return index[np.append(0, breaks)], index[np.append(breaks, index.size) - 1] + 1

    # ---- reading

    def _read(self, cut: _Cut, into: Tensor) -> int:
        """The rows of a cut; how many bytes they are."""
        source = self.source
        if cut.begin >= 0:
            sets = source.choice_indptr
            ends = np.array([cut.begin, cut.stop])
            begins, stops = (ends if sets is None else sets[ends])[:, None]
        else:
            begins, stops = (source.row_of[at] for at in self._runs(cut))
        at = 0
        for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
            source.rows.read(begin, stop - begin, into[at:])
            at += (stop - begin) * source.rows.row_bytes
        return at

    def _block(self, cut: _Cut, read: Tensor) -> Block:
        where = self._comparisons(cut)
        features = read.view(self.source.rows.dtype).view(-1, self.source.rows.n_features)
        data = self._laid_out(cut, where, features.to(self.dtype))
        if self.turned is not None:
            turned = self.turned[where].astype(np.int64)
            begins = np.arange(turned.size)
            if data.choice_indptr is not None:
                begins = data.choice_indptr.numpy()[:-1]
            data = choose(data, np.where(turned >= 0, begins + turned, -1))
        if self.keep is not None:
            data = data.select_comparisons(self.keep[where])
        return Block(data, cut.first, cut.begin >= 0, cut.last)

    def _outline(self, cut: _Cut) -> PreferenceData:
        where = self._comparisons(cut)
        if self.source.labels is None:
            n_rows = int(self._rows[cut.first : cut.end].sum())
            none = torch.zeros(1, 1, dtype=self.dtype).expand(n_rows, 1)
            data = self._laid_out(cut, where, none)
        else:
            index = np.arange(cut.first, cut.end)
            data = self.source.labels.select_annotators(
                index if self.index is None else self.index[index]
            )
        return data if self.keep is None else data.select_comparisons(self.keep[where])

    def _comparisons(self, cut: _Cut) -> Any:
        """The source's, as a slice where they lie together."""
        if cut.begin >= 0:
            return slice(cut.begin, cut.stop)
        begins, stops = (self.source.indptr[at] for at in self._runs(cut))
        if begins.size == 1:
            return slice(int(begins[0]), int(stops[0]))
        return ranges(begins, stops - begins)

    def _laid_out(self, cut: _Cut, where: Any, features: Tensor) -> PreferenceData:
        """Pointers of a cut's annotators around these features."""
        source, n_rows = self.source, features.shape[0]
        who: Any = (
            slice(cut.first, cut.end) if self.index is None else self.index[cut.first : cut.end]
        )
        counts = np.array([cut.stop - cut.begin])
        if cut.begin < 0:
            counts = source.indptr[1:][who] - source.indptr[:-1][who]
        sets = None
        if source.choice_indptr is not None:
            sizes = source.choice_indptr[1:][where] - source.choice_indptr[:-1][where]
            sets = torch.from_numpy(pointer(sizes)) if n_rows > sizes.size else None
        return PreferenceData(
            features=features,
            indptr=torch.from_numpy(pointer(counts)),
            annotators_=source.annotators[who],
            order=torch.arange(n_rows),
            choice_indptr=sets,
            weight=None if source.weight is None else torch.from_numpy(source.weight[where]),
        )

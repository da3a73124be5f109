"""PreferenceData: comparisons sorted by annotator, checked once, in the layout that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maxmin_rlhf.data._arrays import (
    Int,
    as_features,
    as_index,
    as_weight,
    check_finite,
    factorize,
    first_nonfinite,
    pointer,
    ranges,
)


@dataclass(frozen=True, eq=False, repr=False)
class PreferenceData:
    """Who chose what over what. Make one by `from_arrays`, `from_pairs`, `from_items`, `read`.

    A *comparison* is one choice of one annotator; a *row* is one rejected alternative of it (a pair has one row, a
    best-of-J choice J − 1). Rows are sorted, stably, by annotator in order of first appearance, then by comparison in
    order of first appearance. Immutable; tensors live on the CPU and may share memory with what they were made from.
    A fit puts a copy on its device.

    Attributes:
        features: rows form: ``(N, D)`` differences chosen − rejected. Indexed form: ``(M, D)`` items.
        indptr: ``(A + 1)`` int64, comparisons of each annotator.
        annotators_: ``(A,)`` their ids.
        order: ``(N,)`` int64, the caller's row that each sorted row was.
        chosen, rejected: ``(N,)`` int64 rows of the item table; None in the rows form.
        choice_indptr: ``(C + 1)`` int64, rows of each comparison; None: every comparison is one row.
        weight: ``(C,)`` float64 weight of each comparison; None: all 1.
        item_ids: ``(M,)`` ids of the items; equal ids are one item to a split by item. None in the rows form.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and the (caller's) row at fault. The class itself
            checks layout only (pointers, shapes, index ranges); the constructors check all values.
    """

    features: Tensor
    indptr: Tensor
    annotators_: NDArray[Any]
    order: Tensor
    chosen: Tensor | None = None
    rejected: Tensor | None = None
    choice_indptr: Tensor | None = None
    weight: Tensor | None = None
    item_ids: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError("chosen, rejected: expected both or neither")
        n_rows = self.features.shape[0] if self.chosen is None else self.chosen.shape[0]
        n_comparisons = n_rows
        if self.choice_indptr is not None:
            n_comparisons = self.choice_indptr.shape[0] - 1
            _check_pointer("choice_indptr", self.choice_indptr, n_rows, 1)
        _check_pointer("indptr", self.indptr, n_comparisons, 0)
        sizes: dict[str, tuple[Any, int]] = {
            "annotators_": (self.annotators_, self.indptr.shape[0] - 1),
            "order": (self.order, n_rows),
            "rejected": (self.rejected, n_rows),
            "weight": (self.weight, n_comparisons),
            "item_ids": (self.item_ids, self.features.shape[0]),
        }
        for name, (value, size) in sizes.items():
            if value is not None and tuple(value.shape) != (size,):
                raise ValueError(f"{name}: expected shape ({size},), got {tuple(value.shape)}")
        for name in ("chosen", "rejected"):
            if getattr(self, name) is not None:
                as_index(name, getattr(self, name), self.features.shape[0])

    @classmethod
    def from_arrays(
        cls,
        features: Any,
        annotator: Any,
        *,
        comparison: Any = None,
        weight: Any = None,
    ) -> PreferenceData:
        """From differences of features (rows form).

        Args:
            features: ``(N, D)`` chosen − rejected, MATH (1); NumPy, torch, pandas or nested lists. float64, float32,
                bfloat16 and float16 are kept, integers become float64.
            annotator: ``(N,)`` any hashable ids.
            comparison: ``(N,)`` any hashable ids: rows of one annotator with equal ids form one choice set, its chosen
                alternative against each rejected one. Ids need not differ between annotators. None: every row is a pair.
            weight: ``(N,)`` weight of the comparison, >= 0, the same in all its rows.
        """
        rows = as_features("features", features)
        check_finite("features", rows)
        return cls._build(rows, annotator, comparison, weight)

    @classmethod
    def from_pairs(
        cls, chosen: Any, rejected: Any, annotator: Any, *, weight: Any = None
    ) -> PreferenceData:
        """From the features of chosen and rejected, ``(N, D)`` each (rows form). Other arguments as in from_arrays."""
        return cls._from_pairs(chosen, rejected, annotator, None, weight)

    @classmethod
    def from_items(
        cls,
        items: Any,
        chosen: Any,
        rejected: Any,
        annotator: Any,
        *,
        comparison: Any = None,
        weight: Any = None,
        item_ids: Any = None,
    ) -> PreferenceData:
        """From a table of items (indexed form): far cheaper where the same items are judged again and again.

        Args:
            items: ``(M, D)`` features, as in from_arrays.
            chosen, rejected: ``(N,)`` integers, rows of ``items``. A pair may be judged more than once.
            annotator, weight: as in from_arrays.
            comparison: as in from_arrays; the rows of a set share their chosen item and differ in the rejected one.
            item_ids: ``(M,)`` hashable ids, by which held-out splits tell items apart. None: the row numbers.
        """
        table = as_features("items", items)
        check_finite("items", table)
        n_items = table.shape[0]
        won = as_index("chosen", chosen, n_items)
        lost = as_index("rejected", rejected, n_items, won.size)
        if won.size == 0:
            raise ValueError("chosen: expected at least one row, got none")
        same = np.flatnonzero(won == lost)
        if same.size:
            raise ValueError(
                f"rejected: expected another item than the chosen one, got {won[same[0]]} twice in row {same[0]}"
            )
        ids = np.arange(n_items)
        if item_ids is not None:
            codes, distinct = factorize("item_ids", item_ids, n_items)
            ids = distinct[codes]
            same = np.flatnonzero(codes[won] == codes[lost])  # rows may share an id
            if same.size:
                raise ValueError(
                    f"rejected: expected another item than the chosen one, got the id {ids.tolist()[won[same[0]]]!r} twice "
                    f"in row {same[0]}"
                )
        data = cls._build(table, annotator, comparison, weight, won, lost, ids)
        data._check_sets()
        return data

    @classmethod
    def read(
        cls,
        path: str | PathLike[str],
        *,
        annotator: str,
        features: Any = None,
        chosen: Any = None,
        rejected: Any = None,
        items: Any = None,
        comparison: str | None = None,
        weight: str | None = None,
    ) -> PreferenceData:
        """From a parquet, jsonl or csv file (jsonl and csv also with .gz), one row a rejected alternative.

        Args:
            path: the file. Its type is read off its name.
            annotator, comparison, weight: names of columns.
            features: differences chosen − rejected: a list of numeric columns, or one column of lists (from_arrays).
            chosen, rejected: each side's features, as lists of numeric columns or columns of lists (from_pairs); or
                each side's item id, as the name of a column of strings or integers (from_items).
            items: with ids. A table ``(path, id column, feature columns)``; a path alone (first column: ids, all
                others: features); a ``.npy`` file or an array ``(M, D)``, whose row numbers are the ids. None: one-hot
                features, items in sorted order: one free reward for each item and group (float64 up to 1,024 items,
                float32 above; more than 10,000 are refused).

        Raises:
            ImportError: without pyarrow (extra ``data``).
            ValueError: unknown columns, missing values, an empty file, another file type, ids that ``items`` lacks.
        """
        from maxmin_rlhf.data.reader import read_preferences

        return read_preferences(
            path, annotator, features, chosen, rejected, items, comparison, weight
        )

    @classmethod
    def _from_pairs(
        cls, chosen: Any, rejected: Any, annotator: Any, comparison: Any, weight: Any
    ) -> PreferenceData:
        won, lost = as_features("chosen", chosen), as_features("rejected", rejected)
        if won.shape != lost.shape:
            raise ValueError(
                f"rejected: expected the shape of chosen {tuple(won.shape)}, got {tuple(lost.shape)}"
            )
        rows = won - lost
        if first_nonfinite(rows) is not None:
            check_finite("chosen", won)
            check_finite("rejected", lost)
            check_finite("chosen - rejected", rows)
        data = cls._build(rows, annotator, comparison, weight)
        if data.choice_indptr is not None:
            ordered = won[data.order]
            first = data.choice_indptr[data.row_comparison]
            data._check_chosen((ordered != ordered[first]).any(1).numpy(), None)
        return data

    @classmethod
    def _build(
        cls,
        features: Tensor,
        annotator: Any,
        comparison: Any,
        weight: Any,
        chosen: Int | None = None,
        rejected: Int | None = None,
        item_ids: NDArray[Any] | None = None,
    ) -> PreferenceData:
        n_rows = features.shape[0] if chosen is None else chosen.size
        who, annotators = factorize("annotator", annotator, n_rows)
        choice_indptr = None
        if comparison is None:
            order = np.argsort(who, kind="stable")
            starts = np.arange(n_rows)
        else:
            which, distinct = factorize("comparison", comparison, n_rows)
            _, first, group = np.unique(
                who * distinct.size + which, return_index=True, return_inverse=True
            )
            order = np.argsort(who * n_rows + first[group], kind="stable")
            starts = np.flatnonzero(np.diff(group[order], prepend=-1))
            if starts.size < n_rows:
                choice_indptr = torch.from_numpy(np.append(starts, n_rows))
        counts = np.bincount(who[order[starts]], minlength=annotators.size)
        per_row = None if weight is None else as_weight("weight", weight, n_rows)[order]
        if per_row is not None and choice_indptr is not None:
            expected = np.repeat(per_row[starts], np.diff(choice_indptr.numpy()))
            bad = np.flatnonzero(per_row != expected)
            if bad.size:
                raise ValueError(
                    f"weight: expected one weight a comparison, got {per_row[bad[0]]} in row {order[bad[0]]} "
                    f"and {expected[bad[0]]} in another row of its comparison"
                )
        rows = torch.from_numpy(order)
        is_sorted = bool((order[1:] > order[:-1]).all())  # then nothing is copied
        return cls(
            features=features if chosen is not None or is_sorted else features[rows],
            indptr=torch.from_numpy(pointer(counts)),
            annotators_=annotators,
            order=rows,
            chosen=None if chosen is None else torch.from_numpy(chosen[order]),
            rejected=None if rejected is None else torch.from_numpy(rejected[order]),
            choice_indptr=choice_indptr,
            weight=None if per_row is None else torch.from_numpy(per_row[starts]),
            item_ids=item_ids,
        )

    def _check_sets(self) -> None:
        """A choice set has one chosen item, and no item twice."""
        if self.choice_indptr is None or self.chosen is None or self.rejected is None:
            return
        won, lost, owner = (
            self.chosen.numpy(),
            self.rejected.numpy(),
            self.row_comparison,
        )
        self._check_chosen(won != won[self.choice_indptr.numpy()[owner]], won)
        by_item = np.lexsort((lost, owner))
        twice = np.flatnonzero((np.diff(owner[by_item]) == 0) & (np.diff(lost[by_item]) == 0))
        if twice.size:
            rows = self.order.numpy()[by_item[twice[0] : twice[0] + 2]]
            raise ValueError(
                f"rejected: item {lost[by_item[twice[0]]]} stands twice in one choice set, in rows {rows[0]} "
                f"and {rows[1]}"
            )

    def _check_chosen(self, differs: NDArray[np.bool_], items: Int | None) -> None:
        """``differs``: (N,) the rows whose chosen item is not that of their comparison's first row."""
        bad = np.flatnonzero(differs)
        if bad.size and self.choice_indptr is not None:
            first = int(self.choice_indptr[self.row_comparison[bad[0]]])
            rows = self.order.numpy()[[first, bad[0]]]
            which = "" if items is None else f" ({items[first]} and {items[bad[0]]})"
            raise ValueError(
                f"chosen: a choice set with two chosen items{which}, in rows {rows[0]} and {rows[1]}"
            )

    @property
    def n_annotators(self) -> int:
        return int(self.indptr.shape[0]) - 1

    @property
    def n_comparisons(self) -> int:
        return self.n_rows if self.choice_indptr is None else int(self.choice_indptr.shape[0]) - 1

    @property
    def n_rows(self) -> int:
        return int(self.order.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.features.shape[1])

    @property
    def is_indexed(self) -> bool:
        return self.chosen is not None

    @property
    def has_items(self) -> bool:
        return self.item_ids is not None

    @property
    def dtype(self) -> torch.dtype:
        return self.features.dtype

    @property
    def device(self) -> torch.device:
        return self.features.device

    def __repr__(self) -> str:
        form = f"{self.features.shape[0]} items" if self.is_indexed else "rows"
        return (
            f"PreferenceData({self.n_comparisons} comparisons ({self.n_rows} rows) of {self.n_annotators} annotators; "
            f"{form}, {self.n_features} features, {str(self.dtype).removeprefix('torch.')})"
        )

    @cached_property
    def comparison_annotator(self) -> Int:
        """(C,) position in ``annotators_`` of each comparison's annotator."""
        return np.repeat(np.arange(self.n_annotators), np.diff(_host(self.indptr)))

    @cached_property
    def row_comparison(self) -> Int:
        """(N,) comparison of each row."""
        if self.choice_indptr is None:
            return np.arange(self.n_rows)
        return np.repeat(np.arange(self.n_comparisons), np.diff(_host(self.choice_indptr)))

    @cached_property
    def item_codes(self) -> Int:
        """(M,) a number for each item, equal where ids are equal."""
        if self.item_ids is None:
            raise ValueError("data: expected items with ids (from_items), got rows of differences")
        return factorize("item_ids", self.item_ids)[0]

    def select_annotators(self, which: Any) -> PreferenceData:
        """The comparisons of some annotators: ``(A,)`` mask, or their distinct positions in the order wanted."""
        array = _host(which)
        if array.dtype == bool:
            index = np.flatnonzero(_as_mask("which", array, self.n_annotators))
        else:
            index = as_index("which", array, self.n_annotators)
            if np.unique(index).size < index.size:
                raise ValueError("which: expected every annotator at most once")
        indptr = _host(self.indptr)
        counts = np.diff(indptr)[index]
        return self._take(ranges(indptr[index], counts), pointer(counts), self.annotators_[index])

    def select_comparisons(self, mask: Any) -> PreferenceData:
        """Some comparisons, by ``(C,)`` mask, of all annotators: one may be left with none."""
        keep = _as_mask("mask", _host(mask), self.n_comparisons)
        indptr = pointer(keep)[_host(self.indptr)]
        return self._take(np.flatnonzero(keep), indptr, self.annotators_)

    def _take(self, comparisons: Int, indptr: Int, annotators: NDArray[Any]) -> PreferenceData:
        rows, choice_indptr = comparisons, None
        if self.choice_indptr is not None:
            every = _host(self.choice_indptr)
            sizes = np.diff(every)[comparisons]
            rows = ranges(every[comparisons], sizes)
            if rows.size > comparisons.size:
                choice_indptr = self._placed(pointer(sizes))
        at = self._placed(rows)
        return replace(
            self,
            features=self.features if self.is_indexed else self.features[at],
            indptr=self._placed(indptr),
            annotators_=annotators,
            order=self.order[at.to(self.order.device)],
            chosen=None if self.chosen is None else self.chosen[at],
            rejected=None if self.rejected is None else self.rejected[at],
            choice_indptr=choice_indptr,
            weight=None if self.weight is None else self.weight[_like(comparisons, self.weight)],
        )

    def _placed(self, array: Int) -> Tensor:
        return torch.from_numpy(array).to(self.features.device)


def _like(array: Int, tensor: Tensor) -> Tensor:
    return torch.from_numpy(array).to(tensor.device)


def _host(value: Any) -> NDArray[Any]:
    """What may lie on a device, as an array."""
    return np.asarray(value.cpu() if isinstance(value, Tensor) else value)


def _as_mask(name: str, mask: NDArray[Any], size: int) -> NDArray[np.bool_]:
    if mask.dtype != bool or mask.shape != (size,):
        raise ValueError(
            f"{name}: expected ({size},) booleans, got {mask.shape} of dtype {mask.dtype}"
        )
    return mask


def _check_pointer(name: str, value: Tensor, end: int, shortest: int) -> None:
    """int64, from 0 to ``end``, every segment at least ``shortest`` long."""
    if value.dtype != torch.int64 or value.dim() != 1 or value.shape[0] == 0:
        raise ValueError(
            f"{name}: expected int64 of shape (n + 1,), got {value.dtype} {tuple(value.shape)}"
        )
    if int(value[0]) != 0 or int(value[-1]) != end:
        raise ValueError(
            f"{name}: expected to run from 0 to {end}, got {int(value[0])} to {int(value[-1])}"
        )
    short = (value.diff() < shortest).nonzero()
    if short.numel():
        at = int(short[0])
        kind = "an increasing" if shortest else "a non-decreasing"
        raise ValueError(
            f"{name}: expected {kind} pointer, got {int(value[at])} before {int(value[at + 1])} at position {at + 1}"
        )

"""What users hand in, as checked arrays: ids, features, weights, indices. Messages name the argument and the row."""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int = NDArray[np.int64]

_STORAGE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LONGEST_ID = 64  # characters; a NumPy array takes four bytes for each of the longest string, times all of them
_CHECKED_AT_ONCE = 1 << 24  # elements; bounds the memory of the finiteness check


def as_device(device: str | torch.device | None) -> torch.device | None:
    """A device by itself or by name, that is there.

    Raises:
        ValueError: no such device, or not on this machine.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected one that is here, like 'cpu' or 'cuda', got {str(device)!r} ({said})"
        ) from None
    return found


def factorize(name: str, ids: Any, n_rows: int | None = None) -> tuple[Int, NDArray[Any]]:
    """Codes (N,) of any hashable ids, and the distinct ids in order of first appearance.

    Raises:
        TypeError: unhashable ids. ValueError: wrong length, missing values (None, NaN, NaT, NA).
    """
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iubUS" and len(ids) > 1:
        # Rows of one annotator mostly stand together: the loop below sees the first of each run.
        first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        if 2 * first.size < ids.size and n_rows in (None, ids.size):
            codes, distinct = factorize(name, ids[first])
            return np.repeat(codes, np.diff(first, append=ids.size)), distinct
    values = _as_list(name, ids)
    if n_rows is not None and len(values) != n_rows:
        raise ValueError(f"{name}: expected {n_rows} ids, one a row, got {len(values)}")
    # A dictionary that numbers what it has not seen yet: the loop over rows runs in C, for every type of id.
    table: defaultdict[Hashable, int] = defaultdict(itertools.count().__next__)
    try:
        codes = np.fromiter(map(table.__getitem__, values), np.int64, len(values))
    except TypeError as error:
        raise TypeError(f"{name}: expected hashable ids: {error}") from None
    missing = [code for key, code in table.items() if _is_missing(key)]
    if missing:
        rows = np.flatnonzero(np.isin(codes, missing))
        raise ValueError(f"{name}: {rows.size} missing values, the first in row {rows[0]}")
    return codes, _as_ids(list(table), getattr(ids, "dtype", None))


def _as_list(name: str, ids: Any) -> list[Any]:
    shape = getattr(ids, "shape", None)
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise TypeError(f"{name}: expected one id a row, got {type(ids).__name__}")
    if shape is not None and len(shape) != 1:
        raise ValueError(f"{name}: expected shape (N,), got {tuple(shape)}")
    # NumPy's tolist would turn nanosecond times into plain numbers, and NaT into one of them.
    is_time = getattr(getattr(ids, "dtype", None), "kind", "") in tuple("mM")
    to_list = getattr(ids, "tolist", None)
    return list(ids) if to_list is None or is_time else list(to_list())


def _is_missing(key: Hashable) -> bool:
    if key is None:
        return True
    try:
        return bool(key != key)
    except TypeError:  # pandas.NA has no truth value
        return True


def _as_ids(keys: list[Any], dtype: object) -> NDArray[Any]:
    if isinstance(dtype, np.dtype) and dtype.kind != "O":
        return np.array(keys, dtype=dtype)
    return id_array(keys)


def id_array(keys: list[Any]) -> NDArray[Any]:
    """(N,) ids, each as it was: objects where NumPy would round numbers, cut strings, or pad them all to the longest."""
    kinds = {type(key) for key in keys}
    if kinds <= {int} and all(-(2**63) <= key < 2**63 for key in keys):
        return np.array(keys, dtype=np.int64)
    if kinds <= {str} and all(len(key) <= _LONGEST_ID and key[-1:] != "\0" for key in keys):
        return np.array(keys)
    out = np.empty(len(keys), dtype=object)  # not np.array, which would unpack tuples
    for i, key in enumerate(keys):
        out[i] = key
    return out


def as_features(name: str, value: Any) -> Tensor:
    """(N, D) CPU tensor in float64, float32, bfloat16 or float16; integers become float64. Shares memory if it can."""
    tensor = value.detach().cpu() if isinstance(value, Tensor) else _from_numpy(name, value)
    if tensor.dtype not in _STORAGE:
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            got = str(tensor.dtype).removeprefix("torch.")
            raise TypeError(f"{name}: expected float64, float32, bfloat16 or float16, got {got}")
        tensor = tensor.double()
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise ValueError(f"{name}: expected shape (N, D), got {tuple(tensor.shape)}")
    if tensor.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    return tensor.contiguous()


def _from_numpy(name: str, value: Any) -> Tensor:
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O" and array.ndim == 1:  # a pandas column of lists
            array = np.stack([np.asarray(row) for row in array])
    except ValueError as error:
        raise ValueError(f"{name}: expected rows of equal length: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    small = array.dtype.kind == "f" and array.dtype.itemsize <= 8
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=") if small else np.float64)
    with warnings.catch_warnings():  # a read-only array (a memory map) is fine: nothing here writes
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def first_nonfinite(features: Tensor) -> tuple[int, int] | None:
    """Row and column of the first NaN or infinity."""
    step = max(1, _CHECKED_AT_ONCE // features.shape[1])
    for start in range(0, features.shape[0], step):
        finite = features[start : start + step].isfinite()
        if not bool(finite.all()):
            row, column = (int(i) for i in (~finite).nonzero()[0])
            return start + row, column
    return None


def check_finite(name: str, features: Tensor) -> None:
    at = first_nonfinite(features)
    if at is not None:
        raise ValueError(
            f"{name}: expected finite numbers, got {features[at].item()} in row {at[0]}, column {at[1]}"
        )


def as_weight(name: str, value: Any, n_rows: int) -> NDArray[np.float64]:
    """(N,) float64, finite and >= 0."""
    array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
    try:
        array = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected numbers: {error}") from None
    if array.shape != (n_rows,):
        raise ValueError(f"{name}: expected shape ({n_rows},), one a row, got {array.shape}")
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if bad.size:
        raise ValueError(
            f"{name}: expected finite numbers >= 0, got {array[bad[0]]} in row {bad[0]}"
        )
    return array


def as_index(name: str, value: Any, size: int, n_rows: int | None = None) -> Int:
    """(N,) int64 in [0, size)."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim != 1 or (n_rows is not None and array.size != n_rows):
        wanted = "N" if n_rows is None else n_rows
        raise ValueError(f"{name}: expected shape ({wanted},), got {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    array = array.astype(np.int64, copy=False)
    bad = np.flatnonzero((array < 0) | (array >= size))
    if bad.size:
        raise ValueError(
            f"{name}: expected indices in [0, {size}), got {array[bad[0]]} in row {bad[0]}"
        )
    return array


def pointer(counts: NDArray[Any]) -> Int:
    """CSR pointer of segments with these lengths."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ranges(starts: Int, counts: Int) -> Int:
    """The integers starts[i] … starts[i] + counts[i] − 1 of every i, in one array."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(starts - ends + counts, counts)

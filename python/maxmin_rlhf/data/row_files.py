"""Rows of features in files, read by plain reads into memory of the caller's; what was read is dropped from the system's cache.

A pass over more than memory holds would find none of it in the cache the next time: the least recently used goes first, and
that is what the next pass begins with. So only the first ``CACHE_SHARE`` of memory stays, for the next pass to find.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHE_SHARE = 0.5  # of memory: as much of the files is left to the system's cache


class RowFiles:
    """Rows ``(N, D)``, one after the other in one file or several.

    Args:
        parts: ``(path or open file descriptor, byte of the first row, rows)`` of each file. Descriptors become this
            object's own.
        n_features, dtype: of a row, which stands without padding.

    Raises:
        FileNotFoundError: no such file.
    """

    def __init__(
        self, parts: Sequence[tuple[str | PathLike[str] | int, int, int]], n_features: int, dtype: torch.dtype
    ) -> None:  # fmt: skip
        self.n_features, self.dtype = n_features, dtype
        self.row_bytes = n_features * dtype.itemsize
        self._names = [f"file {where}" if isinstance(where, int) else os.fspath(where) for where, _, _ in parts]  # fmt: skip
        self._files = [w if isinstance(w, int) else os.open(w, os.O_RDONLY) for w, _, _ in parts]
        weakref.finalize(self, _close, self._files)
        self._offset = [offset for _, offset, _ in parts]
        self._first = np.cumsum([0, *(rows for _, _, rows in parts)])
        self._cached = int(CACHE_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        for file in self._files:
            _advise(file, 0, 0, "POSIX_FADV_SEQUENTIAL")

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, first: int, count: int, into: Tensor) -> None:
        """Rows ``first … first + count − 1`` into ``into``, uint8 of at least ``count`` rows' bytes, on the CPU.

        Raises:
            OSError: a file that ends before its rows do; what the system says of a broken disk.
        """
        target = memoryview(into.numpy().data)
        part = int(np.searchsorted(self._first, first, side="right")) - 1
        while count:
            here = min(count, int(self._first[part + 1]) - first)
            size = here * self.row_bytes
            offset = self._offset[part] + (first - int(self._first[part])) * self.row_bytes
            self._fill(part, offset, target[:size])
            if first * self.row_bytes >= self._cached:
                _advise(self._files[part], offset, size, "POSIX_FADV_DONTNEED")
            target, first, count, part = target[size:], first + here, count - here, part + 1

    def _fill(self, part: int, offset: int, target: Any) -> None:
        while len(target):
            got = os.preadv(self._files[part], [target], offset)
            if got == 0:
                raise OSError(
                    f"{self._names[part]}: expected {len(target)} more bytes at {offset}, the file ends: it was cut "
                    "while it was read"
                )
            target, offset = target[got:], offset + got


def _advise(file: int, offset: int, size: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):  # a hint that not every system takes
        os.posix_fadvise(file, offset, size, getattr(os, advice))


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def tensor_offset(path: str | PathLike[str], name: str) -> int:
    """The byte of a safetensors file at which one of its tensors begins."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return 8 + size + int(header[name]["data_offsets"][0])

"""Adds annotators to a preference store."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maxmin_rlhf.data._arrays import check_finite
from maxmin_rlhf.data.preference_shards import KIND, STORED, annotators_of
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.store_writer import StoreWriter

# The checksums of the shards of the store that this process added to last, who is in them, and the last of these: a loop of
# appends reads each shard's annotators once.
_known: dict[str, tuple[list[str], set[Any], Any]] = {}


class ShardWriter(StoreWriter):
    """Adds annotators to a store."""

    kind, dtypes = KIND, STORED

    def add(self, data: PreferenceData) -> None:
        """One shard of ``data``, in the rows form."""
        check_finite("features", data.features)
        self._check_annotators(data.annotators_)
        tensors = {
            "features": data.features.contiguous(),
            "indptr": data.indptr,
            "annotators": _as_tensor(data.annotators_),
        }
        for name in ("choice_indptr", "weight"):
            if getattr(data, name) is not None:
                tensors[name] = getattr(data, name)
        self._add(tensors, {"rows": data.n_rows, "annotators": data.n_annotators})

    def _check_annotators(self, annotators: NDArray[Any]) -> None:
        """All are new, but the first may be the last one of the store, who goes on."""
        shards, store = self._index()["shards"], os.fspath(self.path.resolve())
        checks = [shard["sha256"] for shard in shards]
        seen, known, last = _known.pop(store, ([], set(), None))
        if checks[: len(seen)] != seen:  # another store by now
            seen, known, last = [], set(), None
        for shard in shards[len(seen) :]:
            there = annotators_of(self.path / shard["file"]).tolist()
            known.update(there)
            last = there[-1]
        _known.clear()
        _known[store] = (checks, known, last)
        for at, who in enumerate(annotators.tolist()):
            if who in known and (at or who != last):
                raise ValueError(
                    f"annotators: expected new ones, got {who!r}, who is in {self.path} already: append all comparisons of "
                    "an annotator at once, or one part right after the other"
                )


def _as_tensor(ids: NDArray[Any]) -> Tensor:
    """Whole numbers of 64 bits as they are, larger ones and strings as JSON."""
    if ids.dtype.kind in "iu" and not (ids > np.iinfo(np.int64).max).any():
        return torch.from_numpy(ids.astype("int64"))
    values = ids.tolist()
    bad = [value for value in values if type(value) not in (str, int)]
    if bad:
        raise TypeError(
            f"annotators: expected strings or whole numbers, got {type(bad[0]).__name__} ({bad[0]!r})"
        )
    return torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)

"""Adds annotators to a preference store."""

from __future__ import annotations

import json
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from maxmin_rlhf.data._arrays import check_finite
from maxmin_rlhf.data.preference_shards import KIND, STORED
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.store_writer import StoreWriter


class ShardWriter(StoreWriter):
    """Adds annotators to a store."""

    kind, dtypes = KIND, STORED

    def add(self, data: PreferenceData) -> None:
        """One shard of ``data``, in the rows form."""
        check_finite("features", data.features)
        tensors = {
            "features": data.features.contiguous(),
            "indptr": data.indptr,
            "annotators": _as_tensor(data.annotators_),
        }
        for name in ("choice_indptr", "weight"):
            if getattr(data, name) is not None:
                tensors[name] = getattr(data, name)
        self._add(tensors, {"rows": data.n_rows, "annotators": data.n_annotators})


def _as_tensor(ids: NDArray[Any]) -> Tensor:
    """Whole numbers as they are, strings as JSON."""
    if ids.dtype.kind in "iu":
        return torch.from_numpy(ids.astype("int64"))
    values = ids.tolist()
    bad = [value for value in values if not isinstance(value, str)]
    if bad:
        raise TypeError(
            f"annotators: expected strings or whole numbers, got {type(bad[0]).__name__} ({bad[0]!r})"
        )
    return torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)

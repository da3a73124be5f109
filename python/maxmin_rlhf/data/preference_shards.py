"""The shards of a PreferenceStore: rows of differences, with whose they are. Safetensors and a JSON index; no pickle.

A shard ``shard-00000.safetensors`` holds ``features (n, D)``, ``indptr (a + 1)``, ``annotators`` (int64, or strings as JSON)
and, where there are any, ``choice_indptr`` and ``weight``, as `PreferenceData` has them. Files are written as those of a
`FeatureStore` are: whole or not there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maxmin_rlhf.data._arrays import Int, factorize, id_array, pointer
from maxmin_rlhf.data.feature_store import DTYPES, check_size, read_index
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.row_files import RowFiles, tensor_offset

KIND = "maxmin preference store"
STORED = {**DTYPES, "float64": torch.float64}


@dataclass(eq=False)
class Source:
    """What lies in files, and what is known of it.

    Attributes:
        rows: the differences, ``(N, D)``, in the order of `PreferenceData`.
        indptr, choice_indptr, annotators, weight: as there, as arrays.
        identity: changes with anything that a fit depends on.
        labels: the same comparisons between items with ids, where these are known; its features are not read.
    """

    rows: RowFiles
    indptr: Int
    annotators: NDArray[Any]
    choice_indptr: Int | None
    weight: NDArray[np.float64] | None
    identity: str
    labels: PreferenceData | None = None
    readers: dict[Any, Any] = field(default_factory=dict)

    @functools.cached_property
    def row_of(self) -> Int:
        """(A + 1) the row at which each annotator begins."""
        return self.indptr if self.choice_indptr is None else self.choice_indptr[self.indptr]


def open_shards(path: Path) -> Source:
    """Read the small tensors of every shard, and where its rows begin.

    Raises:
        FileNotFoundError, ValueError: no store, a damaged one, one without annotators; an annotator in two places.
    """
    index = read_index(path, KIND, "PreferenceStore.append")
    shards = index["shards"]
    if not shards:
        raise ValueError(f"{path}: expected preferences, got none: append some")
    parts, small = [], []
    for shard in shards:
        file = path / shard["file"]
        check_size(file, shard["bytes"])
        small.append(_small_tensors(file))
        parts.append((file, tensor_offset(file, "features"), shard["rows"]))
    counts, ids = small[0]["indptr"].diff().numpy(), _as_ids(small[0]["annotators"])
    every_count, every_id = [counts], [ids]
    for tensors in small[1:]:
        counts, ids = tensors["indptr"].diff().numpy(), _as_ids(tensors["annotators"])
        if ids[0] == every_id[-1][-1]:  # the annotator goes on
            every_count[-1] = every_count[-1].copy()
            every_count[-1][-1] += counts[0]
            counts, ids = counts[1:], ids[1:]
        if ids.size:
            every_count.append(counts)
            every_id.append(ids)
    if len({ids.dtype.kind for ids in every_id}) > 1:  # numbers would become strings
        every_id = [ids.astype(object) for ids in every_id]
    annotators = np.concatenate(every_id)
    ascending = annotators.dtype != object and (annotators[1:] > annotators[:-1]).all()
    codes = np.arange(annotators.size) if ascending else factorize("annotators", annotators)[0]
    twice = np.flatnonzero(np.bincount(codes) > 1)
    if twice.size:
        who = annotators[codes == twice[0]].tolist()[0]
        raise ValueError(
            f"{path}: expected every annotator in one place, got {who!r} in several: append all comparisons of an annotator "
            "at once, or one part after the other"
        )
    return Source(
        rows=RowFiles(parts, index["n_features"], STORED[index["dtype"]]),
        indptr=pointer(np.concatenate(every_count)),
        annotators=annotators,
        choice_indptr=_joined(small, "choice_indptr"),
        weight=_joined(small, "weight"),
        identity=json.dumps([shard["sha256"] for shard in shards]),
    )


def annotators_of(file: Path) -> NDArray[Any]:
    """The ids in one shard.

    Raises:
        ValueError: it is none, or damaged.
    """
    return _as_ids(_small_tensors(file, ["annotators"])["annotators"])


def _small_tensors(file: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Those of some names; None: all but the features."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            names = names or [n for n in tensors.keys() if n != "features"]  # noqa: SIM118
            return {n: tensors.get_tensor(n) for n in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: expected a shard of a preference store ({error})") from None


def _joined(small: list[dict[str, Tensor]], name: str) -> Any:
    """Sets or weights of all shards; None where no shard has any."""
    if not any(name in tensors for tensors in small):
        return None
    parts = []
    for tensors in small:
        usual = np.ones(int(tensors["indptr"][-1]), np.int64)  # pairs, of weight 1
        there = tensors.get(name)
        if name == "choice_indptr":
            there = None if there is None else there.diff()
        parts.append(usual if there is None else there.numpy())
    joined = np.concatenate(parts)
    return pointer(joined) if name == "choice_indptr" else joined.astype(np.float64)


def _as_ids(kept: Tensor) -> NDArray[Any]:
    array = kept.numpy()
    return array if array.dtype == np.int64 else id_array(json.loads(array.tobytes()))


def sums(keep: NDArray[np.bool_], indptr: Int) -> Int:
    """(A,) how many of each segment are kept."""
    starts = indptr[:-1]
    full = np.flatnonzero(indptr[1:] > starts)
    counts = np.zeros(starts.size, np.int64)
    if full.size:
        counts[full] = np.add.reduceat(keep, starts[full], dtype=np.int64)
    return counts

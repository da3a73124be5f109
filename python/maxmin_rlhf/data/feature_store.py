"""FeatureStore: features of texts on disk, each distinct text once. Safetensors shards and a JSON index; no pickle.

A store is a folder. ``index.json`` names the encoder and lists the shards with their sizes and sha256; a shard
``shard-00000.safetensors`` holds ``features (n, pitch)``, whose rows are padded with zeros to a multiple of 64 columns, and
``keys (n, 32) uint8``, the sha256 of each text. Every file is written beside its place, flushed to disk and then put there
in one step: a store that was being written when the power went is the store up to the last whole shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maxmin_rlhf.data._arrays import Int, as_index

FORMAT = 1
PITCH = 64  # columns
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KIND = "maxmin feature store"
INDEX = "index.json"
_BLOCK = 1 << 22  # bytes hashed at a time
_ROWS = 4096  # copied at a time


def key_of(text: Any) -> bytes:
    """sha256 of a text, of a pair (prompt, response), or of either as messages ``[{"role": …, "content": …}]``."""
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).digest()


class FeatureStore:
    """A store, open for reading: shards are mapped into memory when rows are asked for, and only what is read is loaded.

    Attributes:
        path: the folder.
        encoder: what made the features: names and plain values, as `maxmin_rlhf.encode` wrote them.
        n_features: D. dtype: of the features. shards: what the index says of each.

    Raises:
        FileNotFoundError: no such store. ValueError: a foreign, damaged or newer index; a missing or truncated shard.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        index = read_index(self.path)
        self.encoder: dict[str, Any] = index["encoder"]
        self.n_features: int = index["n_features"]
        self.dtype = DTYPES[index["dtype"]]
        self.shards: list[dict[str, Any]] = index["shards"]
        for shard in self.shards:
            check_size(self.path / shard["file"], shard["bytes"])
        self._first = np.cumsum([0, *(shard["rows"] for shard in self.shards)])
        self._maps: dict[int, tuple[Tensor, Tensor]] = {}
        self._sorted: tuple[NDArray[Any], Int] | None = None

    def __len__(self) -> int:
        return int(self._first[-1])

    def __repr__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"FeatureStore({self.path}: {len(self)} texts, {self.n_features} features, {name}, {len(self.shards)} shards)"

    def find(self, texts: Sequence[Any]) -> Int:
        """(n,) the row of each text (see `key_of`), -1 where the store does not have it."""
        return self.find_keys([key_of(text) for text in texts])

    def find_keys(self, keys: Sequence[bytes]) -> Int:
        """The same of their sha256."""
        known, row_of = self._by_key()
        if not len(known) or not len(keys):
            return np.full(len(keys), -1, np.int64)
        wanted = _comparable(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32))
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[at] == wanted, row_of[at], -1)

    def rows(self, texts: Sequence[Any]) -> Int:
        """(n,) the row of each text.

        Raises:
            ValueError: a text that is not in the store.
        """
        found = self.find(texts)
        unknown = np.flatnonzero(found < 0)
        if unknown.size:
            raise ValueError(
                f"{self.path}: {unknown.size} of {found.size} texts are not in the store, the first is number "
                f"{unknown[0]}: {shorten(texts[unknown[0]])}; encode them first"
            )
        return found

    def gather(self, rows: Any, max_bytes: int | None = None) -> Tensor:
        """(n, D) features of some rows, contiguous, in the store's dtype.

        All rows of a store of one shard without padding are its map itself: nothing is read until it is used. Otherwise
        the rows are copied: into memory up to ``max_bytes`` (None: a quarter of the machine's), else into a file in the
        store's folder that is mapped and has no name, so that it is gone when the tensor is.
        """
        index = as_index("rows", rows, len(self))
        whole = index.size == len(self) and bool((index == np.arange(index.size)).all())
        if whole and len(self.shards) == 1 and self.n_features % PITCH == 0:
            return self._map(0)[0]
        n_bytes = index.size * self.n_features * self.dtype.itemsize
        budget = quarter_of_memory() if max_bytes is None else max_bytes
        shape = (index.size, self.n_features)
        out = torch.empty(shape, dtype=self.dtype) if n_bytes <= budget else self._on_disk(*shape)
        shard_of = np.searchsorted(self._first, index, side="right") - 1
        for shard in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == shard)
            features = self._map(shard)[0]
            for first in range(0, here.size, _ROWS):
                to = here[first : first + _ROWS]
                taken = torch.from_numpy(index[to] - self._first[shard])
                out[torch.from_numpy(to)] = features[taken, : self.n_features]
        return out

    def verify(self) -> None:
        """Read everything and compare with the index.

        Raises:
            ValueError: a shard whose bytes are not those that were written, with both sha256.
        """
        for shard in self.shards:
            path = self.path / shard["file"]
            check_size(path, shard["bytes"])
            found = _sha256(path)
            if found != shard["sha256"]:
                raise ValueError(
                    f"{path}: expected sha256 {shard['sha256']}, got {found}: the file was changed after it was written"
                )

    def _by_key(self) -> tuple[NDArray[Any], Int]:
        """Keys in order, and the row of each."""
        if self._sorted is None:
            maps = [self._map(i)[1].numpy() for i in range(len(self.shards))]
            keys = _comparable(np.concatenate(maps) if maps else np.empty((0, 32), np.uint8))
            order = np.argsort(keys, kind="stable")
            self._sorted = keys[order], order
        return self._sorted

    def _map(self, shard: int) -> tuple[Tensor, Tensor]:
        if shard not in self._maps:
            self._maps[shard] = _open_shard(
                self.path / self.shards[shard]["file"],
                (self.shards[shard]["rows"], padded(self.n_features)),
                self.dtype,
            )
        return self._maps[shard]

    def _on_disk(self, n_rows: int, n_columns: int) -> Tensor:
        handle, name = tempfile.mkstemp(prefix=".rows-", dir=self.path)
        os.close(handle)
        try:
            size = n_rows * n_columns
            flat = torch.from_file(name, shared=True, size=size, dtype=self.dtype)
        finally:
            os.unlink(name)
        return flat.view(n_rows, n_columns)


def padded(n_features: int) -> int:
    """The row pitch in columns."""
    return -(-n_features // PITCH) * PITCH


def shorten(text: Any, most: int = 60) -> str:
    """A text for an error message: the beginning of a long one, without what would steer a terminal."""
    shown = text if isinstance(text, str) else json.dumps(text)
    return ascii(shown[:most]) + ("…" if len(shown) > most else "")


def read_index(folder: Path, kind: str = KIND, maker: str = "`maxmin encode`") -> dict[str, Any]:
    path, name = folder / INDEX, kind.removeprefix("maxmin ")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {name} there (no {INDEX}); {maker} makes one")
    try:
        index = json.loads(path.read_bytes())
        is_ours = index["kind"] == kind
    except (ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"{path}: expected the index of a {name}, got a damaged or foreign file")
    if index["format"] != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {index['format']}: made by another version")  # fmt: skip
    return dict(index)


def check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: the shard is missing")
    if path.stat().st_size != size:
        raise ValueError(f"{path}: expected {size} bytes, got {path.stat().st_size}: truncated or changed")  # fmt: skip


def _open_shard(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            features, keys = file.get_tensor("features"), file.get_tensor("keys")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a shard of a feature store ({error})") from None
    if tuple(features.shape) != shape or features.dtype != dtype or keys.shape != (shape[0], 32):
        raise ValueError(
            f"{path}: expected {dtype} features of shape {shape}, got {features.dtype} {tuple(features.shape)}"
        )
    return features, keys


def _comparable(keys: NDArray[np.uint8]) -> NDArray[Any]:
    """(n, 32) bytes as (n,) values that NumPy sorts."""
    return np.ascontiguousarray(keys).view("S32").reshape(-1)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def quarter_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4

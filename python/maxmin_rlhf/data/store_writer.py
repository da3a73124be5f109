"""Adds shards to a feature store: each file is whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from maxmin_rlhf.data.feature_store import DTYPES, FORMAT, INDEX, KIND, padded, read_index

_Writer = TypeVar("_Writer", bound="StoreWriter")


class StoreWriter:
    """Adds shards to a store, one process at a time. Use as a context.

    Args:
        path: the folder; made if it is not there.
        encoder: as in the store; another one than the store's is an error.
        n_features, dtype: of the features, "float32", "bfloat16" or "float16".
    """

    kind, dtypes = KIND, DTYPES

    def __init__(
        self, path: str | PathLike[str], encoder: Mapping[str, Any], n_features: int, dtype: str
    ) -> None:
        self.path = Path(path)
        self._encoder, self._n_features, self._dtype = dict(encoder), n_features, dtype

    def __enter__(self: _Writer) -> _Writer:
        self.path.mkdir(parents=True, exist_ok=True)
        self._folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process
            is_store = (self.path / INDEX).exists()
            if not is_store and any(not e.name.endswith(".tmp") for e in self.path.iterdir()):
                raise ValueError(
                    f"{self.path}: expected a {self.kind.removeprefix('maxmin ')} or an empty folder"
                )
            for left in self.path.glob(".*.tmp"):
                left.unlink()
            if is_store and (index := self._index())["shards"]:
                self._check_encoder(index)
            else:  # nothing is in it: whoever comes first
                self._write_index([])
        except BlockingIOError:
            os.close(self._folder)
            raise ValueError(f"{self.path}: another process is writing to this store") from None
        except BaseException:
            os.close(self._folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)

    def append(self, keys: Sequence[bytes], features: Tensor, plan: Mapping[str, Any]) -> None:
        """Write one shard of ``features (n, D)`` and put it into the index, with what ``plan`` says of its making."""
        rows = torch.zeros(
            features.shape[0], padded(features.shape[1]), dtype=self.dtypes[self._dtype]
        )
        rows[:, : features.shape[1]] = features
        key_bytes = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, 32)
        self._add({"features": rows, "keys": key_bytes}, {"rows": len(keys), "plan": dict(plan)})

    def _add(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        shards = self._index()["shards"]
        data = save(dict(tensors))
        name = f"shard-{len(shards):05d}.safetensors"
        check = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for shard in shards:
            if shard["sha256"] == check["sha256"]:
                raise ValueError(
                    f"{self.path}: expected rows that are not there yet, got those of {shard['file']} again: go on after "
                    "the last part that was added"
                )
        self._write(name, data)
        self._write_index([*shards, {"file": name, **facts, **check}])

    def _index(self) -> dict[str, Any]:
        return read_index(self.path, self.kind)

    def _check_encoder(self, index: Mapping[str, Any]) -> None:
        there = index["encoder"] | {"n_features": index["n_features"], "dtype": index["dtype"]}
        here = self._encoder | {"n_features": self._n_features, "dtype": self._dtype}
        # A model may be called by another name, or lie elsewhere: its fingerprint tells it.
        differing = [n for n in sorted({*there, *here} - {"model"}) if there.get(n) != here.get(n)]
        if differing:
            says = "; ".join(f"{n}: {there.get(n)!r} in the store, {here.get(n)!r} now" for n in differing)  # fmt: skip
            raise ValueError(
                f"{self.path}: made by another encoder ({there.get('model')}): {says}; use another folder"
            )

    def _write_index(self, shards: list[dict[str, Any]]) -> None:
        # The store keeps the name that its encoder had at first.
        encoder = self._index()["encoder"] if shards else self._encoder
        index = {
            "kind": self.kind,
            "format": FORMAT,
            "encoder": encoder,
            "n_features": self._n_features,
            "dtype": self._dtype,
            "shards": shards,
        }
        self._write(INDEX, (json.dumps(index, indent=1) + "\n").encode())

    def _write(self, name: str, data: bytes) -> None:
        temporary = self.path / f".{name}.tmp"
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)
        os.fsync(self._folder)

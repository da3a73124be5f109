"""Files of a fit: tensors in safetensors, everything else as JSON in its header. One file, replaced whole; no pickle."""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from maxmin_rlhf.data import PreferenceData, PreferenceStore
from maxmin_rlhf.mixture.fit import Fit, Progress
from maxmin_rlhf.mixture.solver import State

FORMAT = 1


class Kept(os.PathLike[str]):
    """The path of a checkpoint that a fit leaves where it is: who gave it removes it, once the result is safe."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = os.fspath(path)

    def __fspath__(self) -> str:
        return self._path


def discard(path: str | PathLike[str]) -> None:
    """Remove a checkpoint that has served, unless it is `Kept`."""
    if not isinstance(path, Kept) and os.path.exists(path):
        os.unlink(path)


def write(path: str | PathLike[str], kind: str, tensors: Mapping[str, Tensor], facts: Any) -> None:
    """Replace ``path`` in one step; who reads it sees the old file or the new one, never a part."""
    from safetensors.torch import save_file

    path = os.fspath(path)
    header = {"maxmin": json.dumps({"format": FORMAT, "kind": kind, "facts": facts})}
    folder, name = os.path.split(os.path.abspath(path))
    # Files of tempfile, and those of some releases of safetensors, nobody else may read: the mode shall be as of others.
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = os.fstat(handle).st_mode & 0o777
    os.close(handle)
    try:
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, header)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: str | PathLike[str], kind: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and facts of a file that `write` made.

    Raises:
        FileNotFoundError: there is none.
        ValueError: truncated or foreign file, another kind, another version's format.
    """
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("maxmin", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: expected a whole file of maxmin, got a truncated or foreign one ({error})"
        ) from None
    if not isinstance(header, dict) or "format" not in header:
        raise ValueError(f"{path}: expected a file of maxmin, got another program's safetensors")
    if header["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT}, got {header['format']} of another version"
        )
    if header["kind"] != kind:
        raise ValueError(f"{path}: expected a {kind}, got a {header['kind']}")
    return tensors, header["facts"]


def checksum(*tensors: Tensor | None) -> str:
    """Of the shapes and bytes of some tensors."""
    check = 0
    for tensor in tensors:
        if tensor is not None:
            flat = tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1)
            check = zlib.crc32(str(tensor.shape).encode(), check)
            check = zlib.crc32(flat.numpy().tobytes(), check)
    return f"{check:08x}"


def fingerprint(data: PreferenceData | PreferenceStore) -> str:
    """A checksum of everything in ``data`` that a fit or a split depends on; a store knows that of its files."""
    if isinstance(data, PreferenceStore):
        return data.fingerprint()
    names = ("features", "indptr", "chosen", "rejected", "choice_indptr", "weight")
    items = torch.from_numpy(data.item_codes) if data.has_items else None
    return checksum(*(getattr(data, name) for name in names), items)


def save_progress(path: str | PathLike[str], fit: Fit, whole: State | None, facts: Any) -> None:
    """Keep a fit's progress; ``whole`` is the state of its running phase."""
    progress = fit.progress
    tensors = {
        f"{part}.{f.name}": getattr(state, f.name)
        for part, state in (
            ("state", whole),
            ("pooled", progress.pooled),
            ("best", progress.best),
        )
        if state is not None
        for f in fields(State)
    }
    for name in ("owner", "improved"):
        if getattr(progress, name) is not None:
            tensors[name] = getattr(progress, name)
    stage = {"seed": list(fit.seed), "phase": progress.phase, "repeat": progress.repeat}
    write(path, "checkpoint of a fit", tensors, {**facts, "progress": stage})


def load_progress(
    path: str | PathLike[str], facts: Any, device: torch.device
) -> tuple[Progress, list[int]] | None:
    """The progress kept at ``path`` and the seed that it was made with, or None where there is no file.

    Raises:
        ValueError: it belongs to other data or options; it is damaged or of another version.
    """
    if not os.path.exists(path):
        return None
    tensors, kept = read(path, "checkpoint of a fit")
    stage = kept.pop("progress")
    for name, value in json.loads(json.dumps(facts)).items():
        if kept.get(name) != value:
            raise ValueError(
                f"{os.fspath(path)}: expected a checkpoint with {name} = {value!r}, got {kept.get(name)!r}; "
                "remove it to start anew"
            )
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}

    def state(part: str) -> State | None:
        if f"{part}.theta" not in tensors:
            return None
        return State(**{f.name: tensors[f"{part}.{f.name}"] for f in fields(State)})

    progress = Progress(
        phase=stage["phase"],
        repeat=stage["repeat"],
        state=state("state"),
        owner=tensors.get("owner"),
        pooled=state("pooled"),
        best=state("best"),
        improved=tensors.get("improved"),
    )
    return progress, stage["seed"]

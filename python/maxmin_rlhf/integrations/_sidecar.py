"""The weights' state beside a trainer's checkpoint: one small JSON file, replaced whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NAME = "maxmin_weights.json"


def write(folder: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Put ``state`` into the checkpoint at ``folder``; who reads it sees all of it or nothing."""
    path = Path(folder, NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, allow_nan=False))
    temporary.replace(path)


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `write` put there.

    Raises:
        FileNotFoundError, ValueError: none is there, or it is damaged. Training on from fresh weights would be another run.
    """
    path = Path(folder, NAME)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the groups' weights beside the checkpoint")
    try:
        state = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got a damaged file ({error})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected an object, got {type(state).__name__}")
    return state

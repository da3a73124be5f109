"""Tables and JSON, on a terminal and in files."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_KINDS = (".csv", ".jsonl", ".parquet")


def as_text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned on the right."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)  # fmt: skip


def print_json(value: Any) -> None:
    """Strict JSON: what is not finite becomes null."""
    print(as_json(value))


def as_json(value: Any) -> str:
    """The same as text."""
    return json.dumps(_plain(value), indent=1, allow_nan=False)


def keep_json(path: str, value: Any) -> None:
    """Write it; None: what an earlier run left there goes."""
    if value is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(as_json(value) + "\n")
    elif os.path.exists(path):
        os.unlink(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def check_kind(path: str | None) -> None:
    """Before any work is done: is it a table that can be written?"""
    if path is None:
        return
    if not path.lower().endswith(_KINDS):
        raise ValueError(f"--output: expected a name that ends in {', '.join(_KINDS)}, got {path}")
    if not os.path.isfile(path) or not os.access(path, os.W_OK):  # else it is written over
        check_place("--output", path)


def check_place(flag: str, path: str) -> None:
    """Before any work is done: can a file of this name be made?"""
    if os.path.isdir(path):
        raise ValueError(f"{flag}: expected the name of a file, got the folder {path}")
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        raise ValueError(f"{flag}: expected a folder that is there, got {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}: expected a folder that can be written to, got {folder}")


def write_columns(path: str | None, columns: Mapping[str, NDArray[Any]]) -> None:
    """Columns of equal length to a file, its type read off its name; to stdout as csv without one."""
    if path is None:
        _write_csv(sys.stdout, columns)
    elif path.lower().endswith(".csv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            _write_csv(file, columns)
    elif path.lower().endswith(".jsonl"):
        with open(path, "w", encoding="utf-8") as file:
            for row in _rows(columns):
                file.write(json.dumps(_plain(dict(zip(columns, row, strict=True)))) + "\n")
    else:
        _write_parquet(path, columns)


def _rows(columns: Mapping[str, NDArray[Any]]) -> Any:
    return zip(*(column.tolist() for column in columns.values()), strict=True)


def _write_csv(file: IO[str], columns: Mapping[str, NDArray[Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(_rows(columns))


def _write_parquet(path: str, columns: Mapping[str, NDArray[Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "writing parquet needs pyarrow: pip install 'maxmin-kernels[data]'"
        ) from error
    arrays = {}
    for name, column in columns.items():
        try:
            arrays[name] = pa.array(column.tolist())
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # ids of several types, or huge
            arrays[name] = pa.array([str(value) for value in column.tolist()])
    pa.parquet.write_table(pa.table(arrays), path)

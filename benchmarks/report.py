"""Write the generated parts of README.md and docs/ from benchmarks/results: no number there is typed by hand.

    python -m benchmarks.report [--check]

A part stands between ``<!-- name -->`` and ``<!-- /name -->``. With ``--check`` nothing is written and the exit code is 1
where a part is not what the results say.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.tables import fits, kernels, people, training

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/fitting.md",
    "docs/selecting.md",
    "docs/welfare.md",
    "docs/gpu.md",
    "docs/language.md",
    "docs/training.md",
    "docs/plural.md",
    "docs/performance.md",
)
PARTS: dict[str, Callable[[], str]] = {
    "operations": kernels.operations,
    "results": kernels.results,
    "starts": fits.starts,
    "stream": fits.stream,
    "ranks": fits.ranks,
    "panels": fits.panels,
    "null": fits.null,
    "gpu": kernels.gpu,
    "peers": fits.peers,
    "scale": fits.scale,
    "real_work": kernels.real_work,
    "scaling": kernels.scaling,
    "compiled": kernels.compiled,
    "active": people.active,
    "families": people.families,
    "rloo": training.rloo,
    "rloo_smollm2": training.rloo_smollm2,
    "language": people.language,
    "hh": people.hh,
    "live": training.live,
    "jester_policy": people.jester_policy,
}


def render(text: str) -> str:
    """``text`` with every part written anew."""

    def part(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{PARTS[match[1]]()}\n<!-- /{match[1]} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", part, text, flags=re.S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = 0
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        new = render(text)
        if new != text:
            stale += 1
            print(f"{name}: {'not what the results say' if check else 'written'}")
            if not check:
                page.write_text(new)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())

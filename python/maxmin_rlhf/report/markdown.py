"""Markdown out of data: names that strangers chose stay text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$!&])")


def escape(text: object) -> str:
    """Text on one line that no renderer takes for markup, links or HTML."""
    visible = "".join(c if c.isprintable() else " " for c in str(text))
    return _SPECIAL.sub(r"\\\1", " ".join(visible.split()))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; all cells are escaped, all columns after the first are right-aligned."""
    lines = [list(map(escape, head)), ["---", *["---:"] * (len(head) - 1)]]
    lines += [list(map(escape, row)) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

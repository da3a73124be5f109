"""One page of HTML that needs nothing else: no script, no network. All text of strangers stays text."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

# What formats text (and may turn its direction) or breaks lines, unseen: shown, not obeyed.
_UNSEEN = ("Cf", "Zl", "Zp")
# But for what joins or parts the letters of Persian and Indic words, and makes one picture of several.
_JOINED = re.compile("(?<=[^\0-\x7f\u200b-\u200f])[\u200c\u200d](?=[^\0-\x7f\u200b-\u200f])")

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --muted: #5c6773; --line: #d5dae0; --paper: #fff; --soft: #f4f6f8;
  --c0: #1f5f8b; --c1: #b3501b; --c2: #3d7a3a; --c3: #7b4fa0; --c4: #8a6d00; --c5: #a8325e; --cgrey: #7d8792; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --muted: #9aa6b2; --line: #3a434d; --paper: #14191f;
  --soft: #1d242c; --c0: #6db3e3; --c1: #f0985e; --c2: #84c97f; --c3: #c39ae6; --c4: #dcbf4f; --c5: #f084ab;
  --cgrey: #8b96a1; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .25rem 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p, li { max-width: 46rem; } .lead { font-size: 1.05rem; } .note, figcaption { color: var(--muted); font-size: .875rem; }
.verdict { background: var(--soft); border-left: 4px solid var(--c0); padding: .6rem .9rem; margin: 1rem 0; }
.verdict p { margin: .3rem 0; } .verdict.warn { border-color: var(--c1); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2rem; } .figures > figure { flex: 1 1 21rem; } .figures > .scroll { flex: 1 1 auto; min-width: 0; }
figure { margin: .5rem 0; max-width: 34rem; min-width: 0; } figcaption { margin-top: .25rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: var(--ink); }
svg text.muted { fill: var(--muted); } .grid { stroke: var(--line); stroke-width: .75; } .axis { stroke: var(--muted); }
.line { fill: none; stroke-width: 1.6; } .whisker { stroke-width: 1.6; } .dashed.line, .dashed.whisker { stroke-dasharray: 4 3; }
.line, .whisker, .dot { stroke: var(--c); } .dot { fill: var(--c); } .dot.dashed { fill: var(--paper); stroke-width: 1.4; }
.bar { fill: var(--c); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); } .cgrey { --c: var(--cgrey); }
.key { display: inline-block; margin: 0 .9rem 0 0; white-space: nowrap; } .key i { display: inline-block; width: .7rem; height: .7rem;
  border-radius: 50%; margin-right: .35rem; background: var(--c); border: 2px solid var(--c); } .key i.dashed { background: none; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: normal; }
th { font-weight: 600; vertical-align: bottom; } th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { min-width: 14rem; max-width: 30rem; overflow-wrap: anywhere; } td small { display: block; color: var(--muted); white-space: nowrap; }
tr.mine td { background: var(--soft); font-weight: 600; } tr.mine td small { font-weight: 400; }
@media (max-width: 30rem) { th, td { padding: .3rem .4rem; } table { font-size: .82rem; } h1 { font-size: 1.35rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } .scroll { overflow: visible; } figure, table, .verdict { break-inside: avoid; }
  h2 { break-after: avoid; } }
"""


def escape(text: object) -> str:
    """Text that is no markup in an element or a quoted attribute; what cannot be seen, or turns the text, is shown."""
    words = str(text)
    kept = {found.start() for found in _JOINED.finditer(words)}
    shown = (c if i in kept else _visible(c) for i, c in enumerate(words))
    return html.escape("".join(shown), quote=True)


def _visible(c: str) -> str:
    if unicodedata.category(c) in _UNSEEN:
        return f"[U+{ord(c):04X}]"
    if c in "\n\t":
        return " "
    if unicodedata.category(c) in ("Cc", "Cs", "Cn", "Co"):
        return "\N{REPLACEMENT CHARACTER}"
    return c


def quote(text: object) -> str:
    """A stranger's words: escaped, and their direction ends where they end."""
    return f"<bdi>{escape(text)}</bdi>"


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of ready HTML."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def verdict(lines: Sequence[str], warn: bool = False) -> str:
    """What was found, set apart; text, not HTML."""
    inside = "".join(paragraph(escape(line)) for line in lines)
    return f'<div class="verdict{" warn" if warn else ""}">{inside}</div>'


def figure(drawing: str, caption: str, keys: Sequence[tuple[str, int | str, bool]] = ()) -> str:
    """An SVG with a caption (text) and a key: name, colour, dashed."""
    key = "".join(
        f'<span class="key c{colour}"><i{" class=dashed" if dashed else ""}></i>{escape(name)}</span>'
        for name, colour, dashed in keys
    )
    return f"<figure>{drawing}<figcaption>{key}{'<br>' if key else ''}{escape(caption)}</figcaption></figure>"


def figures(*drawn: str) -> str:
    """Side by side where there is room."""
    return f'<div class="figures">{"".join(drawn)}</div>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    mine: Sequence[int] = (),
    text: Sequence[int] = (),
) -> str:
    """A table of ready HTML cells; rows ``mine`` stand out, columns ``text`` hold words. The head is text."""

    def kind(column: int) -> str:
        return ' class="text"' if column in text else ""

    top = "".join(f"<th{kind(j)}>{escape(name)}</th>" for j, name in enumerate(head))
    lines = [
        f"<tr{' class=mine' if i in mine else ''}>"
        + "".join(f"<td{kind(j)}>{cell}</td>" for j, cell in enumerate(row))
        + "</tr>"
        for i, row in enumerate(rows)
    ]
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def number(value: float, digits: int = 2) -> str:
    """With a true minus, and none before a zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def interval(estimate: dict[str, float], digits: int = 2) -> str:
    """A number, and its interval below it."""
    low, high = number(estimate["low"], digits), number(estimate["high"], digits)
    return f"{number(estimate['value'], digits)}<small>{low} to {high}</small>"

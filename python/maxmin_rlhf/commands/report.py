"""``maxmin report``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from maxmin_rlhf.commands import _input, _output
from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.mixture import PreferenceMixture
from maxmin_rlhf.report import card, card_page
from maxmin_rlhf.report.card import Menu


def run(args: argparse.Namespace) -> None:
    """Write the page and its numbers, and end with what was found."""
    mixture = PreferenceMixture.load(args.mixture)
    mixture.backend = args.backend
    data = _input.preferences_of(args.mixture, args)
    facts = card.describe(
        mixture,
        data,
        menu=_menu(args, data),
        selection=_selection(args),
        kl=args.kl,
        n_refits=args.refits,
        seed=args.seed,
        say=_say,
    )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    title = args.title or f"Groups behind {os.path.basename(args.preferences)}"
    (out / "report.html").write_text(card_page.page(facts, title), encoding="utf-8")
    (out / "metrics.json").write_text(_output.as_json(facts) + "\n", encoding="utf-8")
    if args.json:
        _output.print_json(facts)
        return
    print(f"wrote {out / 'report.html'} and metrics.json\n")
    for sentence in card_page.sentences(facts):
        print(sentence)


def _menu(args: argparse.Namespace, data: PreferenceData) -> Menu | None:
    """The items that were judged, with their words, if preferences are about items."""
    if args.store is not None:
        if args.texts is not None:
            raise ValueError("--texts: expected no such thing with --store, the preferences have the texts")  # fmt: skip
        words = _input.text_preferences(args)
        assert data.item_ids is not None  # the same texts in the same order
        return Menu(
            data.features.double().numpy(),
            data.item_ids,
            np.array([*words.prompts, None], dtype=object)[:-1],
            np.array([*words.responses, None], dtype=object)[:-1],
        )
    if args.items is None and _input.kept_ids(args.mixture) is None:
        if args.texts is not None:
            raise ValueError("--texts: expected preferences about items with ids (--chosen, --rejected), got rows of differences")  # fmt: skip
        return None
    features, ids = _input.menu(args, args.mixture)
    texts = prompts = None
    if args.texts is not None:
        texts, prompts = _words(args.texts, ids)
    return Menu(np.asarray(features, np.float64), np.asarray(ids), prompts, texts)


def _words(path: str, ids: Any) -> tuple[Any, Any]:
    """Columns ``text`` and ``prompt`` of a table, in the order of the items; its first column has the ids."""
    from maxmin_rlhf.data.reader import Table

    table = Table(path, {})
    names = list(table.columns)
    known = {key: row for row, key in enumerate(np.asarray(table.ids(names[0])).tolist())}
    missing = [key for key in np.asarray(ids).tolist() if key not in known]
    if missing:
        raise ValueError(f"--texts: no row for item {missing[0]!r} in {path}")
    rows = [known[key] for key in np.asarray(ids).tolist()]
    found = [np.asarray(table.ids(name), dtype=object)[rows] if name in names else None for name in ("text", "prompt")]  # fmt: skip
    if all(column is None for column in found):
        raise ValueError(f"--texts: expected a column text or prompt in {path}, it has {', '.join(names)}")  # fmt: skip
    return found[0], found[1]


def _selection(args: argparse.Namespace) -> Any:
    """What `maxmin fit` kept beside the mixture, or wrote with --json."""
    path = args.selection or _input.selection_path(args.mixture)
    if args.selection is None and not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        try:
            kept = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path}: expected JSON of `maxmin fit` ({error})") from None
    if not isinstance(kept, dict) or not {"best", "reason", "results"} <= kept.keys():
        raise ValueError(f"{path}: expected what `maxmin fit` says of several numbers of groups")
    return {name: kept[name] for name in ("best", "reason", "results")}


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)

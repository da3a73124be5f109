"""``maxmin demo``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from maxmin_rlhf import demo
from maxmin_rlhf.commands import _output
from maxmin_rlhf.mixture.checkpoint import Kept


def run(args: argparse.Namespace) -> None:
    """Run it, and end with what was found."""
    if args.what == "language":
        _language(args)
    else:
        _electricity(args)


def _electricity(args: argparse.Namespace) -> None:
    from maxmin_rlhf.demo.report import sentences

    if args.checkpoint is not None:
        _output.check_place("--checkpoint", args.checkpoint)
    kept = None if args.checkpoint is None else Kept(args.checkpoint)
    metrics = demo.run(args.out, archive=args.panel, seed=args.seed, checkpoint=kept, say=_say)
    if kept is not None and os.path.exists(kept):
        os.unlink(kept)
    _tell(args, metrics, "report.md, two figures and metrics.json", sentences(metrics))


def _language(args: argparse.Namespace) -> None:
    from maxmin_rlhf.demo import language
    from maxmin_rlhf.demo.language.page import sentences

    if args.panel is not None or args.checkpoint is not None:
        raise ValueError("--panel, --checkpoint: these are the electricity demo's")
    metrics = language.run(args.out, n_seeds=args.seeds, seed=args.seed, say=_say)
    _tell(args, metrics, "report.html and language.json", sentences(metrics["study"]))


def _tell(args: argparse.Namespace, metrics: dict[str, Any], written: str, found: list[str]) -> None:  # fmt: skip
    if args.json:
        _output.print_json(metrics)
        return
    print(f"wrote {args.out}/{written}\n")
    for number, sentence in enumerate(found, start=1):
        print(f"{number}. {sentence}")


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"{line} ...", file=sys.stderr, flush=True)

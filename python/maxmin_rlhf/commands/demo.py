"""``maxmin demo``."""

from __future__ import annotations

import argparse
import sys

from maxmin_rlhf import demo
from maxmin_rlhf.commands import _output


def run(args: argparse.Namespace) -> None:
    """Run it, and end with what was found."""
    from maxmin_rlhf.demo.report import sentences

    metrics = demo.run(
        args.out, archive=args.panel, seed=args.seed, checkpoint=args.checkpoint, say=_say
    )
    if args.json:
        _output.print_json(metrics)
        return
    print(f"wrote {args.out}/report.md, two figures and metrics.json\n")
    for number, sentence in enumerate(sentences(metrics), start=1):
        print(f"{number}. {sentence}")


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"{line} ...", file=sys.stderr, flush=True)

"""``maxmin encode``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from maxmin_rlhf.commands import _input, _output
from maxmin_rlhf.encoding import EncodeProgress, encode


def run(args: argparse.Namespace) -> None:
    """Encode what the store lacks, and say what it has."""
    texts = _input.text_preferences(args)
    template = args.chat_template and Path(args.chat_template).read_text(encoding="utf-8")
    began, new = time.perf_counter(), [0]
    tell = _teller(began)

    def progress(at: EncodeProgress) -> None:
        new[0] = at.n_texts
        tell(at)

    _silence()
    store = encode(
        texts.texts, store=args.output, model=args.model, pooling=args.pooling, normalize=not args.no_normalize,
        max_length=args.max_length, dtype=args.dtype, trunk_dtype=args.trunk_dtype, device=args.device,
        chat_template=template, batch_tokens=args.batch_tokens, shard_rows=args.shard_rows,
        allow_download=args.download, progress=progress,
    )  # fmt: skip
    facts = {
        "pairs": texts.chosen.size,
        "texts": len(texts.texts),
        "encoded": new[0],
        "store": {"path": args.output, "texts": len(store), "features": store.n_features, "shards": len(store.shards)},
        "encoder": store.encoder,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    if args.json:
        _output.print_json(facts)
        return
    print(texts)
    print(f"wrote {args.output}: {len(store)} texts, {new[0]} of them encoded in {facts['seconds']:.1f} s, by {store.encoder['model']}")  # fmt: skip


def _teller(began: float) -> Callable[[EncodeProgress], None]:
    """Draws on a terminal how far it is."""
    first: list[int] = []  # tokens before this run

    def tell(at: EncodeProgress) -> None:
        seconds = time.perf_counter() - began
        first[:] = first or [at.tokens]
        rate = (at.tokens - first[0]) / seconds
        left = f", {(at.n_tokens - at.tokens) / rate:.0f} s left" if rate > 0 else ""
        line = (
            f"{at.texts} of {at.n_texts} texts, {at.tokens / at.n_tokens:.0%} of the tokens{left}"
        )
        print(f"\r{line:<70}", end="\n" if at.texts == at.n_texts else "", file=sys.stderr, flush=True)  # fmt: skip

    return tell if sys.stderr.isatty() else lambda at: None


def _silence() -> None:
    """What transformers says while loading is about heads that no trunk has."""
    try:
        from transformers.utils import logging
    except ImportError:  # encode says it better
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()

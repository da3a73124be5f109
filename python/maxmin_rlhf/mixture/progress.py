"""Watching a fit: a line on a terminal, lines in a log when asked for, checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from os import PathLike
from typing import Any

from maxmin_rlhf.mixture.checkpoint import save_progress
from maxmin_rlhf.mixture.fit import Fit
from maxmin_rlhf.mixture.solver import State

CHECKPOINT_SECONDS = 30.0
_PATIENCE = 2.0  # seconds of silence before a terminal sees a line
_REDRAW = 0.1  # seconds between two lines: to count who is climbing waits for the device


class Watch:
    """Called after every round of a fit.

    ``verbose=0`` draws one line on a terminal once a fit takes longer than two seconds, and nothing when piped;
    ``verbose=1`` writes a line a phase and every ten rounds, wherever it goes.
    """

    def __init__(
        self, checkpoint: str | PathLike[str] | None, facts: dict[str, Any], verbose: int
    ) -> None:
        self.checkpoint, self.facts, self.verbose = checkpoint, facts, verbose
        self.began = self.kept = time.monotonic()
        self.rounds, self.drawn, self.shown = 0, 0, -_REDRAW

    def __call__(self, fit: Fit, whole: Callable[[], State]) -> None:
        """One round is over."""
        self.rounds += 1
        now = time.monotonic()
        if self.checkpoint is not None and now - self.kept >= CHECKPOINT_SECONDS:
            save_progress(self.checkpoint, fit, whole(), self.facts)
            self.kept = now
        due = now - self.began > _PATIENCE and now - self.shown >= _REDRAW
        terminal = due and sys.stderr.isatty()
        if terminal or (self.verbose and self.rounds % 10 == 1):
            state, self.shown = whole(), now
            climbing = int((~state.finished).sum())
            line = (
                f"{now - self.began:6.1f} s  {fit.progress.phase:<12} pass {self.rounds}: "
                f"{climbing} of {len(state.value)} mixtures climbing"
            )
            print("\r" + line.ljust(self.drawn) if terminal else line, end="" if terminal else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip
            self.drawn = len(line) if terminal else 0

    def close(self) -> None:
        """Wipe the line."""
        if self.drawn:
            print("\r" + " " * self.drawn + "\r", end="", file=sys.stderr, flush=True)

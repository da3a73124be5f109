"""Runs a wrong version of the emulated pass: ``python -m tests.kernels.cuda.mutated LIBRARY`` says "noticed" or "missed"."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch

from tests.kernels.cuda.emulator import Emulator
from tests.kernels.cuda.layouts import LONG, assert_near, emulated, exact, problem

# Emulator options: carried annotators, an odd ring with chunks, eight slots.
RUNS: list[dict[str, Any]] = [
    {"variant": 1},
    {"variant": 2, "chunk_rows": 96},
    {"variant": 3, "chunk_rows": 64},
]


def main(path: str) -> None:
    compiled = ctypes.CDLL(path)
    given = problem(LONG[:8], 500, (3, 5), weighted=True)
    truth = exact(given)
    try:
        for options in RUNS:
            outs = [emulated(Emulator(seed=s, compiled=compiled, **options), given) for s in (1, 2)]  # fmt: skip
            for out in outs:
                assert_near(out, truth)
                assert all(torch.equal(a, b) for a, b in zip(out, outs[0], strict=True))
    except (AssertionError, RuntimeError) as error:
        print("noticed:", str(error).strip().splitlines()[:1])
    else:
        print("missed")


if __name__ == "__main__":
    main(sys.argv[1])

"""Runs wrong versions of the emulated pass: ``python -m tests.kernels.cuda.mutated LIBRARY...``.

Says of each, on a line of its own, "noticed", "missed" or "crashed", each in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import torch

import maxmin_kernels as mk
from tests.kernels.cuda.emulator import Emulator
from tests.kernels.cuda.layouts import LONG, assert_near, emulated, exact, problem

# (emulator options, problem): carried annotators, an odd ring with chunks, eight slots, float16, choice sets, ties,
# three blocks of heads.
RUNS: list[tuple[dict[str, Any], str]] = [
    ({"variant": 1}, "pairs"),
    ({"variant": 2, "chunk_rows": 96}, "pairs"),
    ({"variant": 3, "chunk_rows": 64}, "pairs"),
    ({"variant": 8, "chunk_rows": 64, "carry": True}, "float16"),
    ({"variant": 1, "carry": True}, "choices"),
    ({"variant": 1, "carry": True}, "ties"),
    ({"variant": 4, "chunk_rows": 64, "carry": True}, "blocks"),
]
PROBLEMS: dict[str, dict[str, Any]] = {
    "pairs": problem(LONG[:8], 500, (3, 5), weighted=True),
    "float16": problem([1, 33, 5, 70], 130, (3, 2), True, torch.float16, 1e-6),
    "choices": problem([2, 33, 5, 7], 130, (3, 2), True, sets=13, label_noise=0.2),
    "blocks": problem([3, 33, 70], 64, (11, 9, 7, 4, 10)),
    "ties": problem([5, 33, 7], 130, (3, 2), hard=True),
}
PROBLEMS["ties"]["weight"][1:] = PROBLEMS["ties"]["weight"][0].clone()
PROBLEMS["ties"]["log_weights"][:] = 0.0


def verdict(path: str, truths: dict[str, mk.EMPass]) -> str:
    compiled = ctypes.CDLL(path)
    try:
        for options, name in RUNS:
            given, truth = PROBLEMS[name], truths[name]
            outs = [emulated(Emulator(seed=s, compiled=compiled, **options), given) for s in (1, 2)]
            for out in outs:
                assert_near(out, truth)
                assert all(torch.equal(a, b) for a, b in zip(out, outs[0], strict=True))
    except (AssertionError, RuntimeError):
        return "noticed"
    return "missed"


def main(paths: list[str]) -> None:
    torch.set_num_threads(1)  # what follows forks
    truths = {name: exact(given) for name, given in PROBLEMS.items()}
    for path in paths:
        child = os.fork()
        if child == 0:
            found = {"noticed": 0, "missed": 1}[verdict(path, truths)]
            os._exit(found)
        status = os.waitpid(child, 0)[1]
        crashed = os.WIFSIGNALED(status)  # it wrote where it must not
        print("crashed" if crashed else ("noticed", "missed")[os.WEXITSTATUS(status)], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""One peer, waiting for work on stdin: a line in, a fit, a line out. Needs NumPy and what the peer needs.

    python worker.py PEER DATA.npz          then lines like {"n_groups": 3, "seed": 0}

The answer: ``seconds`` of the fit, the heads and weights it found, what it says of its starts, and megabytes of memory
at most and before the first fit.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np


class Problem:
    """A panel of choices among J offers, differences to the chosen one beside it, and heads to start from.

    Choices are sorted by household; ``first`` (A,) is where each one's begin.
    """

    def __init__(self, file: str) -> None:
        with np.load(file) as arrays:
            self.offers = arrays["offers"]  # (C, J, D)
            self.chosen = arrays["chosen"]  # (C,)
            self.household = arrays["household"]  # (C,)
            self.starts = {int(k[6:]): arrays[k] for k in arrays.files if k.startswith("starts")}
        n_choices, n_offers, _ = self.offers.shape
        rejected = np.arange(n_offers) != self.chosen[:, None]
        taken = self.offers[np.arange(n_choices), self.chosen]
        differences = (taken[:, None] - self.offers)[rejected]
        self.differences = differences.reshape(n_choices, n_offers - 1, -1)  # (C, J - 1, D)
        self.first = np.searchsorted(self.household, np.arange(self.household[-1] + 1))


def megabytes(field: str) -> float:
    """VmHWM, the most that this process ever held, or VmRSS, what it holds."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1024


def main() -> None:
    # Peers print what they like; answers go to the real stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, file = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))
    problem = Problem(file)
    peer = importlib.import_module(name)
    peer.prepare(problem)
    before = megabytes("VmRSS")
    print(json.dumps({"ready": name}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        answer = peer.fit(problem, request["n_groups"], request["seed"], request["n_starts"])
        seconds = time.perf_counter() - began
        memory = {"peak_mb": round(megabytes("VmHWM")), "before_mb": round(before)}
        answer |= {"seconds": seconds, **memory}
        print(
            json.dumps(answer, default=lambda x: np.asarray(x).tolist()), file=answers, flush=True
        )


if __name__ == "__main__":
    main()

"""A process of its own: encodes in children that are killed, and says how many were. See test_encode.py.

It computes nothing itself, so that a child may be forked at any time, without importing everything again.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers  # noqa: F401  (before the forks)
from transformers import AutoModel, AutoTokenizer  # noqa: F401

from maxmin_rlhf.data.feature_store import FeatureStore
from maxmin_rlhf.encode import encode

TEXTS = [("prompt " * (i % 5), f"response {i} " * (1 + i * 7 % 6)) for i in range(600)]


def start(model: str, store: Path, before: Callable[[], None] = lambda: None) -> int:
    """Encode in a child, and return its process id."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        torch.set_num_threads(1)
        before()
        encode(TEXTS, store=store, model=model, batch_tokens=512, shard_rows=20)
        os._exit(0)
    return child


def finish(child: int) -> int:
    """Its exit code, -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def bits(store: Path) -> dict[str, str]:
    """Every file of a store, hidden ones too."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(store.iterdir())}


def sound(store: Path) -> None:
    """What an interrupted run left is a store, up to some whole shard."""
    if (store / "index.json").exists():
        FeatureStore(store).verify()


def at_random(model: str, store: Path, wanted: dict[str, str], seconds: float, kills: int) -> int:
    """Kill at random moments, over and over; begin anew where a run got through. How many got through."""
    rng, killed, whole = random.Random(0), 0, 0
    while killed < kills:
        child = start(model, store)
        time.sleep(rng.uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
        if finish(child) == -signal.SIGKILL:
            killed += 1
            sound(store)
        else:
            whole += 1
            assert bits(store) == wanted
            shutil.rmtree(store)
    assert finish(start(model, store)) == 0
    assert bits(store) == wanted
    return whole + 1


def at_every_step(model: str, store: Path, wanted: dict[str, str], steps: int) -> None:
    """Kill just before and just after a file is put in its place: first the index, then shard and index in turn."""
    for step in range(steps):
        for after in (False, True):

            def trap(step: int = step, after: bool = after) -> None:
                replace, calls = os.replace, [0]

                def killing(*args: str) -> None:
                    if calls[0] == step and not after:
                        os.kill(os.getpid(), signal.SIGKILL)
                    replace(*args)
                    if calls[0] == step and after:
                        os.kill(os.getpid(), signal.SIGKILL)
                    calls[0] += 1

                os.replace = killing

            assert finish(start(model, store, trap)) == -signal.SIGKILL
            sound(store)
        if step:  # begin anew where only the index was there: it is the same step then
            assert finish(start(model, store)) == 0
            assert bits(store) == wanted
        shutil.rmtree(store)


def main() -> None:
    model, folder, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    began = time.perf_counter()
    assert finish(start(model, folder / "whole")) == 0
    seconds = time.perf_counter() - began
    wanted = bits(folder / "whole")
    if how == "random":
        print(at_random(model, folder / "killed", wanted, seconds, kills=20), len(wanted) - 1)
    else:
        at_every_step(model, folder / "killed", wanted, steps=5)
        print(1, len(wanted) - 1)


if __name__ == "__main__":
    main()

"""A process of its own, for test_encode.py: encodes in children that are killed, and compares what they leave, bit for bit.

The children are forked, so that none imports and loads everything again; this process itself computes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from maxmin_rlhf.data.feature_store import FeatureStore
from maxmin_rlhf.encoding import encode
from maxmin_rlhf.trunk import Trunk

TEXTS = [("prompt " * (i % 5), f"response {i} " * (1 + i * 7 % 6)) for i in range(300)]


def start(
    trunk: Trunk, store: Path, shard_rows: int, before: Callable[[], None] = lambda: None
) -> int:
    """Encode in a child, and return its process id."""
    child = os.fork()
    if child == 0:
        before()
        encode(TEXTS, store=store, model=trunk, batch_tokens=256, shard_rows=shard_rows)
        os._exit(0)
    return child


def finish(child: int) -> int:
    """Its exit code, -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def bits(store: Path) -> dict[str, str]:
    """Every file of a store, hidden ones too."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(store.iterdir())}


def sound(store: Path) -> int:
    """What an interrupted run left is a store, up to some whole shard. How many texts it has."""
    if not (store / "index.json").exists():
        return 0
    there = FeatureStore(store)
    there.verify()
    return len(there)


def at_random(trunk: Trunk, store: Path, kills: int = 20) -> None:
    """Kill at random moments, over and over; begin anew where a run got through."""
    began = time.perf_counter()
    assert finish(start(trunk, store, 10)) == 0
    seconds, wanted = time.perf_counter() - began, bits(store)
    assert len(wanted) > 20
    shutil.rmtree(store)
    rng, killed, resumed = random.Random(0), 0, 0
    while killed < kills:
        child = start(trunk, store, 10)
        time.sleep(rng.uniform(0, seconds / 3))
        os.kill(child, signal.SIGKILL)
        if finish(child) == -signal.SIGKILL:
            killed += 1
            resumed += sound(store) > 0
        else:
            assert bits(store) == wanted
            shutil.rmtree(store)
    assert finish(start(trunk, store, 10)) == 0
    assert bits(store) == wanted
    assert resumed > kills // 4  # or the kills came before there was anything to go on from


def at_every_step(trunk: Trunk, store: Path) -> None:
    """Kill just before and just after each file is put in its place: the index, then shard and index in turn."""
    assert finish(start(trunk, store, 150)) == 0
    wanted = bits(store)
    for step in range(2 * len(wanted) - 1):
        for after in (False, True):
            shutil.rmtree(store)
            assert finish(start(trunk, store, 150, lambda s=step, a=after: trap(s, a))) == -signal.SIGKILL  # fmt: skip
            sound(store)
            assert finish(start(trunk, store, 150)) == 0
            assert bits(store) == wanted, (step, after)


def trap(step: int, after: bool) -> None:
    """This process kills itself at the given call of os.replace."""
    replace, calls = os.replace, itertools.count()

    def killing(*args: Path) -> None:
        now = next(calls) == step
        if now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = killing


if __name__ == "__main__":
    torch.set_num_threads(1)  # a child has no threads of its parent's
    loaded = Trunk.load(sys.argv[1])
    {"random": at_random, "steps": at_every_step}[sys.argv[3]](loaded, Path(sys.argv[2]) / "store")

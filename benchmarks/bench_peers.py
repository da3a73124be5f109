"""The electricity panel fitted by this project and by its peers, 16 starts, no ridge: how long, how well, in how much memory.

    python benchmarks/peers/setup.py              once: the environments of those that are packages
    python -m benchmarks.bench_peers [--rounds 3] [--only lcl,jax] [--groups 3,5] [--environments .venv/peers] [--smoke]

Each peer is a process that waits; they take turns, round by round. What they find is scored here, by one function. Those
that compile make one fit more, first, which is not counted. Those that take long make one round, and lccm and searchlogit
few starts: their time is then reckoned for 16. searchlogit is given two minutes for its one.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import write_study
from maxmin_rlhf import PreferenceMixture
from maxmin_rlhf.demo.panel import Panel, fetch, read_panel

STARTS = 16
WITHIN = 0.1  # of the best log-likelihood: the same optimum
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """How one is run."""

    module: str
    words: str
    environment: str | None = None  # None: this one
    compiles: bool = False
    once: bool = False  # takes long: one round
    starts: int = STARTS
    limit: float | None = None  # seconds after which it is given up


PEERS = {
    "ours": Peer("ours", "`PreferenceMixture`", compiles=True),
    "lcl": Peer("lcl_peer", "lcl-choice (JAX)", "lcl", compiles=True),
    "jax": Peer("jax_em", "EM, JAX jit", "jax", compiles=True),
    "compile": Peer("torch_compile_em", "EM, torch.compile", compiles=True),
    "eager": Peer("torch_em", "EM, PyTorch eager"),
    "numpy": Peer("numpy_em", "EM, NumPy"),
    "lbfgs": Peer("torch_lbfgs", "autograd and L-BFGS", once=True),
    "adam": Peer("torch_gradient", "autograd and Adam", once=True),
    "lccm": Peer("lccm_peer", "lccm", "lccm", once=True, starts=4),
    "searchlogit": Peer(
        "searchlogit_peer", "searchlogit", "searchlogit", once=True, starts=1, limit=120.0
    ),
    "loop": Peer("hard_loop", "hard EM, a pair at a time", once=True, starts=1),
}


class Worker:
    """A peer's process."""

    def __init__(self, peer: Peer, data: Path, environments: Path) -> None:
        python = sys.executable
        if peer.environment:
            python = str(environments / peer.environment / "bin" / "python")
        # Waiting threads sleep; the small products of NumPy are slower by several.
        settings = {"OMP_WAIT_POLICY": "PASSIVE"}
        if peer.module == "numpy_em":
            settings["OPENBLAS_NUM_THREADS"] = "1"
        self.peer = peer
        self.process = subprocess.Popen(
            [python, str(HERE / "peers" / "worker.py"), peer.module, str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            if peer.environment is None
            else {**os.environ, **settings},
        )
        self._line()

    def ask(self, n_groups: int, seed: int, n_starts: int) -> dict[str, Any] | None:
        """Its answer; None when its time was up, which ends it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"n_groups": n_groups, "seed": seed, "n_starts": min(n_starts, self.peer.starts)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], self.peer.limit)[0]:
            self.process.kill()
            return None
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.peer.module}: ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def log_likelihood(panel: Panel, heads: Any, log_weights: Any) -> float:
    """Of the mixture of conditional logits, MATH (5), in float64: what everybody is judged by."""
    utility = panel.offers @ np.asarray(heads, dtype=np.float64).T  # (C, J, K)
    top = utility.max(1, keepdims=True)
    log_p = utility - top - np.log(np.exp(utility - top).sum(1, keepdims=True))
    joint = np.zeros((panel.n_households, utility.shape[2])) + np.asarray(log_weights)
    np.add.at(joint, panel.household, log_p[np.arange(len(log_p)), panel.chosen])
    return float(np.logaddexp.reduce(joint, axis=1).sum())


def write_problem(panel: Panel, groups: Sequence[int], path: Path) -> None:
    """What workers read: the panel by household, and starts around the head that serves everybody."""
    order = np.argsort(panel.household, kind="stable")
    head = PreferenceMixture(1, l2=0.0).fit(panel.preferences()).heads_[0]
    rng = np.random.default_rng(0)
    starts = {
        f"starts{k}": head * (1 + 0.5 * rng.normal(size=(STARTS, k, head.size))) for k in groups
    }
    arrays = {"offers": panel.offers, "chosen": panel.chosen, "household": panel.household}
    np.savez(path, **{name: array[order] for name, array in arrays.items()}, **starts)


def compete(
    panel: Panel, data: Path, names: Sequence[str], n_groups: int, rounds: int, options: Any
) -> list[dict[str, Any]]:
    """One number of groups: every peer's answers."""
    starts = 2 if options.smoke else STARTS
    workers = {name: Worker(PEERS[name], data, options.environments) for name in names}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    first = {}
    for name, worker in workers.items():
        if worker.peer.compiles:
            answer = worker.ask(n_groups, 0, starts)
            assert answer is not None
            first[name] = answer["seconds"]
    for i in range(rounds):
        for name, worker in workers.items():
            if i and worker.peer.once:
                continue
            answer = worker.ask(n_groups, i, starts)
            if answer is None:
                print(n_groups, name, f"given up after {worker.peer.limit} s", flush=True)
                continue
            answer["log_likelihood"] = log_likelihood(panel, answer["heads"], answer["log_weights"])
            answers[name].append(answer)
            print(
                n_groups, name, f"{answer['seconds']:.2f} s", answer["log_likelihood"], flush=True
            )
    for worker in workers.values():
        worker.end()
    best = max(a["log_likelihood"] for found in answers.values() for a in found)
    return [
        summary(name, found, first.get(name), answers["ours"], best)
        if found
        else given_up(name, answers["ours"])
        for name, found in answers.items()
    ]


def given_up(name: str, ours: list[dict[str, Any]]) -> dict[str, Any]:
    """One that did not end in its time: by how much it is slower at least."""
    limit, starts = PEERS[name].limit, PEERS[name].starts
    assert limit is not None
    at_least = limit * ours[0]["starts"] / starts
    facts = {"name": name, "given_up_after": limit, "starts": starts, "rounds": 0}
    return facts | {"seconds": at_least, "ratio": at_least / ours[0]["seconds"]}


def summary(
    name: str,
    found: list[dict[str, Any]],
    first: float | None,
    ours: list[dict[str, Any]],
    best: float,
) -> dict[str, Any]:
    """One peer at one number of groups. ``ratio`` compares the same number of starts, round by round."""
    seconds = np.array([a["seconds"] for a in found])
    starts = found[0]["starts"]
    whole = (
        seconds if name == "loop" else seconds * ours[0]["starts"] / starts
    )  # the loop knows no restarts
    reference = np.array([a["seconds"] for a in ours[: len(found)]])
    passes = found[0]["passes"]
    return {
        "name": name,
        "seconds": float(np.median(whole)),
        "first_seconds": first,
        "ratio": float(np.median(whole / reference)),
        "rounds": len(found),
        "starts": starts,
        "start_seconds": float(np.median(seconds)) / starts,
        "pass_ms": 1e3 * float(np.median(seconds)) / passes if passes else None,
        "peak_mb": max(a["peak_mb"] for a in found),
        "before_mb": found[0]["before_mb"],
        "log_likelihood": [a["log_likelihood"] for a in found],
        "reached": sum(a["log_likelihood"] > best - WITHIN for a in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--groups", default="3,5")
    parser.add_argument("--environments", type=Path, default=Path(".venv/peers"))
    parser.add_argument("--smoke", action="store_true", help="two starts, and nothing is written")
    options = parser.parse_args()
    names = list(PEERS)
    if options.only:
        names = ["ours", *(n for n in options.only.split(",") if n != "ours")]
    absent = [
        name
        for name in names
        if (where := PEERS[name].environment)
        and not (options.environments / where / "installed").exists()
    ]
    for name in absent:
        print(f"{name}: not installed, left out (python benchmarks/peers/setup.py makes it)")
    names = [name for name in names if name not in absent]
    panel = read_panel(fetch())
    groups = [int(k) for k in options.groups.split(",")]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "panel.npz"
        write_problem(panel, groups, data)
        for k in groups:
            found[str(k)] = compete(panel, data, names, k, options.rounds, options)
            for peer in found[str(k)]:
                print({key: v for key, v in peer.items() if key != "log_likelihood"}, flush=True)
    if not options.smoke and not options.only:
        words = {name: peer.words for name, peer in PEERS.items()}
        facts = {"within": WITHIN, "starts": STARTS, "absent": absent, "words": words}
        print(write_study("peers", {**facts, "groups": found}))


if __name__ == "__main__":
    main()

"""Where the ascent should start and how it should step: the figures behind docs/fitting.md.

On the electricity panel (downloaded once from PyPI), ridge 0:

- of single starts of each kind, the share that reaches the best optimum known, and the passes they take;
- of whole fits with 16 starts, with and without split-and-merge moves, the share of seeds that reach it;
- passes of EM alone (the same preconditioned steps without memory) from the same starts.

    python benchmarks/study_starts.py [--seeds 10] [--starts 64]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from benchmarks.harness import write_study
from maxmin_rlhf.demo.panel import fetch, read_panel
from maxmin_rlhf.mixture import fit as fitting
from maxmin_rlhf.mixture import solver
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.fit import Fit, Problem
from maxmin_rlhf.mixture.objective import Objective

SIZES = (2, 3, 4, 5, 6)
NEAR = 0.05  # log-likelihood within which two optima are one


def em_alone(objective, state, preconditioner, max_iter, tol):
    """The ascent with its memory wiped after every step: preconditioned EM."""
    room = max_iter - state.history.shape[1]
    state = replace(
        state, history=torch.nn.functional.pad(state.history, (0, room), value=torch.nan)
    )
    while not bool((state.finished | (state.rounds >= max_iter)).all()):
        moved = solver.advance(objective, state, preconditioner, tol)
        wiped = solver._forget(moved, torch.ones_like(moved.finished))
        again = preconditioner.apply(wiped, wiped.gradient)
        moved = replace(
            wiped, direction=torch.where((wiped.step == 1)[:, None, None], again, wiped.direction)
        )
        done = state.finished
        state = solver.State(
            **{
                name: torch.where(done.view(-1, *[1] * (new.dim() - 1)), old, new)
                for (name, old), new in zip(vars(state).items(), vars(moved).values(), strict=True)
            }
        )
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--starts", type=int, default=64)
    options = parser.parse_args()
    objective = Objective.of(read_panel(fetch()).preferences())

    sweeps, seconds = [], []
    for seed in range(options.seeds):
        began = time.perf_counter()
        fit = Fit(objective, [Problem(k, 0.0) for k in SIZES], seed=(seed,))
        sweeps.append(fit.run().value.numpy())
        seconds.append(time.perf_counter() - began)
    repeats, fitting._REPEATS = fitting._REPEATS, 0
    still = np.array(
        [
            Fit(objective, [Problem(k, 0.0) for k in SIZES], seed=(s,)).run().value.numpy()
            for s in range(options.seeds)
        ]
    )
    fitting._REPEATS = repeats
    sweeps = np.array(sweeps)
    best = np.maximum(sweeps.max(0), still.max(0))

    landscape, steer = fit.landscape, fit.preconditioner
    rows = []
    for i, k in enumerate(SIZES):
        row = {
            "n_groups": k,
            "best": float(best[i]),
            "fit_share": float((sweeps[:, i] > best[i] - NEAR).mean()),
            "fit_share_without_moves": float((still[:, i] > best[i] - NEAR).mean()),
        }
        for how in ("random", "annotators"):
            heads = landscape.draw(how, k, options.starts, np.random.default_rng(k))
            bank = Bank.of(heads, [torch.zeros(k)] * len(heads), torch.zeros(len(heads)), k)
            state = solver.start(objective, bank, steer)
            ascents = {
                "": solver.climb(objective, state, steer, max_iter=500, tol=1e-7),
                "_em_alone": em_alone(objective, state, steer, 500, 1e-7),
            }
            for name, end in ascents.items():
                row[f"{how}{name}_share"] = float((end.value > best[i] - NEAR).double().mean())
                row[f"{how}{name}_passes"] = float(end.rounds.double().median())
                row[f"{how}{name}_passes_p90"] = float(end.rounds.double().quantile(0.9))
        rows.append(row)
        print(row, flush=True)
    write_study(
        "starts",
        {"seeds": options.seeds, "starts": options.starts, "seconds": seconds, "panel": rows},
    )


if __name__ == "__main__":
    main()

"""A language policy trained by RLOO for three groups, by every way of weighting them: who gains what, and what was possible?

python -m benchmarks.study_rloo --model FOLDER [--seeds 3]      # FOLDER has stories260K.bin and tok512.bin
python -m benchmarks.study_rloo --model SmolLM2-135M-Instruct.Q4_1.gguf --name rloo_smollm2 --methods maxmin population equal \
    --seeds 1 --tokens 24 --generations 8 --steps 40 --fresh 256 --lora 16 --lr 8e-4 --eta 0.3

Runs that are in the results already are not made again, so a study that was interrupted goes on; remove the file to start anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import __version__ as transformers_version
from trl import __version__ as trl_version

from benchmarks.harness import RESULTS, write_study
from examples.maxmin_rloo_stories import (
    BETA,
    GROUPS,
    SHARES,
    Setup,
    evaluate,
    fixed,
    maxmin_weights,
    prepare,
    train,
)
from maxmin_rlhf import MaxMinWeights, solve_maxmin

# The opposed group's weight; the others share the rest. Those of the population and equal ones lie on the line too.
FRONT = (0.0, 0.46, 0.7, 1.0)
METHODS: dict[str, Callable[[Setup], MaxMinWeights]] = {
    "maxmin": maxmin_weights,
    "population": lambda _: fixed(SHARES),
    "equal": lambda _: fixed((1, 1, 1)),
    "softmin": lambda _: MaxMinWeights(len(GROUPS), tau=0.5),
}
TARGETS = {"efficiency": 0.7, "mean_efficiency": 0.8, "advantage": 0.2}


def digits(x: Any) -> Any:
    """Four of every number."""
    if isinstance(x, float):
        return float(f"{x:.4g}")
    if isinstance(x, list):
        return [digits(y) for y in x]
    return {k: digits(v) for k, v in x.items()} if isinstance(x, dict) else x


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of every method, and whether the targets are met."""
    out: dict[str, Any] = {}
    for name in METHODS:
        mine = [r for r in runs if r["run"] == name]
        if mine:
            means = {
                key: float(np.mean([r[key] for r in mine]))
                for key in ("worst", "average", "kappa", "best_worst", "perplexity", "seconds")
            }
            efficiencies = [r["efficiency"] for r in mine]
            out[name] = {"seeds": len(mine), "efficiency": efficiencies, **means}
    if not {"maxmin", "population", "equal"} <= out.keys():
        return out
    efficiencies = out["maxmin"]["efficiency"]
    worst = {(r["run"], r["seed"]): r["worst"] for r in runs}
    seeds = sorted({seed for run, seed in worst if run == "maxmin"})
    ahead = {
        other: [worst["maxmin", s] - worst[other, s] for s in seeds if (other, s) in worst]
        for other in ("population", "equal")
    }
    known = [e for e in efficiencies if e is not None]
    out["ahead_of"] = ahead
    # What the population's average loses against weighting by the population.
    out["price"] = out["population"]["average"] - out["maxmin"]["average"]
    out["targets"] = TARGETS
    out["met"] = {
        "efficiency": len(known) == len(efficiencies) and min(known) >= TARGETS["efficiency"],
        "mean_efficiency": bool(known) and float(np.mean(known)) >= TARGETS["mean_efficiency"],
        "advantage": min(map(min, ahead.values())) >= TARGETS["advantage"],
    }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", default="rloo_stories", help="of the result file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--front", nargs="*", type=float, default=FRONT)
    Setup.add_to(parser)
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    wanted = [(name, seed) for seed in range(options.seeds) for name in options.methods]
    wanted += [(f"fixed {b}", 0) for b in options.front]
    with tempfile.TemporaryDirectory() as folder:
        reference = prepare(options.model, folder, Setup.of(options))
        best = solve_maxmin(reference.rewards, BETA, calibrate=None)
        flat = reference.rewards.reshape(-1, len(GROUPS))
        facts = {
            "model": Path(options.model).stem if options.model.endswith(".gguf") else "stories260K",
            "setup": asdict(reference.setup),
            "groups": GROUPS,
            "shares": SHARES,
            "beta": BETA,
            "reference_samples_a_prompt": reference.rewards.shape[1],
            "correlation": digits(np.corrcoef(flat.T).tolist()),
            "best": digits(
                {
                    "weights": best.weights.tolist(),
                    "gains": best.utilities.tolist(),
                    "gap": best.gap,
                    "ess": float(best.ess.mean()),
                }
            ),
            "trl": trl_version,
            "transformers": transformers_version,
        }
        for name, seed in wanted:
            if any(r["run"] == name and r["seed"] == seed for r in runs):
                continue
            b = float(name.split()[1]) if name.startswith("fixed") else 0.0
            weights = (
                METHODS[name](reference.setup)
                if name in METHODS
                else fixed(((1 - b) / 2, (1 - b) / 2, b))
            )
            began = time.perf_counter()
            model, history = train(reference, weights, seed)
            seconds = time.perf_counter() - began
            found = evaluate(reference, model, seed=777 + seed)
            row = {"run": name, "seed": seed, **found, "weights": history, "seconds": seconds}
            runs.append(digits(row))
            print(
                f"{name}, seed {seed}: worst {found['worst']:.3f}, efficiency {found['efficiency']}, "
                f"KL {found['kappa']:.2f}, {seconds:.0f} s",
                flush=True,
            )
            write_study(options.name, {**facts, "summary": digits(summary(runs)), "runs": runs})


if __name__ == "__main__":
    main()

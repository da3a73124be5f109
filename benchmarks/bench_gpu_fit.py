"""A whole fit on a GPU: 500,000 pairs of 4096 features, K = 1 ... 6 with 4 starts each, and how much of it the host held up.

    python -m benchmarks.bench_gpu_fit [--pairs 500000] [--features 4096] [--smoke]

Three groups of annotators with 32 pairs each; the share of the host is the wall time in which the device had nothing to do,
from the profiler's kernels.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from benchmarks.bench_gpu import gpu_facts
from benchmarks.harness import RESULTS, write_study
from maxmin_rlhf import PreferenceData, fit_sweep


def make(n_pairs: int, n_features: int, device: str) -> PreferenceData:
    """Bradley-Terry choices of three groups."""
    torch.manual_seed(0)
    rows = torch.randn(n_pairs, n_features, device=device)
    who = torch.arange(n_pairs, device=device) // 32
    heads = 3 * torch.randn(3, n_features, device=device) / n_features**0.5
    margin = (rows * heads[who % 3]).sum(1)
    flip = torch.where(torch.rand(n_pairs, device=device) < margin.sigmoid(), 1.0, -1.0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return PreferenceData.from_arrays((rows * flip[:, None]).to(dtype), who.cpu().numpy())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--smoke", action="store_true", help="tiny, nothing is written")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.smoke:
        print("bench_gpu_fit: no GPU here (--smoke tries it without one)", file=sys.stderr)
        return 2
    n_pairs, n_features = (2000, 16) if args.smoke else (args.pairs, args.features)
    data = make(n_pairs, n_features, device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    seconds, busy = [], 0.0
    for attempt in range(2):  # the first compiles
        began = time.perf_counter()
        with torch.profiler.profile(activities=activities) as profile:
            fits = fit_sweep(data, range(1, 7), n_init=4, random_state=attempt, tol=1e-6)
        seconds.append(time.perf_counter() - began)
        busy = sum(e.self_device_time_total for e in profile.key_averages()) / 1e6
    bounds = {k: fit.lower_bound_ for k, fit in fits.items()}
    host = 1 - busy / seconds[-1]
    print(f"{seconds[-1]:.2f} s (the first {seconds[0]:.2f}), host {100 * host:.0f} %, {bounds}")
    if not args.smoke:
        facts = gpu_facts()
        name = "gpu_fit_" + facts["device"].lower().replace(" ", "_")
        shape = {"pairs": n_pairs, "features": n_features}
        path = write_study(name, {**facts, **shape, "seconds": seconds, "host_share": host, "lower_bound": bounds})  # fmt: skip
        print(f"written to {path.relative_to(RESULTS.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What one reward costs a minority as it gets smaller, measured: (16) against the published bounds (17) and MaxMin.

    python -m benchmarks.study_impossibility [--seeds 20] [--draw]

Writes results/impossibility.json and, from it, docs/impossibility.svg (with --draw alone from what is there). Two simulated
groups of known rewards, partly opposed; the minority's share falls from 50 to 1 % of the annotators. The pooled reward and a
mixture of two are fitted to the choices; their policies, over the same samples and with the same penalty, are judged by
the true rewards.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import RESULTS, write_study
from maxmin_rlhf import PreferenceData, PreferenceMixture, calibrate, solve_maxmin
from maxmin_rlhf.welfare import diagnostics

Array = NDArray[np.float64]
SHARES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
ANNOTATORS, EACH, FEATURES = 1000, 20, 8
SHARPNESS, COSINE = 2.0, -0.5
PROMPTS, SAMPLES, BETA = 50, 32, 1.0
FIGURE = RESULTS.parent.parent / "docs" / "impossibility.svg"


def choices(heads: Array, group: NDArray[np.int64], rng: np.random.Generator) -> PreferenceData:
    owner = np.repeat(np.arange(group.size), EACH)
    rows = rng.standard_normal((owner.size, heads.shape[1]))
    ahead = rng.random(owner.size) < 1 / (1 + np.exp(-(rows * heads[group[owner]]).sum(1)))
    return PreferenceData.from_arrays(np.where(ahead[:, None], rows, -rows), owner)


def run(share: float, seed: int) -> dict[str, Any]:
    """One population: the minority's and the majority's gap under each policy, and the bounds on the minority's."""
    rng = np.random.default_rng([seed, round(1000 * share)])
    basis, _ = np.linalg.qr(rng.standard_normal((FEATURES, 2)))
    minority = SHARPNESS * (COSINE * basis[:, 0] + (1 - COSINE**2) ** 0.5 * basis[:, 1])
    heads = np.stack([SHARPNESS * basis[:, 0], minority])
    group = (np.arange(ANNOTATORS) < round(share * ANNOTATORS)).astype(int)
    data = choices(heads, group, rng)
    features = rng.standard_normal((PROMPTS, SAMPLES, FEATURES))
    truth = calibrate(features @ heads.T, "center")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a minority that is not found is a finding here
        pooled = PreferenceMixture(1, random_state=seed).fit(data)
        mixture = PreferenceMixture(2, n_init=8, random_state=seed).fit(data)
        fitted = solve_maxmin(features @ mixture.heads_.T, BETA)
        known = solve_maxmin(truth, BETA)
    policies = {
        "pooled": diagnostics.policy_of(features @ pooled.heads_[0], BETA),
        "maxmin": fitted.policy,
        "maxmin, true rewards": known.policy,
    }
    gaps = {name: diagnostics.alignment_gap(truth, p, BETA) for name, p in policies.items()}
    apart = diagnostics.diversity(data, heads, n_resamples=1).matrix
    shares = np.array([1 - share, share])
    bounds = diagnostics.published_bounds(features, pooled.heads_[0], heads, shares, apart, BETA)
    cosine = mixture.heads_ @ minority / np.linalg.norm(mixture.heads_, axis=1) / SHARPNESS
    return {
        "share": share,
        "seed": seed,
        **{f"{name}: minority": float(gap[1]) for name, gap in gaps.items()},
        **{f"{name}: majority": float(gap[0]) for name, gap in gaps.items()},
        "unavoidable": diagnostics.unavoidable_gap(truth, BETA),
        "theorem": float(bounds.theorem[1]),
        "theorem, squared": float(bounds.theorem_squared[1]),
        "lemma": float(bounds.lemma[1]),
        "distance": float(bounds.distance[1]),
        "minority found": float(cosine.max()),
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and the middle 95 % of the populations, by share."""
    names = [name for name in runs[0] if name not in ("share", "seed")]
    table = []
    for share in SHARES:
        some = [r for r in runs if r["share"] == share]
        row: dict[str, Any] = {"share": share}
        for name in names:
            values = np.array([r[name] for r in some])
            low, high = np.percentile(values, (2.5, 97.5))
            row[name] = [_digits(x) for x in (values.mean(), low, high)]
        row["bound above gap"] = {
            name: int(sum(r[name] > r["pooled: minority"] for r in some))
            for name in ("theorem", "theorem, squared")
        } | {"lemma": int(sum(r["lemma"] > r["distance"] for r in some))}
        table.append(row)
    return table


def draw(table: list[dict[str, Any]], seeds: int) -> None:
    """Left: what the minority loses. Right: the same against the published bounds, in powers of ten."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "impossibility"  # the same file from the same numbers
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    share = 100 * np.array([row["share"] for row in table])

    def line(axes: Any, name: str, label: str, colour: str, style: str, marker: str) -> None:
        middle, low, high = np.array([row[name] for row in table]).T
        axes.plot(share, middle, style, color=colour, marker=marker, markersize=4, label=label)
        axes.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)

    line(left, "pooled: minority", "one pooled reward", "#b3501b", "-", "o")
    line(left, "maxmin: minority", "MaxMin, groups as fitted", "#1f5f8b", "-", "s")
    line(left, "maxmin, true rewards: minority", "MaxMin, groups known", "#1f5f8b", ":", "")
    line(left, "unavoidable", "no single reward can avoid\n(for one group or the other)", "#5c6773", "--", "")  # fmt: skip
    left.set_ylim(bottom=0)
    left.set_ylabel("loss against its own best, logits")
    left.set_title("What the minority loses", fontsize=10, loc="left")
    line(right, "pooled: minority", "loss under one pooled reward, exact (16)", "#b3501b", "-", "o")
    line(right, "theorem", "lower bound (17), as printed", "#3d7a3a", "-", "^")
    line(right, "theorem, squared", "lower bound (17), as its proof suggests", "#7b4fa0", "--", "v")
    right.set_yscale("log")
    right.set_title("The same, and the published lower bounds", fontsize=10, loc="left")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks([50, 20, 10, 5, 2, 1], ["50", "20", "10", "5", "2", "1"])
        axes.minorticks_off()
        axes.set_xlabel("share of the minority, % of annotators")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(FIGURE, metadata={"Date": None})
    print(f"wrote {FIGURE}, bands: middle 95 % of {seeds} populations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--draw", action="store_true", help="draw what was found before")
    args = parser.parse_args()
    if args.draw:
        kept = json.loads((RESULTS / "impossibility.json").read_text())
        draw(kept["summary"], kept["setting"]["seeds"])
        return
    began, runs = time.perf_counter(), []
    for share in SHARES:
        runs += [run(share, seed) for seed in range(args.seeds)]
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in runs[-1].items()}, flush=True)  # fmt: skip
    table = summary(runs)
    setting = {
        "annotators": ANNOTATORS,
        "pairs_each": EACH,
        "features": FEATURES,
        "sharpness": SHARPNESS,
        "cosine": COSINE,
        "prompts": PROMPTS,
        "samples": SAMPLES,
        "beta": BETA,
        "seeds": args.seeds,
    }
    seconds = round(time.perf_counter() - began, 1)
    write_study("impossibility", {"setting": setting, "seconds": seconds, "summary": table})
    draw(table, args.seeds)


def _digits(x: float) -> float:
    return float(f"{x:.4g}")


if __name__ == "__main__":
    main()

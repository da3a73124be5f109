"""What select_groups finds on real panels: the table of docs/selecting.md.

MAXMIN_DATA=... python -m benchmarks.study_panels [panel ...]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import panels
from benchmarks.harness import write_study
from maxmin_rlhf import PreferenceData, Selection, select_groups
from maxmin_rlhf.demo.panel import fetch, read_panel


def electricity(folder: Path) -> PreferenceData:
    return read_panel(fetch()).preferences()


# Each panel with the numbers of groups that are tried.
PANELS: dict[str, tuple[Callable[[Path], Any], range]] = {
    "electricity": (electricity, range(1, 7)),
    "train_stated_choice": (panels.train_choice, range(1, 5)),
    "jester5k": (panels.jester, range(1, 7)),
    "mt_bench_human": (panels.mt_bench, range(1, 5)),
    "hh_objectives": (panels.hh_objectives, range(1, 4)),
    "ukp_convarg1": (panels.ukp_convarg, range(1, 4)),
}


def likeness(selection: Selection) -> dict[str, Any]:
    """Norms and cosines of the chosen heads: do they differ in taste or in sharpness?"""
    heads = selection.best_mixture_.heads_
    norms = np.linalg.norm(heads, axis=1)
    cosines = (heads @ heads.T / np.outer(norms, norms))[np.triu_indices(len(heads), 1)]
    return {
        "weights": selection.best_mixture_.weights_.round(4).tolist(),
        "norms": norms.round(4).tolist(),
        "cosines": cosines.round(4).tolist(),
    }


def recovered(selection: Selection, data: PreferenceData, truth: np.ndarray) -> dict[str, float]:
    """Share of annotators whose group is their crowd's, groups named after the crowd that most of them are."""
    groups = selection.best_mixture_.predict(data)
    crowd_of = np.array(
        [truth[groups == k].mean() > 0.5 for k in range(selection.best_mixture_.n_groups)]
    )
    return {"recovered": float((crowd_of[groups] == truth).mean())}


def study(name: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """One panel."""
    load, sizes = PANELS[name]
    data, *truth = loaded if isinstance(loaded := load(folder), tuple) else (loaded,)
    began = time.perf_counter()
    selection = select_groups(data, sizes, random_state=seed)
    seconds = time.perf_counter() - began
    found = {
        "panel": name,
        "annotators": data.n_annotators,
        "comparisons": data.n_comparisons,
        "features": data.n_features,
        "split": selection.split_,
        "swapped_share": selection.swapped_share_,
        "best": selection.best_,
        "reason": selection.reason_,
        "seconds": round(seconds, 2),
        **likeness(selection),
        "results": selection.results_,
    }
    return found | (recovered(selection, data, truth[0]) if truth else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("panels", nargs="*", default=list(PANELS), metavar="panel")
    folder = panels.data_folder()
    rows = []
    for name in parser.parse_args().panels:
        rows.append(study(name, folder))
        print(f"{name}: {rows[-1]['reason']} ({rows[-1]['seconds']:.1f} s)", flush=True)
    write_study("panels", {"panels": rows})


if __name__ == "__main__":
    main()

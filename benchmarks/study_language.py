"""The language demo with more seeds: who is served by which policy. Writes results/language.json.

python -m benchmarks.study_language [--seeds 10] [--selected 3]
"""

from __future__ import annotations

import argparse

from benchmarks.harness import write_study
from maxmin_rlhf.demo.language.responses import read_responses
from maxmin_rlhf.demo.language.study import study

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--selected", type=int, default=3)
    args = parser.parse_args()
    found = study(
        read_responses(),
        n_seeds=args.seeds,
        n_selected=args.selected,
        say=lambda line: print(line, flush=True),
    )
    write_study("language", found)

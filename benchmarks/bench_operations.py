"""What `maxmin bench` shows, stored: operations at shapes from real work, beside plain PyTorch and torch.compile of it.

python -m benchmarks.bench_operations [--rounds 15] [--memory 2]
"""

from __future__ import annotations

import argparse

from benchmarks.harness import write_study
from maxmin_rlhf.commands._cases import OPERATIONS, cases
from maxmin_rlhf.commands.bench import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", type=float, default=2.0, help="GB that a case may take")
    args = parser.parse_args()
    found = []
    for operation in OPERATIONS:
        for make in cases(operation, args.memory * 1e9).values():
            for vs in ("torch", "compile"):
                found.append(measure(make(), vs, args.rounds, "cpu") | {"vs": vs})
                print(found[-1], flush=True)
    write_study("operations", {"rounds": args.rounds, "cases": found})


if __name__ == "__main__":
    main()

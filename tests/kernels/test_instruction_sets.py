"""The kernels of every instruction set, not only of the best that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.harness import native

FILES = ("test_reward_heads.py", "test_preference_margins.py", "test_welfare_native.py")


@native
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_matches_float64(instruction_set: str) -> None:
    folder = Path(__file__).parent
    # A process of its own: the choice is made once.
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-k",
            "matches_float64 and not reference",
            *(str(folder / name) for name in FILES),
        ],
        capture_output=True,
        check=False,
        text=True,
        cwd=folder.parents[1],
        env={**os.environ, "MAXMIN_CPU_ISA": instruction_set},
    )
    assert result.returncode == 0, result.stdout + result.stderr

"""The programs that a GPU is asked to run: they run here too, on tiny shapes, and say so where they cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

ROOT = __file__.rsplit("/tests/", 1)[0]


def run(*command):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *filter(None, sys.path)])}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", ["bench_gpu", "bench_gpu_fit"])
def test_smoke(module):
    done = run(sys.executable, "-m", f"benchmarks.{module}", "--smoke")
    assert done.returncode == 0, done.stderr
    assert "written" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = run(sys.executable, "-m", "benchmarks.bench_gpu")
    assert done.returncode == 2 and "no GPU" in done.stderr
    done = run("env", f"PYTHON={sys.executable}", "bash", "benchmarks/gpu.sh")
    assert done.returncode == 2 and "no GPU" in done.stderr

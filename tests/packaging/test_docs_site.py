"""The site builds without a warning: links, references, and every name of the API pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-d", str(tmp_path / "site")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page, word in (("index", "worst-off"), ("api_kernels", "em_pass"), ("api_rlhf", "solve_maxmin")):  # fmt: skip
        assert word in (tmp_path / "site" / f"{page}.html").read_text()

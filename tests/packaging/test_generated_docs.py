"""The generated parts of README and docs say what the stored results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.tables._markdown import MISSING

ROOT = Path(__file__).resolve().parents[2]


def test_pages_are_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: run python -m benchmarks.report"


def test_a_stale_page_is_noticed() -> None:
    page = (ROOT / "README.md").read_text()
    touched = page.replace("| `em_pass` | reference", "| `em_pass` | abacus")
    assert touched != page
    assert report.render(touched) == page


@pytest.mark.parametrize("page", report.PAGES)
def test_every_number_was_measured(page: str) -> None:
    assert MISSING not in (ROOT / page).read_text()

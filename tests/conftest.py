"""Fixtures of every test: poisoned memory, fixed seeds, the outside data."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.deterministic
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Workers of pytest-xdist share the cores; torch would give each of them all.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _workers > 1:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // _workers))


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Memory that torch hands out uninitialised, in Python and in C++, holds NaN (integers: the largest).

    Not in slow tests: some measure time.
    """
    if request.node.get_closest_marker("slow"):
        yield
        return
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    # Only deterministic mode fills memory; warnings of foreign operations that have no such form are not at issue.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that ``MAXMIN_DATA`` names: data sets that are not part of the repository."""
    folder = os.environ.get("MAXMIN_DATA")
    if not folder:
        pytest.skip("needs the data sets that MAXMIN_DATA points to")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"MAXMIN_DATA: {folder} is not a folder")
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Where the data are, a test of the frameworks that skips has failed: something it needs is not there."""
    report = yield
    if report.skipped and item.get_closest_marker("frameworks") and os.environ.get("MAXMIN_DATA"):
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr[-1]}"
    return report

"""Tests of the Triton backend: one file serves the interpreter (marker ``interp``) and a device (marker ``gpu``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

import maxmin_kernels as mk
from tests.kernels.triton.bounds import checked
from tests.kernels.triton.where import INTERPRETED


@pytest.fixture(autouse=True)
def forced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every operation of a test marked ``interp`` or ``gpu`` is served by Triton, and touches its tensors only, or fails."""
    if request.node.get_closest_marker("interp") and not INTERPRETED:
        pytest.fail(
            "TRITON_INTERPRET=1 must be set before the start: TRITON_INTERPRET=1 pytest -m interp"
        )
    if request.node.get_closest_marker("interp") or request.node.get_closest_marker("gpu"):
        guard = checked() if INTERPRETED else contextlib.nullcontext()
        with mk.backend("triton"), guard:
            yield
    else:
        yield


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Under ``-m interp`` and ``-m codegen`` nothing may be skipped: what they need is the process that was asked for."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    asked = session.config.option.markexpr in ("interp", "codegen")
    skipped = reporter is not None and bool(reporter.stats.get("skipped"))
    if asked and skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

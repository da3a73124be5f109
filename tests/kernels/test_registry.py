"""The choice of a backend."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import _native, ops
from maxmin_kernels.ops import _registry


def run():
    return mk.em_pass(torch.ones(2, 1), torch.tensor([0, 2]), torch.ones(1, 1), torch.zeros(1))


@pytest.fixture
def toy():
    """An operation with two backends, gone after the test."""
    calls = []
    _registry._implementations["toy_fwd"] = {
        "reference": _registry._Implementation(lambda x: calls.append("reference"), lambda x: None),
        "cpu": _registry._Implementation(
            lambda x: calls.append("cpu"),
            lambda x: "it serves even sizes" if x.numel() % 2 else None,
        ),
    }
    yield calls
    del _registry._implementations["toy_fwd"]


def serve(x):
    return _registry.choose("toy_fwd", (x,)).function(x)


def test_the_first_that_can_serve(toy):
    serve(torch.ones(2))
    serve(torch.ones(3))
    assert toy == ["cpu", "reference"]


def test_a_forced_backend_serves_or_says_why(toy):
    with mk.backend("reference"):
        serve(torch.ones(2))
    assert toy == ["reference"]
    with (
        mk.backend("cpu"),
        pytest.raises(ValueError, match="backend 'cpu' cannot serve this call: it serves even"),
    ):
        serve(torch.ones(3))
    with (
        mk.backend("triton"),
        pytest.raises(ValueError, match="backend 'triton' has no such operation"),
    ):
        serve(torch.ones(2))


def test_one_operation_can_be_forced(toy, monkeypatch):
    monkeypatch.setenv("MAXMIN_BACKEND", "toy:reference, em_pass:reference")
    serve(torch.ones(2))
    with mk.backend("toy:cpu"):  # the block is nearer than the environment
        serve(torch.ones(2))
    assert toy == ["reference", "cpu"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gpu", "expected one of reference, cpu, triton, cuda, got 'gpu'"),
        ("nope:cpu", "'nope' is not an operation"),
    ],
)
def test_unknown_names(value, message, monkeypatch):
    with pytest.raises(ValueError, match=f"backend: .*{message}"), mk.backend(value):
        run()
    monkeypatch.setenv("MAXMIN_BACKEND", value)
    with pytest.raises(ValueError, match=f"MAXMIN_BACKEND: .*{message}"):
        run()


def test_forcing_ends_with_the_block():
    with mk.backend("reference"):
        assert _registry.forced_backend("em_pass_fwd") == "reference"
        with mk.backend(None):
            assert _registry.forced_backend("em_pass_fwd") == "reference"
    assert _registry.forced_backend("em_pass_fwd") is None


def test_every_operation_has_a_definition():
    assert "em_pass" in ops.operations()
    for operation in ops.operations():
        for backends in ops.backends_of(operation).values():
            assert "reference" in backends


def test_without_the_library_cpu_says_so(monkeypatch):
    monkeypatch.setattr(_native, "load", lambda: "the compiled library is not available (test)")
    run()  # falls to the reference
    with mk.backend("cpu"), pytest.raises(ValueError, match="compiled library is not available"):
        run()

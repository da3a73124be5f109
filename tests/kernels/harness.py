"""How the tests of an operation run it: every backend, with gradients, compiled, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from maxmin_kernels import _native
from tests.kernels.criterion import assert_close_enough, upstream

NEEDS_LIBRARY = (
    pytest.mark.native,
    pytest.mark.skipif(_native.load() is not None, reason=str(_native.load())),
)
BACKENDS = ("reference", pytest.param("cpu", marks=NEEDS_LIBRARY))
both_backends = pytest.mark.parametrize("backend", BACKENDS)


def native(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs the compiled library."""
    for mark in NEEDS_LIBRARY:
        test = mark(test)
    return test


def value_and_grads(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], kind: str = "random"
) -> list[Tensor]:
    """The function's value and its gradients by those tensors that require one."""
    out = function(*tensors)
    wanted = [t for t in tensors if t.requires_grad]
    return [out, *torch.autograd.grad(out, wanted, upstream(kind, out))]


def copies(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Leaves of the same values, layouts given up, floating ones in ``dtype`` (None: their own)."""
    return [
        t.detach()
        .clone()
        .to(dtype if t.is_floating_point() and dtype else t.dtype)
        .requires_grad_(t.requires_grad)
        for t in tensors
    ]


def assert_matches(
    function: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    kind: str = "random",
) -> None:
    """Value and gradients by the error criterion; ``formula`` is plain PyTorch, differentiated by autograd."""
    outs = value_and_grads(function, tensors, kind)
    refs = value_and_grads(formula, copies(tensors, torch.float64), kind)
    peers = value_and_grads(formula, copies(tensors), kind)
    leaves = [t for t in tensors if t.requires_grad]
    for i, (out, ref, peer) in enumerate(zip(outs, refs, peers, strict=True)):
        if i:
            assert out.dtype == leaves[i - 1].dtype
        assert_close_enough(out, ref, peer, name="value" if i == 0 else f"gradient {i - 1}")


def assert_compiles(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> None:
    """Whole under ``torch.compile``, forward and backward, without a second compilation, and equal to eager."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            outs = value_and_grads(compiled, tensors)
            for out, eager in zip(outs, value_and_grads(function, tensors), strict=True):
                torch.testing.assert_close(out, eager, rtol=0, atol=0, equal_nan=True)


def run_python(code: str, **environment: str) -> str:
    """Run a program in a fresh interpreter; what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def fake_outputs(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Any:
    """What the function gives for tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    with mode:
        return function(*[mode.from_tensor(t) for t in tensors])

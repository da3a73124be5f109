"""The compiled library, if there is one: ``torch.ops.maxmin_native.*``."""

from __future__ import annotations

import functools
import importlib

import torch


@functools.cache
def load() -> str | None:
    """Load ``maxmin_kernels._C`` once. ``None`` when it is there, else the reason why it is not."""
    try:
        importlib.import_module("maxmin_kernels._C")
    except ImportError as error:
        return f"the compiled library is not available ({error})"
    return None


def refusal(*tensors: torch.Tensor | None) -> str | None:
    """Why the compiled CPU kernels cannot serve these tensors (``None``: they can)."""
    for tensor in tensors:
        if tensor is not None and tensor.device.type != "cpu":
            return f"it serves tensors on the CPU, got one on {tensor.device}"
    return load()

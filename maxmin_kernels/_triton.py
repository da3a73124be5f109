"""Triton, if there is one: may its kernels serve, and where they are. Nothing is imported before a kernel is wanted."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch


@functools.cache
def load() -> str | None:
    """Import Triton once. ``None`` when it is there, else the reason why it is not."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton is not available ({error})"
    return None


def interpreted() -> bool:
    """Do Triton's kernels run in its interpreter?"""
    return os.environ.get("TRITON_INTERPRET") == "1"


def served_device() -> str | None:
    """The device type whose tensors Triton serves here: the CPU under its interpreter; None: it finds no device."""
    if interpreted():
        return "cpu"
    from triton.runtime import driver

    try:
        return driver.active.get_active_torch_device().type
    except RuntimeError:  # no driver finds a device
        return None


def refusal(*tensors: torch.Tensor | None) -> str | None:
    """Why Triton's kernels cannot serve these tensors (``None``: they can)."""
    why_not = load()
    if why_not is not None:
        return why_not
    device = served_device()
    if device is None:
        return "Triton finds no GPU here"
    for tensor in tensors:
        if tensor is not None and tensor.device.type != device:
            return f"it serves tensors on {device} here, got one on {tensor.device}"
    return None


def heads_refusal(n_heads: int) -> str | None:
    """Why so many heads cannot stand side by side in one program (``None``: they can)."""
    return None if n_heads <= 2048 else f"it serves at most 2048 heads, got {n_heads}"


def groups_refusal(n_groups: int) -> str | None:
    """Why so many groups cannot be compared each with each in one program (``None``: they can)."""
    return None if n_groups <= 64 else f"it serves at most 64 groups, got {n_groups}"


def prompt_refusal(rewards: torch.Tensor, least_groups: int = 1) -> str | None:
    """Why the rewards ``(P, S, K)`` of a prompt do not fit one program (``None``: they do)."""
    _, n_samples, n_groups = rewards.shape
    # Tiles have powers of two on their sides.
    size = 2 ** (n_samples - 1).bit_length() * max(least_groups, 2 ** (n_groups - 1).bit_length())
    if n_samples * n_groups == 0 or size <= 8192:
        return None
    return f"it serves at most 8192 rewards a prompt (padded), got {n_samples} samples x {n_groups} groups"


def has_tma() -> bool:
    """Does the device bring tiles by itself (Hopper and later)? The interpreter does."""
    if interpreted():
        return True
    from triton.runtime import driver

    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


def n_multiprocessors(device: torch.device) -> int:
    """Programs that run side by side, one a multiprocessor."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 3 if interpreted() else 132


def nvidia_refusal() -> str | None:
    """Why a kernel that multiplies float64 tiles cannot serve here (``None``: it can)."""
    if interpreted():
        return None
    from triton.runtime import driver

    backend = driver.active.get_current_target().backend
    return None if backend == "cuda" else f"its float64 products do not compile for {backend!r}"


def kernels(module: str, name: str) -> Callable[..., Any]:
    """The launcher ``name`` of ``maxmin_kernels.triton.<module>``, imported when it is first called."""

    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(f"maxmin_kernels.triton.{module}"), name)(*args)

    return launch

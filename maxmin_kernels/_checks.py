"""Checks of what users pass in: shape, dtype and device always, values only when asked (they wait for the device).

Every message names the argument, what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STORAGE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def accumulation_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is float64, else float32."""
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        return torch.float64
    return torch.float32


def check_tensor(
    name: str,
    value: object,
    shape: Sequence[int | str | None],
    *,
    dtypes: Sequence[torch.dtype] | None = STORAGE_DTYPES,
    device: torch.device | None = None,
) -> Tensor:
    """``value`` as a tensor of this shape: an int must match, a name or None may be anything."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    fits = value.dim() == len(shape) and all(
        not isinstance(want, int) or have == want
        for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("*" if s is None else str(s) for s in shape)
        wanted += "," if len(shape) == 1 else ""
        raise ValueError(f"{name}: expected shape ({wanted}), got {tuple(value.shape)}")
    if dtypes is not None and value.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(
            f"{name}: expected dtype {names}, got {str(value.dtype).removeprefix('torch.')}"
        )
    if device is not None and value.device != device:
        raise ValueError(f"{name}: expected device {device}, got {value.device}")
    return value


def check_indptr(
    name: str, value: object, device: torch.device, *, length: int | None = None
) -> Tensor:
    """A CSR pointer: int64, one-dimensional, at least one entry."""
    tensor = check_tensor(
        name, value, ("n + 1" if length is None else length,), dtypes=(torch.int64,), device=device
    )
    if tensor.numel() == 0:
        raise ValueError(f"{name}: expected at least one entry (a leading 0), got none")
    return tensor


def check_scalar(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """A real number within bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = float(value)
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    if not (above and below):
        left, right = "(" if low_open else "[", ")" if high_open else "]"
        raise ValueError(
            f"{name}: expected a number in {left}{low:g}, {high:g}{right}, got {value}"
        )
    return number


def validate_indptr(name: str, indptr: Tensor, end: int) -> None:
    """From 0 to ``end`` without a step down. Waits for the device."""
    if int(indptr[0]) != 0 or int(indptr[-1]) != end:
        raise ValueError(
            f"{name}: expected to run from 0 to {end}, got {int(indptr[0])} to {int(indptr[-1])}"
        )
    steps = indptr.diff()
    if bool((steps < 0).any()):
        at = int((steps < 0).nonzero()[0])
        raise ValueError(
            f"{name}: expected a non-decreasing pointer, got {int(indptr[at])} before "
            f"{int(indptr[at + 1])} at position {at + 1}"
        )


def validate_finite(name: str, value: Tensor) -> None:
    """No NaN, no infinity. Waits for the device."""
    finite = value.isfinite()
    if not bool(finite.all()):
        at = tuple(int(i) for i in (~finite).nonzero()[0])
        raise ValueError(
            f"{name}: expected finite numbers, got {value[at].item()} at {at} (row {at[0]})"
        )


def validate_log_weights(name: str, value: Tensor) -> None:
    """Neither NaN nor +inf; -inf is a weight of 0. Waits for the device."""
    bad = value.isnan() | (value == math.inf)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: expected logarithms of weights, got {value[at].item()} of head {at}"
        )


def validate_index(name: str, value: Tensor, size: int) -> None:
    """Every entry in [0, size). Waits for the device."""
    if value.numel() and (int(value.min()) < 0 or int(value.max()) >= size):
        raise ValueError(
            f"{name}: expected indices in [0, {size}), got {int(value.min())} to {int(value.max())}"
        )


def validate_nonnegative(name: str, value: Tensor) -> None:
    """Finite and at least 0. Waits for the device."""
    validate_finite(name, value)
    if bool((value < 0).any()):
        at = int((value < 0).nonzero()[0, 0])
        raise ValueError(f"{name}: expected numbers >= 0, got {value[at].item()} at row {at}")

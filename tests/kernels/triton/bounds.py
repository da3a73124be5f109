"""No load or store outside the tensors that a launch was given: checked in Triton's interpreter, address by address.

A tensor's extent is that of its elements, strides counted, not of the memory behind it: what lies between the end of a
view and the end of its storage is out of bounds too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


class OutOfBoundsError(IndexError):
    """A kernel touched what was not given to it."""


def _extent(arg: Any) -> tuple[int, int] | None:
    """First byte and the one behind the last; None: nothing that has addresses."""
    if hasattr(arg, "block_shape"):  # a tensor descriptor
        shape, strides, base = arg.shape, arg.strides, arg.base
    elif isinstance(arg, torch.Tensor):
        shape, strides, base = arg.shape, arg.stride(), arg
    else:
        return None
    if 0 in shape:
        return base.data_ptr(), base.data_ptr()
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return base.data_ptr(), base.data_ptr() + (last + 1) * base.element_size()


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Launches within the block raise :class:`OutOfBoundsError` where they leave their tensors."""
    from triton.runtime import interpreter

    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    launch, load, store = executor.__call__, builder.create_masked_load, builder.create_masked_store
    begins = ends = np.empty(0, np.uint64)

    def look(what: str, ptrs: Any, mask: Any) -> None:
        addresses = ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape).astype(bool)]
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        at = np.searchsorted(begins, addresses, side="right") - 1
        good = (at >= 0) & (addresses + np.uint64(size) <= ends[np.maximum(at, 0)])
        if not good.all():
            raise OutOfBoundsError(f"{what} outside of the tensors given, at {int((~good).sum())} of {good.size} places")  # fmt: skip

    def checked_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal begins, ends
        extents = sorted(filter(None, map(_extent, (*args, *kwargs.values()))))
        begins = np.array([b for b, _ in extents], np.uint64)
        ends = np.maximum.accumulate(np.array([e for _, e in extents], np.uint64))
        return launch(self, *args, **kwargs)

    def checked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        look("a load", ptrs, mask)
        return load(self, ptrs, mask, *rest, **more)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        look("a store", ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    executor.__call__ = checked_launch
    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    try:
        yield
    finally:
        executor.__call__ = launch
        builder.create_masked_load, builder.create_masked_store = load, store

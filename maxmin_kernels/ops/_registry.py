"""How an operation is declared and how one of its backends is chosen.

Python owns the schemas ``maxmin::*``. Each operation has one implementation per backend; the choice is made
*inside* the op, so that ``torch.compile`` sees a single node whatever serves it.

An operation's file calls `define` once and then `implement` for every backend it has::

    define("choice_shares_fwd(Tensor margins, ...) -> (Tensor, Tensor)", fake=_fake)
    implement("choice_shares_fwd", "reference", reference_function)
    implement("choice_shares_fwd", "cpu", native_function, supports=_cpu_supports)

``supports(*args)`` answers ``None`` (yes) or the reason why not, in words for the user.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

BACKENDS = ("reference", "cpu", "triton", "cuda")
# First that can serve wins. A device type that is not named here is served like "other".
_ORDER = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
    "other": ("triton", "reference"),
}

_library = torch.library.Library("maxmin", "DEF")


@dataclass(frozen=True)
class _Implementation:
    function: Callable[..., Any]
    supports: Callable[..., str | None]
    opt_in: bool = False


_implementations: dict[str, dict[str, _Implementation]] = {}
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("maxmin_backend", default=None)


def operation_of(op: str) -> str:
    """``"em_pass"`` of ``"em_pass_fwd"``: backends are forced by operation, not by direction."""
    return op.removesuffix("_fwd").removesuffix("_bwd")


def _parse(text: str, source: str) -> dict[str, str]:
    """``"triton"`` or ``"em_pass:cuda,welfare:reference"`` to {operation or "": backend}."""
    wanted: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        operation, _, name = part.rpartition(":")
        if name not in BACKENDS:
            raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
        if operation and operation not in {operation_of(op) for op in _implementations}:
            raise ValueError(f"{source}: {operation!r} is not an operation of maxmin_kernels")
        wanted[operation] = name
    return wanted


def forced_backend(op: str) -> str | None:
    """The backend that `backend` or ``MAXMIN_BACKEND`` demands for ``op``, if any."""
    for text, source in (
        (_forced.get(), "backend"),
        (os.environ.get("MAXMIN_BACKEND"), "MAXMIN_BACKEND"),
    ):
        if text:
            wanted = _parse(text, source)
            name = wanted.get(operation_of(op), wanted.get(""))
            if name is not None:
                return name
    return None


@contextlib.contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Force a backend within a ``with`` block: ``"cpu"``, or ``"em_pass:cuda"`` for one operation.

    ``None`` leaves the choice as it was. A forced backend that cannot serve raises and says why; operations that
    exist in plain PyTorch only are served under every backend.
    """
    if name is None:
        yield
        return
    _parse(name, "backend")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _device_of(args: tuple[Any, ...]) -> str:
    return next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")


def choose(op: str, args: tuple[Any, ...]) -> _Implementation:
    """The implementation that serves these arguments."""
    available = _implementations[op]
    name = forced_backend(op)
    if name is not None and len(available) > 1:
        if name not in available:
            raise ValueError(f"{operation_of(op)}: backend {name!r} has no such operation")
        why_not = available[name].supports(*args)
        if why_not is not None:
            raise ValueError(
                f"{operation_of(op)}: backend {name!r} cannot serve this call: {why_not}"
            )
        return available[name]
    device = _device_of(args)
    for candidate in _ORDER.get(device, _ORDER["other"]):
        implementation = available.get(candidate)
        if implementation is None or implementation.opt_in:
            continue
        if implementation.supports(*args) is None:
            return implementation
    raise ValueError(f"{operation_of(op)}: no backend serves device {device!r}")


def define(schema: str, *, fake: Callable[..., Any]) -> None:
    """Declare ``maxmin::<schema>``; ``fake`` gives the outputs' shapes and dtypes."""
    op = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _implementations[op] = {}

    def run(*args: Any) -> Any:
        return choose(op, args).function(*args)

    _library.impl(op, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"maxmin::{op}", fake, lib=_library)


def implement(
    op: str,
    backend_name: str,
    function: Callable[..., Any],
    *,
    supports: Callable[..., str | None] = lambda *args: None,
    opt_in: bool = False,
) -> None:
    """Give ``op`` an implementation; ``function`` takes the schema's arguments in order.

    ``opt_in``: it serves only where it is forced.
    """
    _implementations[op][backend_name] = _Implementation(function, supports, opt_in)


def differentiate(
    op: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Attach a backward (which should call the matching ``_bwd`` op)."""
    torch.library.register_autograd(
        f"maxmin::{op}", backward, setup_context=setup_context, lib=_library
    )


def call(op: str, *args: Any) -> Any:
    """Run ``maxmin::<op>``."""
    return getattr(torch.ops.maxmin, op).default(*args)


def backends_of(operation: str) -> dict[str, list[str]]:
    """{direction: backends that have it} of an operation, for ``maxmin info`` and the README's table."""
    return {
        op.removeprefix(operation).strip("_") or "fwd": list(impls)
        for op, impls in _implementations.items()
        if operation_of(op) == operation
    }


def opt_in(operation: str, backend_name: str) -> bool:
    """Does that backend serve the operation only where it is forced?"""
    return any(
        impls[backend_name].opt_in
        for op, impls in _implementations.items()
        if operation_of(op) == operation and backend_name in impls
    )


def operations() -> list[str]:
    """Names of all operations."""
    return list(dict.fromkeys(operation_of(op) for op in _implementations))

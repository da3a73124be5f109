"""When is a kernel's output right, and on which cases is it asked.

A kernel is compared with a float64 reference, and its error with that of plain PyTorch in the same dtype: a fixed
tolerance would be too loose for one size and too tight for another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

# By the dtype of the output, relative to the reference's largest (root mean square) value. bfloat16 and float16: one
# unit in the last place, since a store may truncate.
FLOOR = {
    torch.float64: 1e-14,
    torch.float32: 5e-7,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}


def _errors(out: Tensor, ref: Tensor, where: Tensor) -> tuple[float, float]:
    """Largest and root mean square error over ``where``."""
    error = (out.double() - ref)[where]
    if error.numel() == 0:
        return 0.0, 0.0
    return error.abs().max().item(), error.square().mean().sqrt().item()


def assert_close_enough(
    out: Tensor,
    ref64: Tensor,
    torch_same_dtype: Tensor | None = None,
    floor: float | Mapping[torch.dtype, float] | None = None,
    *,
    name: str = "out",
) -> None:
    """``err(out, ref64) <= 2 err(torch_same_dtype, ref64) + floor``, in the max-norm and root mean square.

    NaN and infinities must stand exactly where the reference has them; a NaN anywhere else fails.

    Args:
        out: what the kernel gave.
        ref64: the same from the reference in float64.
        torch_same_dtype: the same from plain PyTorch in the kernel's dtype; None: no allowance beyond the floor.
        floor: relative to the reference's size; None: ``FLOOR`` of ``out.dtype``.
        name: what the message calls the output.
    """
    assert out.shape == ref64.shape, f"{name}: shape {tuple(out.shape)}, not {tuple(ref64.shape)}"
    out, ref64 = out.detach(), ref64.detach().double()
    if floor is None:
        floor = FLOOR
    relative = floor if isinstance(floor, (int, float)) else floor[out.dtype]
    same_nan = out.isnan() == ref64.isnan()
    assert bool(same_nan.all()), (
        f"{name}: NaN at {int((~same_nan).sum())} places unlike the reference"
    )
    infinite = ref64.isinf()
    assert torch.equal(out.double()[infinite], ref64[infinite]), f"{name}: wrong infinities"
    where = ref64.isfinite()
    assert bool(out[where].isfinite().all()), f"{name}: not finite where the reference is"
    sizes = _errors(torch.zeros_like(ref64), ref64, where)
    allowed = (0.0, 0.0)
    if torch_same_dtype is not None:
        peer = torch_same_dtype.detach().double()
        allowed = _errors(peer, ref64, where & peer.isfinite())
    for norm, error, peer_error, size in zip(
        ("max", "rms"), _errors(out, ref64, where), allowed, sizes, strict=True
    ):
        bound = 2 * peer_error + relative * size
        assert error <= bound, (
            f"{name}: {norm} error {error:.3g} over {bound:.3g} (PyTorch's own {peer_error:.3g}, size {size:.3g})"
        )


def covering_array(**factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Few cases in which every pair of values of any two factors occurs. Deterministic."""
    names = list(factors)
    levels = {n: range(len(factors[n])) for n in names}
    todo = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in levels[a]
        for j in levels[b]
    }
    cases: list[dict[str, int]] = [] if todo else [{n: i} for n in names for i in levels[n]]

    def gain(case: dict[str, int], name: str, level: int) -> int:
        pairs = (
            tuple(sorted([(other, at), (name, level)], key=lambda p: names.index(p[0])))
            for other, at in case.items()
        )
        return sum(pair in todo for pair in pairs)

    while todo:
        case = dict(min(todo, key=lambda pair: [(names.index(n), i) for n, i in pair]))
        for name in names:
            if name not in case:
                # Ties go round, so that values left over are spread evenly.
                start = len(cases)
                order = [(start + i) % len(levels[name]) for i in levels[name]]
                case[name] = max(order, key=lambda level, n=name: gain(case, n, level))
        done = {pair for pair in todo if all(case[n] == i for n, i in pair)}
        todo -= done
        cases.append(case)
    return [{n: factors[n][case[n]] for n in names} for case in cases]


def cases(**factors: Sequence[Any]) -> pytest.MarkDecorator:
    """``@cases(dtype=..., layout=...)``: the test's argument ``case`` runs over the covering array."""
    array = covering_array(**factors)
    return pytest.mark.parametrize(
        "case", array, ids=["-".join(map(_word, c.values())) for c in array]
    )


def _word(value: Any) -> str:
    return getattr(value, "__name__", str(value)).removeprefix("torch.")


def _contiguous(t: Tensor) -> Tensor:
    return t.contiguous()


def _transposed(t: Tensor) -> Tensor:
    return t.mT.contiguous().mT if t.dim() > 1 else t.contiguous()


def _sliced(t: Tensor) -> Tensor:
    """Every second element of a larger tensor, whose other elements are NaN (or the dtype's largest integer)."""
    shape = [2 * n + 3 for n in t.shape]
    filler: float = True
    if t.is_floating_point():
        filler = float("nan")
    elif t.dtype != torch.bool:
        filler = torch.iinfo(t.dtype).max
    big = torch.full(shape, filler, dtype=t.dtype, device=t.device)
    view = big[tuple(slice(1, 1 + 2 * n, 2) for n in t.shape)]
    view.copy_(t)
    return view


def _expanded(t: Tensor) -> Tensor:
    """The first row for every row, by stride 0: the values change."""
    return t[:1].expand_as(t)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _contiguous,
    "transposed": _transposed,
    "sliced": _sliced,
    "expanded": _expanded,
}


def with_layout(layout: str, t: Tensor, requires_grad: bool = False) -> Tensor:
    """``t`` as a leaf in a layout of ``LAYOUTS``."""
    return LAYOUTS[layout](t.detach()).requires_grad_(requires_grad)


def upstream(kind: str, out: Tensor) -> Tensor:
    """A gradient to hand to ``out``: ``random``, ``sum`` (stride 0), ``sliced`` or ``transposed``."""
    generator = torch.Generator().manual_seed(out.numel())
    random = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    if kind == "random":
        return random
    if kind == "sum":
        return torch.ones((), dtype=out.dtype, device=out.device).expand_as(out)
    return LAYOUTS[kind](random)

"""preference_margins: (1), (2) from the features of both responses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import cases, with_layout
from tests.kernels.harness import (
    BACKENDS,
    assert_compiles,
    assert_matches,
    both_backends,
    fake_outputs,
    native,
    run_python,
    value_and_grads,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make_inputs(
    rows: int = 5,
    features: int = 17,
    heads: int = 3,
    dtype: torch.dtype = torch.float64,
    layouts: tuple[str, str] = ("contiguous", "contiguous"),
    weight_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """[chosen, rejected, weight] that require gradients."""
    g = torch.Generator().manual_seed(1)
    draw = [torch.randn(n, features, generator=g).to(dtype) for n in (rows, rows, heads)]
    chosen, rejected = (
        with_layout(layout if rows else "contiguous", t, requires_grad=True)
        for layout, t in zip(layouts, draw[:2], strict=True)
    )
    return [chosen, rejected, draw[2].to(weight_dtype or dtype).requires_grad_()]


@pytest.mark.parametrize("backend", BACKENDS)
@cases(
    dtype=DTYPES,
    chosen=["contiguous", "transposed", "sliced", "expanded"],
    rejected=["contiguous", "transposed", "sliced", "expanded"],
    rows=[0, 1, 3, 17, 130],
    features=[1, 3, 17, 127, 130, 1025],
    heads=[1, 2, 8, 33],
    mixed=[False, True],
    upstream=["random", "sum", "sliced", "transposed"],
)
def test_matches_float64(backend: str, case: dict) -> None:
    tensors = make_inputs(
        case["rows"],
        case["features"],
        case["heads"],
        case["dtype"],
        (case["chosen"], case["rejected"]),
        torch.float32 if case["mixed"] else None,
    )
    with mk.backend(backend):
        assert_matches(
            mk.preference_margins, reference.preference_margins, tensors, case["upstream"]
        )


@both_backends
def test_differences_of_close_rows_keep_their_digits(backend: str) -> None:
    # Two bfloat16 responses that nearly agree: multiplying first and subtracting then would lose all.
    chosen = torch.full((4, 300), 200.0, dtype=torch.bfloat16)
    rejected = chosen.clone()
    rejected[:, 7] += 1.0
    weight = torch.full((2, 300), 1.0 / 3, dtype=torch.float32)
    with mk.backend(backend):
        margins = mk.preference_margins(chosen, rejected, weight)
    torch.testing.assert_close(margins, torch.full((4, 2), -1.0 / 3), rtol=1e-6, atol=0)


@both_backends
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (0, 1)])
def test_some_gradients_only(backend: str, wanted: tuple[int, ...]) -> None:
    tensors = make_inputs()
    full = value_and_grads(mk.preference_margins, tensors)
    for i, t in enumerate(tensors):
        t.requires_grad_(i in wanted)
    with mk.backend(backend):
        some = value_and_grads(mk.preference_margins, tensors)
    for i, grad in zip(wanted, some[1:], strict=True):
        torch.testing.assert_close(grad, full[1 + i])


@both_backends
def test_nan_and_large_values_stay_in_their_row(backend: str) -> None:
    chosen, rejected, weight = (t.detach().float() for t in make_inputs(6))
    chosen[1, 2], rejected[3, 0], chosen[4] = torch.nan, torch.inf, 1e4
    weight = weight.abs()
    with mk.backend(backend):
        out = mk.preference_margins(chosen, rejected, weight)
    assert out[1].isnan().all() and out[3].eq(-torch.inf).all()
    rest = [0, 2, 4, 5]
    torch.testing.assert_close(out[rest], (chosen - rejected)[rest] @ weight.T)


@both_backends
def test_gradcheck(backend: str) -> None:
    with mk.backend(backend):
        assert torch.autograd.gradcheck(mk.preference_margins, make_inputs())


@both_backends
def test_opcheck(backend: str) -> None:
    tensors = make_inputs(dtype=torch.float32)
    grad = torch.randn(5, 3)
    with mk.backend(backend):
        torch.library.opcheck(torch.ops.maxmin.preference_margins_fwd.default, tuple(tensors))
        for needs in ((True, True), (False, True), (True, False)):
            torch.library.opcheck(
                torch.ops.maxmin.preference_margins_bwd.default,
                (grad, *[t.detach() for t in tensors], *needs),
            )


@both_backends
def test_compiles(backend: str) -> None:
    with mk.backend(backend):
        assert_compiles(mk.preference_margins, make_inputs(dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors(dtype: torch.dtype) -> None:
    tensors = make_inputs(dtype=dtype)
    real, fake = mk.preference_margins(*tensors), fake_outputs(mk.preference_margins, tensors)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@native
def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    tensors = make_inputs(5003, 130, 5, torch.float32)
    threads = torch.get_num_threads()
    runs = []
    try:
        for n in (1, 1, 2, 3):
            torch.set_num_threads(n)
            with mk.backend("cpu"):
                runs.append(value_and_grads(mk.preference_margins, tensors))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@native
def test_offsets_beyond_int32() -> None:
    # Rows 2^31 + 8 elements apart, in memory of which only a few pages are ever touched.
    run_python("""
import torch, maxmin_kernels as mk
far = 2**31 + 8
base = torch.empty(far + 64, dtype=torch.bfloat16)
chosen, rejected = base.as_strided((2, 8), (far, 1)), base.as_strided((2, 8), (far, 1), 16)
chosen.copy_(torch.arange(16.).view(2, 8))
rejected.copy_(torch.ones(2, 8))
weight = torch.ones(2, 8, requires_grad=True)
with mk.backend("cpu"):
    out = mk.preference_margins(chosen, rejected, weight)
    out.sum().backward()
rows = torch.arange(16.).view(2, 8) - 1
assert torch.equal(out, rows.sum(1, keepdim=True).expand(2, 2)), out
assert torch.equal(weight.grad, rows.sum(0).expand(2, 8)), weight.grad
""")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rejected": torch.zeros(3, 4)}, ValueError, r"rejected: expected shape \(2, 4\)"),
        ({"rejected": torch.zeros(2, 4).double()}, TypeError, "rejected: expected dtype float32"),
        ({"chosen": torch.zeros(4)}, ValueError, r"chosen: expected shape \(N, D\), got \(4,\)"),
        ({"weight": torch.zeros(2, 5)}, ValueError, r"weight: expected shape \(H, 4\)"),
        ({"weight": torch.zeros(2, 4).half()}, TypeError, "weight: expected dtype float32 or"),
        ({"rejected": torch.zeros(2, 4, device="meta")}, ValueError, "rejected: expected device"),
        (
            {"chosen": torch.tensor([[0.0] * 4, [torch.nan] * 4]), "validate": True},
            ValueError,
            r"chosen: expected finite numbers, got nan at \(1, 0\) \(row 1\)",
        ),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {name: torch.zeros(2, 4) for name in ("chosen", "rejected", "weight")}
    with pytest.raises(error, match=message):
        mk.preference_margins(**{**arguments, **change})

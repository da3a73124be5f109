"""reward_heads: linear heads on rows, or on one token of each sequence."""

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
    tokens: int = 0,
    dtype: torch.dtype = torch.float64,
    layout: str = "contiguous",
    weight_dtype: torch.dtype | None = None,
    bias: bool = True,
    seed: int = 0,
) -> tuple[list[Tensor], Tensor | None]:
    """[hidden, weight, bias?] that require gradients, and token_index (one -1 in it) or None."""
    g = torch.Generator().manual_seed(seed)
    shape = (rows, tokens, features) if tokens else (rows, features)
    parts = [(shape, dtype), ((heads, features), weight_dtype or dtype)]
    if bias:
        parts.append(((heads,), dtype))
    leaves = []
    for size, kind in parts:
        values = torch.randn(size, generator=g, dtype=torch.float64).to(kind)
        leaves.append(with_layout(layout, values, requires_grad=True))
    index = None
    if tokens:
        index = torch.randint(0, tokens, (rows,), generator=g)
        index[1:2] = -1
    return leaves, index


def face(index: Tensor | None, bias: bool = True):
    def call(hidden: Tensor, weight: Tensor, *shift: Tensor) -> Tensor:
        return mk.reward_heads(hidden, weight, shift[0] if bias else None, index)

    return call


def formula(index: Tensor | None):
    def call(hidden: Tensor, weight: Tensor, *shift: Tensor) -> Tensor:
        return reference.reward_heads(hidden, weight, shift[0] if shift else None, index)

    return call


@pytest.mark.parametrize("backend", BACKENDS)
@cases(
    dtype=DTYPES,
    layout=["contiguous", "transposed", "sliced", "expanded"],
    rows=[0, 1, 3, 17, 130],
    features=[1, 3, 17, 127, 130, 1025],
    heads=[1, 2, 8, 33],
    tokens=[0, 4],
    bias=[True, False],
    mixed=[False, True],
    upstream=["random", "sum", "sliced", "transposed"],
)
def test_matches_float64(backend: str, case: dict) -> None:
    leaves, index = make_inputs(
        case["rows"],
        case["features"],
        case["heads"],
        case["tokens"],
        case["dtype"],
        case["layout"] if case["rows"] else "contiguous",
        torch.float32 if case["mixed"] else None,
        case["bias"],
    )
    with mk.backend(backend):
        assert_matches(face(index, case["bias"]), formula(index), leaves, case["upstream"])


@both_backends
def test_many_rows_are_summed_accurately(backend: str) -> None:
    leaves, _ = make_inputs(20_011, 33, 2, dtype=torch.float32)
    with mk.backend(backend):
        assert_matches(face(None), formula(None), leaves)


@both_backends
@pytest.mark.parametrize("index", [-1, 4, -9, 2**40])
def test_a_token_that_is_not_there(backend: str, index: int) -> None:
    (hidden, weight, bias), _ = make_inputs(3, 9, 2, tokens=4)
    token_index = torch.tensor([0, index, 3])
    with mk.backend(backend):
        out = mk.reward_heads(hidden, weight, bias, token_index)
        # NaN upstream, as a loss over such rows would have it, must not spread.
        grads = torch.autograd.grad(out, (hidden, weight, bias), torch.where(out.isnan(), out, 1.0))
        assert out[1].isnan().all() and out[[0, 2]].isfinite().all()
        whole = mk.reward_heads(hidden[[0, 2]], weight, bias, token_index[[0, 2]])
        expected = torch.autograd.grad(whole.sum(), (hidden, weight, bias))
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want)
    assert grads[0][1].eq(0).all()


@both_backends
def test_other_tokens_are_not_read(backend: str) -> None:
    hidden = torch.full((3, 6, 8), torch.nan)
    index = torch.tensor([5, 0, 2])
    hidden[torch.arange(3), index] = 1.0
    weight = torch.ones(2, 8)
    hidden.requires_grad_()
    with mk.backend(backend):
        out = mk.reward_heads(hidden, weight, token_index=index)
        (grad,) = torch.autograd.grad(out.sum(), hidden)
    assert out.eq(8).all()
    assert grad.sum() == 3 * 8 * 2 and grad[torch.arange(3), index].eq(2).all()


@both_backends
def test_nan_and_infinity_stay_in_their_row(backend: str) -> None:
    hidden = torch.randn(9, 20)
    hidden[2, 3], hidden[4, 5], hidden[6] = torch.nan, torch.inf, 1e4
    weight = torch.randn(3, 20).abs()
    with mk.backend(backend):
        out = mk.reward_heads(hidden, weight)
    assert out[2].isnan().all() and out[4].eq(torch.inf).all()
    rest = [0, 1, 3, 5, 6, 7, 8]
    torch.testing.assert_close(out[rest], hidden[rest] @ weight.T)


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stores_round_and_overflow_like_torch(backend: str, dtype: torch.dtype) -> None:
    # grad_hidden = grad * weight with one head: every value passes through the store.
    values = torch.cat([torch.randn(500) * 10.0**e for e in range(-9, 6)])
    values = torch.cat(
        [values, torch.tensor([0.0, -0.0, 65519.0, 65520.0, 3.3e38, torch.inf, -torch.inf])]
    )
    hidden = torch.zeros(1, values.numel(), dtype=dtype, requires_grad=True)
    with mk.backend(backend):
        out = mk.reward_heads(hidden, values[None])
        (grad,) = torch.autograd.grad(out, hidden, torch.ones_like(out))
    assert torch.equal(grad[0], values.to(dtype))


@both_backends
@pytest.mark.parametrize("tokens", [0, 4])
def test_gradcheck(backend: str, tokens: int) -> None:
    leaves, index = make_inputs(4, 5, 3, tokens)
    present = torch.ones(4, dtype=torch.bool) if index is None else index >= 0
    with mk.backend(backend):
        assert torch.autograd.gradcheck(lambda *t: face(index)(*t)[present], leaves)


@both_backends
@pytest.mark.parametrize("tokens", [0, 4])
def test_opcheck(backend: str, tokens: int) -> None:
    (hidden, weight, bias), index = make_inputs(4, 5, 3, tokens, torch.float32)
    if index is not None:
        index.clamp_(min=0)  # opcheck takes NaN for a difference
    grad = torch.randn(4, 3)
    with mk.backend(backend):
        torch.library.opcheck(
            torch.ops.maxmin.reward_heads_fwd.default, (hidden, weight, bias, index)
        )
        for needs in ((True, True), (False, True), (True, False)):
            torch.library.opcheck(
                torch.ops.maxmin.reward_heads_bwd.default,
                (grad, hidden.detach(), weight.detach(), index, *needs),
            )


@both_backends
@pytest.mark.parametrize("tokens", [0, 4])
def test_compiles(backend: str, tokens: int) -> None:
    leaves, index = make_inputs(4, 5, 3, tokens, torch.bfloat16)
    with mk.backend(backend):
        assert_compiles(face(index), leaves)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors(dtype: torch.dtype) -> None:
    leaves, index = make_inputs(4, 5, 3, 2, dtype)
    real = mk.reward_heads(*leaves, index)
    fake = fake_outputs(mk.reward_heads, [*leaves, index])
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@native
def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    leaves, _ = make_inputs(5003, 130, 5, dtype=torch.float32)
    threads = torch.get_num_threads()
    runs = []
    try:
        for n in (1, 1, 2, 3):
            torch.set_num_threads(n)
            with mk.backend("cpu"):
                runs.append(value_and_grads(face(None), leaves))
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
base = torch.empty(2 * far + 64, dtype=torch.bfloat16)
hidden = base.as_strided((3, 2, 8), (far, 8, 1))
hidden.copy_(torch.arange(48.).view(3, 2, 8))
weight = torch.ones(2, 8, requires_grad=True)
with mk.backend("cpu"):
    out = mk.reward_heads(hidden, weight, token_index=torch.tensor([1, 0, 1]))
    out.sum().backward()
rows = torch.arange(48.).view(3, 2, 8)[torch.arange(3), torch.tensor([1, 0, 1])]
assert torch.equal(out, rows.sum(1, keepdim=True).expand(3, 2)), out
assert torch.equal(weight.grad, rows.sum(0).expand(2, 8)), weight.grad
""")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(2, 3, 4)}, ValueError, r"hidden: expected shape \(B, D\), got"),
        (
            {"hidden": torch.zeros(2, 4).long()},
            TypeError,
            "hidden: expected dtype float64, float32",
        ),
        (
            {"weight": torch.zeros(2, 5)},
            ValueError,
            r"weight: expected shape \(H, 4\), got \(2, 5\)",
        ),
        (
            {"weight": torch.zeros(2, 4, dtype=torch.float64)},
            TypeError,
            "weight: expected dtype float32 or that of hidden",
        ),
        ({"weight": torch.zeros(2, 4, device="meta")}, ValueError, "weight: expected device cpu"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        (
            {"token_index": torch.zeros(2).long()},
            ValueError,
            r"hidden: expected shape \(B, T, D\)",
        ),
        (
            {"hidden": torch.zeros(2, 3, 4), "token_index": torch.zeros(2).int()},
            TypeError,
            "token_index: expected dtype int64, got int32",
        ),
        (
            {"hidden": torch.zeros(2, 3, 4), "token_index": torch.tensor([0, 3]), "validate": True},
            ValueError,
            r"token_index: expected indices in \[-1, 3\), got 0 to 3",
        ),
        ({"hidden": [1.0]}, TypeError, "hidden: expected a torch.Tensor, got list"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(2, 4), **change}
    with pytest.raises(error, match=message):
        mk.reward_heads(**arguments)

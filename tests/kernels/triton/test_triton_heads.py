"""reward_heads, preference_margins and last_token_index by Triton."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import cases
from tests.kernels.harness import assert_compiles, assert_matches
from tests.kernels.test_reward_heads import face, formula, make_inputs
from tests.kernels.triton.where import DEVICE, on_triton

pytestmark = on_triton

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def on_device(leaves, index=None):
    leaves = [t.detach().to(DEVICE).requires_grad_() if DEVICE != "cpu" else t for t in leaves]
    return leaves, None if index is None else index.to(DEVICE)


@cases(
    dtype=DTYPES,
    layout=["contiguous", "transposed", "sliced", "expanded"],
    rows=[0, 1, 3, 17, 40],
    features=[1, 3, 17, 127, 1025],
    heads=[1, 2, 8, 33, 70],
    tokens=[0, 4],
    bias=[True, False],
    mixed=[False, True],
    upstream=["random", "sum", "sliced", "transposed"],
)
def test_heads_match_float64(case):
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
    leaves, index = on_device(leaves, index)
    assert_matches(face(index, case["bias"]), formula(index), leaves, case["upstream"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 2])
def test_many_rows_go_the_way_of_features(dtype, tokens):
    leaves, index = on_device(*make_inputs(1500, 40, 3, tokens, dtype))
    assert_matches(face(index), formula(index), leaves)


@pytest.mark.parametrize("rows", [3, 1100])
@pytest.mark.parametrize("index", [-1, 4, -9, 2**40])
def test_a_token_that_is_not_there(rows, index):
    (hidden, weight, bias), _ = on_device(make_inputs(rows, 9, 2, tokens=4)[0])
    token_index = torch.tensor([0, index, 3] + [1] * (rows - 3), device=DEVICE)
    out = mk.reward_heads(hidden, weight, bias, token_index)
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()
    grads = torch.autograd.grad(out, (hidden, weight, bias), torch.where(out.isnan(), out, 1.0))
    assert grads[0][1].eq(0).all() and all(g.isfinite().all() for g in grads)
    assert grads[2].eq(rows - 1).all()


def test_other_tokens_are_not_read():
    hidden = torch.full((3, 6, 8), torch.nan, device=DEVICE)
    index = torch.tensor([5, 0, 2], device=DEVICE)
    hidden[torch.arange(3), index] = 1.0
    weight = torch.ones(2, 8, device=DEVICE)
    hidden.requires_grad_()
    out = mk.reward_heads(hidden, weight, token_index=index)
    (grad,) = torch.autograd.grad(out.sum(), hidden)
    assert out.eq(8).all() and grad.sum() == 3 * 8 * 2


def test_heads_pass_gradcheck_and_compile():
    leaves, index = on_device(*make_inputs(5, 17, 3, 4))
    assert torch.autograd.gradcheck(lambda *tensors: face(index)(*tensors)[[0, 2, 3, 4]], leaves)
    assert_compiles(face(None), on_device(make_inputs(5, 17, 3)[0])[0])


@cases(
    dtype=DTYPES,
    layout=["contiguous", "transposed", "sliced", "expanded"],
    rows=[0, 1, 3, 17, 130],
    features=[1, 3, 17, 127, 300],
    heads=[1, 2, 8, 33],
    upstream=["random", "sum", "sliced", "transposed"],
)
def test_margins_match_float64(case):
    layout = case["layout"] if case["rows"] else "contiguous"
    parts = (case["rows"], case["features"], case["heads"], 0, case["dtype"], layout)
    (chosen, weight), _ = make_inputs(*parts, bias=False)
    (rejected, _), _ = make_inputs(*parts, bias=False, seed=1)
    leaves, _ = on_device([chosen, rejected, weight])
    assert_matches(mk.preference_margins, reference.preference_margins, leaves, case["upstream"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_both_rows_share_costs_no_digits(dtype):
    torch.manual_seed(0)
    chosen = (100 + torch.randn(64, 70)).to(DEVICE, dtype)
    rejected = (chosen + torch.randn(64, 70, device=DEVICE)).to(dtype)
    leaves = [t.requires_grad_() for t in (chosen, rejected, torch.randn(3, 70).to(DEVICE, dtype))]
    assert_matches(mk.preference_margins, reference.preference_margins, leaves)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("tokens", [0, 1, 5, 3000])
def test_last_token_index(dtype, tokens):
    mask = torch.rand(9, tokens) < 0.3
    mask[0] = False
    mask = mask.to(DEVICE, dtype)
    for view in (mask, mask.T.contiguous().T, torch.cat([mask, mask], 1)[:, ::2]):
        assert torch.equal(mk.last_token_index(view), reference.last_token_index(view))

"""weighted_gram on a device: criterion, blocks of rows, certain choices, repeats."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from tests.kernels.criterion import assert_close_enough, cases
from tests.kernels.test_weighted_gram import in_dtype, make
from tests.kernels.triton.where import DEVICE, on_triton

pytestmark = on_triton


def on_device(arguments):
    return {n: t.to(DEVICE) if isinstance(t, torch.Tensor) else t for n, t in arguments.items()}


@cases(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    layout=["contiguous", "transposed", "sliced"],
    n_rows=[1, 17, 130, 1501],
    n_features=[1, 3, 17, 70],
    n_heads=[1, 2, 8],
    items=[0, 5, 300],
    sets=[False, True],
    weighted=[False, True],
)
def test_gram_matches_float64(case):
    torch.manual_seed(case["n_rows"] + case["n_features"])
    arguments = on_device(make(**case))
    out = mk.weighted_gram(**arguments)
    assert torch.equal(out, mk.weighted_gram(**arguments))
    acc = torch.promote_types(case["dtype"], torch.float32)
    floor = 1e-13 if acc == torch.float64 else 1e-6
    exact, peer = in_dtype(arguments, torch.float64), in_dtype(arguments, acc)
    assert_close_enough(out, exact, peer, floor=floor)


def test_blocks_of_rows_add_up(monkeypatch):
    from maxmin_kernels.triton import gram

    arguments = on_device(make(500, 6, 3, items=50))
    whole = mk.weighted_gram(**arguments)
    monkeypatch.setattr(gram, "BLOCK", 7 * 18)
    torch.testing.assert_close(mk.weighted_gram(**arguments), whole)


def test_positive_semidefinite_where_choices_are_certain():
    arguments = make(300, 5, 2, sets=True, dtype=torch.float32)
    margins = -20 * torch.rand(300, 2)
    arguments["share"] = mk.reference.choice_shares(margins, arguments["choice_indptr"])[1]
    out = mk.weighted_gram(**on_device(arguments)).double()
    values = torch.linalg.eigvalsh((out + out.mT) / 2)
    assert bool((values[:, 0] > -1e-6 * values[:, -1]).all())


@pytest.mark.parametrize("n_rows", [0, 3])
def test_nothing(n_rows):
    out = mk.weighted_gram(
        torch.zeros(n_rows, 4, device=DEVICE),
        torch.rand(2, 3, device=DEVICE),
        torch.zeros(n_rows, 3, device=DEVICE),
        torch.tensor([0, 0, n_rows], device=DEVICE),
    )
    assert out.eq(0).all() and out.shape == (3, 4, 4)

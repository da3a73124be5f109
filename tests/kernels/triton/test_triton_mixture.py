"""choice_shares and mixture_log_likelihood by Triton: criterion, gradients, long annotators, extremes, repeats."""

from __future__ import annotations

import math

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import assert_close_enough, cases, upstream, with_layout
from tests.kernels.triton.where import DEVICE, on_triton

pytestmark = on_triton

FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # fmt: skip
MODES = {
    "soft": {},
    "tempered": {"temperature": 2.5},
    "noise": {"label_noise": 0.1},
    "hard": {"hard": True},
}


def pointers(n_rows, n_annotators, sets):
    """Annotators of uneven length, the first of them empty."""
    n_choices = max(1, n_rows // 3) if sets else n_rows
    cut = torch.randint(0, n_choices + 1, (n_annotators - 2,)).sort().values
    ends = torch.randint(0, n_rows + 1, (n_choices - 1,)).sort().values
    indptr = torch.cat([torch.tensor([0, 0]), cut, torch.tensor([n_choices])]).to(DEVICE)
    choice = torch.cat([torch.tensor([0]), ends, torch.tensor([n_rows])]).to(DEVICE)
    return {"indptr": indptr, "choice_indptr": choice if sets else None}


@cases(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    layout=["contiguous", "transposed", "sliced", "expanded"],
    n_rows=[1, 3, 17, 130],
    sizes=[(1,), (2,), (1, 3, 4), (33,)],
    sets=[False, True],
    weighted=[False, True],
    mode=list(MODES),
    kind=["random", "sum", "sliced", "transposed"],
)
def test_mixture_log_likelihood(case):
    torch.manual_seed(case["n_rows"])
    n_heads = sum(case["sizes"])
    acc = torch.promote_types(case["dtype"], torch.float32)
    margins = torch.randn(case["n_rows"], n_heads, dtype=torch.float64).to(DEVICE, case["dtype"])
    margins = with_layout(case["layout"], margins, requires_grad=True)
    log_weights = torch.randn(n_heads).log_softmax(0).to(DEVICE, acc).requires_grad_()
    data = pointers(case["n_rows"], 9, case["sets"])
    n_choices = int(data["indptr"][-1])
    options = {
        **data,
        **MODES[case["mode"]],
        "mixture_indptr": torch.tensor([0, *case["sizes"]]).cumsum(0).to(DEVICE),
        "comparison_weight": torch.rand(n_choices).to(DEVICE) if case["weighted"] else None,
    }
    z, log_resp = mk.mixture_log_likelihood(margins, log_weights=log_weights, **options)
    assert z.dtype == log_resp.dtype == acc
    gradient = upstream(case["kind"], z)
    outs = (z, log_resp.exp(), *torch.autograd.grad(z, (margins, log_weights), gradient))
    assert outs[2].dtype == margins.dtype
    results = []
    for dtype in (torch.float64, acc):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (margins, log_weights)]
        plain, logs = reference.mixture_log_likelihood(leaves[0], log_weights=leaves[1], **options)
        by = torch.autograd.grad(plain, leaves, gradient.to(plain.dtype))
        results.append((plain, logs.exp(), *by))
    names = ("z", "resp", "by margins", "by log_weights")
    for name, out, exact, peer in zip(names, outs, *results, strict=True):
        assert_close_enough(out, exact, peer, floor=FLOOR, name=name)


@cases(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    layout=["contiguous", "transposed", "sliced", "expanded"],
    n_rows=[1, 3, 17, 130],
    n_heads=[1, 2, 8, 33, 70],
    sets=[False, True],
    noise=[0.0, 0.2],
    kind=["random", "sum", "sliced"],
)
def test_choice_shares(case):
    torch.manual_seed(case["n_rows"])
    margins = 3 * torch.randn(case["n_rows"], case["n_heads"], dtype=torch.float64)
    margins = with_layout(case["layout"], margins.to(DEVICE, case["dtype"]), requires_grad=True)
    choice = pointers(case["n_rows"], 4, case["sets"])["choice_indptr"]
    log_prob, share = mk.choice_shares(margins, choice, label_noise=case["noise"])
    gradient = upstream(case["kind"], log_prob)
    (by,) = torch.autograd.grad(log_prob, margins, gradient)
    results = []
    for dtype in (torch.float64, log_prob.dtype):
        leaf = margins.detach().to(dtype).requires_grad_()
        plain, shares = reference.choice_shares(leaf, choice, case["noise"])
        results.append((plain, shares, *torch.autograd.grad(plain, leaf, gradient.to(dtype))))
    for name, out, exact, peer in zip(
        ("log_prob", "share", "gradient"), (log_prob, share, by), *results, strict=True
    ):
        assert_close_enough(out, exact, peer, floor=FLOOR, name=name)


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("mode", ["soft", "tempered", "noise"])
def test_gradcheck(sets, mode):
    margins = torch.randn(7, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    log_weights = torch.randn(3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    data = pointers(7, 4, sets)
    weight = torch.rand(int(data["indptr"][-1]), dtype=torch.float64, device=DEVICE)

    def z(m, w):
        return mk.mixture_log_likelihood(
            m, log_weights=w, **data, mixture_indptr=torch.tensor([0, 1, 3], device=DEVICE),
            comparison_weight=weight, **MODES[mode],
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(z, (margins, log_weights))


def test_a_long_annotator_is_summed_in_float64():
    margins = torch.randn(100_000, 2, device=DEVICE)
    indptr = torch.tensor([0, 100_000], device=DEVICE)
    log_weights = torch.full((2,), 0.5, device=DEVICE).log()
    z, log_resp = mk.mixture_log_likelihood(margins, indptr, log_weights)
    exact, exact_resp = reference.mixture_log_likelihood(margins.double(), indptr, log_weights)
    torch.testing.assert_close(z.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_resp.double(), exact_resp, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sets", [False, True])
def test_extremes(sets):
    margins = torch.tensor([[1e4, -1e4], [-1e4, 80.0], [-80.0, 0.0]], device=DEVICE)
    indptr = torch.tensor([0, 1] if sets else [0, 2, 2, 3], device=DEVICE)
    choice = torch.tensor([0, 3], device=DEVICE) if sets else None
    log_weights = torch.tensor([0.0, -math.inf], device=DEVICE)  # a dead head
    outs = mk.mixture_log_likelihood(margins, indptr, log_weights, choice_indptr=choice)
    for out, ref in zip(outs, reference.mixture_log_likelihood(margins, indptr, log_weights, choice), strict=True):  # fmt: skip
        torch.testing.assert_close(out.double(), ref, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_nan_stays_with_its_annotator_and_ties_go_to_the_first(hard):
    margins = torch.ones(3, 3, device=DEVICE)
    margins[0, 1] = torch.nan
    indptr = torch.tensor([0, 1, 3], device=DEVICE)
    z, log_resp = mk.mixture_log_likelihood(margins, indptr, torch.zeros(3, device=DEVICE), hard=hard)  # fmt: skip
    assert z[0].isnan().all() and log_resp[0].isnan().all()
    assert z[1].isfinite().all()
    expected = [1.0, 0.0, 0.0] if hard else [1 / 3] * 3
    torch.testing.assert_close(log_resp[1].exp().tolist(), expected)


@pytest.mark.parametrize("n_rows", [0, 4])
def test_nothing_to_do(n_rows):
    margins = torch.zeros(n_rows, 2, device=DEVICE)
    indptr = torch.full((3 if n_rows == 0 else 1,), 0, device=DEVICE)
    margins = margins[:0]
    z, log_resp = mk.mixture_log_likelihood(margins, indptr, torch.zeros(2, device=DEVICE))
    assert z.shape == (indptr.shape[0] - 1, 1) and log_resp.shape == (indptr.shape[0] - 1, 2)
    assert z.isfinite().all()


def test_repeats_bit_for_bit_and_compiles():
    margins = torch.randn(50, 5, device=DEVICE, requires_grad=True)
    data = pointers(50, 6, False)

    def loss(m):
        return mk.mixture_log_likelihood(m, data["indptr"], torch.zeros(5, device=DEVICE))[0].sum()

    first, second = (torch.autograd.grad(loss(margins), margins)[0] for _ in range(2))
    assert torch.equal(first, second)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(margins), margins)[0], first)

"""choice_shares on every backend: criterion, gradients, compile, properties, extremes, bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import assert_close_enough, cases, upstream, with_layout
from tests.kernels.harness import assert_compiles, both_backends, fake_outputs

FLOAT64 = {torch.float64: 1e-13, torch.float32: 1e-6}


def sets_of(n_rows: int, sets: bool) -> torch.Tensor | None:
    """Comparisons of 0 to 5 rows."""
    if not sets:
        return None
    ends = torch.randint(0, n_rows + 1, (n_rows // 3,)).sort().values
    return torch.cat([torch.tensor([0]), ends, torch.tensor([n_rows])])


@both_backends
@cases(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    layout=["contiguous", "transposed", "sliced", "expanded"],
    n_rows=[1, 3, 17, 130, 5003],
    n_heads=[1, 2, 8, 33],
    sets=[False, True],
    noise=[0.0, 0.2],
    kind=["random", "sum", "sliced", "transposed"],
)
def test_criterion(backend, case):
    torch.manual_seed(case["n_rows"])
    margins = 3 * torch.randn(case["n_rows"], case["n_heads"], dtype=torch.float64)
    margins = with_layout(case["layout"], margins.to(case["dtype"]), requires_grad=True)
    choice_indptr = sets_of(case["n_rows"], case["sets"])
    acc = torch.promote_types(case["dtype"], torch.float32)
    with mk.backend(backend):
        log_prob, share = mk.choice_shares(margins, choice_indptr, label_noise=case["noise"])
        assert log_prob.dtype == share.dtype == acc
        gradient = upstream(case["kind"], log_prob)
        got = torch.autograd.grad(log_prob, margins, gradient)[0]
    assert got.dtype == margins.dtype
    results = []
    for dtype in (torch.float64, acc):
        leaf = margins.detach().to(dtype).requires_grad_()
        plain, s = reference.choice_shares(leaf, choice_indptr, case["noise"])
        results.append((plain, s, torch.autograd.grad(plain, leaf, gradient.to(dtype))[0]))
    for name, out, exact, peer in zip(
        ("log_prob", "share", "gradient"), (log_prob, share, got), *results, strict=True
    ):
        floor = FLOAT64.get(
            out.dtype, {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(out.dtype)
        )
        assert_close_enough(out, exact, peer, floor=floor, name=name)


@both_backends
@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_gradcheck(backend, sets, noise):
    margins = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    choice_indptr = sets_of(12, sets)

    def log_prob(m):
        return mk.choice_shares(m, choice_indptr, label_noise=noise)[0]

    with mk.backend(backend):
        assert torch.autograd.gradcheck(log_prob, margins)
        share = mk.choice_shares(margins, choice_indptr)[1]
    assert not share.requires_grad


@both_backends
def test_share_is_the_derivative_of_the_log_probability(backend):
    """(3'), by automatic differentiation of the formula (3)."""
    margins = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
    choice_indptr = torch.tensor([0, 1, 3, 10, 10, 30])
    rows = [margins[b:e] for b, e in itertools.pairwise(choice_indptr.tolist())]
    formula = torch.stack([-torch.log1p((-m).exp().sum(0)) for m in rows])
    with mk.backend(backend):
        log_prob, share = mk.choice_shares(margins, choice_indptr)
    torch.testing.assert_close(log_prob, formula)
    torch.testing.assert_close(share, torch.autograd.grad(formula.sum(), margins)[0])


@both_backends
def test_pairs_are_sets_of_one_row(backend):
    margins = torch.randn(50, 3, dtype=torch.float64)
    with mk.backend(backend):
        for noise in (0.0, 0.1):
            for pair, single in zip(
                mk.choice_shares(margins, label_noise=noise),
                mk.choice_shares(margins, torch.arange(51), label_noise=noise),
                strict=True,
            ):
                torch.testing.assert_close(pair, single)


@both_backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extremes(backend, dtype):
    margins = torch.tensor([80.0, -80, 1e4, -1e4, 0, math.inf, -math.inf, math.nan], dtype=dtype)
    with mk.backend(backend):
        log_prob, share = mk.choice_shares(margins[:, None])
        torch.testing.assert_close(
            log_prob[:, 0],
            torch.nn.functional.logsigmoid(margins),
            equal_nan=True,
            atol=1e-37,
            rtol=1e-6,
        )
        torch.testing.assert_close(
            share[:, 0], torch.sigmoid(-margins), equal_nan=True, atol=1e-37, rtol=1e-6
        )
        # One set: 1e4 ahead of one row, 1e4 behind the other.
        log_prob, share = mk.choice_shares(margins[2:4, None], torch.tensor([0, 2]))
        assert log_prob.item() == -1e4 and share[:, 0].tolist() == [0.0, 1.0]


@both_backends
def test_nothing_and_empty_sets(backend):
    with mk.backend(backend):
        log_prob, share = mk.choice_shares(torch.zeros(0, 3))
        assert log_prob.shape == share.shape == (0, 3)
        log_prob, share = mk.choice_shares(torch.zeros(0, 3), torch.tensor([0, 0, 0]))
        assert torch.equal(log_prob, torch.zeros(2, 3))  # the only alternative is chosen
        log_prob, _ = mk.choice_shares(torch.zeros(5, 0))
        assert log_prob.shape == (5, 0)


@both_backends
def test_one_long_set(backend):
    margins = torch.randn(40_000, 3)
    with mk.backend(backend):
        log_prob, share = mk.choice_shares(margins, torch.tensor([0, 40_000]))
    exact, shares = reference.choice_shares(margins.double(), torch.tensor([0, 40_000]))
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(share.double(), shares, rtol=1e-4, atol=0)


@both_backends
def test_opcheck_compile_and_fakes(backend):
    margins = torch.randn(20, 3, requires_grad=True)
    choice_indptr = torch.tensor([0, 4, 9, 20])
    ops = torch.ops.maxmin
    with mk.backend(backend):
        for indptr in (None, choice_indptr):
            torch.library.opcheck(ops.choice_shares_fwd.default, (margins, indptr, 0.1))
        share = torch.rand(20, 3)
        torch.library.opcheck(
            ops.choice_shares_bwd.default, (torch.rand(3, 3), share, choice_indptr)
        )
        assert_compiles(lambda m: mk.choice_shares(m, choice_indptr)[0], [margins])
    log_prob, share = fake_outputs(mk.choice_shares, [margins.detach().half(), choice_indptr])
    assert (log_prob.shape, share.shape, share.dtype) == ((3, 3), (20, 3), torch.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"margins": torch.zeros(3)}, ValueError, r"margins: expected shape \(N, H\), got \(3,\)"),
        ({"margins": torch.zeros(3, 2).long()}, TypeError, "margins: expected dtype .* got int64"),
        ({"choice_indptr": torch.tensor([0, 3]).int()}, TypeError, "choice_indptr: expected dtype int64"),
        ({"label_noise": -0.1}, ValueError, r"label_noise: expected a number in \[0, 1\), got -0.1"),
        ({"choice_indptr": torch.tensor([0, 2]), "validate": True}, ValueError, "choice_indptr: expected to run"),
        ({"margins": torch.full((3, 2), math.nan), "validate": True}, ValueError, "margins: expected finite"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        mk.choice_shares(**({"margins": torch.zeros(3, 2)} | change))

"""mixture_log_likelihood on every backend: criterion, gradients, compile, properties, extremes, bad input."""

from __future__ import annotations

import math

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import assert_close_enough, cases, upstream, with_layout
from tests.kernels.harness import assert_compiles, both_backends, fake_outputs, native, run_python

MODES = {
    "soft": {},
    "tempered": {"temperature": 2.5},
    "noise": {"label_noise": 0.1},
    "hard": {"hard": True},
}


def layout_of(n_rows: int, n_annotators: int, sets: bool) -> dict[str, torch.Tensor | None]:
    """Annotators of uneven length, the first of them empty."""
    n_choices = max(1, n_rows // 3) if sets else n_rows
    cut = torch.randint(0, n_choices + 1, (n_annotators - 2,)).sort().values
    ends = torch.randint(0, n_rows + 1, (n_choices - 1,)).sort().values
    return {
        "indptr": torch.cat([torch.tensor([0, 0]), cut, torch.tensor([n_choices])]),
        "choice_indptr": torch.cat([torch.tensor([0]), ends, torch.tensor([n_rows])])
        if sets
        else None,
    }


@both_backends
@cases(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    layout=["contiguous", "transposed", "sliced", "expanded"],
    n_rows=[1, 3, 17, 130, 3001],
    sizes=[(1,), (2,), (1, 3, 4), (33,)],
    sets=[False, True],
    weighted=[False, True],
    mode=list(MODES),
    kind=["random", "sum", "sliced", "transposed"],
)
def test_criterion(backend, case):
    torch.manual_seed(case["n_rows"])
    n_heads = sum(case["sizes"])
    acc = torch.promote_types(case["dtype"], torch.float32)
    margins = torch.randn(case["n_rows"], n_heads, dtype=torch.float64).to(case["dtype"])
    margins = with_layout(case["layout"], margins, requires_grad=True)
    if case["layout"] == "expanded":  # equal heads would tie
        margins = margins.detach().mul(1).requires_grad_()
    log_weights = torch.randn(n_heads).log_softmax(0).to(acc).requires_grad_()
    data = layout_of(case["n_rows"], 9, case["sets"])
    n_choices = int(data["indptr"][-1])
    options = {
        **data,
        **MODES[case["mode"]],
        "mixture_indptr": torch.tensor([0, *case["sizes"]]).cumsum(0),
        "comparison_weight": torch.rand(n_choices) if case["weighted"] else None,
    }
    with mk.backend(backend):
        z, log_resp = mk.mixture_log_likelihood(margins, log_weights=log_weights, **options)
        assert z.dtype == log_resp.dtype == acc
        gradient = upstream(case["kind"], z)
        grads = torch.autograd.grad(z, (margins, log_weights), gradient)
    assert grads[0].dtype == margins.dtype
    results = []
    for dtype in (torch.float64, acc):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (margins, log_weights)]
        plain, logs = reference.mixture_log_likelihood(leaves[0], log_weights=leaves[1], **options)
        by = torch.autograd.grad(plain, leaves, gradient.to(plain.dtype))
        results.append((plain, logs.exp(), *by))
    outs = (z, log_resp.exp(), *grads)
    for name, out, exact, peer in zip(
        ("z", "resp", "by margins", "by log_weights"), outs, *results, strict=True
    ):
        floor = {
            torch.float64: 1e-12,
            torch.float32: 2e-6,
            torch.bfloat16: 2.0**-7,
            torch.float16: 2.0**-10,
        }
        assert_close_enough(out, exact, peer, floor=floor, name=name)


@both_backends
@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("mode", ["soft", "tempered", "noise"])
def test_gradcheck(backend, sets, mode):
    margins = torch.randn(14, 4, dtype=torch.float64, requires_grad=True)
    log_weights = torch.randn(4, dtype=torch.float64, requires_grad=True)
    data = layout_of(14, 5, sets)
    weight = torch.rand(int(data["indptr"][-1]), dtype=torch.float64)

    def z(m, w):
        return mk.mixture_log_likelihood(
            m, log_weights=w, **data, mixture_indptr=torch.tensor([0, 1, 4]),
            comparison_weight=weight, **MODES[mode],
        )[0]  # fmt: skip

    with mk.backend(backend):
        assert torch.autograd.gradcheck(z, (margins, log_weights))


@both_backends
def test_only_z_is_differentiable_and_upstream_may_skip_annotators(backend):
    margins = torch.randn(9, 2, requires_grad=True)
    with mk.backend(backend):
        z, log_resp = mk.mixture_log_likelihood(margins, torch.tensor([0, 4, 9]), torch.zeros(2))
        assert z.requires_grad and not log_resp.requires_grad
        (by,) = torch.autograd.grad(z[1].sum(), margins)
    assert torch.equal(by[:4], torch.zeros(4, 2)) and bool((by[4:] != 0).all())


@both_backends
def test_hard_ties_go_to_the_first_head(backend):
    margins = torch.ones(4, 3)
    with mk.backend(backend):
        _, log_resp = mk.mixture_log_likelihood(
            margins, torch.tensor([0, 4]), torch.zeros(3), hard=True
        )
    assert log_resp.tolist() == [[0.0, -math.inf, -math.inf]]


@both_backends
def test_empty_groups_nan_and_extremes(backend):
    margins = torch.tensor([[80.0, -80], [1e4, -1e4], [math.nan, 0.5], [-math.inf, 1]])
    indptr = torch.arange(5)
    with mk.backend(backend):
        z, log_resp = mk.mixture_log_likelihood(margins, indptr, torch.tensor([0.0, -math.inf]))
        torch.testing.assert_close(z[:2, 0], torch.zeros(2))
        assert log_resp[:2].tolist() == [[0.0, -math.inf]] * 2
        assert bool(z[2].isnan()) and bool(log_resp[2].isnan().all())
        z, log_resp = mk.mixture_log_likelihood(margins[[0, 1, 3]], torch.arange(4), torch.zeros(2))
    assert log_resp[1].tolist() == [0.0, -2e4] or log_resp[1].tolist() == [0.0, -1e4]
    assert log_resp[2, 0] == -math.inf and bool(z.isfinite().all())


@both_backends
def test_one_long_annotator_keeps_its_digits(backend):
    """L is a float64 sum, so that differences of sums of 1e5 terms are those of the terms."""
    torch.manual_seed(1)
    margins = torch.randn(100_001, 1).expand(-1, 2) + torch.tensor([0.0, 1e-4])
    indptr = torch.tensor([0, 1, 100_001])
    log_weights = torch.tensor([0.5, 0.5]).log()
    with mk.backend(backend):
        _, log_resp = mk.mixture_log_likelihood(margins, indptr, log_weights)
    _, exact = reference.mixture_log_likelihood(margins.double(), indptr, log_weights.double())
    assert (log_resp.double().exp() - exact.exp()).abs().max() < 1e-4


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_heads", [1, 5, 16, 36])
def test_confident_pairs_keep_their_digits(n_heads, dtype):
    """Log-probabilities far below the precision of 1 add up, alone and beside large ones; so do their gradients."""
    torch.manual_seed(n_heads)
    lengths = torch.tensor([1, 2, 16, 17, 33, 200])
    indptr = torch.cat([torch.tensor([0]), lengths.cumsum(0)])
    margins = (torch.rand(int(indptr[-1]), n_heads, dtype=dtype) * 12 + 12).requires_grad_()
    mixtures = torch.arange(n_heads + 1)  # of one head each: z is its sum
    with mk.backend("cpu"):
        z, _ = mk.mixture_log_likelihood(
            margins, indptr, torch.zeros(n_heads, dtype=dtype), mixture_indptr=mixtures
        )
    upstream = torch.rand_like(z)
    (by_margins,) = torch.autograd.grad(z, margins, upstream)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    exact = torch.zeros(len(lengths), n_heads, dtype=torch.float64)
    exact.index_add_(0, owner, -torch.log1p(torch.exp(-margins.detach().double())))
    rtol = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(z.double(), exact, rtol=rtol, atol=4e-16)  # of the posterior
    expected = upstream.double()[owner] * torch.sigmoid(-margins.detach().double())
    torch.testing.assert_close(by_margins.double(), expected, rtol=rtol, atol=0)


@both_backends
def test_nothing_to_read(backend):
    prior = torch.tensor([0.2, 0.8]).log()
    with mk.backend(backend):
        z, log_resp = mk.mixture_log_likelihood(torch.zeros(0, 2), torch.tensor([0, 0, 0]), prior)
        torch.testing.assert_close(log_resp, prior.expand(2, 2))
        torch.testing.assert_close(z, torch.zeros(2, 1))
        z, _ = mk.mixture_log_likelihood(torch.zeros(0, 2), torch.tensor([0]), prior)
        assert z.shape == (0, 1)


@both_backends
def test_opcheck_compile_and_fakes(backend):
    margins = torch.randn(20, 3, requires_grad=True)
    log_weights = torch.zeros(3, requires_grad=True)
    indptr, sets, mixtures = (torch.tensor(p) for p in ([0, 1, 3], [0, 4, 9, 20], [0, 1, 3]))
    weight = torch.rand(3)
    ops = torch.ops.maxmin
    with mk.backend(backend):
        full = (margins, indptr, log_weights, sets, mixtures, weight, 0.1, False, 2.0)
        torch.library.opcheck(ops.mixture_log_likelihood_fwd.default, full)
        log_resp = torch.rand(2, 3).log()
        torch.library.opcheck(
            ops.mixture_log_likelihood_bwd.default,
            (torch.rand(2, 2), margins.detach(), indptr, log_resp, sets, mixtures, weight, 0.1),
        )
        assert_compiles(
            lambda m, w: mk.mixture_log_likelihood(m, indptr, w, choice_indptr=sets)[0],
            [margins, log_weights],
        )
    z, log_resp = fake_outputs(
        mk.mixture_log_likelihood, [margins.detach().bfloat16(), indptr, log_weights.detach()]
    )
    assert (z.shape, log_resp.shape, z.dtype) == ((2, 1), (2, 3), torch.float32)


@native
@pytest.mark.parametrize("instructions", ["", "baseline"])
def test_bits_do_not_depend_on_the_number_of_threads(instructions):
    code = """
import torch, maxmin_kernels as mk
torch.manual_seed(0)
m = torch.randn(40_000, 5, requires_grad=True)
indptr = torch.cat([torch.tensor([0]), torch.randint(0, 40_001, (3_000,)).sort().values, torch.tensor([40_000])])
first = None
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    with mk.backend("cpu"):
        w = torch.zeros(5, requires_grad=True)
        z, r = mk.mixture_log_likelihood(m, indptr, w)
        out = (z, r, *torch.autograd.grad(z.sum(), (m, w)))
    first = first or out
    assert all(torch.equal(a, b) for a, b in zip(first, out)), threads
"""
    run_python(code, MAXMIN_CPU_ISA=instructions)


@native
def test_pointers_are_never_followed_out_of_bounds():
    margins = torch.zeros(4, 2)
    with mk.backend("cpu"):
        for indptr in ([0, 5], [0, 3], [1, 4], [0, 3, 2, 4]):
            with pytest.raises(RuntimeError, match="a pointer"):
                mk.mixture_log_likelihood(margins, torch.tensor(indptr), torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"margins": torch.zeros(5)}, ValueError, r"margins: expected shape \(N, H\)"),
        ({"indptr": torch.tensor([0.0, 5])}, TypeError, "indptr: expected dtype int64, got float32"),
        ({"log_weights": torch.zeros(3)}, ValueError, r"log_weights: expected shape \(2,\), got \(3,\)"),
        ({"comparison_weight": torch.ones(4)}, ValueError, r"comparison_weight: expected shape \(5,\)"),
        ({"temperature": -1.0}, ValueError, r"temperature: expected a number in \(0, inf\)"),
        ({"label_noise": 1.0}, ValueError, r"label_noise: expected a number in \[0, 1\)"),
        ({"indptr": torch.tensor([0, 4]), "validate": True}, ValueError, "indptr: expected to run from 0 to 5"),
        ({"comparison_weight": -torch.ones(5), "validate": True}, ValueError, "comparison_weight: expected numbers >= 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, message):
    arguments = {
        "margins": torch.zeros(5, 2), "indptr": torch.tensor([0, 5]), "log_weights": torch.zeros(2),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        mk.mixture_log_likelihood(**(arguments | change))

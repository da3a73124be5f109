"""What the compiled em_pass over shared items does that test_em_pass.py, which asks every backend, does not reach:
blocks of heads, many items, tables of exponentials, long annotators, threads, indices out of range."""

from __future__ import annotations

import math

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import assert_close_enough, cases
from tests.kernels.harness import native, run_python


def make(
    n_rows,
    n_items,
    sizes,
    *,
    n_annotators=20,
    spread=1.0,
    dtype=torch.float64,
    options="pairs",
):
    """Arguments of em_pass whose features are one-hot, so that the heads are the table of scores."""
    n_choices = max(1, n_rows // 3) if options == "sets" else n_rows
    cut = torch.randint(0, n_choices + 1, (n_annotators - 1,)).sort().values
    ends = torch.randint(0, n_rows + 1, (n_choices - 1,)).sort().values
    n_heads = sum(sizes)
    chosen = torch.randint(0, n_items, (n_rows,))
    scores = spread * (torch.rand(n_items, n_heads, dtype=torch.float64) - 0.5)
    arguments = {
        "scores": scores.to(dtype),
        "indptr": torch.cat([torch.tensor([0]), cut, torch.tensor([n_choices])]),
        "chosen": chosen,
        "rejected": (chosen + torch.randint(1, n_items, (n_rows,))) % n_items,
        "log_weights": torch.randn(n_heads, dtype=torch.float64).log_softmax(0).to(dtype),
        "choice_indptr": None,
        "mixture_indptr": torch.tensor([0, *sizes]).cumsum(0),
        "comparison_weight": None,
        "label_noise": 0.0,
        "hard": False,
        "temperature": 1.0,
    }
    if options == "sets":
        arguments["choice_indptr"] = torch.cat([torch.tensor([0]), ends, torch.tensor([n_rows])])
    if options == "weighted":
        arguments["comparison_weight"] = torch.rand(n_choices, dtype=torch.float64).to(dtype)
    return arguments


def formula(arguments, dtype):
    """The pass on a table of scores, by the reference."""
    given = {
        n: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for n, t in arguments.items()
    }
    scores, chosen, rejected = (given.pop(n) for n in ("scores", "chosen", "rejected"))
    margins = scores[chosen] - scores[rejected]
    z, log_resp = reference.mixture_log_likelihood(margins, **given)
    for name in ("hard", "temperature", "log_weights"):
        given.pop(name)
    pull, _ = reference.mixture_log_likelihood_bwd(
        torch.ones_like(z), margins, log_resp=log_resp, **given
    )
    by_item = torch.zeros_like(scores).index_add(0, chosen, pull).index_add(0, rejected, -pull)
    return z.sum(0), log_resp, log_resp.exp().sum(0), by_item


def run(arguments):
    return torch.ops.maxmin_native.em_pass_indexed_cpu(*arguments.values())


def assert_right(arguments, floor=None):
    dtype = arguments["scores"].dtype
    floor = floor or (1e-11 if dtype == torch.float64 else 2e-6)
    results = (run(arguments), formula(arguments, torch.float64), formula(arguments, dtype))
    for name, out, exact, peer in zip(
        ("log_likelihood", "resp", "mass", "gradient"), *results, strict=True
    ):
        if name == "resp":
            out, exact, peer = out.exp(), exact.exp(), peer.exp()
        assert_close_enough(out, exact, peer, floor=floor, name=name)


@native
@cases(
    dtype=[torch.float64, torch.float32],
    sizes=[(1,), (2, 3), (1, 2, 3, 4, 5, 6) * 4, (5, 70, 40, 1)],
    n_items=[2, 30, 20_000],
    n_rows=[1, 130, 40_000],
    spread=[1.0, 15.0, 100.0],
    options=["pairs", "weighted", "sets"],
    n_annotators=[1, 20, 3000],
)
def test_criterion(case):
    """Few and many items, mixtures wider than a block, score ranges with and without a table of exponentials."""
    torch.manual_seed(case["n_rows"])
    assert_right(make(**case))


@native
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_bits_do_not_depend_on_the_number_of_threads(instructions):
    run_python(
        """
import torch
from tests.kernels.test_em_pass_indexed import make, run, assert_right
torch.manual_seed(0)
for n_items in (40, 30_000):
    arguments = make(40_000, n_items, (1, 2, 30), dtype=torch.float32, n_annotators=500)
    outs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outs.append(run(arguments))
    for out in outs:
        assert all(torch.equal(a, b) for a, b in zip(outs[0], out, strict=True))
    assert_right(arguments)
""",
        MAXMIN_CPU_ISA=instructions,
    )


@native
@pytest.mark.parametrize("spread", [2.0, 19.0, 30.0])
def test_long_annotators_keep_their_digits(spread):
    """L is summed in float64: two heads a hair apart are told apart after 1e5 comparisons."""
    torch.manual_seed(0)
    arguments = make(100_000, 50, (2,), n_annotators=1, spread=spread, dtype=torch.float32)
    arguments["scores"][:, 1] = arguments["scores"][:, 0] * (1 + 2.0**-12)
    arguments["log_weights"].fill_(math.log(0.5))
    log_resp, exact = run(arguments)[1].double(), formula(arguments, torch.float64)[1]
    n_digits = 1e-6 * 100_000**0.5 * max(1, spread / 4)
    assert (log_resp[:, 0] - log_resp[:, 1] - exact[:, 0] + exact[:, 1]).abs().max() < n_digits


@native
def test_certain_choices_have_their_digits_too():
    """Where every p is nearly 1 the log-likelihood is what p lacks, not a sum of rounding errors."""
    arguments = make(400, 2, (1, 2), dtype=torch.float32)
    arguments["scores"] = torch.tensor([[8.0] * 3, [-8.0] * 3])
    arguments["chosen"].fill_(0)
    arguments["rejected"].fill_(1)
    arguments["log_weights"].zero_()
    out, exact = run(arguments)[0], formula(arguments, torch.float64)[0]
    torch.testing.assert_close(out[0], exact[0], rtol=1e-5, atol=0)


@native
@pytest.mark.parametrize("options", ["pairs", "sets"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e4])
def test_nan_and_infinities_stay_where_they_belong(options, hard, value):
    arguments = make(60, 9, (2, 3), options=options)
    arguments["hard"] = hard
    arguments["scores"][3, 1] = value
    for name, out, exact in zip(
        ("log_likelihood", "log_resp", "mass", "gradient"),
        run(arguments),
        formula(arguments, torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(out, exact, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@native
def test_an_item_against_itself_moves_nothing():
    arguments = make(50, 4, (3,))
    arguments["rejected"] = arguments["chosen"]
    log_likelihood, log_resp, _, gradient = run(arguments)
    torch.testing.assert_close(
        log_likelihood, torch.full_like(log_likelihood, 50 * math.log(0.5)), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(log_resp, arguments["log_weights"].expand_as(log_resp))
    assert gradient.abs().max() < 1e-14


@native
@pytest.mark.parametrize("name", ["chosen", "rejected"])
@pytest.mark.parametrize("value", [-1, 30, 2**62])
def test_indices_are_never_followed_out_of_bounds(name, value):
    arguments = make(200, 30, (2,))
    arguments[name][150] = value
    with pytest.raises(
        RuntimeError, match=r"em_pass: .* an index \(chosen, rejected\) out of range"
    ):
        run(arguments)


@native
@pytest.mark.parametrize("indptr", [[0, 199], [0, 201], [1, 200], [0, 150, 140, 200]])
def test_pointers_are_never_followed_out_of_bounds(indptr):
    arguments = make(200, 30, (2,)) | {"indptr": torch.tensor(indptr)}
    with pytest.raises(RuntimeError, match="em_pass: a pointer"):
        run(arguments)


@native
def test_through_the_face_with_any_features():
    torch.manual_seed(3)
    arguments = make(500, 30, (2, 3))
    features = torch.randn(7, 30, dtype=torch.float64).T
    weight = torch.randn(5, 7, dtype=torch.float64)
    given = {n: t for n, t in arguments.items() if n != "scores"}
    outs = []
    for name in ("cpu", "reference"):
        with mk.backend(name):
            outs.append(mk.em_pass(features, weight=weight, **given))
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(a, b)

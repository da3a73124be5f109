"""em_pass on every backend that serves here: criterion, gradients, compile, properties, extremes, bad input."""

from __future__ import annotations

import itertools

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import _native, reference
from tests.kernels.criterion import assert_close_enough, cases, upstream, with_layout

BACKENDS = [
    "reference",
    pytest.param(
        "cpu", marks=pytest.mark.skipif(_native.load() is not None, reason="not compiled")
    ),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with mk.backend(request.param):
        yield request.param


def make(
    n_rows=130,
    n_features=17,
    sizes=(1, 3),
    n_annotators=7,
    sets=False,
    indexed=False,
    dtype=torch.float32,
    weighted=False,
    layout="contiguous",
):
    """Random data; annotators of uneven length, one of them empty."""
    n_choices = n_rows if not sets else max(1, n_rows // 3)
    cut = torch.randint(0, n_choices + 1, (n_annotators - 2,)).sort().values
    indptr = torch.cat([torch.tensor([0, 0]), cut, torch.tensor([n_choices])])
    rows = torch.cat(
        [torch.tensor([0]), 1 + torch.randperm(n_rows - 1)[: n_choices - 1].sort().values]
    )
    choice_indptr = torch.cat([rows, torch.tensor([n_rows])]) if sets else None
    n_heads = sum(sizes)
    arguments = {
        "features": with_layout(
            layout, torch.randn(9 if indexed else n_rows, n_features).to(dtype)
        ),
        "indptr": indptr,
        "weight": torch.randn(n_heads, n_features, dtype=torch.float64) / n_features**0.5,
        "log_weights": torch.randn(n_heads, dtype=torch.float64).log_softmax(0),
    }
    options = {
        "choice_indptr": choice_indptr,
        "mixture_indptr": torch.tensor([0, *sizes]).cumsum(0),
        "comparison_weight": torch.rand(n_choices, dtype=torch.float64) if weighted else None,
        "chosen": torch.randint(0, 9, (n_rows,)) if indexed else None,
        "rejected": torch.randint(0, 9, (n_rows,)) if indexed else None,
    }
    if dtype != torch.float64:  # the heads as the pass will see them
        for name in ("weight", "log_weights"):
            arguments[name] = arguments[name].float()
        if weighted:
            options["comparison_weight"] = options["comparison_weight"].float()
    return arguments, options


def in_dtype(arguments, options, dtype):
    """The same problem in another precision, on the reference."""

    def to(value):
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    arguments = {name: to(value) for name, value in arguments.items()}
    options = {name: to(value) for name, value in options.items()}
    with mk.backend("reference"):
        return mk.em_pass(**arguments, **options)


@cases(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    layout=["contiguous", "transposed", "sliced", "expanded"],
    form=["rows", "indexed"],
    sets=[False, True],
    n_features=[1, 3, 17, 127, 130],
    sizes=[(1,), (2,), (1, 3, 4), (33,)],
    n_rows=[3, 17, 130, 1025],
    mode=["soft", "tempered", "noise", "hard"],
    weighted=[False, True],
)
def test_criterion(backend, case):
    torch.manual_seed(case["n_rows"] + case["n_features"])
    if case["form"] == "indexed" and case["layout"] == "expanded":
        pytest.skip("all items are one: every margin is 0 but for rounding")
    arguments, options = make(
        case["n_rows"],
        case["n_features"],
        case["sizes"],
        sets=case["sets"],
        indexed=case["form"] == "indexed",
        dtype=case["dtype"],
        weighted=case["weighted"],
        layout=case["layout"],
    )
    options |= {
        "soft": {},
        "tempered": {"temperature": 2.5},
        "noise": {"label_noise": 0.1},
        "hard": {"hard": True},
    }[case["mode"]]
    out = mk.em_pass(**arguments, **options)
    truth = in_dtype(arguments, options, torch.float64)
    peer = in_dtype(arguments, options, torch.promote_types(case["dtype"], torch.float32))
    for name in out._fields:
        value, exact, plain = (getattr(x, name) for x in (out, truth, peer))
        if name == "log_resp":
            value, exact, plain = value.exp(), exact.exp(), plain.exp()
        assert_close_enough(
            value, exact, plain, floor=1e-12 if case["dtype"] == torch.float64 else 2e-6, name=name
        )


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("kind", ["random", "sum", "sliced"])
def test_log_likelihood_is_differentiable(backend, indexed, kind):
    torch.manual_seed(0)
    arguments, options = make(40, 5, (1, 3, 2), indexed=indexed, dtype=torch.float64, sets=True)
    leaves = [arguments[name].requires_grad_() for name in ("weight", "log_weights")]

    def run(weight, log_weights):
        new = {**arguments, "weight": weight, "log_weights": log_weights}
        return mk.em_pass(**new, **options).log_likelihood

    assert torch.autograd.gradcheck(run, leaves)
    out = run(*leaves)
    gradient = upstream(kind, out)
    got = torch.autograd.grad(out, leaves, gradient)
    want = torch.autograd.grad((run(*leaves) * gradient.contiguous()).sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_only_the_log_likelihood_is(backend):
    arguments, options = make()
    arguments["weight"].requires_grad_()
    out = mk.em_pass(**arguments, **options)
    assert out.log_likelihood.requires_grad
    assert not out.log_resp.requires_grad and not out.grad_weight.requires_grad


@pytest.mark.parametrize("indexed", [False, True])
def test_opcheck(backend, indexed):
    arguments, options = make(indexed=indexed, weighted=True, sets=True)
    names = ("chosen", "rejected", "choice_indptr", "mixture_indptr", "comparison_weight")
    inputs = (*arguments.values(), *(options[n] for n in names), 0.0, False, 1.0, [])
    inputs[2].requires_grad_()
    torch.library.opcheck(torch.ops.maxmin.em_pass_fwd.default, inputs)


def test_compiles_to_one_graph(backend):
    arguments, options = make()
    compiled = torch.compile(mk.em_pass, fullgraph=True, backend="aot_eager")
    weight = arguments.pop("weight").requires_grad_()
    results = []
    for run in (mk.em_pass, compiled):
        out = run(**arguments, weight=weight, **options)
        results.append((*out, torch.autograd.grad(out.log_likelihood.sum(), weight)[0]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_plan_changes_nothing(backend, indexed):
    arguments, options = make(indexed=indexed)
    plan = mk.em_plan(
        arguments["indptr"],
        chosen=options["chosen"],
        rejected=options["rejected"],
        n_items=9 if indexed else None,
    )
    for a, b in zip(
        mk.em_pass(**arguments, **options),
        mk.em_pass(**arguments, **options, plan=plan),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("indexed", [False, True])
def test_repeats_bit_for_bit(backend, indexed):
    arguments, options = make(1025, 33, (2, 5), indexed=indexed)
    first = mk.em_pass(**arguments, **options)
    for a, b in zip(first, mk.em_pass(**arguments, **options), strict=True):
        assert torch.equal(a, b)


def test_mixtures_do_not_see_each_other(backend):
    arguments, options = make(200, 6, (1, 3, 2), dtype=torch.float64)
    together = mk.em_pass(**arguments, **options)
    for g, (begin, end) in enumerate([(0, 1), (1, 4), (4, 6)]):
        alone = mk.em_pass(
            arguments["features"],
            arguments["indptr"],
            arguments["weight"][begin:end],
            arguments["log_weights"][begin:end],
        )
        torch.testing.assert_close(together.log_likelihood[g], alone.log_likelihood[0])
        torch.testing.assert_close(together.log_resp[:, begin:end], alone.log_resp)
        torch.testing.assert_close(together.grad_weight[begin:end], alone.grad_weight)


def test_indexed_is_rows_of_differences(backend):
    arguments, options = make(300, 6, (1, 3), indexed=True, dtype=torch.float64, sets=True)
    indexed = mk.em_pass(**arguments, **options)
    chosen, rejected = options.pop("chosen"), options.pop("rejected")
    arguments["features"] = arguments["features"][chosen] - arguments["features"][rejected]
    for a, b in zip(indexed, mk.em_pass(**arguments, **options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_responsibilities_sum_to_one_and_do_not_mind_the_order_of_pairs(backend):
    arguments, options = make(130, 5, (4,), dtype=torch.float64)
    out = mk.em_pass(**arguments, **options)
    torch.testing.assert_close(out.log_resp.exp().sum(1), torch.ones(7, dtype=torch.float64))
    ends = arguments["indptr"].tolist()
    order = torch.cat([b + torch.randperm(e - b) for b, e in itertools.pairwise(ends)])
    arguments["features"] = arguments["features"][order]
    for a, b in zip(out, mk.em_pass(**arguments, **options), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("scale", [80.0, 1e4])
def test_extreme_margins(backend, dtype, indexed, scale):
    arguments, options = make(60, 3, (1, 2), dtype=dtype, indexed=indexed, sets=True)
    arguments["weight"] = arguments["weight"] * scale
    out = mk.em_pass(**arguments, **options)
    truth = in_dtype(arguments, options, torch.float64)
    peer = in_dtype(arguments, options, dtype)
    for name in ("log_likelihood", "mass", "grad_weight"):
        assert_close_enough(*(getattr(x, name) for x in (out, truth, peer)), floor=1e-5, name=name)


def test_one_long_annotator_keeps_his_digits(backend):
    """L is a float64 sum: 100,000 float32 pairs leave the responsibilities within a few 1e-6."""
    torch.manual_seed(5)
    features = torch.randn(100_003, 3)
    weight = torch.tensor([[0.01, 0.0, 0.0], [0.0101, 0.0, 0.0]])
    indptr = torch.tensor([0, 1, 100_001, 100_003])
    arguments = {
        "features": features, "indptr": indptr, "weight": weight,
        "log_weights": torch.tensor([0.5, 0.5]).log(),
    }  # fmt: skip
    out = mk.em_pass(**arguments)
    truth = in_dtype(arguments, {}, torch.float64)
    assert (out.log_resp.exp() - truth.log_resp.exp()).abs().max() < 1e-4
    torch.testing.assert_close(out.log_likelihood, truth.log_likelihood, rtol=1e-7, atol=0)


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("n_features", "sizes"), [(2048, (8,)), (4100, (3, 20)), (1024, (2, 2))])
def test_rows_of_thousands_of_features(backend, n_features, sizes, dtype, sets):
    """Annotators that fit a tile, that fill several, and that are cut by tasks, one after the other."""
    torch.manual_seed(n_features)
    arguments, options = make(1900, n_features, sizes, sets=sets, dtype=dtype)
    n_choices = int(arguments["indptr"][-1])
    lengths = torch.tensor([1, 60, 0, 5, 130, 3, 20, 290, 40])
    lengths = lengths // (3 if sets else 1)
    ends = torch.cat([lengths.cumsum(0), arguments["indptr"].new_tensor([n_choices])])
    arguments["indptr"] = torch.cat([torch.tensor([0]), ends])
    out = mk.em_pass(**arguments, **options)
    truth = in_dtype(arguments, options, torch.float64)
    peer = in_dtype(arguments, options, torch.promote_types(dtype, torch.float32))
    for name in ("log_likelihood", "mass", "grad_weight"):
        value, exact, plain = (getattr(x, name) for x in (out, truth, peer))
        floor = 1e-12 if dtype == torch.float64 else 2e-6
        assert_close_enough(value, exact, plain, floor=floor, name=name)


@pytest.mark.parametrize("n_heads", [1, 8, 20])
def test_confident_pairs_keep_their_digits(backend, n_heads):
    """Log-probabilities far below the precision of 1 add up, and so do their shares in the gradient."""
    torch.manual_seed(n_heads)
    features = torch.rand(600, 1) * 9 + 9
    weight = torch.rand(n_heads, 1) * 0.3 + 0.7
    indptr = torch.tensor([0, 3, 40, 41, 600])
    mixtures = torch.arange(n_heads + 1)  # of one head each
    out = mk.em_pass(features, indptr, weight, torch.zeros(n_heads), mixture_indptr=mixtures)
    margins = features.double() @ weight.double().T
    exact = -torch.log1p(torch.exp(-margins)).sum(0)
    rtol = 3e-5  # a float32 margin of 18 is off by 1e-6, its exponential by as much
    torch.testing.assert_close(out.log_likelihood.double(), exact, rtol=rtol, atol=1e-14)
    pull = (torch.sigmoid(-margins) * features.double()).sum(0)[:, None]
    torch.testing.assert_close(out.grad_weight.double(), pull, rtol=rtol, atol=0)


def test_nothing_to_read(backend):
    out = mk.em_pass(
        torch.zeros(0, 4),
        torch.tensor([0, 0, 0]),
        torch.randn(3, 4),
        torch.tensor([0.2, 0.3, 0.5]).log(),
    )
    torch.testing.assert_close(out.log_resp.exp(), torch.tensor([[0.2, 0.3, 0.5]] * 2))
    assert torch.equal(out.grad_weight, torch.zeros(3, 4))
    none = mk.em_pass(torch.zeros(0, 4), torch.tensor([0]), torch.randn(3, 4), torch.zeros(3))
    assert none.log_resp.shape == (0, 3) and none.log_likelihood.tolist() == [0.0]


def test_an_empty_group_and_nan(backend):
    arguments, options = make(50, 3, (3,), dtype=torch.float64)
    arguments["log_weights"] = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    out = mk.em_pass(**arguments, **options)
    assert torch.equal(out.log_resp[:, 2], torch.full((7,), -torch.inf, dtype=torch.float64))
    assert bool((out.grad_weight[2] == 0).all()) and bool(out.log_likelihood.isfinite().all())
    arguments["features"][7] = torch.nan
    bad = int(torch.repeat_interleave(arguments["indptr"].diff())[7])
    out = mk.em_pass(**arguments, **options)
    assert bool(out.log_resp[bad, :2].isnan().all()) and bool(out.log_likelihood.isnan().all())
    good = torch.arange(7) != bad
    assert not bool(out.log_resp[good].isnan().any())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(5)}, ValueError, r"features: expected shape \(N, D\), got \(5,\)"),
        ({"features": torch.zeros(5, 2).int()}, TypeError, "features: expected dtype .* got int32"),
        ({"features": [[1.0]]}, TypeError, "features: expected a torch.Tensor, got list"),
        ({"weight": torch.zeros(2, 3)}, ValueError, r"weight: expected shape \(H, 2\), got \(2, 3\)"),
        ({"log_weights": torch.zeros(3)}, ValueError, r"log_weights: expected shape \(2,\)"),
        ({"indptr": torch.tensor([0, 5]).int()}, TypeError, "indptr: expected dtype int64, got int32"),
        ({"chosen": torch.zeros(5).long()}, ValueError, "rejected: expected item rows beside chosen"),
        ({"comparison_weight": torch.ones(4)}, ValueError, r"comparison_weight: expected shape \(5,\)"),
        ({"label_noise": 1.0}, ValueError, r"label_noise: expected a number in \[0, 1\), got 1.0"),
        ({"temperature": 0.0}, ValueError, r"temperature: expected a number in \(0, inf\), got 0.0"),
        ({"temperature": "1"}, TypeError, "temperature: expected a number, got str"),
        ({"weight": torch.zeros(2, 2, device="meta")}, ValueError, "weight: expected device cpu, got meta"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, message):
    arguments = {
        "features": torch.zeros(5, 2), "indptr": torch.tensor([0, 5]), "weight": torch.zeros(2, 2),
        "log_weights": torch.zeros(2),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        mk.em_pass(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.tensor([[1.0, 2], [0, torch.nan]])}, r"features: .* got nan at \(1, 1\) \(row 1\)"),
        ({"indptr": torch.tensor([0, 2, 1, 2])}, "indptr: expected a non-decreasing pointer, got 2 before 1"),
        ({"indptr": torch.tensor([0, 1])}, "indptr: expected to run from 0 to 2, got 0 to 1"),
        ({"log_weights": torch.tensor([torch.nan])}, "log_weights: expected logarithms of weights, got nan of head 0"),
        ({"log_weights": torch.tensor([torch.inf])}, "log_weights: expected logarithms of weights, got inf of head 0"),
        ({"temperature": float("inf")}, r"temperature: expected a number in \(0, inf\), got inf"),
        ({"comparison_weight": torch.tensor([1.0, -1])}, "comparison_weight: expected numbers >= 0, got -1.0 at row 1"),
        (
            {"chosen": torch.tensor([0, 2]), "rejected": torch.tensor([1, 1])},
            r"chosen: expected indices in \[0, 2\), got 0 to 2",
        ),
    ],
)  # fmt: skip
def test_values_are_checked_on_demand(change, message):
    arguments = {
        "features": torch.zeros(2, 2), "indptr": torch.tensor([0, 2]), "weight": torch.zeros(1, 2),
        "log_weights": torch.zeros(1),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        mk.em_pass(**(arguments | change), validate=True)


def test_reference_takes_any_owner_layout():
    assert reference.owner_of(torch.tensor([0, 0, 2, 3]), 3).tolist() == [1, 1, 2]

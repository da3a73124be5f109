"""The CUDA EM pass on a Hopper GPU: against the reference in float64, repeated, captured, on a second stream."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import _cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="no Hopper GPU",
    ),
    pytest.mark.skipif(_cuda.load() is not None, reason=str(_cuda.load())),
]


def lengths(name):
    torch.manual_seed(0)
    if name == "zipf":
        return (3000 / torch.arange(1, 400)).long().clamp_min(1)[torch.randperm(399)]
    if name == "long":
        return torch.tensor([100_000, 1, 0, 31, 5000, 4096, 32])
    return torch.full((20_000 // int(name),), int(name))


def problem(name, n_features, mixtures, weighted=False, dtype=torch.bfloat16, sets=1):
    """``sets``: rows of a comparison at most."""
    sizes = lengths(name)
    indptr = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).cuda()
    n_choices, n_heads = int(indptr[-1]), sum(mixtures)
    rows_of = torch.randint(1, sets + 1, (n_choices,), device="cuda")
    rows, pitch = int(rows_of.sum()), (n_features + 7) // 8 * 8
    x = torch.randn(rows, pitch, device="cuda", dtype=dtype)[:, :n_features]
    weight = torch.randn(n_heads, n_features, device="cuda") / n_features**0.5
    options = {"mixture_indptr": torch.tensor([0, *mixtures]).cumsum(0).cuda()}
    if weighted:
        options["comparison_weight"] = 0.5 + torch.rand(n_choices, device="cuda")
    if sets > 1:
        options["choice_indptr"] = torch.nn.functional.pad(rows_of.cumsum(0), (1, 0))
    return (x, indptr, weight, torch.randn(n_heads, device="cuda") / 3), options


def by_cuda(arguments, options):
    with mk.backend("em_pass:cuda"):
        return mk.em_pass(*arguments, **options)


@pytest.mark.parametrize("name", ["1", "4", "20", "32", "256", "zipf", "long"])
@pytest.mark.parametrize(
    ("n_features", "mixtures"),
    [(1000, (3, 5)), (2048, (1,)), (4096, (8,)), (8192, (2, 3)), (1024, (4, 12)), (2001, (9,)), (4096, (1, 3, 12)), (8192, (8, 3, 7))],
)  # fmt: skip
def test_against_the_reference(name, n_features, mixtures):
    compare(*problem(name, n_features, mixtures, n_features == 1000))


@pytest.mark.parametrize("name", ["4", "zipf", "long"])
@pytest.mark.parametrize("mixtures", [(3, 5), (1, 3, 12), (5, 4, 12, 11), (11,) * 3, (9,) * 8])
@pytest.mark.parametrize(
    "given",
    [{"dtype": torch.float16}, {"sets": 5}, {"sets": 32, "weighted": True, "dtype": torch.float16}],
    ids=str,
)
@pytest.mark.parametrize(
    "objective", [{}, {"label_noise": 0.1}, {"temperature": 3.0}, {"hard": True}], ids=str
)
def test_types_choices_and_objectives(name, mixtures, given, objective):
    arguments, options = problem(name, 1024, mixtures, **given)
    compare(arguments, {**options, **objective})


def compare(arguments, options):
    (x, indptr, weight, logs) = arguments
    out = by_cuda(arguments, options)
    v = options.get("comparison_weight")
    exact_options = {**options, "comparison_weight": None if v is None else v.double()}
    with mk.backend("reference"):
        exact = mk.em_pass(x.double(), indptr, weight.double(), logs.double(), **exact_options)
    torch.testing.assert_close(out.log_likelihood, exact.log_likelihood, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.log_resp.exp().double(), exact.log_resp.exp(), rtol=0, atol=1e-3)
    torch.testing.assert_close(out.mass, exact.mass, rtol=1e-5, atol=1e-3)
    size = exact.grad_weight.abs().amax(1, keepdim=True).clamp_min(1e-30)
    assert float(((out.grad_weight - exact.grad_weight) / size).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["32", "zipf", "long"])
@pytest.mark.parametrize("mixtures", [(8,), (16, 7, 9, 8)])
def test_repeats_bit_for_bit(name, mixtures):
    arguments, options = problem(name, 4096, mixtures)
    first = by_cuda(arguments, options)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(first, by_cuda(arguments, options), strict=True))  # fmt: skip


def test_captured_on_a_second_stream_it_finds_the_same():
    arguments, options = problem("zipf", 4096, (3, 5), weighted=True)
    eager = by_cuda(arguments, options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = by_cuda(arguments, options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = by_cuda(arguments, options)
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for a, b, c in zip(eager, other, replayed, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_clusters_that_fit_at_once():
    x = torch.zeros(64, 4096, device="cuda", dtype=torch.bfloat16)
    for heads, at_least in ((8, 8), (16, 8), (32, 4), (80, 1)):
        for carry in (False, True):
            assert _cuda.native().em_pass_clusters(x, heads, carry) >= at_least


def test_a_failing_launch_names_the_operation_the_shape_and_the_error():
    x = torch.zeros(64, 4096, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"em_pass: .*cudaErrorInvalidValue.* 64 x 4096 and 24 heads"):  # fmt: skip
        _cuda.native().em_pass_clusters(x, 24, False)

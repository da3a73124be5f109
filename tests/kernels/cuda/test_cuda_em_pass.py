"""The CUDA EM pass on a device in software: its own kernel, tile cutter and launcher against the reference in float64."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import _cuda
from tests.kernels.cuda.emulator import COMPILER, Emulator

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

SHORT = [1, 31, 32, 5, 7, 20, 1, 1, 0, 30, 17, 16, 32, 3, 9, 8, 8, 8, 25, 2]
LONG = [1, 33, 32, 0, 64, 5, 100, 7, 31, 300, 2, 129, 17, 40]


def problem(sizes, n_features, mixtures, weighted=False):
    """Random pairs; rows of a pitch that the tensor map takes."""
    torch.manual_seed(n_features)
    indptr = torch.tensor([0, *sizes]).cumsum(0)
    pitch = (n_features + 7) // 8 * 8
    rows, n_heads = int(indptr[-1]), sum(mixtures)
    x = torch.randn(rows, pitch).to(torch.bfloat16)[:, :n_features]
    weight = 1.5 * torch.randn(n_heads, n_features) / n_features**0.5
    options = {
        "mixture_indptr": torch.tensor([0, *mixtures]).cumsum(0),
        "comparison_weight": 0.5 + torch.rand(rows) if weighted else None,
    }
    return (x, indptr, weight, torch.randn(n_heads) / 3), options


def run(monkeypatch, emulator, arguments, options):
    x, indptr, weight, log_weights = arguments
    monkeypatch.setattr(_cuda, "native", lambda: emulator)
    _cuda._cut.clear()
    return mk.EMPass(
        *_cuda.em_pass_fwd(
            x, indptr, weight, log_weights, None, None, None, options["mixture_indptr"],
            options["comparison_weight"], 0.0, False, 1.0, [],
        )
    )  # fmt: skip


def exact(arguments, options):
    x, indptr, weight, log_weights = arguments
    v = options["comparison_weight"]
    with mk.backend("reference"):
        return mk.em_pass(
            x.double(),
            indptr,
            weight.double(),
            log_weights.double(),
            mixture_indptr=options["mixture_indptr"],
            comparison_weight=None if v is None else v.double(),
        )


def assert_near(out, truth):
    torch.testing.assert_close(out.log_likelihood, truth.log_likelihood, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.log_resp.double(), truth.log_resp, rtol=0, atol=2e-5)
    torch.testing.assert_close(out.mass, truth.mass, rtol=0, atol=1e-4)
    size = truth.grad_weight.abs().amax(1, keepdim=True)
    assert ((out.grad_weight - truth.grad_weight) / size).abs().max() < 1e-5


CASES = {
    "plain": (Emulator, {"variant": 0, "carry": False}, SHORT, 500, (3, 5), False),
    "weighted, 7 heads": (Emulator, {"variant": 0, "carry": False}, SHORT, 450, (1, 4, 2), True),
    "carried, overlapped": (Emulator, {"variant": 1}, LONG, 500, (3, 5), True),
    "short ones carried": (Emulator, {"variant": 1, "carry": True}, SHORT, 512, (8,), False),
    "chunks, odd ring": (Emulator, {"variant": 2, "chunk_rows": 96}, LONG, 1000, (3, 5), True),
    "chunks, more clusters than work": (
        Emulator,
        {"variant": 3, "chunk_rows": 64, "clusters": 9},
        LONG[:6],
        450,
        (8,),
        False,
    ),  # fmt: skip
    "16 heads": (Emulator, {"variant": 4, "chunk_rows": 96}, LONG, 1000, (1, 3, 12), True),
    "9 heads, as compiled": (Emulator, {"variant": 5, "carry": False}, SHORT, 1000, (4, 5), False),
}


@pytest.mark.parametrize("name", CASES)
def test_emulated(monkeypatch, name):
    make, options, sizes, n_features, mixtures, weighted = CASES[name]
    arguments, extra = problem(sizes, n_features, mixtures, weighted)
    outs = [run(monkeypatch, make(seed=s, **options), arguments, extra) for s in (1, 2)]
    assert_near(outs[0], exact(arguments, extra))
    # The interleaving of threads and copies changes no bit.
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("variant", [6, 7])
def test_emulated_as_compiled(monkeypatch, variant):
    arguments, options = problem([1, 33, 40, 5, 7, 90, 11], 4096, (3, 5) if variant == 6 else (4, 12))  # fmt: skip
    assert_near(run(monkeypatch, Emulator(variant), arguments, options), exact(arguments, options))

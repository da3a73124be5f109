"""The CUDA EM pass on a device in software: its own kernel, tile cutter and launcher against the reference in float64."""

from __future__ import annotations

import inspect

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import _cuda, _cuda_heads
from maxmin_kernels.ops import _registry
from tests.kernels.cuda.emulator import Emulator, library, needs_sources
from tests.kernels.cuda.layouts import LONG, SHORT, assert_near, emulated, exact, problem

pytestmark = needs_sources

# (emulator, problem); the variants are those of emulated/em_pass.cpp.
CASES = {
    "plain": ({"variant": 0, "carry": False}, (SHORT, 500, (3, 5))),
    "weighted, 7 heads": ({"variant": 0, "carry": False}, (SHORT, 450, (1, 4, 2), True)),
    "carried, overlapped": ({"variant": 1}, (LONG, 500, (3, 5), True)),
    "short ones carried": ({"variant": 1, "carry": True}, (SHORT, 512, (8,))),
    "chunks, odd ring": ({"variant": 2, "chunk_rows": 96}, (LONG[:10], 1000, (3, 5), True)),
    "more clusters than work": (
        {"variant": 3, "chunk_rows": 64, "clusters": 9},
        (LONG[:6], 450, (8,)),
    ),
    "16 heads": ({"variant": 4, "chunk_rows": 96}, (LONG[4:], 1000, (1, 3, 12), True)),
    "32 heads in two blocks": (
        {"variant": 4, "chunk_rows": 96, "carry": True},
        ([1, 33, 0, 60, 7], 450, (3, 12, 1, 9, 4), True),
        {"sets": 2, "label_noise": 0.05},
    ),
    "17 heads in two blocks, float16": (
        {"variant": 9, "carry": False},
        ([1, 31, 20], 300, (9, 8), False, torch.float16),
    ),
    "33 heads in three blocks": (
        {"variant": 4, "chunk_rows": 64, "carry": True, "clusters": 3},
        ([1, 33, 0, 66, 7], 450, (11, 11, 11), True),
        {"label_noise": 0.05},
    ),
    "40 heads in three blocks, float16": (
        {"variant": 11, "chunk_rows": 64, "carry": True},
        ([1, 32, 33, 0, 70], 300, (7, 16, 0, 8, 9), True, torch.float16, 1e-6),
    ),
    "72 heads in five blocks, choices": (
        {"variant": 4, "chunk_rows": 48, "carry": True},
        ([1, 5, 0, 40, 2], 130, (3, 16, 9, 1, 13, 11, 4, 10, 5), True),
        {"sets": 4, "temperature": 2.0},
    ),
    "72 heads in eight blocks, hard": (
        {"variant": 5, "carry": False, "clusters": 5},
        (SHORT[:4], 64, (9,) * 8),
        {"hard": True},
    ),
    "9 heads, as compiled": ({"variant": 5, "carry": False}, (SHORT[:9], 1000, (4, 5))),
    "float16, carried": (
        {"variant": 8, "chunk_rows": 1000, "carry": True},
        ([1, 32, 33, 0, 2100], 450, (3, 4), True, torch.float16),
    ),
    "float16, one head, heavy comparisons": (
        {"variant": 8, "chunk_rows": 64, "carry": True},
        ([70, 1, 200], 130, (1,), True, torch.float16, 1e6),
    ),
    "float16, light comparisons": (
        {"variant": 8, "carry": True},
        ([70, 1, 40], 130, (2, 3), True, torch.float16, 1e-6),
    ),
    "choices": ({"variant": 0, "carry": False}, ([1, 0, 3, 2, 1, 4], 450, (3, 5)), {"sets": 6}),
    "choices, carried": (
        {"variant": 1, "chunk_rows": 200, "carry": True},
        ([1, 32, 2, 33, 0, 60], 200, (4, 3), True),
        {"sets": 32, "label_noise": 0.1},
    ),
    "choices, float16, 16 heads": (
        {"variant": 9, "carry": False},
        ([1, 2, 4, 1, 3], 1000, (15, 1), True, torch.float16),
        {"sets": 5, "temperature": 3.0},
    ),
    "noise": ({"variant": 0, "carry": False}, (SHORT[:9], 130, (2, 3), True), {"label_noise": 0.3}),
    "tempered, chunks": (
        {"variant": 2, "chunk_rows": 96},
        (LONG[:10], 130, (3, 5)),
        {"temperature": 2.5},
    ),
    "cold": ({"variant": 0, "carry": False}, (SHORT[:9], 130, (3, 5)), {"temperature": 0.05}),
    "hard, chunks": ({"variant": 2, "chunk_rows": 96}, (LONG[:10], 130, (3, 5)), {"hard": True}),
    "float16, 16 heads, as compiled": (
        {"variant": 9, "carry": False},
        (SHORT[:9], 1000, (9, 7), False, torch.float16),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_emulated(name):
    options, given, *objective = CASES[name]
    given = problem(*given, **dict(*objective))
    outs = [emulated(Emulator(seed=seed, **options), given) for seed in (1, 2)]
    assert_near(outs[0], exact(given), given.get("temperature", 1.0))
    # The interleaving of threads and copies changes no bit.
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


@pytest.mark.parametrize("hard", [False, True])
def test_ties_go_to_the_first_head_and_an_empty_group_to_nobody(hard):
    given = problem([3, 40, 0, 7, 50], 130, (3, 3), hard=hard)
    given["weight"][[1, 2, 4]] = given["weight"][0].clone()
    given["log_weights"][:3] = 0.25
    given["log_weights"][3] = -torch.inf  # its mixture's first head: the evidence is not lost
    out = emulated(Emulator(1, carry=True, chunk_rows=32), given)
    assert_near(out, exact(given))
    assert bool((out.log_resp[:, 3] == -torch.inf).all())
    if hard:
        assert torch.equal(out.log_resp[:, 0], torch.zeros(5))


def test_many_features_go_in_blocks_of_8(monkeypatch):
    monkeypatch.setattr(_cuda_heads, "WIDE", 128)  # 4096 on a device
    given = problem([1, 33, 0, 70, 7], 130, (5, 0, 2, 6, 3, 4), weighted=True)
    for seed in (1, 2):
        out = emulated(Emulator(1, seed=seed, chunk_rows=64, clusters=3), given)
        assert_near(out, exact(given))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "mixtures", "dtype"),
    [(6, (3, 5), torch.bfloat16), (7, (4, 12), torch.bfloat16), (10, (7, 1), torch.float16)],
)
def test_emulated_as_compiled(variant, mixtures, dtype):
    given = problem([1, 33, 40, 5, 7, 90, 11], 4096, mixtures, dtype=dtype)
    assert_near(emulated(Emulator(variant), given), exact(given))


@pytest.mark.parametrize("heads", [8, 16])
@pytest.mark.parametrize("warps", [8, 16])
def test_shared_memory_has_no_bank_conflicts(heads, warps):
    assert library().bank_conflicts(heads, warps) == 0


def test_the_emulator_has_the_signatures_of_the_compiled_operations():
    if (why_not := _cuda.load()) is not None:
        pytest.skip(why_not)
    for name in ("em_pass_wants_carry", "em_pass_clusters", "em_pass_tiles", "em_pass_cuda"):
        schema = getattr(_cuda.native(), name).default._schema
        names = [argument.name for argument in schema.arguments if argument.name != "steps"]
        assert names == list(inspect.signature(getattr(Emulator(0), name)).parameters)


@pytest.mark.parametrize(("variant", "mixtures"), [(1, (2, 3)), (4, (9, 15, 16))])
def test_through_the_public_face(monkeypatch, variant, mixtures):
    """Forced, differentiated, the pointer's tiles cut once."""
    emulator, calls = Emulator(variant, carry=True), []
    cut = emulator.em_pass_tiles
    monkeypatch.setattr(emulator, "em_pass_tiles", lambda *a: calls.append(1) or cut(*a))
    monkeypatch.setattr(_cuda, "native", lambda: emulator)
    # As on a Hopper GPU.
    opted = _registry._Implementation(_cuda.em_pass_fwd, lambda *args: None, opt_in=True)
    monkeypatch.setitem(_registry._implementations["em_pass_fwd"], "cuda", opted)
    given = problem([3, 40, 0, 7, 50], 130, mixtures)
    given["weight"].requires_grad_()
    with mk.backend("em_pass:cuda"):
        outs = [mk.em_pass(**given, plan=mk.em_plan(given["indptr"])) for _ in range(2)]
        later = {**given, "weight": given["weight"].detach() / 2, "temperature": 2.0}
        mk.em_pass(**later, plan=mk.em_plan(given["indptr"]))  # a later round of the same fit
    assert len(calls) == 1
    (gradient,) = torch.autograd.grad(outs[0].log_likelihood.sum(), given["weight"])
    assert torch.equal(gradient, outs[0].grad_weight.detach())
    assert_near(mk.EMPass(*[out.detach() for out in outs[1]]), exact(given))

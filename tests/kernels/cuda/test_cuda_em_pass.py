"""The CUDA EM pass on a device in software: its own kernel, tile cutter and launcher against the reference in float64."""

from __future__ import annotations

import ctypes
import inspect
import itertools

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "mixtures", "dtype"),
    [(6, (3, 5), torch.bfloat16), (7, (4, 12), torch.bfloat16), (10, (7, 1), torch.float16)],
)
def test_emulated_as_compiled(variant, mixtures, dtype):
    given = problem([1, 33, 40, 5, 7, 90, 11], 4096, mixtures, dtype=dtype)
    assert_near(emulated(Emulator(variant), given), exact(given))


@pytest.mark.parametrize(
    ("sizes", "n_blocks"),
    [
        ([8, 6, 5, 5, 4, 4], 2),
        ([16, 16], 2),
        ([3] * 10, 2),
        ([0, 16, 1], 2),
        ([11, 11, 10], 3),
        ([7, 16, 0, 8, 9], 3),
        ([3, 16, 9, 1, 13, 11, 4, 10, 5], 5),
        ([9] * 8, 8),
        ([1] * 200, 13),
        ([17], None),
        ([1, 33, 2], None),
        ([20, -3], None),
    ],
)
def test_mixtures_go_whole_into_blocks(sizes, n_blocks):
    pointer = torch.tensor([0, *sizes]).cumsum(0)
    places = _cuda_heads.places_in_blocks(pointer)
    if n_blocks is None:
        assert places is None
        return
    head = places.head.tolist()
    assert places.padded == 16 * n_blocks == places.end.shape[0]
    assert len(set(head)) == len(head) == sum(sizes) and max(head) < places.padded
    for mixture, (a, b) in enumerate(itertools.pairwise(pointer.tolist())):
        own = head[a:b]
        assert own == list(range(own[0], own[0] + b - a)) if own else True
        assert len({place // 16 for place in own}) <= 1
        assert all(places.begin[p] == own[0] and places.end[p] == own[-1] + 1 for p in own)
        assert not own or int(places.first[mixture]) == own[0]
    for p in set(range(places.padded)) - set(head):  # what fills up is nobody's
        inside = range(int(places.begin[p]), int(places.end[p]))
        assert p in inside and not set(inside) & set(head) and len({k // 16 for k in inside}) == 1


def test_of_many_blocks_few_clusters_are_idle():
    shares = library().shares
    for clusters, blocks in itertools.product(range(1, 67), range(1, 41)):
        found = shares(clusters, blocks)
        rounds = -(-found * blocks // clusters)
        assert found >= 1 and 8 * found * blocks >= 7 * clusters * rounds
        # No fewer rounds would do, and no more fits into these.
        assert (found + 1) * blocks > clusters * rounds
        for fewer in range(1, rounds):
            assert 8 * (clusters * fewer // blocks) * blocks < 7 * clusters * fewer
    assert [shares(16, blocks) for blocks in (1, 2, 3, 5, 6, 9, 17)] == [16, 8, 5, 3, 5, 5, 5]
    assert shares(0, 3) == 1  # a device that fits none says so when it is asked to


def test_variants_take_8_heads_or_whole_blocks_of_16():
    served = library().heads_served
    assert [n for n in range(1, 100) if served(ctypes.c_int64(n))] == [8, 16, 32, 48, 64, 80, 96]


def test_parts_hold_a_weight():
    """bfloat16: exactly; float16: 2^-23 of it, and where that is finer 2^-39 of its head's largest."""
    torch.manual_seed(0)
    weight = torch.randn(4, 500) * (40 * torch.rand(4, 500) - 20).exp2()
    weight *= torch.tensor([1e-30, 1e-4, 1.0, 1e25])[:, None]
    scaled, scales = _cuda_heads.scaled_for_float16(weight, torch.tensor([3.0, 70000.0]))
    assert torch.equal(scaled * scales[:4, None], weight)  # powers of two
    largest = scaled.abs().amax(1)
    assert float(largest.min()) >= 2**14 and float(largest.max()) < 2**15
    assert float(scales[4]) * 70000 >= 2**14 and float(scales[4]) * 70000 < 2**15

    def parts(values, half):
        held = [sum_of_parts(half, ctypes.c_float(x)) for x in values.flatten().tolist()]
        return torch.tensor(held, dtype=torch.float64).view_as(values)

    sum_of_parts = library().sum_of_parts
    sum_of_parts.restype = ctypes.c_double
    assert torch.equal(parts(scaled, False), scaled.double())
    error = (parts(scaled, True) - scaled.double()).abs() / largest[:, None]
    assert bool((error <= 2**-23 * scaled.abs() / largest[:, None] + 2**-39).all())
    assert float(error.max()) > 2**-25  # one part less than bfloat16's three


@pytest.mark.parametrize("heads", [8, 16])
@pytest.mark.parametrize("warps", [8, 16])
def test_shared_memory_has_no_bank_conflicts(heads, warps):
    assert library().bank_conflicts(heads, warps) == 0


def cut(sizes, carry, clusters, chunk_rows=4096, lengths=None):
    """{name: column} of the tiles, and the other three."""
    sizes = torch.tensor(sizes)
    tiles, *rest = Emulator(0).em_pass_tiles(sizes, lengths, carry, clusters, chunk_rows)
    whole = tiles[:, :32].contiguous()
    names = ("begins", "flags", "chunk")
    columns = dict(zip(names, whole[:, 20:].contiguous().view(torch.int32).T, strict=True))
    columns["row0"] = whole[:, :16].contiguous().view(torch.int64)[:, 0]
    columns["rows"] = whole[:, 16:18].contiguous().view(torch.int16)[:, 0].long()
    return columns, *rest


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("clusters", [1, 3, 40])
def test_tiles_cover_every_row_once(carry, clusters):
    torch.manual_seed(clusters)
    sizes = torch.randint(1, 33, (200,)).tolist()
    if carry:
        sizes[7], sizes[100] = 5000, 333
    tiles, begin, split_begin, split_annotator = cut(sizes, carry, clusters, 1024)
    assert torch.equal(tiles["row0"][1:], tiles["row0"][:-1] + tiles["rows"][:-1])
    assert int(tiles["row0"][0]) == 0 and int(tiles["rows"].sum()) == sum(sizes)
    assert int(begin[0]) == 0 and int(begin[-1]) == len(tiles["rows"])
    # No cluster begins within an annotator's chunk.
    inner = begin[:-1][begin[:-1] < len(tiles["rows"])].long()
    assert not (tiles["flags"][inner] & 1).any()
    assert split_annotator.tolist() == ([7] if carry else [])
    assert split_begin.tolist() == ([0, 5] if carry else [0])
    assert tiles["chunk"][tiles["chunk"] >= 0].tolist() == ([0, 1, 2, 3, 4] if carry else [])
    # Clusters get equal shares but for what is left of an annotator or chunk.
    rows = torch.stack([tiles["rows"][a:b].sum() for a, b in itertools.pairwise(begin)])
    assert int(rows.max()) <= sum(sizes) / clusters + (1024 if carry else 32)


@pytest.mark.parametrize("clusters", [1, 3])
@pytest.mark.parametrize("longest", [2, 17, 32])
def test_tiles_and_chunks_cut_no_comparison(longest, clusters):
    torch.manual_seed(longest)
    lengths = torch.randint(1, longest + 1, (600,))
    begin = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    sizes = begin[torch.tensor([0, 1, 2, 40, 500, 600])].diff().tolist()
    tiles, _, split_begin, split_annotator = cut(sizes, True, clusters, 100, lengths)
    inner = set(begin.tolist())
    assert int(tiles["rows"].sum()) == sum(sizes) and int(tiles["rows"].max()) <= 32
    for row0, rows, bits in zip(*(tiles[name].tolist() for name in ("row0", "rows", "begins")), strict=True):  # fmt: skip
        assert row0 in inner and row0 + rows in inner
        marked = {row0 + r for r in range(rows) if bits >> r & 1}
        assert marked == {b for b in inner if row0 <= b < row0 + rows}
        assert all(bits >> r & 1 for r in range(rows, 32))
    # Chunks, of at most a hundred rows, hold all rows of annotators that have more.
    assert split_annotator.tolist() == [a for a, size in enumerate(sizes) if size > 100]
    chunk_end = (tiles["row0"] + tiles["rows"])[tiles["chunk"] >= 0]
    assert chunk_end.shape[0] == int(split_begin[-1])
    for first, last, annotator in zip(split_begin, split_begin[1:], split_annotator, strict=False):
        start = sum(sizes[: int(annotator)])
        ends = torch.cat([torch.tensor([start]), chunk_end[first:last]])
        assert int(ends[-1]) == start + sizes[int(annotator)] and int(ends.diff().max()) <= 100


@pytest.mark.parametrize(
    ("sizes", "carry"),
    [([32] * 9, False), ([4] * 100, False), ([20] * 50, True), ([33], True), ([5], False)],
)
def test_annotators_cross_tiles_where_tiles_would_stay_empty(sizes, carry):
    assert Emulator(0).em_pass_wants_carry(torch.tensor(sizes)) == carry


def test_tiles_are_cut_once_a_pointer(monkeypatch):
    emulator, calls = Emulator(0, carry=False), []
    monkeypatch.setattr(_cuda, "native", lambda: calls.append(1) or emulator)
    x, indptr = torch.ones(10, 64, dtype=torch.bfloat16), torch.tensor([0, 4, 10])
    first = _cuda._tiles_of(x, indptr, 8)
    assert _cuda._tiles_of(x, indptr, 8) is first and len(calls) == 1
    indptr[1] = 5
    assert _cuda._tiles_of(x, indptr, 8) is not first and len(calls) == 2


def test_tiles_of_choices_are_cut_once_a_pair_of_pointers(monkeypatch):
    emulator, calls = Emulator(0, carry=False), []
    monkeypatch.setattr(_cuda, "native", lambda: calls.append(1) or emulator)
    x, indptr = torch.ones(10, 64, dtype=torch.bfloat16), torch.tensor([0, 1, 3])
    choices, others = torch.tensor([0, 4, 6, 10]), torch.tensor([0, 1, 2, 10])
    first = _cuda._tiles_of(x, indptr, 8, choices)
    assert _cuda._tiles_of(x, indptr, 8, choices) is first and len(calls) == 1
    assert _cuda._tiles_of(x, indptr, 8, others) is not first and len(calls) == 2
    assert _cuda._tiles_of(x, indptr, 8, choices) is first
    choices[1] = 5
    assert _cuda._tiles_of(x, indptr, 8, choices) is not first
    assert _cuda._tiles_of(x, indptr.clone(), 8, choices) is not first


def test_the_emulator_has_the_signatures_of_the_compiled_operations():
    if (why_not := _cuda.load()) is not None:
        pytest.skip(why_not)
    for name in ("em_pass_wants_carry", "em_pass_clusters", "em_pass_tiles", "em_pass_cuda"):
        schema = getattr(_cuda.native(), name).default._schema
        names = [argument.name for argument in schema.arguments if argument.name != "steps"]
        assert names == list(inspect.signature(getattr(Emulator(0), name)).parameters)


def test_the_compiled_cutter_cuts_as_the_emulated_one():
    if (why_not := _cuda.load()) is not None:
        pytest.skip(why_not)
    sizes, lengths = torch.tensor([3, 40, 7, 130]), torch.tensor([3, *[10] * 4, 7, *[26] * 5])
    assert _cuda.native().em_pass_wants_carry(sizes)
    for given in (None, lengths):
        ours = _cuda.native().em_pass_tiles(sizes, given, True, 3, 64)
        theirs = Emulator(0).em_pass_tiles(sizes, given, True, 3, 64)
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other.flatten())


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

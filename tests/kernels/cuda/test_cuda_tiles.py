"""The tiles that the CUDA EM pass works on: every row once, no comparison cut, cut once a pointer."""

from __future__ import annotations

import itertools

import pytest
import torch

from maxmin_kernels import _cuda
from tests.kernels.cuda.emulator import Emulator, needs_sources

pytestmark = needs_sources


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

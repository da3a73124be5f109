"""Heads as the CUDA EM pass takes them: mixtures whole in blocks, weights in parts, few clusters idle."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from maxmin_kernels import _cuda_heads
from tests.kernels.cuda.emulator import library, needs_sources

pytestmark = needs_sources


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
    check_blocks(sizes, n_blocks, 16)


@pytest.mark.parametrize(
    ("sizes", "n_blocks"), [([8, 1], 2), ([3] * 10, 5), ([5, 0, 2, 6, 3], 2), ([9], None)]
)
def test_with_many_features_into_blocks_of_8(sizes, n_blocks):
    check_blocks(sizes, n_blocks, 8)


def check_blocks(sizes, n_blocks, block):
    pointer = torch.tensor([0, *sizes]).cumsum(0)
    places = _cuda_heads.places_in_blocks(pointer, block)
    assert _cuda_heads.places_in_blocks(pointer, block) is places  # dealt once
    if n_blocks is None:
        assert places is None
        return
    head = places.head.tolist()
    assert places.padded == block * n_blocks == places.end.shape[0]
    assert len(set(head)) == len(head) == sum(sizes) and max(head) < places.padded
    for mixture, (a, b) in enumerate(itertools.pairwise(pointer.tolist())):
        own = head[a:b]
        assert own == list(range(own[0], own[0] + b - a)) if own else True
        assert len({place // block for place in own}) <= 1
        assert all(places.begin[p] == own[0] and places.end[p] == own[-1] + 1 for p in own)
        assert not own or int(places.first[mixture]) == own[0]
    for p in set(range(places.padded)) - set(head):  # what fills up is nobody's
        inside = range(int(places.begin[p]), int(places.end[p]))
        assert (
            p in inside and not set(inside) & set(head) and len({k // block for k in inside}) == 1
        )


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


def test_variants_take_8_heads_or_whole_blocks():
    def served(n_features):
        blocks = {n: library().block_served(ctypes.c_int64(n), ctypes.c_int64(n_features)) for n in range(1, 100)}  # fmt: skip
        return {n: block for n, block in blocks.items() if block}

    assert _cuda_heads.WIDE == 4096 and _cuda_heads.MOST_FEATURES == 8192
    for n_features in (64, 4096, 4097, 8192):
        block = _cuda_heads.block_of(n_features)
        assert served(n_features) == {8: 8, **dict.fromkeys(range(block, 100, block), block)}
    assert served(8193) == {}


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

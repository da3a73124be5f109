"""Gradient by a table of scores: every item gathers what its rows pull, in the order of the rows.

    dR_j = sum over rows i with chosen_i = j of c_i  -  sum over rows with rejected_i = j

``item_rows`` lists those places item by item (``i`` chosen, ``N + i`` rejected), ``item_indptr`` where each item's begin. A
popular item's list is cut into splits, added in a fixed order: nobody else writes to its row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Places at a time, heads of a program, programs that share an item."""

    block_j: int
    block_h: int
    splits: int


def _config_items(n_rows: int, n_items: int, n_heads: int) -> Config:
    block_h = min(128, triton.next_power_of_2(max(1, n_heads)))
    # Where items are few, their lists are long: some hundred places for each program.
    splits = max(1, min(64, 2 * n_rows // max(1, 512 * n_items)))
    return Config(max(4, 1024 // block_h), block_h, splits)


@triton.jit
def _items_kernel(
    c_ptr,
    item_ptr,
    place_ptr,
    part_ptr,
    M,
    N,
    H,
    SPLITS: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    h = tl.program_id(2).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    first = tl.load(item_ptr + item)
    size = tl.load(item_ptr + item + 1) - first
    begin, end = first + size * split // SPLITS, first + size * (split + 1) // SPLITS
    total = tl.zeros((BLOCK_J, BLOCK_H), part_ptr.dtype.element_ty)
    for j0 in tl.range(begin, end, BLOCK_J):
        j = j0 + tl.arange(0, BLOCK_J)[:, None]
        place = tl.load(place_ptr + j, mask=j < end, other=0).to(tl.int64)
        row = tl.where(place < N, place, place - N)
        c = tl.load(c_ptr + row * H + h, mask=(j < end) & (h < H), other=0.0)
        total += tl.where(place < N, c, -c)
    out = part_ptr + (split * M + item) * H + h
    tl.store(out, tl.sum(total, 0)[None, :], mask=h < H)


def by_item(pull: Tensor, item_indptr: Tensor, item_rows: Tensor) -> Tensor:
    """``(M, H)`` of ``pull (N, H)``."""
    (n_rows, n_heads), n_items = pull.shape, item_indptr.shape[0] - 1
    if n_items == 0 or n_heads == 0:
        return pull.new_zeros(n_items, n_heads)
    config = _config_items(n_rows, n_items, n_heads)
    parts = pull.new_empty(config.splits, n_items, n_heads)
    with torch.cuda.device_of(pull):
        _items_kernel[(n_items, config.splits, triton.cdiv(n_heads, config.block_h))](
            pull,
            item_indptr,
            item_rows,
            parts,
            n_items,
            n_rows,
            n_heads,
            SPLITS=config.splits,
            BLOCK_J=config.block_j,
            BLOCK_H=config.block_h,
        )
    return parts.sum(0)

"""Newton's curvature on a device: the library's matrix product is as fast as there is, and repeats bit for bit.

Pairs go block by block, so that rows of differences of items are never there all at once; the mean of a choice set is
a segment sum in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maxmin_kernels import reference
from maxmin_kernels._checks import accumulation_dtype

# Numbers of a block of weighted rows, heads side by side: 256 MB of float32.
BLOCK = 1 << 26


def weighted_gram_fwd(
    features: Tensor,
    resp: Tensor,
    share: Tensor,
    indptr: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    comparison_weight: Tensor | None,
) -> Tensor:
    """``(H, D, D)``."""
    acc = accumulation_dtype(features)
    n_features, (n_rows, n_heads) = features.shape[1], share.shape
    n_choices = n_rows if choice_indptr is None else choice_indptr.shape[0] - 1
    scale = resp.to(acc)[reference.owner_of(indptr, n_choices)]
    if comparison_weight is not None:
        scale = scale * comparison_weight[:, None].to(acc)
    gram = features.new_zeros(n_heads, n_features, n_features, dtype=acc)
    if choice_indptr is None:
        s = share.to(acc)
        weight = scale * s * (1 - s)
        step = max(1, BLOCK // max(1, n_heads * n_features))
        for begin in range(0, n_rows, step):
            rows = slice(begin, begin + step)
            _add(gram, _rows(features, chosen, rejected, rows, acc), weight[rows])
        return gram
    x = _rows(features, chosen, rejected, slice(None), acc)
    owner = reference.owner_of(choice_indptr, n_rows)
    for h in range(n_heads):
        # About the mean, which leaves a sum of squares: no difference may turn the curvature negative.
        s, one, by = share[:, h, None].to(acc), gram[h : h + 1], scale[:, h, None]
        mean, total = _by_choice(x * s, choice_indptr), _by_choice(s, choice_indptr)
        _add(one, x - mean[owner], by[owner] * s)
        _add(one, mean, by * (1 - total))
    return gram


def _by_choice(rows: Tensor, choice_indptr: Tensor) -> Tensor:
    return torch.segment_reduce(rows, "sum", offsets=choice_indptr, axis=0, unsafe=True)


def _rows(
    features: Tensor, chosen: Tensor | None, rejected: Tensor | None, rows: slice, acc: torch.dtype
) -> Tensor:
    if chosen is None or rejected is None:
        return features[rows].to(acc)
    return features[chosen[rows]].to(acc) - features[rejected[rows]].to(acc)


def _add(gram: Tensor, x: Tensor, weight: Tensor) -> None:
    """``gram (H, D, D) += Σ_i weight_ih x_i x_iᵀ``: one product for all heads."""
    stacked = (weight.T[..., None] * x).transpose(0, 1).flatten(1)  # (n, H D)
    gram.view(-1, x.shape[1]).addmm_(stacked.T, x)

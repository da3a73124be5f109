"""maxmin::weighted_gram_fwd: Newton's curvature, Hess of docs/math.md without its ridge."""

from __future__ import annotations

import torch
from torch import Tensor

from maxmin_kernels import _native, _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import define, implement

# Numbers that the matrices in the basis of the items may hold: beyond, they would not stay in a cache.
_MOST_ENTRIES = 2**25


def _fake(
    features: Tensor,
    resp: Tensor,
    share: Tensor,
    indptr: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    comparison_weight: Tensor | None,
) -> Tensor:
    n_heads, n_features = share.shape[1], features.shape[1]
    return features.new_empty(n_heads, n_features, n_features, dtype=accumulation_dtype(features))


def _cheaper_by_items(n_items: int, n_features: int, n_rows: int, n_heads: int) -> bool:
    """Is an (M, M) matrix for each head, then two products with the features, less work than a row at a time?

    A row adds to one entry of the former, or to D (D + 1) / 2 of the latter, and costs about four more in either.
    """
    if n_items * n_items * n_heads > _MOST_ENTRIES:
        return False
    by_items = 4 * n_rows + n_items * n_features * (n_items + n_features)
    return by_items < n_rows * (4 + n_features * (n_features + 1) // 2)


def _has_one_chosen(chosen: Tensor, choice_indptr: Tensor) -> bool:
    """Has each comparison one chosen item, and few enough rows that their pairs are no more work than the rows?"""
    lengths = choice_indptr.diff()
    if int((lengths * lengths).sum()) > 16 * chosen.shape[0]:
        return False
    first = (
        chosen[choice_indptr[:-1].clamp(max=max(0, chosen.shape[0] - 1))]
        if chosen.numel()
        else chosen
    )
    return chosen.numel() == 0 or torch.equal(
        chosen, torch.repeat_interleave(first, lengths, output_size=chosen.shape[0])
    )


def _cpu(
    features: Tensor,
    resp: Tensor,
    share: Tensor,
    indptr: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    comparison_weight: Tensor | None,
) -> Tensor:
    native = torch.ops.maxmin_native
    if (
        chosen is not None
        and _cheaper_by_items(*features.shape, *share.shape)
        and (choice_indptr is None or _has_one_chosen(chosen, choice_indptr))
    ):
        x = features.to(accumulation_dtype(features))
        by_items = native.weighted_laplacian_cpu(
            x.shape[0],
            resp.to(x),
            share.to(x),
            indptr,
            chosen,
            rejected,
            choice_indptr,
            comparison_weight,
        )
        return torch.matmul(x.T, by_items @ x)
    return native.weighted_gram_cpu(
        features, resp, share, indptr, chosen, rejected, choice_indptr, comparison_weight
    )


define(
    "weighted_gram_fwd(Tensor features, Tensor resp, Tensor share, Tensor indptr, Tensor? chosen, "
    "Tensor? rejected, Tensor? choice_indptr, Tensor? comparison_weight) -> Tensor",
    fake=_fake,
)
implement("weighted_gram_fwd", "reference", reference.weighted_gram)
implement("weighted_gram_fwd", "cpu", _cpu, supports=lambda *args: _native.refusal(args[0]))
implement(
    "weighted_gram_fwd",
    "triton",
    _triton.kernels("gram", "weighted_gram_fwd"),
    supports=lambda *args: _triton.refusal(args[0]),
)

"""maxmin::choice_shares_fwd, _bwd: log-probability of each choice and its rows' shares, (3), (3'), (3b)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxmin_kernels import _native, _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import call, define, differentiate, implement


def _fwd_fake(
    margins: Tensor, choice_indptr: Tensor | None, label_noise: float
) -> tuple[Tensor, Tensor]:
    n_rows, n_heads = margins.shape
    n_choices = n_rows if choice_indptr is None else choice_indptr.shape[0] - 1
    acc = accumulation_dtype(margins)
    return (
        margins.new_empty(n_choices, n_heads, dtype=acc),
        margins.new_empty(n_rows, n_heads, dtype=acc),
    )


def _bwd_fake(grad_log_prob: Tensor, share: Tensor, choice_indptr: Tensor | None) -> Tensor:
    return share.new_empty(share.shape)


def _bwd_reference(grad_log_prob: Tensor, share: Tensor, choice_indptr: Tensor | None) -> Tensor:
    return reference.choice_shares_bwd(grad_log_prob, share, choice_indptr).contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    margins, choice_indptr, _ = inputs
    share = output[1]
    ctx.save_for_backward(share, choice_indptr)
    ctx.dtype = margins.dtype
    ctx.mark_non_differentiable(share)


def _backward(ctx: Any, grad_log_prob: Tensor, _: Any) -> tuple[Any, ...]:
    return call("choice_shares_bwd", grad_log_prob, *ctx.saved_tensors).to(ctx.dtype), None, None


define(
    "choice_shares_fwd(Tensor margins, Tensor? choice_indptr, float label_noise) -> (Tensor, Tensor)",
    fake=_fwd_fake,
)
define(
    "choice_shares_bwd(Tensor grad_log_prob, Tensor share, Tensor? choice_indptr) -> Tensor",
    fake=_bwd_fake,
)
implement("choice_shares_fwd", "reference", reference.choice_shares)
implement("choice_shares_bwd", "reference", _bwd_reference)
implement(
    "choice_shares_fwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.choice_shares_fwd_cpu(*args),
    supports=lambda *args: _native.refusal(args[0]),
)
implement(
    "choice_shares_bwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.choice_shares_bwd_cpu(*args),
    supports=lambda *args: _native.refusal(args[0]),
)
implement(
    "choice_shares_fwd",
    "triton",
    _triton.kernels("choices", "choice_shares_fwd"),
    supports=lambda *args: _triton.refusal(args[0]),
)
# One product, gathered: nothing to fuse.
implement(
    "choice_shares_bwd",
    "triton",
    _bwd_reference,
    supports=lambda *args: _triton.refusal(args[0]),
)
differentiate("choice_shares_fwd", _backward, _setup_context)

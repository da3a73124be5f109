"""maxmin::mixture_log_likelihood_fwd, _bwd: log-evidence of annotators under mixtures of heads, (3)-(6) and (10)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxmin_kernels import _native, _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import call, define, differentiate, implement


def _fwd_fake(
    margins: Tensor,
    indptr: Tensor,
    log_weights: Tensor,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
    hard: bool,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    n_annotators, n_heads = indptr.shape[0] - 1, margins.shape[1]
    n_mixtures = 1 if mixture_indptr is None else mixture_indptr.shape[0] - 1
    acc = accumulation_dtype(margins)
    return (
        margins.new_empty(n_annotators, n_mixtures, dtype=acc),
        margins.new_empty(n_annotators, n_heads, dtype=acc),
    )


def _fwd_reference(margins: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    z, log_resp = reference.mixture_log_likelihood(margins, *args)
    acc = accumulation_dtype(margins)
    return z.to(acc), log_resp.to(acc)


def _bwd_fake(
    grad_z: Tensor,
    margins: Tensor,
    indptr: Tensor,
    log_resp: Tensor,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
) -> tuple[Tensor, Tensor]:
    return (
        margins.new_empty(margins.shape),
        margins.new_empty(margins.shape[1], dtype=accumulation_dtype(margins)),
    )


def _bwd_reference(grad_z: Tensor, margins: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    by_margins, by_log_weights = reference.mixture_log_likelihood_bwd(grad_z, margins, *args)
    acc = accumulation_dtype(margins)
    return by_margins.to(margins.dtype).contiguous(), by_log_weights.to(acc)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    margins, indptr, log_weights, choice_indptr, mixture_indptr, weight, label_noise, _, _ = inputs
    log_resp = output[1]
    ctx.save_for_backward(margins, indptr, log_resp, choice_indptr, mixture_indptr, weight)
    ctx.label_noise = label_noise
    ctx.log_weights_dtype = log_weights.dtype
    ctx.mark_non_differentiable(log_resp)


def _backward(ctx: Any, grad_z: Tensor, _: Any) -> tuple[Any, ...]:
    by_margins, by_log_weights = call(
        "mixture_log_likelihood_bwd", grad_z, *ctx.saved_tensors, ctx.label_noise
    )
    return (by_margins, None, by_log_weights.to(ctx.log_weights_dtype), *[None] * 6)


define(
    "mixture_log_likelihood_fwd(Tensor margins, Tensor indptr, Tensor log_weights, Tensor? choice_indptr, "
    "Tensor? mixture_indptr, Tensor? comparison_weight, float label_noise, bool hard, float temperature) "
    "-> (Tensor, Tensor)",
    fake=_fwd_fake,
)
define(
    "mixture_log_likelihood_bwd(Tensor grad_z, Tensor margins, Tensor indptr, Tensor log_resp, "
    "Tensor? choice_indptr, Tensor? mixture_indptr, Tensor? comparison_weight, float label_noise) "
    "-> (Tensor, Tensor)",
    fake=_bwd_fake,
)
implement("mixture_log_likelihood_fwd", "reference", _fwd_reference)
implement("mixture_log_likelihood_bwd", "reference", _bwd_reference)
implement(
    "mixture_log_likelihood_fwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.mixture_log_likelihood_fwd_cpu(*args),
    supports=lambda *args: _native.refusal(args[0]),
)
implement(
    "mixture_log_likelihood_bwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.mixture_log_likelihood_bwd_cpu(*args),
    supports=lambda *args: _native.refusal(args[1]),
)
implement(
    "mixture_log_likelihood_fwd",
    "triton",
    _triton.kernels("mixture", "mixture_log_likelihood_fwd"),
    supports=lambda *args: _triton.heads_refusal(args[0].shape[1]) or _triton.refusal(args[0]),
)
implement(
    "mixture_log_likelihood_bwd",
    "triton",
    _triton.kernels("mixture", "mixture_log_likelihood_bwd"),
    supports=lambda *args: _triton.refusal(args[1]),
)
differentiate("mixture_log_likelihood_fwd", _backward, _setup_context)

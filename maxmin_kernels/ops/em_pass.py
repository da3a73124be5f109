"""maxmin::em_pass_fwd: one EM pass, (2)-(6), (8) and the masses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxmin_kernels import _cuda, _native, _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import define, differentiate, implement


def _fake(
    features: Tensor,
    indptr: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
    hard: bool,
    temperature: float,
    plan: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_heads, n_features = weight.shape
    n_mixtures = 1 if mixture_indptr is None else mixture_indptr.shape[0] - 1
    acc = accumulation_dtype(features)
    return (
        features.new_empty(n_mixtures, dtype=torch.float64),
        features.new_empty(indptr.shape[0] - 1, n_heads, dtype=acc),
        features.new_empty(n_heads, dtype=torch.float64),
        features.new_empty(n_heads, n_features, dtype=acc),
    )


def _reference(*args: Any) -> tuple[Tensor, ...]:
    return tuple(reference.em_pass(*args[:-1]))


def _cpu(
    features: Tensor,
    indptr: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
    hard: bool,
    temperature: float,
    plan: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    native = torch.ops.maxmin_native
    options = (choice_indptr, mixture_indptr, comparison_weight, label_noise, hard, temperature)
    if chosen is None:
        return native.em_pass_rows_cpu(features, indptr, weight, log_weights, *options)
    items = features.to(weight.dtype)
    log_likelihood, log_resp, mass, grad_scores = native.em_pass_indexed_cpu(
        items @ weight.T, indptr, chosen, rejected, log_weights, *options
    )
    return log_likelihood, log_resp, mass, grad_scores.T @ items


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, log_resp, mass, grad_weight = output
    ctx.save_for_backward(mass, grad_weight, inputs[7])
    ctx.n_plan = len(inputs[-1])
    ctx.mark_non_differentiable(log_resp, mass, grad_weight)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    mass, grad_weight, mixture_indptr = ctx.saved_tensors
    if mixture_indptr is None:
        upstream = grad.expand(mass.shape[0])
    else:
        upstream = grad[reference.owner_of(mixture_indptr, mass.shape[0])]
    by_weight = (upstream[:, None] * grad_weight).to(grad_weight.dtype)
    by_log_weights = (upstream * mass).to(grad_weight.dtype)
    return (None, None, by_weight, by_log_weights, *[None] * 8, [None] * ctx.n_plan)


define(
    "em_pass_fwd(Tensor features, Tensor indptr, Tensor weight, Tensor log_weights, Tensor? chosen, "
    "Tensor? rejected, Tensor? choice_indptr, Tensor? mixture_indptr, Tensor? comparison_weight, "
    "float label_noise, bool hard, float temperature, Tensor[] plan) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
)
implement("em_pass_fwd", "reference", _reference)
implement("em_pass_fwd", "cpu", _cpu, supports=lambda *args: _native.refusal(args[0]))
implement(
    "em_pass_fwd",
    "triton",
    _triton.kernels("em_pass", "em_pass_fwd"),
    supports=lambda *args: _triton.heads_refusal(args[2].shape[0]) or _triton.refusal(args[0]),
)
# It has not run on a GPU: whoever wants it asks for it.
implement("em_pass_fwd", "cuda", _cuda.em_pass_fwd, supports=_cuda.em_pass_refusal, opt_in=True)
differentiate("em_pass_fwd", _backward, _setup_context)

"""maxmin::preference_margins_fwd, _bwd: (1), (2) from one read of the chosen and the rejected features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxmin_kernels import _native, _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import call, define, differentiate, implement


def _fwd_fake(chosen: Tensor, rejected: Tensor, weight: Tensor) -> Tensor:
    return chosen.new_empty(chosen.shape[0], weight.shape[0], dtype=accumulation_dtype(chosen))


def _bwd_fake(
    grad: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    weight: Tensor,
    need_features: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = chosen.shape if need_features else (0,)
    return (
        chosen.new_empty(shape),
        rejected.new_empty(shape),
        weight.new_empty(weight.shape if need_weight else 0),
    )


def _bwd_reference(
    grad: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    weight: Tensor,
    need_features: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    by_chosen, by_rejected, by_weight = reference.preference_margins_bwd(
        grad, chosen, rejected, weight
    )
    nothing = chosen.new_empty(0)
    return (
        by_chosen if need_features else nothing,
        by_rejected if need_features else nothing.clone(),
        by_weight if need_weight else weight.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    need_chosen, need_rejected, need_weight = ctx.needs_input_grad
    by_chosen, by_rejected, by_weight = call(
        "preference_margins_bwd",
        grad,
        *ctx.saved_tensors,
        need_chosen or need_rejected,
        need_weight,
    )
    return (
        by_chosen if need_chosen else None,
        by_rejected if need_rejected else None,
        by_weight if need_weight else None,
    )


define(
    "preference_margins_fwd(Tensor chosen, Tensor rejected, Tensor weight) -> Tensor",
    fake=_fwd_fake,
)
define(
    "preference_margins_bwd(Tensor grad, Tensor chosen, Tensor rejected, Tensor weight, "
    "bool need_features, bool need_weight) -> (Tensor, Tensor, Tensor)",
    fake=_bwd_fake,
)
implement("preference_margins_fwd", "reference", reference.preference_margins)
implement("preference_margins_bwd", "reference", _bwd_reference)
implement(
    "preference_margins_fwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.preference_margins_fwd_cpu(*args),
    supports=lambda *args: _native.refusal(*args),
)
implement(
    "preference_margins_bwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.preference_margins_bwd_cpu(*args),
    supports=lambda *args: _native.refusal(*args[:4]),
)
implement(
    "preference_margins_fwd",
    "triton",
    _triton.kernels("pairs", "preference_margins_fwd"),
    supports=lambda *args: _triton.refusal(*args),
)
implement(
    "preference_margins_bwd",
    "triton",
    _triton.kernels("pairs", "preference_margins_bwd"),
    supports=lambda *args: _triton.refusal(*args[:4]),
)
differentiate("preference_margins_fwd", _backward, _setup_context)

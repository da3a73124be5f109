"""maxmin::welfare_fwd: welfare of utilities and its weights. The backward is one product and needs no op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxmin_kernels import _native, _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import define, differentiate, implement


def _fake(
    utilities: Tensor,
    kind: str,
    group_weights: Tensor | None,
    rank_weights: Tensor | None,
    floor: Tensor | None,
    param: float,
) -> tuple[Tensor, Tensor]:
    acc = accumulation_dtype(utilities)
    return (
        utilities.new_empty(utilities.shape[:-1], dtype=acc),
        utilities.new_empty(utilities.shape, dtype=acc),
    )


def _reference(*args: Any) -> tuple[Tensor, Tensor]:
    value, weights = reference.welfare(*args)
    return value.contiguous(), weights.contiguous()


def _cpu_supports(utilities: Tensor, kind: str, *parameters: Any) -> str | None:
    return _native.refusal(utilities, *parameters[:3])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_value: Tensor, _: Any) -> tuple[Any, ...]:
    (weights,) = ctx.saved_tensors
    return ((grad_value[..., None] * weights).to(ctx.dtype), *[None] * 5)


define(
    "welfare_fwd(Tensor utilities, str kind, Tensor? group_weights, Tensor? rank_weights, "
    "Tensor? floor, float param) -> (Tensor, Tensor)",
    fake=_fake,
)
implement("welfare_fwd", "reference", _reference)
implement(
    "welfare_fwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.welfare_fwd_cpu(*args),
    supports=_cpu_supports,
)
implement(
    "welfare_fwd",
    "triton",
    _triton.kernels("welfare", "welfare_fwd"),
    supports=lambda *args: _triton.groups_refusal(args[0].shape[-1]) or _triton.refusal(args[0]),
)
differentiate("welfare_fwd", _backward, _setup_context)

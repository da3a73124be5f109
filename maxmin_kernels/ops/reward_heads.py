"""maxmin::reward_heads_fwd, _bwd: several linear heads on rows or on one token of a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxmin_kernels import _native, _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import call, define, differentiate, implement


def _fwd_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_index: Tensor | None
) -> Tensor:
    return hidden.new_empty(hidden.shape[0], weight.shape[0], dtype=accumulation_dtype(hidden))


def _bwd_fake(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    token_index: Tensor | None,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_weight else 0),
        hidden.new_empty(weight.shape[0], dtype=accumulation_dtype(hidden)),
    )


def _bwd_reference(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    token_index: Tensor | None,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    by_hidden, by_weight, by_bias = reference.reward_heads_bwd(grad, hidden, weight, token_index)
    return (
        by_hidden if need_hidden else hidden.new_empty(0),
        by_weight if need_weight else weight.new_empty(0),
        by_bias,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, bias, token_index = inputs
    ctx.save_for_backward(hidden, weight, token_index)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    hidden, weight, token_index = ctx.saved_tensors
    need_hidden, need_weight, need_bias, _ = ctx.needs_input_grad
    by_hidden, by_weight, by_bias = call(
        "reward_heads_bwd", grad, hidden, weight, token_index, need_hidden, need_weight
    )
    return (
        by_hidden if need_hidden else None,
        by_weight if need_weight else None,
        by_bias.to(ctx.bias_dtype) if need_bias else None,
        None,
    )


define(
    "reward_heads_fwd(Tensor hidden, Tensor weight, Tensor? bias, Tensor? token_index) -> Tensor",
    fake=_fwd_fake,
)
define(
    "reward_heads_bwd(Tensor grad, Tensor hidden, Tensor weight, Tensor? token_index, "
    "bool need_hidden, bool need_weight) -> (Tensor, Tensor, Tensor)",
    fake=_bwd_fake,
)
implement("reward_heads_fwd", "reference", reference.reward_heads)
implement("reward_heads_bwd", "reference", _bwd_reference)
implement(
    "reward_heads_fwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.reward_heads_fwd_cpu(*args),
    supports=lambda *args: _native.refusal(*args),
)
implement(
    "reward_heads_bwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.reward_heads_bwd_cpu(*args),
    supports=lambda *args: _native.refusal(*args[:4]),
)
implement(
    "reward_heads_fwd",
    "triton",
    _triton.kernels("heads", "reward_heads_fwd"),
    supports=lambda *args: _triton.refusal(*args),
)
implement(
    "reward_heads_bwd",
    "triton",
    _triton.kernels("heads", "reward_heads_bwd"),
    supports=lambda *args: _triton.refusal(*args[:4]),
)
differentiate("reward_heads_fwd", _backward, _setup_context)

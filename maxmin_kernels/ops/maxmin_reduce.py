"""maxmin::maxmin_reduce_fwd, _bwd: group means of a batch of rewards and their welfare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxmin_kernels import _native, _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import call, define, differentiate, implement


def _fwd_fake(
    rewards: Tensor,
    kind: str,
    mask: Tensor | None,
    running: Tensor | None,
    group_weights: Tensor | None,
    rank_weights: Tensor | None,
    floor: Tensor | None,
    param: float,
) -> tuple[Tensor, Tensor, Tensor]:
    acc, n_groups = accumulation_dtype(rewards), rewards.shape[1]
    return (
        rewards.new_empty((), dtype=acc),
        rewards.new_empty(n_groups, dtype=acc),
        rewards.new_empty(n_groups, dtype=acc),
    )


def _bwd_fake(
    grad_value: Tensor,
    grad_utilities: Tensor,
    rewards: Tensor,
    mask: Tensor | None,
    weights: Tensor,
) -> Tensor:
    return rewards.new_empty(rewards.shape)


def _fwd_reference(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    value, weights, utilities = reference.maxmin_reduce(*args)
    return value, weights.contiguous(), utilities


def _bwd_reference(*args: Any) -> Tensor:
    return reference.maxmin_reduce_bwd(*args).contiguous()


def _fwd_cpu_supports(rewards: Tensor, kind: str, *parameters: Any) -> str | None:
    return _native.refusal(rewards, *parameters[:-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], inputs[2], output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_value: Tensor, _: Any, grad_utilities: Tensor) -> tuple[Any, ...]:
    rewards, mask, weights = ctx.saved_tensors
    grad = call("maxmin_reduce_bwd", grad_value, grad_utilities, rewards, mask, weights)
    return (grad, *[None] * 7)


define(
    "maxmin_reduce_fwd(Tensor rewards, str kind, Tensor? mask, Tensor? running, "
    "Tensor? group_weights, Tensor? rank_weights, Tensor? floor, float param) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_fwd_fake,
)
define(
    "maxmin_reduce_bwd(Tensor grad_value, Tensor grad_utilities, Tensor rewards, Tensor? mask, "
    "Tensor weights) -> Tensor",
    fake=_bwd_fake,
)
implement("maxmin_reduce_fwd", "reference", _fwd_reference)
implement("maxmin_reduce_bwd", "reference", _bwd_reference)
implement(
    "maxmin_reduce_fwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.maxmin_reduce_fwd_cpu(*args),
    supports=_fwd_cpu_supports,
)
implement(
    "maxmin_reduce_bwd",
    "cpu",
    lambda *args: torch.ops.maxmin_native.maxmin_reduce_bwd_cpu(*args),
    supports=lambda *args: _native.refusal(*args),
)
implement(
    "maxmin_reduce_fwd",
    "triton",
    _triton.kernels("welfare", "maxmin_reduce_fwd"),
    supports=lambda *args: _triton.groups_refusal(args[0].shape[1]) or _triton.refusal(args[0]),
)
# Elementwise, from the saved weights: nothing that PyTorch would not fuse as well.
implement(
    "maxmin_reduce_bwd",
    "triton",
    _bwd_reference,
    supports=lambda *args: _triton.refusal(args[2]),
)
differentiate("maxmin_reduce_fwd", _backward, _setup_context)

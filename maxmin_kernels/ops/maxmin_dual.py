"""maxmin::maxmin_dual_fwd, _bwd: MaxMin weights from samples by the dual, (13)-(15)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxmin_kernels import _triton, reference
from maxmin_kernels.ops._registry import call, define, differentiate, implement


def _fwd_fake(
    rewards: Tensor, beta: float, weights: Tensor | None, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_prompts, _, n_groups = rewards.shape
    shapes = ((n_groups,), (), (n_groups,), (), (n_prompts,))
    w, value, utilities, gap, ess = (rewards.new_empty(s, dtype=torch.float64) for s in shapes)
    return w, value, utilities, gap, ess


def _bwd_fake(grad_value: Tensor, rewards: Tensor, weights: Tensor, beta: float) -> Tensor:
    return rewards.new_empty(rewards.shape)


def _fwd_reference(
    rewards: Tensor, beta: float, weights: Tensor | None, tol: float, max_iter: int
) -> tuple[Tensor, ...]:
    solution = reference.maxmin_dual(rewards, beta, weights, tol, max_iter)
    # An op may not hand out its own input, nor one tensor twice.
    return tuple(t.clone() for t in solution)


def _bwd_reference(*args: Any) -> Tensor:
    return reference.maxmin_dual_bwd(*args).contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weights, _, utilities, gap, ess = output
    ctx.save_for_backward(inputs[0], weights)
    ctx.beta = inputs[1]
    ctx.mark_non_differentiable(weights, utilities, gap, ess)


def _backward(ctx: Any, _: Any, grad_value: Tensor, *__: Any) -> tuple[Any, ...]:
    rewards, weights = ctx.saved_tensors
    return (call("maxmin_dual_bwd", grad_value, rewards, weights, ctx.beta), *[None] * 4)


define(
    "maxmin_dual_fwd(Tensor rewards, float beta, Tensor? weights, float tol, int max_iter) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fwd_fake,
)
define(
    "maxmin_dual_bwd(Tensor grad_value, Tensor rewards, Tensor weights, float beta) -> Tensor",
    fake=_bwd_fake,
)
implement("maxmin_dual_fwd", "reference", _fwd_reference)
implement("maxmin_dual_bwd", "reference", _bwd_reference)
implement(
    "maxmin_dual_fwd",
    "triton",
    _triton.kernels("dual", "maxmin_dual_fwd"),
    supports=lambda *args: (
        _triton.refusal(args[0], args[2])
        or _triton.prompt_refusal(args[0], 16)
        or _triton.nvidia_refusal()
    ),
)
# Elementwise but for a softmax over a prompt's samples: plain PyTorch on the device.
implement(
    "maxmin_dual_bwd",
    "triton",
    _bwd_reference,
    supports=lambda *args: _triton.refusal(args[1]),
)
differentiate("maxmin_dual_fwd", _backward, _setup_context)

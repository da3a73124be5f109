"""maxmin::maxmin_advantages_fwd: rewards by group to one advantage a sample. Not differentiated."""

from __future__ import annotations

from torch import Tensor

from maxmin_kernels import _triton, reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.ops._registry import define, implement


def _fake(rewards: Tensor, weights: Tensor, scale: str, leave_one_out: bool, eps: float) -> Tensor:
    return rewards.new_empty(rewards.shape[:2], dtype=accumulation_dtype(rewards))


define(
    "maxmin_advantages_fwd(Tensor rewards, Tensor weights, str scale, bool leave_one_out, "
    "float eps) -> Tensor",
    fake=_fake,
)
implement("maxmin_advantages_fwd", "reference", reference.maxmin_advantages)
implement(
    "maxmin_advantages_fwd",
    "triton",
    _triton.kernels("advantages", "maxmin_advantages_fwd"),
    supports=lambda *args: _triton.prompt_refusal(args[0]) or _triton.refusal(*args[:2]),
)

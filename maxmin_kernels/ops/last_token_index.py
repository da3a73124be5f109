"""maxmin::last_token_index_fwd: where the last real token of each sequence stands."""

from __future__ import annotations

import torch
from torch import Tensor

from maxmin_kernels import _triton, reference
from maxmin_kernels.ops._registry import define, implement


def _fake(attention_mask: Tensor) -> Tensor:
    return attention_mask.new_empty(attention_mask.shape[0], dtype=torch.int64)


define("last_token_index_fwd(Tensor attention_mask) -> Tensor", fake=_fake)
implement("last_token_index_fwd", "reference", reference.last_token_index)
implement(
    "last_token_index_fwd",
    "triton",
    _triton.kernels("tokens", "last_token_index_fwd"),
    supports=_triton.refusal,
)

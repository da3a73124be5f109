"""A bank of mixtures, fitted side by side: every read of the data serves all of them.

Mixtures of different sizes are kept padded, ``(G, K, ...)`` with a mask, so that what belongs to one mixture is a sum
over its own axes; kernels see the packed heads ``(H, D)`` only.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bank:
    """Parameters of ``G`` mixtures of at most ``K`` heads; a pad has logit -inf and a zero head.

    Attributes:
        theta: ``(G, K, D + 1)`` float64; heads, and in the last column the logits of the mixing weights.
        mask: ``(G, K)`` bool, false at pads.
        l2: ``(G,)`` float64, the lambda of (7).
    """

    theta: Tensor
    mask: Tensor
    l2: Tensor

    @classmethod
    def of(cls, heads: list[Tensor], log_weights: list[Tensor], l2: Tensor, width: int) -> Bank:
        """From each mixture's heads ``(K_g, D)`` and log mixing weights ``(K_g,)``, padded to ``width``."""
        device = heads[0].device
        theta = torch.zeros(
            len(heads), width, heads[0].shape[1] + 1, dtype=torch.float64, device=device
        )
        mask = torch.zeros(len(heads), width, dtype=torch.bool, device=device)
        for g, (head, log_weight) in enumerate(zip(heads, log_weights, strict=True)):
            theta[g, : len(head), :-1] = head
            theta[g, : len(head), -1] = log_weight
            mask[g, : len(head)] = True
        return cls(theta, mask, l2.to(theta))

    def __len__(self) -> int:
        return self.mask.shape[0]

    @functools.cached_property
    def slots(self) -> Tensor:
        """(H,) where the packed heads stand among the ``G K``. Waits for the device, once for a mask."""
        return self.mask.flatten().nonzero()[:, 0]

    @property
    def sizes(self) -> Tensor:
        """(G,) heads of each mixture."""
        return self.mask.sum(1)

    @property
    def mixture_indptr(self) -> Tensor:
        """(G + 1) where each mixture's packed heads begin."""
        return torch.nn.functional.pad(self.sizes.cumsum(0), (1, 0))

    @property
    def log_weights(self) -> Tensor:
        """(G, K) log mixing weights, -inf at pads."""
        logits = self.theta[..., -1].masked_fill(~self.mask, -torch.inf)
        return logits.log_softmax(1)

    @property
    def heads(self) -> Tensor:
        """(G, K, D) heads, zero at pads."""
        return self.theta[..., :-1]

    def pack(self, padded: Tensor) -> Tensor:
        """(G, K, ...) to (H, ...)."""
        return padded.flatten(0, 1)[self.slots]

    def pad(self, packed: Tensor) -> Tensor:
        """(H, ...) to (G, K, ...) float64, zero at pads."""
        padded = packed.new_zeros(self.mask.numel(), *packed.shape[1:], dtype=torch.float64)
        padded[self.slots] = packed.double()
        return padded.unflatten(0, self.mask.shape)

    def replace(self, theta: Tensor) -> Bank:
        """The same mixtures with other parameters."""
        moved = Bank(theta, self.mask, self.l2)
        moved.__dict__["slots"] = self.slots
        return moved


def take(state: Any, index: Tensor) -> Any:
    """The mixtures ``index`` of a dataclass whose tensors all have the mixtures first."""
    return type(state)(**{f.name: getattr(state, f.name)[index] for f in fields(state)})


def put(state: Any, index: Tensor, part: Any) -> Any:
    """``state`` with the mixtures ``index`` replaced by ``part``."""
    merged = {}
    for f in fields(state):
        value = getattr(state, f.name).clone()
        value[index] = getattr(part, f.name)
        merged[f.name] = value
    return type(state)(**merged)

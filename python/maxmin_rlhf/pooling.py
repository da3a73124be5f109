"""From a prompt and a response to one text, from token ids to a batch, from hidden states to one vector a text.

Fitting and scoring take the same steps: heads fitted on vectors of one kind say nothing about another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maxmin_kernels import last_token_index

POOLINGS = ("mean", "last", "cls")


def joined(prompt: str, response: str) -> str:
    """A prompt with its response, as they are; a newline between where two words would run together."""
    runs_on = prompt and response and not (prompt[-1].isspace() or response[0].isspace())
    return prompt + ("\n" if runs_on else "") + response


def padded(
    ids: Sequence[Sequence[int]], device: torch.device, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """(B, T) token ids and mask. Padded on the right: positions then count from the text's own beginning."""
    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), pad, dtype=torch.int64)
    mask = torch.zeros(len(ids), width, dtype=torch.int64)
    for row, some in enumerate(ids):
        tokens[row, : len(some)] = torch.tensor(some)
        mask[row, : len(some)] = 1
    return tokens.to(device), mask.to(device)


def position(mask: Tensor, pooling: str) -> Tensor:
    """(B,) the token that is read, for ``"last"`` and ``"cls"`` (the first); ``mask (B, T)``, padding on either side.

    Told by the mask, never by the padding token: where that is also the end mark, a text's own end counts.
    """
    return last_token_index(mask) if pooling == "last" else mask.to(torch.int64).argmax(1)


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(B, D) float32 of hidden states ``(B, T, D)`` whose real tokens ``mask (B, T)`` marks: their ``"mean"``, or `position`."""
    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(torch.float32)
        return (hidden.float() * weight).sum(1) / weight.sum(1)
    at = position(mask, pooling)
    return hidden[torch.arange(len(hidden), device=hidden.device), at].float()

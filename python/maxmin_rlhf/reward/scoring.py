"""From prompts with completions to tokens to one vector a text: the same steps for fitting heads and for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maxmin_kernels import functional

POOLINGS = ("last", "mean", "cls")


def tokenize(
    tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], max_length: int | None
) -> list[list[int]]:
    """Token ids of each prompt with its completion, strings or messages; at most ``max_length`` of them.

    Strings are joined as they are, with a newline where two words would run together; messages go through the chat
    template, which brings its own marks. The tokenizer should cut from the left, so that no completion is lost.
    """
    out = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        plain = isinstance(completion, str)
        if plain:
            runs_on = (
                prompt and completion and not (prompt[-1].isspace() or completion[0].isspace())
            )
            text = prompt + ("\n" if runs_on else "") + completion
        elif getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"completions: number {i} is a conversation, and the tokenizer has no chat template"
            )
        else:
            text = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
        ids = tokenizer(text, add_special_tokens=plain, **cut)["input_ids"]
        if not ids:
            raise ValueError(f"completions: expected at least one token, got none in number {i}")
        out.append(list(ids))
    return out


def padded(ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) token ids and mask. Padded on the right: positions then count from the text's own beginning."""
    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), pad, dtype=torch.int64)
    mask = torch.zeros(len(ids), width, dtype=torch.int64)
    for row, some in enumerate(ids):
        tokens[row, : len(some)] = torch.tensor(some)
        mask[row, : len(some)] = 1
    return tokens.to(device), mask.to(device)


def rewards(
    trunk: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    pooling: str,
    normalize: bool,
) -> Tensor:
    """(B, K) of K heads on the trunk's last hidden states.

    What is read is told by the mask, never by the padding token: where that is also the end mark, a text's own end
    counts.

    Args:
        tokens, mask: ``(B, T)``.
        weight, bias: ``(K, D)`` float32 and ``(K,)``.
        pooling: ``"last"`` token, ``"mean"`` over the tokens, ``"cls"`` (the first).
        normalize: divide each pooled vector by its length.
    """
    hidden: Tensor = trunk(input_ids=tokens, attention_mask=mask).last_hidden_state
    if pooling == "mean":
        share = mask[..., None].float()
        vectors = (hidden.float() * share).sum(1) / share.sum(1)
    else:
        at = mask.argmax(1) if pooling == "cls" else functional.last_token_index(mask)
        if not normalize:
            return functional.reward_heads(hidden, weight, bias, at)
        vectors = hidden[torch.arange(len(hidden), device=hidden.device), at].float()
    if normalize:
        vectors = nn.functional.normalize(vectors, dim=1)
    return functional.reward_heads(vectors, weight, bias)

"""From prompts with completions to tokens to one vector a text: the same steps for fitting heads and for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from maxmin_kernels import functional
from maxmin_rlhf.pooling import joined, pool, position


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
            text = joined(prompt, completion)
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

    Args:
        tokens, mask: ``(B, T)``.
        weight, bias: ``(K, D)`` float32 and ``(K,)``.
        pooling: ``"last"`` token, ``"mean"`` over the tokens, ``"cls"`` (the first).
        normalize: divide each pooled vector by its length.
    """
    hidden: Tensor = trunk(input_ids=tokens, attention_mask=mask).last_hidden_state
    if pooling != "mean" and not normalize:
        return functional.reward_heads(hidden, weight, bias, position(mask, pooling))
    vectors = pool(hidden, mask, pooling)
    if normalize:
        vectors = nn.functional.normalize(vectors, dim=1)
    return functional.reward_heads(vectors, weight, bias)

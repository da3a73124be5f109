"""The card of a reward model: what it is, how to score with it, what it must not be taken for."""

from __future__ import annotations

from typing import Any


def card(config: Any, settings: dict[str, Any], plain: bool) -> str:
    """Markdown with the hub's header."""
    names = [config.id2label[k] for k in range(len(config.id2label))]
    rows = "\n".join(
        f"| {name} | {share:.1%} | {center:.4g} | {scale:.4g} |"
        for name, share, center, scale in zip(
            names, settings["shares"], settings["centers"], settings["scales"], strict=True
        )
    )
    pooling = {"last": "last token", "mean": "mean over the tokens", "cls": "first token"}
    vector = f"the {pooling[settings['pooling']]} of the last hidden states"
    if settings["normalize"]:
        vector += ", divided by its length"
    kept = settings["max_length"]
    length = "all tokens" if kept is None else f"the last {kept} tokens"
    forward = (
        "Its own forward pass gives the same logits, before zero and unit, where no text has the padding token in it: it reads "
        "the last token that is not padding. Where padding and end mark are one token, a text's own end is skipped."
        if plain
        else "Its own forward pass reads the hidden states in another way: its logits are not these rewards."
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, maxmin]
---

# {len(names)} groups' rewards on one {config.model_type} trunk

Each label is the reward of one group of annotators, found from preferences as a mixture over annotators. A reward is
linear in {vector} ({length}).

| group | share of annotators | zero | unit |
|---|---|---|---|
{rows}

```python
from maxmin_rlhf import RewardBank

bank = RewardBank.from_pretrained("...")
bank(prompts, completions)  # (B, {len(names)}) in the units above
```

{forward}

## Limits

- The preferences settle a reward up to a constant at each prompt. Compare rewards of one prompt, or centre them on samples
  of a reference policy first: `bank.calibrate(prompts, completions)`.
- More than one group means that they describe these annotators better than one reward, not that there are types of people.
- Texts unlike those that were judged may get any reward; a policy trained long enough finds them.
"""

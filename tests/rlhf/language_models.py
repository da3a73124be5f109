"""Small language models made on the spot, and what tests of trainers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>"),
    *("the", "a", "cat", "dog", "sun", "is", "was", "sad", "happy", "big"),
    *("good", "bad", "and", "she", "he", "ran", "sat", "on", "mat", "."),
]
PROMPTS = ["the cat", "a dog", "the sun is", "she was"]


def tokenizer(pad: str = "<pad>") -> Any:
    """Words, split at spaces; ``<s>`` in front. ``pad="</s>"`` sets the well-known trap."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def llama_config(pad: int = 0, **options: Any) -> Any:
    from transformers import LlamaConfig

    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**{**sizes, **options}, bos_token_id=1, eos_token_id=2, pad_token_id=pad)


def save_language_model(folder: Path, seed: int = 0) -> str:
    """A Llama of two layers with its tokenizer, as a folder: the reference policy is loaded by path."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def words_of(wanted: set[str], name: str) -> Any:
    """A reward: how many of the completion's words are wanted ones, less a fixed number."""

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [sum(w in wanted for w in c.split()) - 0.5 for c in completions]

    reward.__name__ = name
    return reward


def two_groups() -> list[Any]:
    return [
        words_of({"happy", "good", "sun", "ran"}, "merry"),
        words_of({"sad", "bad", "sat", "on", "mat"}, "grave"),
    ]


STORY_PROMPTS = [
    "Once upon a time, there was a",
    "Lily and her mom went to the",
    "Tom was a big dog. He",
    "The sun was",
]


def save_stories(data: Path, folder: Path) -> str:
    """stories260K from the outside data, as a folder with its tokenizer."""
    from examples.stories260k import convert

    convert(data / "models_stories260k", folder)
    return str(folder)


def letters(wanted: str, name: str) -> Any:
    """A reward: the wanted letters' share of the completion's."""

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [10 * sum(c.count(x) for x in wanted) / max(1, len(c)) for c in completions]

    reward.__name__ = name
    return reward

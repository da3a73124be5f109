"""Models and a tokenizer of bytes, made at random: as small as transformers allows, saved like any checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[CLS]", "[SEP]", "<bos>"]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def make(folder: Path, kind: str = "bert", width: int = 16, layers: int = 2) -> str:
    """A checkpoint of "bert", "llama" or "gpt2" in ``folder``; a causal one saved whole, with its head."""
    torch.manual_seed(3)
    common = {"vocab_size": 256 + len(SPECIAL)}
    if kind == "bert":
        config = BertConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width,
                            max_position_embeddings=64, **common)  # fmt: skip
        model = BertModel(config)
    elif kind == "llama":
        config = LlamaConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
                             intermediate_size=2 * width, max_position_embeddings=128, **common)  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        config = GPT2Config(n_embd=width, n_layer=layers, n_head=2, n_positions=64, **common)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    _tokenizer(kind).save_pretrained(folder)
    return str(folder)


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate([*letters, *SPECIAL])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    ids = [(name, 256 + i) for i, name in enumerate(SPECIAL)]
    if kind == "bert":
        inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids[:2])  # fmt: skip
    elif kind == "llama":
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=ids[2:])  # fmt: skip
    out = PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=SPECIAL, model_max_length=64)  # fmt: skip
    if kind == "llama":
        out.chat_template = TEMPLATE
    return out

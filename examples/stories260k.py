"""stories260K, a language model of 260,032 parameters, as a transformers folder.

Andrej Karpathy's TinyStories model (MIT) in llama2.c's first format: ``stories260K.bin`` and ``tok512.bin``, from any copy
of huggingface.co/karpathy/tinyllamas.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Ids of <unk>, <s>, </s>, and of the first piece that is neither special nor a byte.
_UNKNOWN, _START, _END, _FIRST_PIECE = 0, 1, 2, 259


def convert(source: str | Path, target: str | Path) -> None:
    """Write model and tokenizer to ``target``, for ``from_pretrained``."""
    model = _model((Path(source) / "stories260K.bin").read_bytes())
    model.save_pretrained(target)
    pieces, scores = _vocabulary(
        (Path(source) / "tok512.bin").read_bytes(), model.config.vocab_size
    )
    PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(pieces, scores),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        padding_side="left",
    ).save_pretrained(target)


def _model(raw: bytes) -> LlamaForCausalLM:
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", raw[:28])
    numbers = torch.from_numpy(np.frombuffer(raw, np.float32, offset=28).copy())
    width, at = dim // heads, 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        at += math.prod(shape)
        return numbers[at - math.prod(shape) : at].view(shape).clone()

    def rotary(n_heads: int) -> Callable[[Tensor], Tensor]:
        # llama2.c turns neighbouring pairs of a head's rows, transformers the two halves.
        return lambda w: (
            w.view(n_heads, width // 2, 2, dim).transpose(1, 2).reshape(n_heads * width, dim)
        )

    def same(w: Tensor) -> Tensor:
        return w

    state = {"model.embed_tokens.weight": take(vocab, dim)}
    for name, shape, order in (
        ("input_layernorm", (dim,), same),
        ("self_attn.q_proj", (dim, dim), rotary(heads)),
        ("self_attn.k_proj", (kv_heads * width, dim), rotary(kv_heads)),
        ("self_attn.v_proj", (kv_heads * width, dim), same),
        ("self_attn.o_proj", (dim, dim), same),
        ("post_attention_layernorm", (dim,), same),
        ("mlp.gate_proj", (hidden, dim), same),
        ("mlp.down_proj", (dim, hidden), same),
        ("mlp.up_proj", (hidden, dim), same),
    ):
        for layer, w in enumerate(take(layers, *shape)):
            state[f"model.layers.{layer}.{name}.weight"] = order(w).contiguous()
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=dim,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=_START,
            eos_token_id=_END,
            pad_token_id=_UNKNOWN,
        )
    )
    model.load_state_dict(state)
    return model


def _vocabulary(raw: bytes, size: int) -> tuple[list[str], list[float]]:
    at, pieces, scores = 4, [], []
    for i in range(size):
        score, n = struct.unpack_from("fi", raw, at)
        piece = raw[at + 8 : at + 8 + n].decode()
        # The two marks come with line breaks around them.
        special = i in (_START, _END)
        pieces.append(piece.strip("\n") if special else piece.replace(" ", "▁"))
        scores.append(score)
        at += 8 + n
    return pieces, scores


def _tokenizer(pieces: list[str], scores: list[float]) -> Tokenizer:
    """Byte-pair encoding whose merges are all splits of a piece into two, the best piece first."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = sorted(
        (
            (-scores[i], piece[:cut], piece[cut:])
            for piece, i in ids.items()
            if i >= _FIRST_PIECE
            for cut in range(1, len(piece))
            if piece[:cut] in ids and piece[cut:] in ids
        ),
        key=lambda merge: merge[0],
    )
    tokenizer = Tokenizer(
        models.BPE(
            ids,
            [(left, right) for _, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", _START)]
    )
    return tokenizer

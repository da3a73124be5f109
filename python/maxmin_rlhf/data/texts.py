"""Preferences between texts, in the columns that TRL uses: from a table to distinct texts, and over a store to PreferenceData."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.data._arrays import Int
from maxmin_rlhf.data.feature_store import FeatureStore, key_of
from maxmin_rlhf.data.preference_store import PreferenceStore
from maxmin_rlhf.data.preferences import PreferenceData

FORMS = ("pair", "response")


@dataclass(frozen=True, eq=False, repr=False)
class TextPreferences:
    """Who chose which of two texts. Make one by `from_columns` or `read`.

    Attributes:
        texts: M distinct ones, as `maxmin_rlhf.encode` takes them, in order of first appearance.
        prompts, responses: of each text (of its first appearance), as words to show.
        chosen, rejected: ``(N,)`` int64, places in ``texts``.
        annotator: ``(N,)`` ids. weight: ``(N,)`` or None.
    """

    texts: list[Any]
    prompts: list[str]
    responses: list[str]
    chosen: Int
    rejected: Int
    annotator: Any
    weight: NDArray[Any] | None = None

    @classmethod
    def from_columns(
        cls,
        chosen: Sequence[Any],
        rejected: Sequence[Any],
        annotator: Any,
        *,
        prompt: Sequence[Any] | None = None,
        weight: Any = None,
        form: str = "pair",
    ) -> TextPreferences:
        """From columns.

        Args:
            chosen, rejected: ``(N,)`` strings, or conversations: lists of ``{"role": …, "content": …}``.
            annotator: ``(N,)`` any hashable ids.
            prompt: ``(N,)`` likewise; None: implicit, what chosen and rejected begin with in common, up to a space or a
                whole message.
            weight: ``(N,)`` >= 0.
            form: what is encoded: "pair", the response after its prompt, or "response", the response alone.

        Raises:
            ValueError, TypeError: naming the column and the row: an empty response, something else than text, the same
                text on both sides, columns of different lengths, another form.
        """
        from maxmin_rlhf.encoding import check_text

        if form not in FORMS:
            raise ValueError(f"form: expected pair or response, got {form!r}")
        lengths = {"rejected": len(rejected), "annotator": len(annotator)}
        if prompt is not None:
            lengths["prompt"] = len(prompt)
        for name, length in lengths.items():
            if length != len(chosen):
                raise ValueError(f"{name}: expected {len(chosen)} rows as chosen has, got {length}")
        place: dict[bytes, int] = {}
        kept: list[tuple[Any, str, str]] = []
        sides: tuple[list[int], list[int]] = ([], [])
        for row, both in enumerate(zip(chosen, rejected, strict=True)):
            for name, said in zip(("chosen", "rejected"), both, strict=True):
                check_text(said, f"{name}: row {row}")
            if type(both[0]) is not type(both[1]):
                raise TypeError(f"rejected: row {row} is {_kind(both[1])}, chosen is {_kind(both[0])}")  # fmt: skip
            before = _shared(*both) if prompt is None else prompt[row]
            if type(before) is not type(both[0]):
                raise TypeError(f"prompt: row {row} is {_kind(before)}, chosen is {_kind(both[0])}")
            for name, said, places in zip(("chosen", "rejected"), both, sides, strict=True):
                response = said if prompt is not None else said[len(before) :]
                text: Any = _words(response)
                if form == "pair":
                    # An implicit prompt is what two texts share: with another partner a text would split elsewhere.
                    text = said if prompt is None else (before, said)
                check_text(text, f"{name}: row {row}")
                at = place.setdefault(key_of(text), len(kept))
                if at == len(kept):
                    kept.append((text, _words(before), _words(response)))
                places.append(at)
            if sides[0][-1] == sides[1][-1]:
                raise ValueError(f"rejected: row {row} is the same text as chosen: leave such rows out")  # fmt: skip
        return cls(
            texts=[text for text, _, _ in kept],
            prompts=[words for _, words, _ in kept],
            responses=[words for _, _, words in kept],
            chosen=np.array(sides[0], np.int64),
            rejected=np.array(sides[1], np.int64),
            annotator=annotator,
            weight=None if weight is None else np.asarray(weight),
        )

    @classmethod
    def read(
        cls,
        path: str | PathLike[str],
        *,
        annotator: str,
        prompt: str | None = None,
        chosen: str = "chosen",
        rejected: str = "rejected",
        weight: str | None = None,
        form: str = "pair",
    ) -> TextPreferences:
        """From a parquet, jsonl or csv file. Names are of columns.

        Args:
            prompt: None: the column "prompt" if there is one, else implicit (see `from_columns`).
        """
        from maxmin_rlhf.data.reader import Table

        roles = {"annotator": annotator, "prompt": prompt, "chosen": chosen, "rejected": rejected, "weight": weight}  # fmt: skip
        table = Table(path, roles, optional=("prompt",))
        if prompt is None and "prompt" in table.columns:
            prompt = "prompt"
        try:
            return cls.from_columns(
                table.texts(chosen),
                table.texts(rejected),
                table.ids(annotator),
                prompt=None if prompt is None else table.texts(prompt),
                weight=None if weight is None else table.numbers([weight])[:, 0],
                form=form,
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from None

    def over(self, store: FeatureStore, max_bytes: int | None = None) -> PreferenceData:
        """Indexed form, with the store's features; items are named by 16 hex digits of their text's sha256.

        Only the rows that are needed leave the store; those beyond ``max_bytes`` stay on disk, in a mapped file, see
        `FeatureStore.gather`. A fit in float32 on the CPU reads them there, in half precision it makes a copy in
        float32 while it runs, on another device a copy there. The texts themselves are in memory.

        Raises:
            ValueError: texts that the store does not have.
        """
        keys = [key_of(text) for text in self.texts]
        rows = store.rows(self.texts)
        return PreferenceData.from_items(
            store.gather(rows, max_bytes),
            self.chosen,
            self.rejected,
            self.annotator,
            weight=self.weight,
            item_ids=[key.hex()[:16] for key in keys],
        )

    def stream(self, store: FeatureStore, block_bytes: int | None = None) -> PreferenceStore:
        """Rows of differences on disk, for fits of more than memory holds; items as in `over`.

        They are written once, in float32, to a file in the store's folder that is gone when this object is; passes then
        read it from end to end, where those over a table would jump. The texts themselves are in memory.

        Args:
            block_bytes: as of `PreferenceStore`.

        Raises:
            ValueError: texts that the store does not have. OSError: no room on disk.
        """
        from maxmin_rlhf.data.text_differences import differences_on_disk

        return differences_on_disk(self, store, block_bytes)

    def __repr__(self) -> str:
        return f"TextPreferences({self.chosen.size} pairs of {len(self.texts)} texts by {len(set(self.annotator))} annotators)"


def _shared(a: Any, b: Any) -> Any:
    """What two texts begin with in common, not cutting a word; of two conversations, whole messages."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    while isinstance(a, str) and n and not a[n - 1].isspace():
        n -= 1
    return a[:n]


def _words(text: Any) -> str:
    return text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "a string"
    return "a conversation" if isinstance(value, list) else type(value).__name__

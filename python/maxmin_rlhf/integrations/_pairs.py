"""Pairs by annotator for a trainer: TRL's columns to token ids, the order of the pairs, batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from maxmin_rlhf.encoding import check_text
from maxmin_rlhf.pooling import padded
from maxmin_rlhf.reward import scoring


class AnnotatorSampler(Sampler[int]):
    """Places of pairs, shuffled so that runs of one annotator's stay side by side; another order each epoch.

    Args:
        annotators: ``(N,)`` int. run: pairs of one annotator in a row, at most. seed: of the order.
    """

    def __init__(self, annotators: Sequence[int], run: int, seed: int = 0) -> None:
        self.annotators = torch.as_tensor(annotators)
        self.run, self.seed, self.epoch = run, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.annotators)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = torch.randperm(len(self), generator=generator)
        shuffled = shuffled[self.annotators[shuffled].argsort(stable=True)]
        sizes = self.annotators.bincount().tolist()
        runs = [r for part in shuffled.split(sizes) for r in part.split(self.run)]
        for i in torch.randperm(len(runs), generator=generator).tolist():
            yield from runs[i].tolist()


class PairCollator:
    """Pairs to ``annotator (B,)``, ascending, and ``input_ids, attention_mask (B, 2, T)``, chosen first."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, pairs: Sequence[Any]) -> dict[str, Tensor]:
        pairs = sorted(pairs, key=lambda pair: pair["annotator"])
        ids = [pair[side] for pair in pairs for side in ("chosen_ids", "rejected_ids")]
        tokens, mask = padded(ids, torch.device("cpu"), self.pad)
        return {
            "annotator": torch.tensor([pair["annotator"] for pair in pairs]),
            "input_ids": tokens.view(len(pairs), 2, -1),
            "attention_mask": mask.view(len(pairs), 2, -1),
        }


def column(data: Any, name: str, argument: str) -> Any:
    columns = getattr(data, "column_names", None)
    if not isinstance(columns, list):
        raise TypeError(f"{argument}: expected a datasets.Dataset, got {type(data).__name__}")
    if name not in columns:
        raise ValueError(
            f"{argument}: expected a column {name!r}, got {', '.join(columns) or 'none'}"
        )
    if not len(data):
        raise ValueError(f"{argument}: expected at least one pair, got none")
    return data[name]


def tokenized(
    data: Any, argument: str, *, tokenizer: Any, max_length: int | None, place: dict[Any, int]
) -> Any:
    """``chosen_ids, rejected_ids, annotator`` (its place; -1: not of the training data) of a data set in TRL's columns."""
    for name in ("chosen", "rejected", "annotator"):
        column(data, name, argument)
    if not callable(tokenizer):
        raise TypeError(f"processing_class: expected a tokenizer, got {type(tokenizer).__name__}")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.truncation_side = "left"  # a long prompt loses its beginning, never the response

    def tokens(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {"annotator": [place.get(a, -1) for a in batch["annotator"]]}
        for side in ("chosen", "rejected"):
            for row, said in zip(rows, batch[side], strict=True):
                check_text(said, f"{argument}: {side}: row {row}")
            prompts = batch.get("prompt") or [type(said)() for said in batch[side]]
            out[f"{side}_ids"] = scoring.tokenize(tokenizer, prompts, batch[side], max_length)
        return out

    return data.map(
        tokens, batched=True, with_indices=True, remove_columns=data.column_names, desc="tokenizing"
    )

"""The texts that are judged: 96 questions, 16 responses each, and what a person may value in them."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FOLDER = Path(__file__).parent.parent / "language_data"


@dataclass(frozen=True)
class Responses:
    """P questions with S responses each.

    Attributes:
        prompts: the questions. texts: ``(P, S)`` the responses.
        features: ``(P, S, D)`` an embedding of each.
        positive, concise: ``(P, S)`` sentiment and minus the number of tokens, each with mean 0 and standard deviation 1
            within its prompt. Where all responses of a prompt are alike: 0.
    """

    prompts: list[str]
    texts: NDArray[np.object_]
    features: Array
    positive: Array
    concise: Array


def read_responses(folder: Path = FOLDER) -> Responses:
    """Those that come with the package.

    Raises:
        ValueError: prompts with different numbers of responses, or embeddings of other texts.
    """
    lines = gzip.decompress((folder / "responses.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    shape = (len(prompts), len(rows) // len(prompts))
    if [row["prompt"] for row in rows] != [p for p in prompts for _ in range(shape[1])]:
        raise ValueError(f"{folder}: expected equally many responses to each prompt, in order")
    features = np.load(folder / "embeddings.npy").astype(np.float64)
    if len(features) != len(rows):
        raise ValueError(f"{folder}: expected {len(rows)} embeddings, got {len(features)}")

    def column(name: str) -> Array:
        return np.array([row[name] for row in rows], np.float64).reshape(shape)

    return Responses(
        prompts=prompts,
        texts=np.array([row["response"] for row in rows], dtype=object).reshape(shape),
        features=features.reshape(*shape, -1),
        positive=standardise(column("sentiment")),
        concise=standardise(-column("tokens")),
    )


def standardise(values: Array) -> Array:
    """``(P, S)`` with mean 0 and standard deviation 1 in each row, 0 in a constant one."""
    centred = values - values.mean(1, keepdims=True)
    spread = centred.std(1, keepdims=True)
    return centred / np.where(spread > 0, spread, 1.0)

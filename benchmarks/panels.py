"""Real panels with known answers, as preferences. The data sets lie in the folder that ``MAXMIN_DATA`` names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from maxmin_rlhf import PreferenceData


def data_folder() -> Path:
    """The folder that ``MAXMIN_DATA`` names."""
    folder = os.environ.get("MAXMIN_DATA")
    if not folder:
        raise SystemExit("MAXMIN_DATA: expected the folder of the data sets, got nothing")
    return Path(folder)


def jester(folder: Path) -> PreferenceData:
    """Up to 100 pairs of jokes of each of 3,999 raters; one-hot jokes."""
    pairs = pd.read_parquet(
        folder / "jester5k/pairs.parquet", columns=["annotator_id", "chosen_id", "rejected_id"]
    )
    chosen, rejected = (pairs[name].astype(int) for name in ("chosen_id", "rejected_id"))
    return PreferenceData.from_items(np.eye(100), chosen, rejected, pairs.annotator_id)


def mt_bench(folder: Path) -> PreferenceData:
    """Votes of 65 judges between six chat models; one-hot models."""
    return PreferenceData.read(
        folder / "mt_bench_human/pairs.parquet",
        annotator="annotator_id",
        chosen="chosen_model",
        rejected="rejected_model",
    )


def hh_objectives(folder: Path) -> tuple[PreferenceData, np.ndarray]:
    """Pairs of two crowds, helpful and harmless, by pseudo-annotators; and each one's crowd, (A,) True for helpful."""
    pairs = pd.read_parquet(
        folder / "hh_objectives/pairs_human.parquet",
        columns=["annotator_id", "group", "chosen_emb", "rejected_emb"],
    )
    embedding = np.load(folder / "hh_objectives/emb_minilm_f16.npy").astype(np.float32)
    data = PreferenceData.from_pairs(
        embedding[pairs.chosen_emb], embedding[pairs.rejected_emb], pairs.annotator_id
    )
    crowd = pairs.groupby("annotator_id", observed=True)["group"].first()
    return data, (crowd.loc[list(data.annotators_)] == "helpful").to_numpy()


def ukp_convarg(folder: Path) -> PreferenceData:
    """Which of two arguments convinces, by 3,801 workers; 1,052 arguments with text embeddings."""
    pairs = pd.read_parquet(
        folder / "ukp_convarg1/pairs.parquet", columns=["annotator_id", "chosen_id", "rejected_id"]
    )
    items = pd.read_parquet(folder / "ukp_convarg1/items.parquet", columns=["id", "emb_row"])
    embedding = np.load(folder / "ukp_convarg1/emb_minilm_f16.npy").astype(np.float32)
    row = pd.Series(np.arange(len(items)), index=items.id)
    chosen, rejected = (
        row.loc[pairs[name].astype(str)].to_numpy() for name in ("chosen_id", "rejected_id")
    )
    return PreferenceData.from_items(
        embedding[items.emb_row], chosen, rejected, pairs.annotator_id, item_ids=items.id
    )


def train_choice(folder: Path) -> PreferenceData:
    """Choices of 235 travellers between two trains: price in guilders, hours, changes, comfort."""
    table = pd.read_parquet(folder / "train_stated_choice/choices.parquet")
    a, b = (
        np.stack(
            [
                table[f"price_{side}"] / 100 * 2.20371,
                table[f"time_{side}"] / 60,
                table[f"change_{side}"],
                table[f"comfort_{side}"],
            ],
            axis=1,
        ).astype(float)
        for side in "AB"
    )
    took_a = (table.choice == "A").to_numpy()[:, None]
    return PreferenceData.from_pairs(
        np.where(took_a, a, b), np.where(took_a, b, a), table.annotator_id
    )

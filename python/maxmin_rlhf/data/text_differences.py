"""Preferences between texts as rows of differences on disk: what a fit streams where a table of items does not fit."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from maxmin_rlhf.data._arrays import check_finite
from maxmin_rlhf.data.feature_store import FeatureStore, key_of
from maxmin_rlhf.data.preference_shards import Source
from maxmin_rlhf.data.preference_store import PreferenceStore
from maxmin_rlhf.data.preferences import PreferenceData
from maxmin_rlhf.data.row_files import RowFiles

if TYPE_CHECKING:
    from maxmin_rlhf.data.texts import TextPreferences

_ROWS = 16_384  # subtracted at a time


def differences_on_disk(
    texts: TextPreferences, store: FeatureStore, block_bytes: int | None = None
) -> PreferenceStore:
    """Write the differences, float32, annotator by annotator, to a file in the store's folder that has no name."""
    rows = store.rows(texts.texts)
    labels = PreferenceData.from_items(
        torch.zeros(len(rows), 1),
        texts.chosen,
        texts.rejected,
        texts.annotator,
        weight=texts.weight,
        item_ids=[key_of(text).hex()[:16] for text in texts.texts],
    )
    assert labels.chosen is not None and labels.rejected is not None
    chosen, rejected = rows[labels.chosen.numpy()], rows[labels.rejected.numpy()]
    handle, name = tempfile.mkstemp(prefix=".differences-", dir=store.path)
    os.unlink(name)
    source = Source(
        rows=RowFiles([(handle, 0, len(chosen))], store.n_features, torch.float32),
        indptr=labels.indptr.numpy(),
        annotators=labels.annotators_,
        choice_indptr=None,
        weight=None if labels.weight is None else labels.weight.numpy(),
        identity=_identity(store, rows, labels),
        labels=labels,
    )
    take: Callable[[np.ndarray], torch.Tensor] = lambda at: store.gather(at, 2**62).float()  # noqa: E731
    for first in range(0, len(chosen), _ROWS):
        here = slice(first, first + _ROWS)
        difference = take(chosen[here]) - take(rejected[here])
        check_finite("chosen - rejected", difference)
        left = memoryview(difference.numpy().data).cast("B")
        while left:
            left = left[os.write(handle, left) :]
    return PreferenceStore._of_source(source, block_bytes)


def _identity(store: FeatureStore, rows: np.ndarray, labels: PreferenceData) -> str:
    """The file is written anew by every process, the same each time."""
    check = 0
    for array in (rows, labels.indptr, labels.chosen, labels.rejected, labels.weight):
        check = zlib.crc32(b"-" if array is None else np.asarray(array).tobytes(), check)
    return json.dumps([check, *(shard["sha256"] for shard in store.shards)])

"""em_plan: what it holds and what it refuses."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk


def test_rows_need_none():
    assert mk.em_plan(torch.tensor([0, 2, 5])).tensors == []


def test_long_annotators_are_cut_into_chunks():
    indptr = torch.tensor([0, 3, 3, 3 + 4096, 3 + 4096 + 8193])
    plan = mk.em_plan(indptr)
    assert plan.annotator_chunks.tolist() == [0, 1, 2, 3, 6]
    assert plan.chunk_indptr.tolist() == [0, 3, 3, 4099, 8195, 12291, 12292]
    assert len(plan.tensors) == 2
    assert mk.em_plan(indptr[:-1]).tensors == []


def test_every_item_knows_its_rows():
    chosen, rejected = torch.tensor([0, 2, 0]), torch.tensor([1, 0, 3])
    plan = mk.em_plan(torch.tensor([0, 3]), chosen=chosen, rejected=rejected, n_items=5)
    assert plan.chosen.dtype == torch.int32 and plan.chosen.tolist() == [0, 2, 0]
    assert plan.item_indptr.tolist() == [0, 3, 4, 5, 6, 6]
    assert plan.item_rows.tolist() == [0, 2, 4, 3, 1, 5]
    with pytest.raises(AttributeError):
        plan.chosen = None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"indptr": torch.tensor([0, 2, 1])}, ValueError, "indptr: expected a non-decreasing pointer"),
        ({"indptr": torch.tensor([1, 2])}, ValueError, "indptr: expected to run from 0 to 2, got 1 to 2"),
        ({"indptr": torch.tensor([0.0, 2])}, TypeError, "indptr: expected dtype int64, got float32"),
        ({"indptr": torch.zeros(0).long()}, ValueError, "indptr: expected at least one entry"),
        (
            {"indptr": torch.tensor([0, 1]), "chosen": torch.tensor([0]), "rejected": torch.tensor([1])},
            ValueError,
            "n_items: expected the number of items",
        ),
        (
            {"indptr": torch.tensor([0, 1]), "chosen": torch.tensor([0]), "rejected": torch.tensor([3]), "n_items": 3},
            ValueError,
            r"rejected: expected indices in \[0, 3\), got 3 to 3",
        ),
        (
            {"indptr": torch.tensor([0, 1]), "choice_indptr": torch.tensor([0, 2, 3])},
            ValueError,
            r"choice_indptr: expected shape \(2,\), got \(3,\)",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        mk.em_plan(**arguments)

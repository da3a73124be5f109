"""EMPlan: what a pass over the data needs that depends on the data alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maxmin_kernels._checks import check_indptr, check_tensor, validate_index, validate_indptr

CHUNK = 4096


@dataclass(frozen=True)
class EMPlan:
    """Built once a data set by `em_plan` and given to every `em_pass`.

    Attributes:
        chosen, rejected: item rows in the narrowest integer type that holds them (indexed form only).
        item_indptr: ``(M + 1)`` int64, how often each item stands in a row.
        item_rows: ``(2N)``, those places, ascending within an item: ``i`` where it is chosen in row ``i``, ``N + i``
            where it is rejected. The gradient is gathered by it in fixed order.
        chunk_indptr: ``(number of chunks + 1)`` int64, where each chunk of an annotator's comparisons begins, when
            somebody has more than ``CHUNK`` of them: programs of a device then share the long ones.
        annotator_chunks: ``(A + 1)`` int64, chunks of each annotator, which are added in their order.

    The tiles of the CUDA kernel depend on the device, the features and the number of heads too: the backend keeps them
    beside the pointers, as long as these live and are not written to, and cuts them once with or without a plan.
    """

    chosen: Tensor | None = None
    rejected: Tensor | None = None
    item_indptr: Tensor | None = None
    item_rows: Tensor | None = None
    chunk_indptr: Tensor | None = None
    annotator_chunks: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The plan as an op takes it: four tensors of the items, if any, then two of the chunks, if any."""
        items = (self.chosen, self.rejected, self.item_indptr, self.item_rows)
        parts = (*items, self.chunk_indptr, self.annotator_chunks)
        return [part for part in parts if part is not None]


def em_plan(
    indptr: Tensor,
    *,
    chosen: Tensor | None = None,
    rejected: Tensor | None = None,
    n_items: int | None = None,
    choice_indptr: Tensor | None = None,
) -> EMPlan:
    """The plan of a data set. Checks the values of the pointers and indices: the only place that waits for a device.

    Args:
        indptr: ``(A + 1)`` int64, comparisons of each annotator.
        chosen, rejected: ``(N,)`` int64 item rows (indexed form).
        n_items: M, the number of items (indexed form).
        choice_indptr: ``(C + 1)`` int64, rows of each comparison; None: every row is a pair.

    Raises:
        ValueError: a pointer that steps down or does not end where it must, an index out of range.
    """
    device = check_indptr("indptr", indptr, getattr(indptr, "device", torch.device("cpu"))).device
    n_choices = int(indptr[-1])
    validate_indptr("indptr", indptr, n_choices)
    n_rows = n_choices
    if choice_indptr is not None:
        check_indptr("choice_indptr", choice_indptr, device, length=n_choices + 1)
        n_rows = int(choice_indptr[-1])
        validate_indptr("choice_indptr", choice_indptr, n_rows)
    chunk_indptr, annotator_chunks = _chunks(indptr)
    if chosen is None and rejected is None:
        return EMPlan(chunk_indptr=chunk_indptr, annotator_chunks=annotator_chunks)
    check_tensor("chosen", chosen, (n_rows,), dtypes=(torch.int64,), device=device)
    check_tensor("rejected", rejected, (n_rows,), dtypes=(torch.int64,), device=device)
    assert chosen is not None and rejected is not None
    if n_items is None:
        raise ValueError(
            "n_items: expected the number of items beside chosen and rejected, got None"
        )
    validate_index("chosen", chosen, n_items)
    validate_index("rejected", rejected, n_items)
    both = torch.cat([chosen, rejected])
    narrow = torch.int32 if max(n_items, both.numel()) < 2**31 else torch.int64
    counts = torch.bincount(both, minlength=n_items)
    return EMPlan(
        chosen=chosen.to(narrow),
        rejected=rejected.to(narrow),
        item_indptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        item_rows=both.argsort(stable=True).to(narrow),
        chunk_indptr=chunk_indptr,
        annotator_chunks=annotator_chunks,
    )


def _chunks(indptr: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Pieces of at most ``CHUNK`` comparisons, one at least for each annotator; None where all are short."""
    sizes = indptr.diff()
    if sizes.numel() == 0 or int(sizes.max()) <= CHUNK:
        return None, None
    pieces = ((sizes + CHUNK - 1) // CHUNK).clamp_min(1)
    annotator_chunks = torch.nn.functional.pad(pieces.cumsum(0), (1, 0))
    owner = torch.repeat_interleave(pieces)
    place = torch.arange(owner.numel(), device=indptr.device) - annotator_chunks[owner]
    return torch.cat([indptr[owner] + place * CHUNK, indptr[-1:]]), annotator_chunks

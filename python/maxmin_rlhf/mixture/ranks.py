"""A fit over several processes: each has annotators of its own; what is summed over annotators travels, nothing else.

Sums are gathered and added in the order of the ranks, so every process has the same bits and takes the same decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxmin_rlhf.data import PreferenceData


@dataclass(frozen=True)
class Ranks:
    """Where this process's annotators stand among everybody's.

    Attributes:
        group: a process group of ``torch.distributed``; None: this process is alone.
        n_annotators, n_comparisons: of all processes.
        first_annotator, first_comparison: of this one, in the order of the ranks.
    """

    group: Any
    n_annotators: int
    n_comparisons: int
    first_annotator: int = 0
    first_comparison: int = 0

    @classmethod
    def of(cls, data: PreferenceData, group: Any = None) -> Ranks:
        """Ask the other processes how many they have.

        Raises:
            TypeError, ValueError: no process group; other features than another process has.
        """
        if group is None:
            return cls(None, data.n_annotators, data.n_comparisons)
        mine = torch.tensor(
            [data.n_annotators, data.n_comparisons, data.n_features],
            dtype=torch.float64,
            device=data.features.device,
        )
        parts = _gather(mine, group)
        if any(part[2] != mine[2] for part in parts):
            widths = ", ".join(f"{int(part[2])}" for part in parts)
            raise ValueError(f"data: expected as many features in every process, got {widths}")
        before = torch.stack(parts)[: torch.distributed.get_rank(group), :2].sum(0)
        total = torch.stack(parts)[:, :2].sum(0)
        numbers = [int(x) for x in (*total, *before)]
        return cls(group, *numbers)

    @property
    def first(self) -> bool:
        """Is this the process that writes and talks?"""
        return self.group is None or torch.distributed.get_rank(self.group) == 0

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Over the processes, in float64; alone: the tensors as they are."""
        if self.group is None:
            return tensors
        flat = torch.cat([t.reshape(-1).double() for t in tensors])
        total = torch.zeros_like(flat)
        for part in _gather(flat, self.group):
            total += part
        sizes = [t.numel() for t in tensors]
        return tuple(
            part.view(t.shape) for part, t in zip(total.split(sizes), tensors, strict=True)
        )

    def same(self, number: int, device: torch.device) -> int:
        """The first process's number, in all of them."""
        given = torch.tensor(float(number if self.first else 0), dtype=torch.float64, device=device)
        return int(self.sum(given)[0])


def _gather(mine: Tensor, group: Any) -> list[Tensor]:
    parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    try:
        torch.distributed.all_gather(parts, mine, group=group)
    except RuntimeError as error:
        raise RuntimeError(
            "another process of the group is gone, and the fit with it; a checkpoint goes on with any number of "
            f"processes ({str(error).splitlines()[0]})"
        ) from error
    return parts

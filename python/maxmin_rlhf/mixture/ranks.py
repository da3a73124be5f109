"""A fit over several processes: each has annotators of its own; what is summed over annotators travels, nothing else.

Sums are gathered and added in the order of the ranks, so every process has the same bits and takes the same decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxmin_rlhf.data import PreferenceData, PreferenceStore
from maxmin_rlhf.data._arrays import as_device
from maxmin_rlhf.mixture.arguments import check_preferences

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """Where this process's annotators stand among everybody's.

    Attributes:
        group: a process group of ``torch.distributed``; None: this process is alone.
        n_annotators, n_comparisons: of all processes.
        first_annotator, first_comparison: of this one, in the order of the ranks.
        device: that of the data, from which numbers travel.
    """

    group: Any
    n_annotators: int
    n_comparisons: int
    first_annotator: int = 0
    first_comparison: int = 0
    device: torch.device = _CPU

    @classmethod
    def of(
        cls,
        data: PreferenceData | PreferenceStore,
        group: Any = None,
        device: str | torch.device | None = None,
    ) -> Ranks:
        """Ask the other processes how many they have. ``device``: None is that of the data.

        Raises:
            TypeError, ValueError: no process group; other features than another process has.
        """
        check_preferences(data)
        where = as_device(device) or data.device
        if group is None:
            return cls(None, data.n_annotators, data.n_comparisons, device=where)
        mine = torch.tensor(
            [data.n_annotators, data.n_comparisons, data.n_features],
            dtype=torch.float64,
            device=where,
        )
        parts = _gather(mine, group)
        if any(part[2] != mine[2] for part in parts):
            widths = ", ".join(f"{int(part[2])}" for part in parts)
            raise ValueError(f"data: expected as many features in every process, got {widths}")
        before = torch.stack(parts)[: torch.distributed.get_rank(group), :2].sum(0)
        total = torch.stack(parts)[:, :2].sum(0)
        n_annotators, n_comparisons, *first = (int(x) for x in (*total, *before))
        return cls(group, n_annotators, n_comparisons, first[0], first[1], where)

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

    def before(self, number: int) -> int:
        """The sum of the earlier processes' numbers."""
        if self.group is None:
            return 0
        parts = _gather(self._alone(number), self.group)
        return int(sum(float(part) for part in parts[: torch.distributed.get_rank(self.group)]))

    def same(self, number: int) -> int:
        """The first process's number, in all of them."""
        return int(self.sum(self._alone(number if self.first else 0))[0])

    def _alone(self, number: int) -> Tensor:
        return torch.tensor(float(number), dtype=torch.float64, device=self.device)


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

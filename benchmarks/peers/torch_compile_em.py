"""The same pass through torch.compile."""

from __future__ import annotations

from typing import Any

import torch
import torch_em
from torch_em import fit  # noqa: F401


def prepare(problem: Any) -> None:
    torch_em.prepare(problem)
    torch._dynamo.config.recompile_limit = 64
    torch_em.run = torch.compile(torch_em.one_pass, dynamic=False)

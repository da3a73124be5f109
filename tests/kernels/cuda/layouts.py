"""Problems for the emulated pass, and how far it may be from the reference in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import maxmin_kernels as mk
from maxmin_kernels import _cuda
from maxmin_kernels._memory import Memory
from tests.kernels.cuda.emulator import Emulator

SHORT = [1, 31, 32, 5, 7, 20, 1, 1, 0, 30, 17, 16, 32, 3, 9, 8, 8, 8, 25, 2]
PLAIN = {"label_noise": 0.0, "hard": False, "temperature": 1.0}
LONG = [1, 33, 32, 0, 64, 5, 100, 7, 31, 300, 2, 129, 17, 40]


def problem(
    sizes: Sequence[int],
    n_features: int,
    mixtures: Sequence[int],
    weighted: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    heavy: float = 1.0,
    sets: int = 1,
    **objective: Any,
) -> dict[str, Any]:
    """Random pairs, in rows of a pitch that the tensor map takes; ``sizes``: of the annotators.

    Columns of float16 differ in size by 2^16, their weights the other way. ``heavy``: size of the comparison weights.
    ``sets``: rows of a comparison at most; ``sizes`` then count comparisons. ``objective``: as PLAIN.
    """
    torch.manual_seed(n_features)
    indptr = torch.tensor([0, *sizes]).cumsum(0)
    n_choices, n_heads, pitch = int(indptr[-1]), sum(mixtures), (n_features + 7) // 8 * 8
    lengths = torch.ones(n_choices, dtype=torch.int64)
    if sets > 1:  # most of few rows, some of the longest, choices from one among them
        lengths = 1 + (sets * torch.rand(n_choices) ** 4).long()
        lengths[:: max(1, n_choices // 5)] = sets
        lengths[1::7] = 0
    rows = int(lengths.sum())
    wide = 16 if dtype == torch.float16 else 0
    size = (wide * (torch.rand(pitch) - 0.5)).exp2()
    return {
        "features": (torch.randn(rows, pitch) * size).to(dtype)[:, :n_features],
        "indptr": indptr,
        "weight": 1.5 * torch.randn(n_heads, n_features) / n_features**0.5 / size[:n_features],
        "log_weights": torch.randn(n_heads) / 3,
        "mixture_indptr": torch.tensor([0, *mixtures]).cumsum(0),
        "comparison_weight": heavy * (0.5 + torch.rand(n_choices)) if weighted else None,
        "choice_indptr": None if sets == 1 else F.pad(lengths.cumsum(0), (1, 0)),
        **objective,
    }


def emulated(emulator: Emulator, given: dict[str, Any]) -> mk.EMPass:
    """The backend's own pass, launcher and all, with the emulator for the compiled operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "native", lambda: emulator)
        patch.setattr(_cuda, "_cut", Memory())
        names = ("choice_indptr", "mixture_indptr", "comparison_weight")
        head = [given[name] for name in ("features", "indptr", "weight", "log_weights")]
        options = [given.get(name) for name in names]
        objective = [given.get(name, value) for name, value in PLAIN.items()]
        return mk.EMPass(*_cuda.em_pass_fwd(*head, None, None, *options, *objective, []))


def exact(given: dict[str, Any]) -> mk.EMPass:
    def wide(value: Any) -> Any:
        wanted = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if wanted else value

    with mk.backend("reference"):
        return mk.em_pass(**{name: wide(value) for name, value in given.items()})


def assert_near(out: mk.EMPass, truth: mk.EMPass, temperature: float = 1.0) -> None:
    torch.testing.assert_close(out.log_likelihood, truth.log_likelihood, rtol=1e-6, atol=0)
    # A low temperature makes differences, and their errors, as much larger.
    near = 2e-5 / min(1.0, temperature)
    torch.testing.assert_close(out.log_resp.double(), truth.log_resp, rtol=0, atol=near)
    torch.testing.assert_close(out.mass, truth.mass, rtol=0, atol=1e-4)
    size = truth.grad_weight.abs().amax(1, keepdim=True)
    size[size == 0] = torch.finfo(torch.float64).tiny  # an empty group: nothing but 0 will do
    assert float(((out.grad_weight - truth.grad_weight) / size).abs().max()) < near / 2

"""What the launchers of each family ask Triton to compile: no spills, within a budget, for devices that are not there."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from tests.kernels.triton.codegen import compile_for, usage

pytestmark = pytest.mark.codegen

# Registers a thread, at most, on sm_90.
BUDGET = {"_annotators_kernel": 168, "_choices_kernel": 128}


def mixture(dtype: torch.dtype) -> None:
    """32 pairs an annotator, eight heads, forward and backward; sets of four; several mixtures."""
    margins = torch.zeros(4096, 8, dtype=dtype, requires_grad=True)
    log_weights = torch.zeros(8)
    z, _ = mk.mixture_log_likelihood(margins, torch.arange(0, 4097, 32), log_weights)
    z.sum().backward()
    mk.mixture_log_likelihood(
        margins,
        torch.arange(0, 1025, 8),
        log_weights,
        choice_indptr=torch.arange(0, 4097, 4),
        mixture_indptr=torch.tensor([0, 3, 8]),
        label_noise=0.1,
        hard=True,
    )
    mk.choice_shares(torch.zeros(100, 84, dtype=dtype))


FAMILIES = {"mixture": mixture}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_nothing_spills(arch, family, dtype):
    with compile_for(arch) as compiled, mk.backend("triton"):
        FAMILIES[family](dtype)
    assert compiled
    for kernel in compiled:
        used = usage(kernel)
        assert used.spill_stores == used.spill_loads == 0, (kernel.metadata.name, used)
        if arch == "sm_90":
            assert used.registers <= BUDGET[kernel.metadata.name], (kernel.metadata.name, used)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arch", ["sm_100", "gfx942"])
def test_compiles(arch, family):
    with compile_for(arch) as compiled, mk.backend("triton"):
        FAMILIES[family](torch.float32)
    assert compiled

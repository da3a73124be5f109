"""The compile-only driver sees what it is for: spills, wide loads, tensor cores, on every device that it knows."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton.codegen import DEVICES, compile_for, count, usage

pytestmark = pytest.mark.codegen


def largest(width):
    from tests.kernels.triton._probes import largest_kernel

    x = torch.empty(4, width, dtype=torch.bfloat16)
    largest_kernel[(4,)](x, torch.empty(4), x.stride(0), width, BLOCK_D=width, num_warps=4)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_compiles(name):
    with compile_for(name) as compiled:
        largest(1024)
    assert len(compiled) == 1
    assert usage(compiled[0]).registers > 0
    assert ("cubin" in compiled[0].asm) == name.startswith("sm_")


def test_spills_are_seen():
    with compile_for("sm_90") as compiled:
        largest(1024)
        largest(65536)
    small, large = map(usage, compiled)
    assert small.spill_stores == small.spill_loads == small.stack == 0
    assert large.spill_stores > 0 and large.spill_loads > 0


def test_wide_loads_are_seen():
    with compile_for("sm_90") as compiled:
        largest(8192)
        largest(8)  # nothing to be wide about
    assert count(compiled[0], r"LDG\.E\.128") > 0
    assert count(compiled[1], r"LDG\.E\.128") == 0


@pytest.mark.parametrize(("name", "opcode"), [("sm_80", "HMMA"), ("sm_90", "HGMMA")])
def test_tensor_cores_are_seen(name, opcode):
    from tests.kernels.triton._probes import product_kernel

    a = torch.empty(64, 64, dtype=torch.bfloat16)
    with compile_for(name) as compiled:
        product_kernel[(1,)](a, a, torch.empty(64, 64), BLOCK=64)
    assert count(compiled[0], opcode) > 0

"""The functions that several kernels share, at sizes from the tiniest to those that overflow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.triton.where import DEVICE, on_triton

pytestmark = on_triton


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_shared_functions(dtype, rtol):
    from tests.kernels.triton._math_kernel import apply_kernel

    z = torch.logspace(-40 if dtype == torch.float64 else -30, 0, 256, dtype=torch.float64)
    x = torch.cat([torch.linspace(-90, 90, 250, dtype=torch.float64), torch.zeros(6)])
    x[250:] = torch.tensor([1e4, -1e4, 0.0, -0.0, 1e-12, -1e-12])
    x, z = x.to(DEVICE, dtype), z.to(DEVICE, dtype)
    outs = [torch.empty_like(x) for _ in range(3)]
    apply_kernel[(1,)](x, z, *outs, BLOCK=256)
    wanted = (z.double().log1p(), F.logsigmoid(x.double()), torch.sigmoid(-x.double()))
    for out, ref in zip(outs, wanted, strict=True):
        tiny = torch.finfo(dtype).tiny
        torch.testing.assert_close(out.double(), ref, rtol=rtol, atol=tiny)

"""The guard that every interpreted test runs under catches what it should, and nothing else."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.interp


def launch(a, b, out):
    from tests.kernels.triton._probes import product_kernel

    product_kernel[(1,)](a, b, out, BLOCK=16)


def test_what_is_inside_passes():
    a, b, out = torch.randn(16, 16), torch.randn(300)[20:276].view(16, 16), torch.empty(16, 16)
    launch(a, b, out)
    torch.testing.assert_close(out, a @ b)


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("behind", [1, 255])
def test_what_lies_behind_a_view_is_out_of_bounds(where, behind):
    """The memory is there, and belongs to the same storage: nothing else would notice."""
    tensors = [torch.randn(16 * 16) for _ in range(3)]
    tensors[where] = torch.randn(1000)[: 256 - behind]
    with pytest.raises(Exception, match="outside of the tensors given") as caught:
        launch(*tensors)
    assert ("a store" if where == 2 else "a load") in str(caught.value)

"""The fixtures do what the other tests rely on."""

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_uninitialised_memory_is_nan(dtype: torch.dtype) -> None:
    x = torch.zeros(3, dtype=dtype)
    for fresh in (
        torch.empty(100, dtype=dtype),
        torch.empty_like(x),
        x.new_empty(17),
        torch.empty_strided((3, 4), (4, 1), dtype=dtype),
    ):
        assert fresh.isnan().all()


def test_uninitialised_integers_are_out_of_range() -> None:
    assert (torch.empty(5, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()

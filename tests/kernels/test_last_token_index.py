"""last_token_index: the token that a reward head should read."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from tests.kernels.criterion import LAYOUTS

RIGHT, LEFT, BOTH, HOLES = [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_either_side_may_be_padded(dtype: torch.dtype, layout: str) -> None:
    mask = torch.tensor([RIGHT, LEFT, BOTH, HOLES, [1] * 4, [0] * 4]).to(dtype)
    index = mk.last_token_index(LAYOUTS[layout](mask))
    assert index.dtype == torch.int64
    assert index.tolist() == [1, 3, 2, 2, 3, -1]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    assert mk.last_token_index(torch.ones(shape).bool()).tolist() == [-1] * shape[0]


def test_feeds_reward_heads() -> None:
    hidden = torch.randn(2, 3, 4)
    index = mk.last_token_index(torch.tensor([[1, 1, 0], [0, 0, 0]]))
    rewards = mk.reward_heads(hidden, torch.ones(1, 4), token_index=index)
    torch.testing.assert_close(rewards[0, 0], hidden[0, 1].sum())
    assert rewards[1].isnan().all()


def test_validate() -> None:
    mask = torch.tensor([[1, 0], [0, 0]])
    with pytest.raises(
        ValueError, match="attention_mask: expected a real token in every row, got none in row 1"
    ):
        mk.last_token_index(mask, validate=True)
    assert mk.last_token_index(mask[:1], validate=True).tolist() == [0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"attention_mask: expected shape \(B, T\), got \(3,\)"):
        mk.last_token_index(torch.ones(3).bool())
    # Floating masks are additive (0 and -inf) in some libraries: nonzero would mean the opposite.
    with pytest.raises(TypeError, match="attention_mask: expected dtype bool"):
        mk.last_token_index(torch.ones(3, 2))


def test_opcheck_and_compile() -> None:
    mask = torch.tensor([RIGHT, LEFT])
    torch.library.opcheck(torch.ops.maxmin.last_token_index_fwd.default, (mask,))
    compiled = torch.compile(mk.last_token_index, fullgraph=True, backend="aot_eager")
    assert compiled(mask).tolist() == [1, 3]

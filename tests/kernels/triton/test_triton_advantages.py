"""maxmin_advantages by Triton: every scale against loops and against plain PyTorch, NaN rules, repeats."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import LAYOUTS, assert_close_enough, cases, with_layout
from tests.kernels.test_maxmin_advantages import DTYPES, SCALES, by_hand, make_rewards
from tests.kernels.triton.where import DEVICE, on_triton

pytestmark = on_triton


@cases(
    scale=SCALES,
    leave_one_out=[False, True],
    dtype=DTYPES,
    layout=list(LAYOUTS),
    prompts=[0, 1, 2, 5],
    samples=[1, 2, 3, 17],
    groups=[1, 2, 8],
    nan=[0.0, 0.3, 1.0],
)
def test_advantages_agree_with_loops(case):
    rewards = make_rewards(case["prompts"], case["samples"], case["groups"], case["nan"])
    layout = case["layout"] if case["prompts"] else "contiguous"
    r = with_layout(layout, rewards.to(DEVICE, case["dtype"]))
    weights = torch.linspace(0.2, 1, case["groups"], dtype=torch.float64)
    options = {"scale": case["scale"], "leave_one_out": case["leave_one_out"], "eps": 1e-2}
    out = mk.maxmin_advantages(r, weights.to(DEVICE), **options)
    expected = by_hand(r.double().cpu(), weights, **options).to(DEVICE)
    assert_close_enough(out, expected, floor=1e-12 if r.dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_a_batch_agrees_with_plain_pytorch_and_repeats(scale):
    rewards = make_rewards(300, 16, 8, 0.05).to(DEVICE, torch.float32)
    weights = torch.rand(8, device=DEVICE)
    first, again = (mk.maxmin_advantages(rewards, weights, scale=scale) for _ in range(2))
    assert torch.equal(first, again)
    ref = reference.maxmin_advantages(rewards.double(), weights.double(), scale, False, 1e-4)
    peer = reference.maxmin_advantages(rewards, weights, scale, False, 1e-4)
    assert_close_enough(first, ref, peer, floor=2e-6)


def test_equal_rewards_give_zero_and_large_offsets_do_not_matter():
    rewards = torch.full((2, 4, 3), 1e6, device=DEVICE)
    weights = torch.ones(3, device=DEVICE)
    for scale in SCALES:
        assert mk.maxmin_advantages(rewards, weights, scale=scale).eq(0).all()


def test_more_rewards_than_a_program_holds_are_refused():
    rewards, weights = torch.zeros(1, 9000, 1, device=DEVICE), torch.ones(1, device=DEVICE)
    with pytest.raises(ValueError, match="at most 8192 rewards a prompt"):
        mk.maxmin_advantages(rewards, weights)

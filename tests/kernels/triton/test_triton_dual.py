"""maxmin_dual by Triton: it arrives where the reference does, and certifies it; ties, NaN, opposed groups, wide spans."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import LAYOUTS, cases, with_layout
from tests.kernels.triton.where import DEVICE, on_triton

pytestmark = on_triton

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make_rewards(prompts, samples, groups, correlation=0.0):
    """Groups whose rewards have something in common (every second one its opposite, where it is negative)."""
    torch.manual_seed(0)
    own = torch.randn(prompts, samples, groups, dtype=torch.float64)
    shared = torch.randn(prompts, samples, 1, dtype=torch.float64)
    sign = torch.where(torch.arange(groups) % 2 == 0, 1.0, -1.0 if correlation < 0 else 1.0)
    rho = abs(correlation)
    return (1 - rho) ** 0.5 * own + rho**0.5 * shared * sign


def assert_solved(rewards, beta, tol=1e-6, **options):
    out = mk.maxmin_dual(rewards, beta, tol=tol, **options)
    ref = reference.maxmin_dual(rewards.double(), beta, None, tol, 200)
    assert abs(out.weights.sum() - 1) < 1e-12 and bool((out.weights >= 0).all())
    assert out.gap <= max(tol, 1.01 * ref.gap), (out.gap, ref.gap)
    # Neither value is below the optimum, and each is within its gap of it.
    assert abs(out.value - ref.value) <= 1.01 * (out.gap + ref.gap) + 1e-12 * abs(ref.value)
    return out


@cases(
    dtype=DTYPES,
    layout=list(LAYOUTS),
    prompts=[1, 9],
    samples=[2, 3, 12],
    groups=[1, 2, 5],
    correlation=[0.6, -0.6],
    beta=[0.05, 0.7, 5.0],
    nan=[False, True],
)
def test_it_arrives(case):
    rewards = make_rewards(case["prompts"], case["samples"], case["groups"], case["correlation"])
    if case["nan"]:
        rewards[0, 0, 0] = torch.nan
    rewards = with_layout(case["layout"], rewards.to(DEVICE, case["dtype"]))
    assert_solved(rewards, case["beta"])


def test_many_prompts_and_offsets():
    """More than one range of prompts, in more than one tile."""
    rewards = make_rewards(300, 16, 8).to(DEVICE) + torch.linspace(-0.3, 0.3, 8, device=DEVICE)
    assert_solved(rewards, 0.1, tol=1e-8)


def test_repeats_bit_for_bit():
    rewards = make_rewards(40, 8, 3).to(DEVICE)
    first, again = (mk.maxmin_dual(rewards, 0.3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", ["equal", "opposed", "worse", "constant", "integers", "empty"])
def test_special_rewards(kind):
    r = make_rewards(4, 9, 3).to(DEVICE)
    if kind == "equal":
        r = r[..., :1].expand(-1, -1, 3)
    elif kind == "opposed":
        r = torch.stack([r[..., 0], -r[..., 0]], 2)
    elif kind == "worse":
        r[..., 1] -= 50
    elif kind == "constant":
        r = torch.tensor([1.0, 2.0, 1.0], device=DEVICE).expand(4, 9, 3)
    elif kind == "integers":
        r = r.round()
    else:
        r[2] = torch.nan
    out = assert_solved(r, 0.5)
    if kind == "equal":
        torch.testing.assert_close(out.weights.cpu(), torch.full((3,), 1 / 3, dtype=torch.float64))
    if kind == "worse":
        assert out.weights.tolist() == [0, 1, 0]
    if kind == "empty":
        assert out.ess[2] == 0


def test_where_the_quick_method_does_not_arrive_the_plain_one_does():
    torch.manual_seed(1)
    rewards = 3000 * torch.randn(6, 4, 6, dtype=torch.float64, device=DEVICE)
    assert_solved(rewards, 1.0, tol=1e-4)


def test_few_steps_give_an_honest_gap_and_weights_are_evaluated():
    rewards = make_rewards(8, 16, 4).to(DEVICE)
    short = mk.maxmin_dual(rewards, 0.3, max_iter=3)
    assert short.gap > 1e-4
    given = mk.maxmin_dual(rewards, 0.3, weights=short.weights)
    torch.testing.assert_close(given.gap, short.gap)


def test_the_gradient_of_the_value():
    rewards = make_rewards(3, 8, 3).to(DEVICE).requires_grad_()
    (grad,) = torch.autograd.grad(mk.maxmin_dual(rewards, 0.7, tol=1e-9).value, rewards)
    r = rewards.detach()
    direction = torch.randn_like(r)
    up, down = (mk.maxmin_dual(r + e * direction, 0.7, tol=1e-12).value for e in (1e-4, -1e-4))
    torch.testing.assert_close((grad * direction).sum(), (up - down) / 2e-4, rtol=1e-5, atol=1e-7)

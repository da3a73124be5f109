"""maxmin_advantages: rewards by group to one advantage a sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import maxmin_kernels as mk
from tests.kernels.criterion import LAYOUTS, assert_close_enough, cases, with_layout
from tests.kernels.harness import assert_compiles, fake_outputs

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCALES = ["none", "group", "prompt", "batch"]


def make_rewards(prompts: int = 3, samples: int = 6, groups: int = 2, nan: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(prompts)
    rewards = torch.randn(prompts, samples, groups, generator=g, dtype=torch.float64)
    rewards[torch.rand(rewards.shape, generator=g) < nan] = torch.nan
    return rewards


def by_hand(
    rewards: Tensor, weights: Tensor, scale: str, leave_one_out: bool, eps: float
) -> Tensor:
    """One prompt, one group, one sample at a time."""
    n_prompts, n_samples, n_groups = rewards.shape
    plain = torch.zeros(n_prompts, n_samples, dtype=torch.float64)
    out = plain.clone()
    degrees = []
    for p in range(n_prompts):
        for k in range(n_groups):
            r = rewards[p, :, k]
            there = (~r.isnan()).nonzero().flatten().tolist()
            spread = r[there].std().item() if len(there) > 1 else 0.0
            for s in there:
                others = [t for t in there if t != s] if leave_one_out else there
                a = (r[s] - r[others].mean()).item() if others else 0.0
                out[p, s] += weights[k] * a / (spread + eps if scale == "group" else 1.0)
                plain[p, s] += weights[k] * (r[s] - r[there].mean())
        degrees.append(max(0, int((~rewards[p].isnan()).any(-1).sum()) - 1))
    squares = plain.square().sum(1)
    freedom = torch.tensor(degrees, dtype=torch.float64)
    if scale == "prompt":
        return out / ((squares / freedom.clamp_min(1)).sqrt() + eps)[:, None]
    if scale == "batch":
        return out / ((squares.sum() / freedom.sum().clamp_min(1)).sqrt() + eps)
    return out


@cases(
    scale=SCALES,
    leave_one_out=[False, True],
    dtype=DTYPES,
    layout=list(LAYOUTS),
    prompts=[1, 2, 5],
    samples=[1, 2, 3, 17],
    groups=[1, 2, 8],
    nan=[0.0, 0.3, 1.0],
)
def test_agrees_with_loops(case: dict) -> None:
    rewards = make_rewards(case["prompts"], case["samples"], case["groups"], case["nan"])
    r = with_layout(case["layout"], rewards.to(case["dtype"]))
    weights = torch.linspace(0.2, 1, case["groups"], dtype=torch.float64)
    options = {"scale": case["scale"], "leave_one_out": case["leave_one_out"], "eps": 1e-2}
    out = mk.maxmin_advantages(r, weights, **options)
    assert out.dtype == (torch.float64 if r.dtype == torch.float64 else torch.float32)
    expected = by_hand(r.double(), weights, **options)
    assert_close_enough(out, expected, floor=1e-12 if r.dtype == torch.float64 else 1e-5)


def test_grpo_and_rloo_of_the_weighted_reward() -> None:
    """Without NaN the usual formulas, of the one reward that the groups' add up to."""
    rewards, weights = make_rewards(4, 8, 3), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    one = rewards @ weights
    mean, std = one.mean(1, keepdim=True), one.std(1, keepdim=True)
    rloo = one - (one.sum(1, keepdim=True) - one) / 7
    for options, expected in (
        ({}, one - mean),
        ({"scale": "prompt"}, (one - mean) / (std + 1e-4)),
        ({"leave_one_out": True}, rloo),
    ):
        torch.testing.assert_close(mk.maxmin_advantages(rewards, weights, **options), expected)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_offsets_of_a_prompt_do_not_matter(scale: str, leave_one_out: bool) -> None:
    rewards, weights = make_rewards(nan=0.2), torch.tensor([0.4, 0.6])
    options = {"scale": scale, "leave_one_out": leave_one_out}
    offsets = 100 * torch.randn(3, 1, 2, dtype=torch.float64)
    torch.testing.assert_close(
        mk.maxmin_advantages(rewards + offsets, weights, **options),
        mk.maxmin_advantages(rewards, weights, **options),
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_groups_own_scale_does_not_matter_when_scaled_by_group() -> None:
    rewards, weights = make_rewards(), torch.tensor([0.4, 0.6])
    factor = torch.tensor([1.0, 50.0], dtype=torch.float64)
    a, b = (
        mk.maxmin_advantages(r, weights, scale="group", eps=0.0)
        for r in (rewards, rewards * factor)
    )
    torch.testing.assert_close(a, b)


def test_nan_is_an_average_sample_of_that_group_only() -> None:
    rewards, weights = make_rewards(1, 4, 2), torch.tensor([0.5, 0.5], dtype=torch.float64)
    rewards[0, 1, 0] = torch.nan
    out = mk.maxmin_advantages(rewards, weights)
    centred = rewards[0, :, 1] - rewards[0, :, 1].mean()
    assert out[0, 1].item() == pytest.approx(0.5 * centred[1].item())
    rewards[0, 1, 1] = torch.nan
    rest = torch.cat([rewards[:, :1], rewards[:, 2:]], 1)
    for scale in SCALES:
        whole = mk.maxmin_advantages(rewards, weights, scale=scale)[0]
        assert whole[1] == 0
        kept = mk.maxmin_advantages(rest, weights, scale=scale)[0]
        torch.testing.assert_close(whole[[0, 2, 3]], kept)


def test_a_nan_weight_is_not_hidden() -> None:
    out = mk.maxmin_advantages(make_rewards(), torch.tensor([0.5, torch.nan]))
    assert out.isnan().all()


@pytest.mark.parametrize("scale", SCALES)
def test_equal_rewards_have_no_advantage(scale: str) -> None:
    rewards = torch.full((2, 5, 3), 7.25)
    assert (mk.maxmin_advantages(rewards, torch.ones(3), scale=scale) == 0).all()


def test_is_a_constant() -> None:
    rewards = make_rewards().requires_grad_()
    assert not mk.maxmin_advantages(rewards, torch.ones(2)).requires_grad


@pytest.mark.parametrize("shape", [(0, 4, 2), (3, 0, 2), (3, 4, 0)])
@pytest.mark.parametrize("scale", SCALES)
def test_empty(shape: tuple[int, ...], scale: str) -> None:
    out = mk.maxmin_advantages(torch.empty(shape), torch.ones(shape[2]), scale=scale)
    assert out.shape == shape[:2] and (out == 0).all()


def test_opcheck_compiles_and_fakes() -> None:
    rewards, weights = make_rewards(nan=0.2).float(), torch.tensor([0.4, 0.6])
    for scale in SCALES:
        torch.library.opcheck(
            torch.ops.maxmin.maxmin_advantages_fwd.default, (rewards, weights, scale, True, 1e-4)
        )
    w = weights.requires_grad_()
    assert_compiles(lambda w: mk.maxmin_advantages(rewards, w, scale="prompt") * w.sum(), [w])
    fake = fake_outputs(mk.maxmin_advantages, [rewards.transpose(0, 1), weights])
    assert (fake.shape, fake.dtype) == ((6, 3), torch.float32)


R = torch.ones(2, 3, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rewards": R[0]}, ValueError, r"rewards: expected shape \(P, S, K\), got \(3, 2\)"),
        ({"rewards": R.int()}, TypeError, "rewards: expected dtype"),
        ({"weights": torch.ones(3)}, ValueError, r"weights: expected shape \(2,\), got \(3,\)"),
        ({"weights": torch.ones(2, device="meta")}, ValueError, "weights: expected device cpu"),
        (
            {"scale": "sum"},
            ValueError,
            "scale: expected one of none, group, prompt, batch, got 'sum'",
        ),
        ({"eps": -1.0}, ValueError, r"eps: expected a number in \[0, inf\], got -1"),
        ({"rewards": R / 0, "validate": True}, ValueError, "rewards: expected finite numbers"),
        (
            {"weights": torch.tensor([1.0, torch.nan]), "validate": True},
            ValueError,
            "weights: expected finite numbers",
        ),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mk.maxmin_advantages(**({"rewards": R, "weights": torch.ones(2)} | change))

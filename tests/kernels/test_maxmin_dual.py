"""maxmin_dual: the MaxMin weights of samples, (13)-(15), against other programs and its own certificate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from torch import Tensor

import maxmin_kernels as mk
from tests.kernels.criterion import LAYOUTS, cases, with_layout
from tests.kernels.harness import assert_compiles, fake_outputs

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make_rewards(
    prompts: int = 6, samples: int = 32, groups: int = 3, correlation: float = 0.0, seed: int = 0
) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    own = torch.randn(prompts, samples, groups, generator=g, dtype=torch.float64)
    shared = torch.randn(prompts, samples, 1, generator=g, dtype=torch.float64)
    sign = torch.where(torch.arange(groups) % 2 == 0, 1.0, -1.0 if correlation < 0 else 1.0)
    rho = abs(correlation)
    return (1 - rho) ** 0.5 * own + rho**0.5 * shared * sign


def dual_value(w: np.ndarray, r: np.ndarray, beta: float) -> float:
    """(13), for rewards without NaN."""
    return beta * np.mean(special.logsumexp(r @ w / beta, 1) - np.log(r.shape[1]))


def primal(policy: np.ndarray, r: np.ndarray, beta: float) -> np.ndarray:
    """F_k of (12) for a policy (P, S) over the samples."""
    kl = np.mean(np.sum(special.xlogy(policy, policy * r.shape[1]), 1))
    return np.mean(np.einsum("ps,psk->pk", policy, r), 0) - beta * kl


def policy_of(w: np.ndarray, r: np.ndarray, beta: float) -> np.ndarray:
    return special.softmax(r @ w / beta, 1)


def numbers(solution: mk.DualSolution) -> list[np.ndarray]:
    return [t.detach().numpy() for t in solution]


@pytest.mark.parametrize("correlation", [0.6, 0.0, -0.6])
@pytest.mark.parametrize("beta", [0.1, 0.7, 5.0])
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_agrees_with_a_general_solver(correlation: float, beta: float, groups: int) -> None:
    rewards = make_rewards(groups=groups, correlation=correlation)
    w, value, utilities, gap, ess = numbers(mk.maxmin_dual(rewards, beta))
    r = rewards.numpy()
    solved = optimize.minimize(
        dual_value,
        np.full(groups, 1 / groups),
        (r, beta),
        method="SLSQP",
        bounds=[(0, 1)] * groups,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert value == pytest.approx(solved.fun, abs=1e-6) and value <= solved.fun + 1e-9
    np.testing.assert_allclose(w, solved.x, atol=3e-3)
    # The certificate, from the weights alone and by another route: D(w) - min F.
    policy = policy_of(w, r, beta)
    assert value == pytest.approx(dual_value(w, r, beta), abs=1e-10)
    assert dual_value(w, r, beta) - primal(policy, r, beta).min() == pytest.approx(gap, abs=1e-9)
    assert 0 <= gap <= 1e-6
    np.testing.assert_allclose(utilities, np.einsum("ps,psk->k", policy, r) / len(r), atol=1e-10)
    np.testing.assert_allclose(ess, 1 / (policy**2).sum(1), rtol=1e-8)


def test_no_policy_does_better_and_no_weights_lower() -> None:
    rewards, beta = make_rewards(groups=4), 0.5
    w, value, *_ = numbers(mk.maxmin_dual(rewards, beta))
    r = rewards.numpy()
    rng = np.random.default_rng(0)
    best = policy_of(w, r, beta)
    for _ in range(200):
        near = rng.uniform() * best + rng.uniform() * rng.dirichlet(np.ones(32), 6)
        assert primal(near / near.sum(1, keepdims=True), r, beta).min() <= value + 1e-9
        assert dual_value(rng.dirichlet(np.ones(4)), r, beta) >= value - 1e-9


def test_groups_with_weight_are_the_worst_off() -> None:
    """The conditions under (15), with a group that gets no weight."""
    rewards = make_rewards(groups=4)
    rewards[..., 3] += 5
    w, _, utilities, gap, _ = numbers(mk.maxmin_dual(rewards, 0.5))
    assert w[3] == 0 and (w[:3] > 0.05).all() and gap < 1e-9
    np.testing.assert_allclose(utilities[:3], utilities.min(), atol=1e-8)
    assert utilities[3] > utilities.min() + 1


@pytest.mark.parametrize("prompts", [1, 40])
def test_small_beta_is_a_linear_program(prompts: int) -> None:
    """beta → 0: min over w of E max over samples of ⟨w, r⟩."""
    rewards, beta = make_rewards(prompts, 16, 3), 1e-4
    solution = mk.maxmin_dual(rewards, beta)
    r = rewards.numpy()
    # Variables w (3) and t (P): t_p >= <w, r_ps>.
    rows = r.reshape(-1, 3)
    a_ub = np.hstack([rows, -np.repeat(np.eye(prompts), 16, 0)])
    cost = np.r_[np.zeros(3), np.full(prompts, 1 / prompts)]
    bounds = [(0, 1)] * 3 + [(None, None)] * prompts
    a_eq = [np.r_[np.ones(3), np.zeros(prompts)]]
    exact = optimize.linprog(cost, a_ub, np.zeros(len(rows)), a_eq, [1.0], bounds).fun
    assert exact - beta * np.log(16) - 1e-9 <= solution.value.item() <= exact + 1e-9
    assert solution.gap < 1e-6


def test_large_beta_is_the_worst_mean() -> None:
    rewards = make_rewards(groups=5)
    solution = mk.maxmin_dual(rewards, 1e9)
    means = rewards.mean((0, 1))
    assert solution.value.item() == pytest.approx(means.min().item(), abs=1e-8)
    assert solution.weights.argmax() == means.argmin() and solution.gap < 1e-9
    torch.testing.assert_close(solution.ess, torch.full((6,), 32.0).double())


@given(
    groups=st.integers(1, 32),
    prompts=st.integers(1, 4),
    samples=st.integers(1, 20),
    log_beta=st.floats(-3, 6),
    correlation=st.sampled_from([-0.9, 0.0, 0.9]),
    seed=st.integers(0, 99),
)
def test_the_gap_closes(
    groups: int, prompts: int, samples: int, log_beta: float, correlation: float, seed: int
) -> None:
    rewards = make_rewards(prompts, samples, groups, correlation, seed)
    solution = mk.maxmin_dual(rewards, 10**log_beta)
    w, value, utilities, gap, ess = solution
    assert 0 <= gap <= 1e-6
    assert w.min() >= 0 and w.sum().item() == pytest.approx(1, abs=1e-12)
    assert utilities.min() >= value - gap - 1e-9  # F_k and not g_k has the KL term
    assert (ess >= 1 - 1e-12).all() and (ess <= samples + 1e-9).all()


@pytest.mark.parametrize("groups", [2, 8, 32])
@pytest.mark.parametrize("beta", [1e-5, 1e-6])
def test_tiny_beta(groups: int, beta: float) -> None:
    solution = mk.maxmin_dual(make_rewards(8, 64, groups), beta)
    assert solution.gap < 1e-6


@given(kind=st.sampled_from(["binary", "rounded", "sparse"]), seed=st.integers(0, 50))
def test_rewards_with_ties(kind: str, seed: int) -> None:
    rewards = make_rewards(3, 12, 4, seed=seed)
    rewards = {
        "binary": (rewards > 0).double(),
        "rounded": rewards.round(),
        "sparse": torch.where(rewards > 1, rewards, 0.0),
    }[kind]
    for beta in (0.01, 0.3, 30.0):
        assert mk.maxmin_dual(rewards, beta).gap < 1e-6


# ---- cases with known answers


def test_one_group_is_the_soft_maximum() -> None:
    rewards = make_rewards(groups=1)
    solution = mk.maxmin_dual(rewards, 0.3)
    assert solution.weights.tolist() == [1.0] and solution.gap == 0
    expected = dual_value(np.ones(1), rewards.numpy(), 0.3)
    assert solution.value.item() == pytest.approx(expected, abs=1e-12)


def test_opposed_groups_are_left_alone() -> None:
    x = make_rewards(groups=1)
    x = x - x.mean(1, keepdim=True)
    solution = mk.maxmin_dual(torch.cat([x, -x], -1), 0.2)
    torch.testing.assert_close(solution.weights, torch.tensor([0.5, 0.5]).double())
    assert abs(solution.value) < 1e-12 and solution.utilities.abs().max() < 1e-9
    torch.testing.assert_close(solution.ess, torch.full((6,), 32.0).double())


def test_equal_groups_share_the_weight() -> None:
    x = make_rewards(groups=1)
    solution = mk.maxmin_dual(x.expand(-1, -1, 3), 0.2)
    torch.testing.assert_close(solution.weights, torch.full((3,), 1 / 3).double())
    alone = mk.maxmin_dual(x, 0.2)
    assert solution.value.item() == pytest.approx(alone.value.item()) and solution.gap == 0


def test_a_group_worse_off_everywhere_decides() -> None:
    x = make_rewards(groups=1)
    solution = mk.maxmin_dual(torch.cat([x, x + 3], -1), 0.2)
    assert solution.weights.tolist() == [1.0, 0.0] and solution.gap == 0


@pytest.mark.parametrize("rewards", [torch.zeros(2, 5, 3), torch.full((2, 5, 3), 7.0)])
def test_constant_rewards(rewards: Tensor) -> None:
    solution = mk.maxmin_dual(rewards, 0.5)
    assert solution.value.item() == pytest.approx(rewards[0, 0, 0].item()) and solution.gap == 0
    torch.testing.assert_close(solution.ess, torch.full((2,), 5.0).double())


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_follows_the_unit_of_reward(size: float) -> None:
    rewards = make_rewards()
    one = mk.maxmin_dual(rewards, 0.5)
    other = mk.maxmin_dual(rewards * size, 0.5 * size)
    torch.testing.assert_close(other.weights, one.weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(other.value, one.value * size)


def test_offsets_move_the_value_and_lose_no_digits() -> None:
    rewards = make_rewards()
    one, other = mk.maxmin_dual(rewards, 0.5), mk.maxmin_dual(rewards + 1e6, 0.5)
    assert other.gap < 1e-8
    torch.testing.assert_close(other.weights, one.weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.value, one.value + 1e6, rtol=1e-14, atol=0)


# ---- missing samples


def test_samples_with_a_nan_are_left_out() -> None:
    rewards = make_rewards(3, 20)
    rewards[:, 17:, 1] = torch.nan
    torch.testing.assert_close(
        mk.maxmin_dual(rewards, 0.5), mk.maxmin_dual(rewards[:, :17].contiguous(), 0.5)
    )


def test_prompts_without_samples_are_left_out() -> None:
    rewards = make_rewards(4)
    rewards[2] = torch.nan
    whole, rest = mk.maxmin_dual(rewards, 0.5), mk.maxmin_dual(rewards[[0, 1, 3]], 0.5)
    for a, b in zip(whole[:4], rest[:4], strict=True):
        torch.testing.assert_close(a, b)
    assert whole.ess[2] == 0
    torch.testing.assert_close(whole.ess[[0, 1, 3]], rest.ess)


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 0, 3), (0, 4, 3)])
def test_no_samples_at_all(shape: tuple[int, ...]) -> None:
    rewards = torch.full(shape, torch.nan, requires_grad=True)
    solution = mk.maxmin_dual(rewards, 0.5)
    assert all(t.isnan().all() for t in solution[:4])
    assert (torch.autograd.grad(solution.value, rewards)[0] == 0).all()
    assert solution.ess.tolist() == [0.0] * shape[0]


# ---- given weights


def test_given_weights_are_evaluated() -> None:
    rewards, beta = make_rewards(), 0.5
    best = mk.maxmin_dual(rewards, beta)
    again = mk.maxmin_dual(rewards, beta, weights=best.weights)
    torch.testing.assert_close(again, best)
    even = mk.maxmin_dual(rewards, beta, weights=torch.full((3,), 1 / 3))
    assert even.gap > 1e-3 and even.value > best.value + 1e-5
    r, w = rewards.numpy(), even.weights.numpy()
    gap = dual_value(w, r, beta) - primal(policy_of(w, r, beta), r, beta).min()
    assert even.gap.item() == pytest.approx(gap, abs=1e-7)


def test_the_gap_on_fresh_samples_is_larger() -> None:
    solution = mk.maxmin_dual(make_rewards(8, 64, 2), 0.7)
    fresh = mk.maxmin_dual(make_rewards(8, 64, 2, seed=1), 0.7, weights=solution.weights)
    assert solution.gap < 1e-7 and fresh.gap > 1e-3


# ---- as an operation


@cases(
    dtype=DTYPES,
    layout=list(LAYOUTS),
    prompts=[1, 3],
    samples=[1, 17, 64],
    groups=[1, 2, 8, 33],
)
def test_dtypes_and_layouts(case: dict) -> None:
    rewards = make_rewards(case["prompts"], case["samples"], case["groups"])
    r = with_layout(case["layout"], rewards.to(case["dtype"]))
    out = mk.maxmin_dual(r, 0.5)
    assert all(t.dtype == torch.float64 for t in out)
    torch.testing.assert_close(out, mk.maxmin_dual(r.double().contiguous(), 0.5))
    assert out.gap < 1e-6


def test_value_is_differentiable() -> None:
    rewards = make_rewards(2, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r: mk.maxmin_dual(r, 0.7).value, rewards, eps=1e-5, atol=1e-6
    )
    other = rewards.detach().clone()
    other[0, 1] = torch.nan
    other.requires_grad_()
    (grad,) = torch.autograd.grad(mk.maxmin_dual(other, 0.7).value, other)
    assert (grad[0, 1] == 0).all() and grad.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_in_the_rewards_dtype(dtype: torch.dtype) -> None:
    rewards = make_rewards().to(dtype).requires_grad_()
    solution = mk.maxmin_dual(rewards, 0.7)
    (grad,) = torch.autograd.grad(2 * solution.value, rewards)
    assert grad.dtype == dtype
    policy = (rewards.detach().double() @ solution.weights / 0.7).softmax(1)
    expected = 2 * policy[..., None] * solution.weights / 6
    torch.testing.assert_close(grad.double(), expected, rtol=1e-2, atol=1e-3)
    assert not any(t.requires_grad for t in (solution.weights, solution.gap, solution.ess))


def test_opcheck() -> None:
    rewards = make_rewards(2, 5).requires_grad_()
    for weights in (None, torch.tensor([0.2, 0.3, 0.5]).double()):
        torch.library.opcheck(
            torch.ops.maxmin.maxmin_dual_fwd.default, (rewards, 0.7, weights, 1e-6, 50)
        )
    torch.library.opcheck(
        torch.ops.maxmin.maxmin_dual_bwd.default,
        (torch.ones(()).double(), rewards.detach(), torch.full((3,), 1 / 3).double(), 0.7),
    )


def test_compiles() -> None:
    rewards = make_rewards(2, 5).float().requires_grad_()
    assert_compiles(lambda r: mk.maxmin_dual(r, 0.7).value, [rewards])


def test_fake_tensors() -> None:
    rewards = make_rewards().float()
    fakes = fake_outputs(lambda r: mk.maxmin_dual(r, 0.5), [rewards])
    for real, fake in zip(mk.maxmin_dual(rewards, 0.5), fakes, strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_repeats_bit_for_bit() -> None:
    rewards = make_rewards()
    runs = [mk.maxmin_dual(rewards, 0.5) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_few_iterations_give_an_honest_gap() -> None:
    rewards = make_rewards()
    solution = mk.maxmin_dual(rewards, 0.01, max_iter=2)
    r, w = rewards.numpy(), solution.weights.numpy()
    gap = dual_value(w, r, 0.01) - primal(policy_of(w, r, 0.01), r, 0.01).min()
    assert solution.gap.item() == pytest.approx(gap, abs=1e-9) and gap > 1e-3


R = torch.ones(2, 3, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rewards": R[0]}, ValueError, r"rewards: expected shape \(P, S, K\), got \(3, 2\)"),
        ({"rewards": R[..., :0]}, ValueError, "rewards: expected at least one group"),
        ({"rewards": R.int()}, TypeError, "rewards: expected dtype"),
        ({"beta": 0.0}, ValueError, r"beta: expected a number in \(0, inf\), got 0"),
        ({"beta": float("nan")}, ValueError, r"beta: expected .* got nan"),
        ({"beta": torch.ones(())}, TypeError, "beta: expected a number, got Tensor"),
        ({"tol": 0}, ValueError, r"tol: expected a number in \(0, inf\], got 0"),
        ({"max_iter": 0}, ValueError, r"max_iter: expected a number in \[1, inf\], got 0"),
        ({"weights": torch.ones(3)}, ValueError, r"weights: expected shape \(2,\), got \(3,\)"),
        (
            {"weights": torch.ones(2), "validate": True},
            ValueError,
            "weights: expected a sum of 1, got 2",
        ),
        ({"rewards": R / 0, "validate": True}, ValueError, "rewards: expected finite numbers"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mk.maxmin_dual(**({"rewards": R, "beta": 1.0} | change))

"""solve_maxmin: the policy that is best for the worst-off group, its certificate, and what others make of it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, special

from maxmin_rlhf import evaluate_maxmin, solve_maxmin
from maxmin_rlhf.welfare import Solution

quiet = pytest.mark.filterwarnings("ignore:solve_maxmin. at")


def make_rewards(
    prompts: int = 5, samples: int = 40, groups: int = 2, correlation: float = 0.0, seed: int = 0
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((prompts, samples, groups))
    own[..., 1:] = correlation * own[..., :1] + np.sqrt(1 - correlation**2) * own[..., 1:]
    return own


def worth(policy: np.ndarray, r: np.ndarray, beta: float) -> np.ndarray:
    """F_k of (12): expected reward less the KL term."""
    kl = np.mean(np.sum(special.xlogy(policy, policy * r.shape[1]), 1))
    return np.einsum("ps,psk->k", policy, r) / len(r) - beta * kl


@quiet
@pytest.mark.parametrize("correlation", [0.5, 0.0, -0.5, -1.0])
@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_the_certificate_holds_by_hand(correlation: float, beta: float) -> None:
    r = make_rewards(correlation=correlation)
    solution = solve_maxmin(r, beta)
    centred = r - r.mean(1, keepdims=True)
    np.testing.assert_allclose(solution.policy.sum(1), 1)
    expected = special.softmax(centred @ solution.weights / beta, 1)  # (14)
    np.testing.assert_allclose(solution.policy, expected, atol=1e-12)
    utilities = np.einsum("ps,psk->k", expected, centred) / 5
    np.testing.assert_allclose(solution.utilities, utilities, atol=1e-12)
    value = worth(solution.policy, centred, beta).min()
    assert solution.value - value == pytest.approx(solution.gap, abs=1e-10)
    assert 0 <= solution.gap <= 1e-6
    np.testing.assert_allclose(solution.ess, 1 / (expected**2).sum(1))


@quiet
def test_agrees_with_the_primal_problem() -> None:
    """A general solver over the policy itself, which knows nothing of a dual."""
    r, beta = make_rewards(2, 6), 0.5
    centred = r - r.mean(1, keepdims=True)

    def split(x: np.ndarray) -> np.ndarray:
        return special.softmax(x[:12].reshape(2, 6), 1)

    solved = optimize.minimize(
        lambda x: -x[12],
        np.zeros(13),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: worth(split(x), centred, beta) - x[12]},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    solution = solve_maxmin(r, beta)
    assert solution.value == pytest.approx(-solved.fun, abs=1e-6)
    np.testing.assert_allclose(solution.policy, split(solved.x), atol=1e-3)


@quiet
@pytest.mark.parametrize("correlation", [0.0, -0.5, -1.0])
def test_other_objectives_leave_the_worst_off_worse_off(correlation: float) -> None:
    beta, lead = 0.5, []
    for seed in range(5):
        r = make_rewards(1, 200, 2, correlation, seed)
        centred = r - r.mean(1, keepdims=True)
        fair, mean, per_sample = (
            worth(solve_maxmin(r, beta, objective=objective).policy, centred, beta).min()
            for objective in ("maxmin", "mean", "per_sample_min")
        )
        assert fair > mean - 1e-9 and fair > per_sample + 0.01
        lead.append(fair - per_sample)
    assert np.mean(lead) > 0.05


@quiet
def test_opposed_groups() -> None:
    x = make_rewards(1, 200, 1)
    r = np.concatenate([x, -x], -1)
    fair, harsh = (solve_maxmin(r, 0.5, objective=o) for o in ("maxmin", "per_sample_min"))
    assert fair.value == pytest.approx(0, abs=1e-9) and fair.weights == pytest.approx([0.5, 0.5])
    centred = r - r.mean(1, keepdims=True)
    assert worth(harsh.policy, centred, 0.5).min() < -0.05


@quiet
def test_mean() -> None:
    r = make_rewards(groups=3)
    solution = solve_maxmin(r, 0.5, objective="mean", group_weights=[2, 1, 1])
    np.testing.assert_allclose(solution.weights, [0.5, 0.25, 0.25])
    centred = r - r.mean(1, keepdims=True)
    np.testing.assert_allclose(
        solution.policy, special.softmax(centred @ solution.weights / 0.5, 1), atol=1e-12
    )
    assert solution.gap == 0
    average = solution.weights @ worth(solution.policy, centred, 0.5)
    assert solution.value == pytest.approx(average, abs=1e-10)
    even = solve_maxmin(r, 0.5, objective="mean")
    np.testing.assert_allclose(even.weights, 1 / 3)


@quiet
def test_per_sample_min() -> None:
    r = make_rewards(groups=3)
    solution = solve_maxmin(r, 0.5, objective="per_sample_min")
    least = (r - r.mean(1, keepdims=True)).min(-1)
    policy = special.softmax(least / 0.5, 1)
    np.testing.assert_allclose(solution.policy, policy, atol=1e-12)
    assert np.isnan(solution.weights).all() and solution.weights.shape == (3,)
    assert np.isnan(solution.gap)
    soft = 0.5 * np.mean(special.logsumexp(least / 0.5, 1) - np.log(40))
    assert solution.value == pytest.approx(soft, abs=1e-10)


@quiet
@pytest.mark.parametrize("method", ["center", "scale", "win_rate"])
def test_offsets_decide_nothing_once_calibrated(method: str) -> None:
    r = make_rewards()
    offsets = np.random.default_rng(9).standard_normal((5, 1, 2)) * 20
    plain, moved = (solve_maxmin(x, 0.2, calibrate=method) for x in (r, r + offsets))
    np.testing.assert_allclose(moved.weights, plain.weights, atol=1e-5)
    np.testing.assert_allclose(moved.policy, plain.policy, atol=1e-6)
    assert moved.value == pytest.approx(plain.value, abs=1e-7)
    # Uncalibrated, the group with the lower offset has it all.
    raw = solve_maxmin(r + np.array([0.0, 30.0]), 0.2, calibrate=None)
    assert raw.weights.tolist() == [1.0, 0.0] and raw.worst_group == 0


@quiet
def test_numpy_and_torch_agree_and_results_are_numpy() -> None:
    r = make_rewards()
    solution = solve_maxmin(r, 0.5)
    others = [
        solve_maxmin(x, np.float32(0.5)) for x in (torch.from_numpy(r).requires_grad_(), r.tolist())
    ]
    for other in others:
        for name in ("weights", "utilities", "ess", "policy"):
            array = getattr(other, name)
            assert isinstance(array, np.ndarray) and array.dtype == np.float64
            np.testing.assert_array_equal(array, getattr(solution, name))
        assert type(other.value) is float and type(other.gap) is float
    assert solution.weights.shape == solution.utilities.shape == (2,)
    assert solution.ess.shape == (5,) and solution.policy.shape == (5, 40)
    assert isinstance(solve_maxmin(r.astype(np.float32), 0.5), Solution)


@quiet
@pytest.mark.parametrize("objective", ["maxmin", "mean", "per_sample_min"])
def test_missing_samples_and_prompts(objective: str) -> None:
    r = make_rewards(groups=3)
    r[:, 35:, 1] = np.nan
    r[2] = np.nan
    # Without calibration, which uses what single rewards of such samples there are.
    options: dict[str, Any] = {"objective": objective, "calibrate": None}
    solution = solve_maxmin(r, 0.5, **options)
    rest = solve_maxmin(r[[0, 1, 3, 4]][:, :35], 0.5, **options)
    np.testing.assert_allclose(solution.policy[[0, 1, 3, 4]][:, :35], rest.policy, atol=1e-9)
    assert (solution.policy[:, 35:] == 0).all() and (solution.policy[2] == 0).all()
    np.testing.assert_allclose(solution.utilities, rest.utilities, atol=1e-9)
    assert solution.value == pytest.approx(rest.value) and solution.ess[2] == 0


@quiet
def test_the_honest_gap_is_on_fresh_samples() -> None:
    solution = solve_maxmin(make_rewards(8, 64), 0.7)
    again = evaluate_maxmin(make_rewards(8, 64), solution.weights, 0.7)
    assert again.value == pytest.approx(solution.value) and again.gap < 1e-7
    fresh = [
        evaluate_maxmin(make_rewards(8, 64, seed=s), solution.weights, 0.7).gap for s in range(1, 6)
    ]
    assert min(fresh) > 100 * solution.gap and np.mean(fresh) > 5e-3


def test_few_effective_samples_are_reported() -> None:
    with pytest.warns(UserWarning, match=r"at 5 of 5 prompts fewer than 10 samples are behind"):
        solve_maxmin(make_rewards(), 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve_maxmin(make_rewards(), 3.0)
        solve_maxmin(make_rewards(samples=4), 0.001)  # a menu of four


@quiet
def test_a_gap_above_tol_is_reported() -> None:
    r = 1e6 * make_rewards(groups=6)
    with pytest.warns(UserWarning, match=r"the gap is .* above tol = 1e-06"):
        solution = solve_maxmin(r, 0.01)
    assert solution.gap > 1e-6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rewards": np.ones((3, 2))}, ValueError, r"rewards: expected shape \(P, S, K\)"),
        (
            {"rewards": np.array([[[0.0, np.inf]]])},
            ValueError,
            r"rewards: expected finite numbers, got inf at \(0, 0, 1\)",
        ),
        (
            {"rewards": np.full((2, 3, 2), np.nan)},
            ValueError,
            "rewards: expected at least one sample with a reward for every group, got none",
        ),
        ({"rewards": np.ones((2, 0, 2))}, ValueError, "rewards: expected at least one sample"),
        ({"objective": "max"}, ValueError, "objective: expected one of maxmin, mean, softmin"),
        ({"calibrate": "z"}, ValueError, "calibrate: expected one of 'center'"),
        ({"beta": 0}, ValueError, r"beta: expected a number in \(0, inf\), got 0"),
        ({"tol": -1.0}, ValueError, "tol: expected a number in"),
        ({"group_weights": [1.0]}, ValueError, r"group_weights: expected shape \(2,\), got \(1,\)"),
        ({"group_weights": [1.0, -1]}, ValueError, "group_weights: expected numbers >= 0 with a"),
        ({"group_weights": [0.0, 0]}, ValueError, "group_weights: expected numbers >= 0 with a"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve_maxmin(**({"rewards": make_rewards(), "beta": 3.0} | change))


def test_bad_weights_to_evaluate() -> None:
    with pytest.raises(ValueError, match="weights: expected a sum of 1, got 2"):
        evaluate_maxmin(make_rewards(), [1.0, 1.0], 0.5)

"""solve_maxmin for every welfare: against SciPy, its certificate, its limits, its errors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import maxmin_kernels as mk
from maxmin_rlhf import evaluate_maxmin, solve_maxmin
from tests.rlhf.convex import KINDS, Instance, random_instance, value_by_scipy

pytestmark = [
    pytest.mark.filterwarnings("ignore:solve_maxmin. at"),
    pytest.mark.filterwarnings("ignore:solve_maxmin. group"),
]


def solve(instance: Instance, tol: float = 1e-9, **more: Any) -> Any:
    return solve_maxmin(
        instance.rewards,
        instance.beta,
        objective=instance.kind,
        group_weights=instance.shares,
        calibrate=None,
        tol=tol,
        **(instance.options | more),
    )


def unit(instance: Instance, value: float) -> float:
    """What errors are relative to; Nash welfare is a logarithm."""
    return max(abs(value), 1.0 if instance.kind == "nash" else instance.rewards.std())


def welfare(instance: Instance, utilities: np.ndarray) -> Any:
    """Value and weights by the kernels."""
    kind = {"maxmin": "min", "leximin": "min"}.get(instance.kind, instance.kind)
    options = {
        name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for name, value in instance.options.items()
    }
    if kind == "owa":
        options["rank_weights"] /= options["rank_weights"].sum()
    shares = torch.from_numpy(instance.shares)
    return mk.welfare(torch.from_numpy(utilities), kind, group_weights=shares, **options)


def utilities_of(instance: Instance, policy: np.ndarray) -> np.ndarray:
    """F_k, KL term included, from the probabilities alone."""
    n_prompts, n_samples, _ = instance.rewards.shape
    log = np.log(np.maximum(policy, 1e-300) * n_samples)
    return (
        np.einsum("ps,psk->k", policy, instance.rewards) - instance.beta * (policy * log).sum()
    ) / n_prompts


def agree_with_scipy(kind: str, seed: int) -> None:
    instance = random_instance(kind, seed)
    solution = solve(instance)
    value = value_by_scipy(instance)
    assert abs(solution.value - value) <= 1e-8 * unit(instance, value), (kind, seed)
    # And by weak duality, whatever SciPy says: a policy that is worth as much.
    attained = float(welfare(instance, utilities_of(instance, solution.policy)).value)
    assert abs(solution.value - attained) <= 1e-8 * unit(instance, value), (kind, seed)
    assert -1e-13 * unit(instance, value) <= solution.gap <= 1e-9 * unit(instance, value)
    assert solution.relative_gap == pytest.approx(
        solution.gap / unit(instance, solution.value), abs=1e-10
    )


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_scipy(kind: str) -> None:
    for seed in range(4):
        agree_with_scipy(kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_scipy_a_thousand_times(kind: str) -> None:
    for seed in range(4, 88):
        agree_with_scipy(kind, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_is_an_upper_bound_anywhere(kind: str) -> None:
    """At any weights that the welfare may have, not at the optimum only."""
    if kind == "mean":
        pytest.skip("has one weight")
    rng = np.random.default_rng(5)
    for seed in range(3):
        instance = random_instance(kind, seed)
        best = solve(instance).value
        K = len(instance.shares)
        weights = welfare(instance, rng.uniform(1, 3, K)).weights.numpy()
        found = evaluate_maxmin(
            instance.rewards, weights / weights.sum(), instance.beta, objective=kind,
            group_weights=instance.shares, calibrate=None, **instance.options,
        )  # fmt: skip
        attained = float(welfare(instance, utilities_of(instance, found.policy)).value)
        assert found.value >= best - 1e-9 * unit(instance, best)
        if np.isnan(attained):  # no utility for someone: nothing certified
            assert kind in ("nash", "power") and found.gap == np.inf
            continue
        assert attained <= best + 1e-9 * unit(instance, best)
        assert found.gap == pytest.approx(found.value - attained, abs=1e-11 * unit(instance, best))
        assert found.gap > 1e-6


def solved(objective: str, rewards: np.ndarray, **options: Any) -> Any:
    return solve_maxmin(rewards, 0.4, objective=objective, tol=1e-10, **options)


def some_rewards(groups: int = 4, prompts: int = 3, samples: int = 12) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((prompts, samples, groups))


SHARES = [0.4, 0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("objective", "options", "like"),
    [
        ("cvar", {"alpha": 0.1}, "maxmin"),
        ("cvar", {"alpha": 1.0}, "mean"),
        ("tv", {"radius": 1.0}, "maxmin"),
        ("tv", {"radius": 2.0}, "maxmin"),
        ("tv", {"radius": 0.0}, "mean"),
        ("kl", {"radius": 0}, "mean"),
        ("kl", {"radius": np.inf}, "maxmin"),
        ("chi2", {"radius": 0.0}, "mean"),
        ("chi2", {"radius": 9.0}, "maxmin"),
        ("floor", {"floor": [0.0, 0, 0, 0]}, "maxmin"),
        ("floor", {"floor": SHARES}, "mean"),
        ("owa", {"rank_weights": [1.0, 0, 0, 0]}, "maxmin"),
        ("power", {"p": 1}, "mean"),
        ("softmin", {"tau": 1e6}, "mean"),
        ("softmin", {"tau": 1e-7}, "maxmin"),
        ("leximin", {}, "maxmin"),
    ],
)
def test_limits(objective: str, options: dict[str, Any], like: str) -> None:
    r = some_rewards()
    found = solved(objective, r, group_weights=SHARES, **options)
    same = solved(like, r, group_weights=SHARES)
    np.testing.assert_allclose(found.policy, same.policy, atol=1e-5)
    assert found.value == pytest.approx(same.value, abs=1e-6)


def test_equal_rank_weights_are_the_equal_mean() -> None:
    r = some_rewards()
    found, same = solved("owa", r, rank_weights=[7.0, 7, 7, 7]), solved("mean", r)
    np.testing.assert_allclose(found.policy, same.policy, atol=1e-12)


def test_leximin_has_no_second_step() -> None:
    """Rank weights that fall ever more steeply, which break ties of MaxMin by the next worst, arrive at MaxMin."""
    r = some_rewards() + np.array([0, 0.1, 0.3, 1])
    fair = solved("leximin", r, calibrate=None)
    assert fair.weights.min() < 1e-9 and np.ptp(fair.utilities) > 0.1  # one is better off
    distance = [
        np.abs(
            solved("owa", r, rank_weights=x ** np.arange(4.0), calibrate=None).policy - fair.policy
        ).max()
        for x in (0.5, 0.05, 5e-3, 5e-5)
    ]
    assert distance[0] > distance[1] > distance[2] > distance[3] and distance[3] < 1e-4


def test_between_the_mean_and_the_minimum() -> None:
    """The worst-off group gains what the average gives up, step by step."""
    r = some_rewards()

    def both(objective: str, **options: Any) -> tuple[float, float]:
        policy = solved(objective, r, group_weights=SHARES, **options).policy
        u = utilities_of(
            Instance("", r - r.mean(1, keepdims=True), 0.4, np.array(SHARES), {}), policy
        )
        return float(u.min()), float(u @ SHARES)

    for steps in (
        [both("cvar", alpha=a) for a in (1.0, 0.7, 0.4, 0.1)],
        [both("kl", radius=x) for x in (0.0, 0.05, 0.3, 3.0)],
        [both("softmin", tau=t) for t in (1e3, 1.0, 0.1, 1e-3)],
    ):
        worst, mean = zip(*steps, strict=True)
        assert all(np.diff(worst) >= -1e-9) and all(np.diff(mean) <= 1e-9)
        assert worst[-1] > worst[0] + 0.01


OPTIONS: dict[str, dict[str, Any]] = {
    "maxmin": {}, "mean": {}, "leximin": {}, "softmin": {"tau": 0.3}, "cvar": {"alpha": 0.5},
    "owa": {"rank_weights": [4, 2, 1, 0]}, "kl": {"radius": 0.2}, "chi2": {"radius": 0.2},
    "tv": {"radius": 0.2}, "floor": {"floor": [0.1, 0.1, 0, 0], "radius": 0.5},
    "nash": {"calibrate": "win_rate"}, "power": {"p": -1, "calibrate": "win_rate"},
}  # fmt: skip


@pytest.mark.parametrize("objective", KINDS)
def test_offsets_of_prompts_decide_nothing_once_calibrated(objective: str) -> None:
    r = some_rewards()
    offsets = 30 * np.random.default_rng(2).standard_normal((3, 1, 4))
    plain, moved = (solved(objective, x, **OPTIONS[objective]) for x in (r, r + offsets))
    np.testing.assert_allclose(moved.policy, plain.policy, atol=1e-6)
    assert moved.value == pytest.approx(plain.value, abs=1e-8)


@pytest.mark.parametrize("objective", KINDS)
def test_one_group_and_prompts_at_which_all_samples_tie(objective: str) -> None:
    r = some_rewards()
    r[1] = 5.0
    found = solved(objective, r, **OPTIONS[objective])
    np.testing.assert_allclose(found.policy[1], 1 / 12, atol=1e-12)
    assert found.ess[1] == pytest.approx(12) and found.gap < 1e-8
    options = dict(OPTIONS[objective])
    if objective in ("owa", "floor"):
        options |= {"rank_weights": [1]} if objective == "owa" else {"floor": [0.2]}
    one = solved(objective, r[..., :1], **options)
    assert one.weights.tolist() == [1.0] and one.gap == pytest.approx(0, abs=1e-12)
    flat = solved(objective, np.ones((2, 3, 4)), **OPTIONS[objective])
    assert flat.gap == pytest.approx(0, abs=1e-12) and (flat.policy == 1 / 3).all()


@pytest.mark.parametrize("objective", ["maxmin", "cvar", "nash", "kl"])
def test_a_group_without_a_share(objective: str) -> None:
    shares = [0.5, 0.3, 0.2, 0.0]
    found = solved(objective, some_rewards(), group_weights=shares, **OPTIONS[objective])
    if objective == "maxmin":
        assert found.weights[3] > 0  # every group counts
        return
    rest = solved(
        objective, some_rewards()[..., :3], group_weights=shares[:3], **OPTIONS[objective]
    )
    assert found.weights[3] == 0
    np.testing.assert_allclose(found.policy, rest.policy, atol=1e-7)


@pytest.mark.parametrize("objective", ["maxmin", "floor", "owa", "per_sample_min"])
def test_small_groups_are_left_out_and_named(objective: str) -> None:
    r = some_rewards()
    r[0, 3, 2] = np.nan  # of a group that has no say: the sample stays
    shares = [0.5, 0.4, 0.02, 0.08]
    with pytest.warns(UserWarning, match=r"groups \[2\] have a smaller share than min_mass"):
        found = solved(
            objective, r, group_weights=shares, min_mass=0.05, **OPTIONS.get(objective, {})
        )
    assert found.left_out == (2,)
    options = dict(OPTIONS.get(objective, {}))
    if objective in ("floor", "owa"):
        name = "floor" if objective == "floor" else "rank_weights"
        options[name] = [0.1, 0.1, 0] if objective == "floor" else [4, 2, 1]
    rest = solved(objective, r[..., [0, 1, 3]], group_weights=[0.5, 0.4, 0.08], **options)
    np.testing.assert_allclose(found.policy, rest.policy, atol=1e-9)
    np.testing.assert_allclose(found.utilities[[0, 1, 3]], rest.utilities, atol=1e-9)
    if objective != "per_sample_min":
        assert found.weights[2] == 0 and found.worst_group != 2


def test_groups_left_out_have_no_say_in_evaluations() -> None:
    options: dict[str, Any] = {"group_weights": [3, 3, 3, 1], "min_mass": 0.2}
    with pytest.warns(UserWarning, match="left out"):
        found = solved("maxmin", some_rewards(), **options)
    again = evaluate_maxmin(some_rewards(), found.weights, 0.4, **options)
    assert again.gap < 1e-8 and again.left_out == (3,)
    assert evaluate_maxmin(some_rewards(), found.weights, 0.4).gap > 0.01  # all have, here
    with pytest.raises(ValueError, match=r"weights: expected 0 for groups \[3\], left out"):
        evaluate_maxmin(some_rewards(), [0.25] * 4, 0.4, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", KINDS)
def test_on_a_device(objective: str) -> None:
    r = some_rewards()
    there = torch.from_numpy(r).cuda()
    options = OPTIONS[objective]
    here = solved(objective, r, **options)
    for rewards in (there, [there[:1], there[1:]]):
        found = solved(objective, rewards, **options)
        np.testing.assert_allclose(found.weights, here.weights, atol=1e-6)
        assert found.value == pytest.approx(here.value, abs=1e-9)
    np.testing.assert_allclose(solved(objective, there, **options).policy, here.policy, atol=1e-6)


def test_what_a_group_that_is_left_out_gets() -> None:
    r = some_rewards()
    with pytest.warns(UserWarning, match="left out"):
        found = solved("maxmin", r, group_weights=[3, 3, 3, 1], min_mass=0.2)
    centred = r - r.mean(1, keepdims=True)
    expected = np.einsum("ps,psk->k", found.policy, centred) / 3
    np.testing.assert_allclose(found.utilities, expected, atol=1e-12)


@pytest.mark.parametrize("objective", ["maxmin", "kl", "nash"])
def test_the_gap_on_a_second_sample(objective: str) -> None:
    rng = np.random.default_rng(0)
    r, second = rng.standard_normal((2, 8, 64, 4))
    options = OPTIONS[objective]
    found = solve_maxmin(r, 0.7, objective=objective, fresh=second, **options)
    again = evaluate_maxmin(second, found.weights, 0.7, objective=objective, **options)
    assert found.fresh_gap == again.gap > 100 * abs(found.gap)
    assert solve_maxmin(r, 0.7, objective=objective, fresh=r, **options).fresh_gap < 1e-6
    assert solve_maxmin(r, 0.7, objective=objective, **options).fresh_gap is None


def test_batch_argmin_is_decided_by_offsets() -> None:
    r = some_rewards()
    found = solved("batch_argmin", r)
    lowest = r.mean(1).argmin(1)
    centred = r - r.mean(1, keepdims=True)
    score = np.stack([centred[p, :, k] for p, k in enumerate(lowest)]) / 0.4
    expected = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    np.testing.assert_allclose(found.policy, expected, atol=1e-12)
    assert np.isnan(found.gap) and np.isnan(found.weights).all()
    moved = solved("batch_argmin", r - [0, 0, 50, 0])
    np.testing.assert_allclose(
        moved.policy, solved("mean", r, group_weights=[0, 0, 1, 0]).policy, atol=1e-12
    )


def test_a_group_that_is_nearly_always_the_worst_off_is_reported() -> None:
    r = some_rewards()
    with pytest.warns(UserWarning, match="group 2 alone is the worst off at 100 % of the samples"):
        solve_maxmin(r - [0, 0, 9, 0], 3.0, calibrate=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve_maxmin(r, 3.0)


def test_missing_rewards_of_one_group_are_reported() -> None:
    r = some_rewards()
    r[0, :5, 1] = np.nan
    r[2, 3] = np.nan  # no sample at all: nothing is lost
    with pytest.warns(UserWarning, match=r"5 of 35 samples are left out, for groups \[1\]"):
        solve_maxmin(r, 3.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beta": -1.0}, ValueError, r"beta: expected a number in \(0, inf\), got -1"),
        ({"beta": "1"}, TypeError, "beta: expected a number, got str"),
        ({"objective": "softmin"}, ValueError, "tau: expected a number for kind 'softmin'"),
        ({"tau": 1.0}, ValueError, "tau: kind 'min' takes no such parameter"),
        ({"objective": "cvar", "alpha": 0.0}, ValueError, "alpha: expected a number in"),
        ({"objective": "power", "p": 1.5}, ValueError, "p: expected a number in"),
        ({"objective": "kl", "radius": -1.0}, ValueError, "radius: expected a number in"),
        ({"objective": "owa"}, ValueError, "rank_weights: expected a tensor"),
        (
            {"objective": "owa", "rank_weights": [1, 2, 3, 4]},
            ValueError,
            "rank_weights: expected weights that do not rise",
        ),
        ({"objective": "owa", "rank_weights": [1, 1]}, ValueError, r"rank_weights: expected shape \(4,\)"),
        ({"objective": "owa", "rank_weights": [0] * 4}, ValueError, "rank_weights: expected a positive"),
        ({"objective": "floor", "floor": [0.5, 0, 0, 0]}, ValueError, "floor: expected at most the group's"),
        ({"min_mass": 1.0}, ValueError, r"min_mass: expected a number in \[0, 1\), got 1"),
        ({"min_mass": 0.5}, ValueError, "min_mass: expected at most the largest share 0.25, got 0.5"),
        (
            {"objective": "batch_argmin", "fresh": some_rewards()},
            ValueError,
            "fresh: expected None for objective 'batch_argmin'",
        ),
        ({"fresh": some_rewards(3)}, ValueError, "fresh: expected 4 groups as in rewards, got 3"),
        ({"rewards": [some_rewards()], "objective": "per_sample_min"}, ValueError, "expected one array"),
        ({"rewards": iter([some_rewards()])}, TypeError, "gone through more than once"),
        ({"rewards": [some_rewards(), some_rewards(3)]}, ValueError, r"one number of groups, got \[3, 4\]"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve_maxmin(**({"rewards": some_rewards(), "beta": 3.0} | change))


def test_an_empty_group_is_named() -> None:
    r = some_rewards()
    r[..., 1] = np.nan
    for rewards in (r, [r[:1], r[1:]]):
        with pytest.raises(ValueError, match=r"got none; groups \[1\] have no reward at all"):
            solve_maxmin(rewards, 1.0)
    # Its share of nothing, left out, is what to do about it.
    with pytest.warns(UserWarning, match=r"groups \[1\] have a smaller share"):
        found = solve_maxmin(r, 1.0, group_weights=[1, 0, 1, 1], min_mass=1e-9)
    rest = solve_maxmin(r[..., [0, 2, 3]], 1.0)
    np.testing.assert_allclose(found.policy, rest.policy, atol=1e-9)


@pytest.mark.parametrize("options", [{"objective": "nash"}, {"objective": "power", "p": -1.0}])
def test_nash_needs_positive_utilities(options: dict[str, Any]) -> None:
    r = some_rewards() + 5
    assert solve_maxmin(r, 0.5, calibrate=None, **options).gap < 1e-5
    r[..., 2] -= 20
    with pytest.raises(
        ValueError, match=r"groups \[2\] cannot have one even alone. Fix where zero"
    ):
        solve_maxmin(r, 0.5, calibrate=None, **options)
    opposed = np.concatenate([r[..., :1] - 5, 5 - r[..., :1]], -1)
    with pytest.raises(ValueError, match="but the worst-off group's is"):
        solve_maxmin(opposed, 0.5, **options)
    # A group without a share may be as badly off as it likes.
    solve_maxmin(r, 0.5, calibrate=None, group_weights=[1, 1, 0, 1], **options)


def test_bad_arguments_to_evaluate() -> None:
    r = some_rewards()
    with pytest.raises(ValueError, match=r"weights: expected shape \(4,\), got \(2,\)"):
        evaluate_maxmin(r, [0.5, 0.5], 1.0)
    with pytest.raises(ValueError, match="weights: expected numbers >= 0"):
        evaluate_maxmin(r, [1.5, -0.5, 0, 0], 1.0)
    with pytest.raises(ValueError, match="objective: expected one of maxmin, mean"):
        evaluate_maxmin(r, [1, 0, 0, 0], 1.0, objective="per_sample_min")

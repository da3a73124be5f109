"""MaxMinWeights: running means, each method's rule, absent groups, state, several processes."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import maxmin_kernels as mk
from maxmin_rlhf import MaxMinWeights

NAN = math.nan


def batches(n: int, groups: int = 3, size: int = 16, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.linspace(-0.5, 0.5, groups)
    return [torch.randn(size, groups, generator=generator) + offsets for _ in range(n)]


def test_softmin_of_a_running_mean_by_hand() -> None:
    weights = MaxMinWeights(2, tau=0.5, momentum=0.75, group_weights=[3.0, 1.0])
    np.testing.assert_allclose(weights.weights, [0.75, 0.25])
    weights.update([[1.0, -1.0], [3.0, 1.0]])  # means 2, 0
    weights.update([[-2.0, 4.0]])  # running 1, 1
    np.testing.assert_allclose(weights.utilities, [1.0, 1.0])
    np.testing.assert_allclose(weights.weights, [0.75, 0.25])
    found = weights.update([[1.0, 5.0]])  # running 1, 2
    expected = np.array([0.75 * np.exp(-2.0), 0.25 * np.exp(-4.0)])
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "kind", "parameters"),
    [
        ("argmin", "min", {}),
        ("mean", "mean", {}),
        ("cvar", "cvar", {"alpha": 0.4}),
        ("kl", "kl", {"radius": 0.2}),
        ("chi2", "chi2", {"radius": 0.3}),
        ("tv", "tv", {"radius": 0.2}),
        ("leximin", "leximin", {}),
        ("power", "power", {"p": 1.0}),
    ],
)
def test_every_welfare_of_the_running_mean(
    method: str, kind: str, parameters: dict[str, float]
) -> None:
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    weights = MaxMinWeights(3, method, group_weights=shares, **parameters)
    for batch in batches(4):
        found = weights.update(batch)
    expected = mk.welfare(weights.utilities, kind, group_weights=shares, **parameters).weights
    np.testing.assert_array_equal(found, expected)


def test_tensors_as_parameters() -> None:
    weights = MaxMinWeights(3, "floor", floor=[0.1, 0.2, 0.1])
    np.testing.assert_allclose(weights.update([[0.0, 1.0, 2.0]]), [0.7, 0.2, 0.1])
    weights = MaxMinWeights(3, "owa", rank_weights=[0.6, 0.3, 0.1])
    np.testing.assert_allclose(weights.update([[1.0, 0.0, 2.0]]), [0.3, 0.6, 0.1])


def test_exponentiated_gradient_by_hand() -> None:
    weights = MaxMinWeights(2, "exponentiated_gradient", lr=0.3)
    weights.update([[1.0, 0.0]])
    found = weights.update([[2.0, -1.0]])
    assert float(found[1] / found[0]) == pytest.approx(math.exp(0.3 * (1 + 3)))


def test_optimistic_looks_one_step_ahead() -> None:
    weights = MaxMinWeights(2, "optimistic", lr=0.3)
    weights.update([[1.0, 0.0]])
    found = weights.update([[2.0, -1.0]])  # 2 u - last = (3, -2)
    assert float(found[1] / found[0]) == pytest.approx(math.exp(0.3 * (1 + 5)))


def test_fixed_weights_stay() -> None:
    weights = MaxMinWeights(3, "fixed", initial=[1.0, 1.0, 2.0])
    for batch in batches(3):
        np.testing.assert_array_equal(weights.update(batch), [0.25, 0.25, 0.5])
    assert weights.steps == 3 and not weights.utilities.isnan().any()


@pytest.mark.filterwarnings("ignore:MaxMinWeights. group")
@pytest.mark.parametrize("method", ["softmin", "exponentiated_gradient", "optimistic"])
def test_against_a_policy_that_answers_best(method: str) -> None:
    """Two responses, each worth something to one group alone; the policy is (14) for the weights of the moment."""
    worth, beta, tau = torch.tensor([1.0, 2.0], dtype=torch.float64), 0.5, 0.3
    weights = MaxMinWeights(2, method, lr=0.05, tau=tau if method == "softmin" else None)
    for _ in range(600):
        utilities = worth * torch.softmax(weights.weights * worth / beta, 0)
        weights.update(utilities[None])
    if method == "softmin":  # the saddle point of its own, softer problem
        expected = torch.softmax(-utilities / tau, 0)
        np.testing.assert_allclose(weights.weights, expected, atol=1e-6)
    else:
        assert abs(float(utilities[0] - utilities[1])) < 1e-3


# ---- what is missing


def test_an_absent_group_keeps_its_running_mean() -> None:
    weights = MaxMinWeights(2, momentum=0.5)
    weights.update([[1.0, 3.0]])
    weights.update([[2.0, NAN], [4.0, NAN]])
    np.testing.assert_allclose(weights.utilities, [2.0, 3.0])
    weights.update([[0.0, 1.0], [9.0, 9.0]], mask=[[True, True], [False, False]])
    np.testing.assert_allclose(weights.utilities, [1.0, 2.0])
    weights.update(torch.empty(0, 2))
    np.testing.assert_allclose(weights.utilities, [1.0, 2.0])


def test_weights_wait_for_every_group() -> None:
    weights = MaxMinWeights(3, group_weights=[0.5, 0.3, 0.2])
    with pytest.warns(UserWarning, match=r"groups \[2\] gave no reward so far"):
        weights.update([[1.0, 0.0, NAN]])
    np.testing.assert_allclose(weights.weights, [0.5, 0.3, 0.2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        weights.update([[1.0, 0.0, NAN]])
    weights.update([[1.0, 0.0, -1.0]])
    assert int(weights.weights.argmax()) == 2


def test_the_alarm_of_a_dominant_group() -> None:
    weights = MaxMinWeights(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(99):
            weights.update([[-5.0, 0.0]])
    with pytest.warns(UserWarning, match="group 0 was the worst off in more than 95%"):
        weights.update([[-5.0, 0.0]])


def test_bad_rewards_leave_the_state_alone() -> None:
    weights = MaxMinWeights(2, "nash")
    weights.update([[1.0, 2.0]])
    before = json.dumps(weights.state_dict())
    with pytest.raises(ValueError, match=r"positive mean rewards for method 'nash', got -8.1 for"):
        weights.update([[1.0, -99.0]])
    with pytest.raises(ValueError, match=r"rewards: expected finite numbers, got inf for group 1"):
        weights.update([[1.0, math.inf]])
    with pytest.raises(ValueError, match=r"rewards: expected finite numbers, got inf for group 0"):
        weights.update([[math.inf, 1.0], [-math.inf, 1.0]])
    with pytest.raises(ValueError, match=r"rewards: expected shape \(B, 2\), got \(1, 3\)"):
        weights.update([[1.0, 2.0, 3.0]])
    assert json.dumps(weights.state_dict()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_groups": 0}, "n_groups: expected an integer >= 1, got 0"),
        ({"method": "worst"}, "method: expected one of softmin, .*, got 'worst'"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({"lr": 0.0}, "lr: expected a number > 0, got 0.0"),
        ({"tau": -1.0}, "tau: expected a number in"),
        ({"method": "kl"}, "radius: expected a number for kind 'kl', got None"),
        ({"method": "argmin", "tau": 0.1}, "tau: kind 'min' takes no such parameter"),
        ({"method": "optimistic", "radius": 1.0}, "radius: method 'optimistic' takes no such"),
        ({"method": "fixed"}, r"initial: expected weights \(K,\) for method 'fixed', got None"),
        ({"initial": [1.0]}, r"initial: expected shape \(2,\), got \(1,\)"),
        ({"group_weights": [1.0, -1.0]}, "group_weights: expected numbers >= 0"),
        ({"method": "floor", "floor": [0.9, 0.9]}, "floor: expected at most the group's share"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaxMinWeights(**{"n_groups": 2, **arguments})


# ---- state


@pytest.mark.parametrize("method", ["softmin", "exponentiated_gradient", "optimistic"])
def test_state_through_json_is_exact(method: str) -> None:
    whole, first = MaxMinWeights(3, method), MaxMinWeights(3, method)
    data = batches(6)
    data[0][:, 1] = NAN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in data:
            whole.update(batch)
        for batch in data[:1]:
            first.update(batch)
        second = MaxMinWeights(3, method)
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        for batch in data[1:]:
            second.update(batch)
    assert second.state_dict() == whole.state_dict()
    assert not torch.equal(whole.weights, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_state_of_something_else() -> None:
    state = MaxMinWeights(2).state_dict()
    with pytest.raises(ValueError, match="state: expected method 'argmin', got 'softmin'"):
        MaxMinWeights(2, "argmin").load_state_dict(state)
    with pytest.raises(ValueError, match="state: expected 3 groups, got 2"):
        MaxMinWeights(3).load_state_dict(state)
    with pytest.raises(ValueError, match="state: expected format 1, got None"):
        MaxMinWeights(2).load_state_dict({})


# ---- several processes


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    weights = MaxMinWeights(3)
    steps = []
    for batch in batches(5):
        mine = batch[:6] if rank == 0 else batch[6:]  # unequal parts
        if rank == 1:
            mine[:, 2] = NAN  # a group that only one process sees
        steps.append(weights.update(mine).tolist())
    Path(folder, f"{rank}.json").write_text(json.dumps(steps))
    dist.destroy_process_group()


def test_two_processes_agree_at_every_step(tmp_path: Path) -> None:
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    alone = MaxMinWeights(3)
    for found, batch in zip(first, batches(5), strict=True):
        batch[6:, 2] = NAN
        np.testing.assert_allclose(found, alone.update(batch), rtol=1e-12)


@pytest.mark.parametrize("method", ["exponentiated_gradient", "optimistic"])
def test_a_group_that_was_best_off_for_long_is_heard_again(method):
    weights = MaxMinWeights(2, method, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one group that is the worst off all the time
        for _ in range(400):
            weights.update([[10.0, -10.0]])
        for _ in range(450):
            weights.update([[-10.0, 10.0]])
    assert weights.weights[0] > 0.99
    with pytest.raises(ValueError, match="initial: expected numbers > 0 for method"):
        MaxMinWeights(2, method, initial=[0, 1])

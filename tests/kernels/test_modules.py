"""The nn.Module faces: parameters, buffers, and the same numbers as the functions."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels.modules import MaxMinReduce, MixtureLikelihoodLoss, RewardHeads


def test_reward_heads_is_the_function_with_parameters() -> None:
    heads = RewardHeads(6, 3, bias=True)
    with torch.no_grad():
        heads.bias.copy_(torch.arange(3.0))
    hidden = torch.randn(4, 5, 6, dtype=torch.bfloat16)
    index = torch.tensor([0, 4, -1, 2])
    expected = mk.reward_heads(hidden, heads.weight, heads.bias, index)
    torch.testing.assert_close(heads(hidden, index), expected, rtol=0, atol=0, equal_nan=True)
    heads(hidden[:, 0]).sum().backward()
    assert heads.weight.grad.shape == (3, 6)
    assert heads.bias.grad.tolist() == [4, 4, 4]


def test_reward_heads_parameters() -> None:
    heads = RewardHeads(400, 50, dtype=torch.float64)
    assert heads.bias is None
    assert heads.weight.dtype == torch.float64
    assert heads.weight.std().item() == pytest.approx(401**-0.5, rel=0.05)
    assert list(heads.state_dict()) == ["weight"]
    assert "400, 50, bias=False" in repr(heads)
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="expected at least 1, got 0"):
            RewardHeads(*sizes)


def test_reward_heads_learn_under_compile() -> None:
    heads = RewardHeads(6, 2)
    twin = copy.deepcopy(heads)
    step = torch.compile(heads, fullgraph=True, backend="aot_eager")
    hidden, index = torch.randn(4, 5, 6), torch.tensor([0, 4, 1, 2])
    step(hidden, index).sum().backward()
    twin(hidden, index).sum().backward()
    assert torch.equal(heads.weight.grad, twin.weight.grad)


def margins_of_two_groups(annotators: int = 30, pairs: int = 8) -> tuple[torch.Tensor, ...]:
    """Features (N, 2) where either group likes another coordinate, and indptr."""
    group = torch.arange(annotators) % 2
    x = torch.randn(annotators, pairs, 2)
    sign = torch.where(x.gather(2, group[:, None, None].expand(-1, pairs, 1)) < 0, -1.0, 1.0)
    return (x * sign).flatten(0, 1), torch.arange(annotators + 1) * pairs


def test_loss_is_the_mean_log_likelihood() -> None:
    x, indptr = margins_of_two_groups()
    margins = x @ torch.randn(2, 3)
    loss = MixtureLikelihoodLoss(3)
    z, _ = mk.mixture_log_likelihood(margins, indptr, torch.full((3,), -math.log(3)))
    torch.testing.assert_close(loss(margins, indptr), -z.sum() / len(x))
    by_annotator = MixtureLikelihoodLoss(3, per="annotator")
    torch.testing.assert_close(by_annotator(margins, indptr), -z.sum() / 30)
    # A weight of 2 on everything counts everything twice, in both the sum and its divisor.
    weight = torch.full((len(x),), 2.0)
    z, _ = mk.mixture_log_likelihood(
        margins, indptr, torch.full((3,), -math.log(3)), comparison_weight=weight
    )
    weighted = loss(margins, indptr, comparison_weight=weight)
    torch.testing.assert_close(weighted, -z.sum() / (2 * len(x)))


def test_loss_of_choice_sets_divides_by_the_choices() -> None:
    margins = torch.zeros(4, 1)
    loss = MixtureLikelihoodLoss(1)(
        margins, torch.tensor([0, 2]), choice_indptr=torch.tensor([0, 3, 4])
    )
    assert loss.item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_loss_learns_heads_and_shares() -> None:
    x, indptr = margins_of_two_groups(90)
    heads, loss = RewardHeads(2, 2), MixtureLikelihoodLoss(2)
    with torch.no_grad():
        heads.weight.copy_(torch.eye(2) * 0.5 + 0.1 * torch.randn(2, 2))
    optimiser = torch.optim.Adam([*heads.parameters(), *loss.parameters()], lr=0.1)
    history = []
    for _ in range(60):
        optimiser.zero_grad()
        value = loss(heads(x), indptr)
        value.backward()
        optimiser.step()
        history.append(value.item())
    assert history[-1] < 0.5 * history[0]
    assert loss.log_weights.exp().sum().item() == pytest.approx(1.0)
    assert heads.weight.diagonal().min() > heads.weight.flip(1).diagonal().abs().max()


def test_loss_with_given_weights_has_no_parameters() -> None:
    given = torch.tensor([0.0, -math.inf])
    loss = MixtureLikelihoodLoss(2, log_weights=given)
    assert not list(loss.parameters())
    assert list(loss.state_dict()) == ["fixed_log_weights"]
    assert loss(torch.zeros(1, 2), torch.tensor([0, 1])).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("per", ["comparison", "annotator"])
def test_loss_of_an_empty_batch_is_zero(per: str) -> None:
    loss = MixtureLikelihoodLoss(2, per=per)
    margins = torch.zeros(0, 2, requires_grad=True)
    value = loss(margins, torch.tensor([0]))
    value.backward()
    assert value.item() == 0
    assert margins.grad.shape == (0, 2)


def test_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="per: expected 'comparison' or 'annotator', got 'row'"):
        MixtureLikelihoodLoss(2, per="row")
    with pytest.raises(ValueError, match=r"log_weights: expected shape \(2,\), got \(3,\)"):
        MixtureLikelihoodLoss(2, log_weights=torch.zeros(3))
    with pytest.raises(ValueError, match="n_groups: expected at least 1, got 0"):
        MixtureLikelihoodLoss(0)


def test_reduce_keeps_running_estimates() -> None:
    reduce = MaxMinReduce(3, "softmin", tau=0.5, momentum=0.75)
    assert reduce.running.isnan().all()
    nan = math.nan
    first = reduce(torch.tensor([[1.0, 2.0, nan], [3.0, 2.0, nan]]))
    assert first.utilities[:2].tolist() == [2, 2]
    assert first.value.isnan()  # nothing is known of the third group yet
    second = reduce(torch.tensor([[nan, 6.0, 1.0]]))
    assert second.utilities.tolist() == [2, 6, 1]
    expected = mk.welfare(torch.tensor([2.0, 6.0, 1.0]), "softmin", tau=0.5)
    torch.testing.assert_close(second.value, expected.value)
    # 2 for the absent group, a quarter of the way from 2 to 6, and a first estimate.
    assert reduce.running.tolist() == [2, 3, 1]


def test_reduce_does_not_drift_while_a_group_is_absent() -> None:
    reduce = MaxMinReduce(2, momentum=0.9)
    reduce(torch.tensor([[1 / 3, 0.1]]))
    kept = reduce.running[0].item()
    for _ in range(100):
        reduce(torch.randn(4, 2), torch.tensor([[False, True]] * 4))
    assert reduce.running[0].item() == kept


def test_reduce_in_evaluation_changes_nothing() -> None:
    reduce = MaxMinReduce(2).eval()
    reduce(torch.ones(3, 2))
    assert reduce.running.isnan().all()


def test_reduce_gradient_and_state() -> None:
    shares = torch.tensor([0.25, 0.75])
    reduce = MaxMinReduce(2, "mean", group_weights=shares)
    rewards = torch.randn(4, 2, requires_grad=True)
    reduce(rewards).value.backward()
    torch.testing.assert_close(rewards.grad, (shares / 4).expand(4, 2))
    other = MaxMinReduce(2, "mean", group_weights=torch.ones(2))
    other.load_state_dict(reduce.state_dict())
    assert torch.equal(other.running, reduce.running)
    assert torch.equal(other.group_weights, shares)


def test_reduce_compiles_whole() -> None:
    reduce = MaxMinReduce(3)
    twin = copy.deepcopy(reduce)
    compiled = torch.compile(reduce, fullgraph=True, backend="aot_eager")
    rewards = torch.randn(5, 3)
    for _ in range(2):
        assert torch.equal(compiled(rewards).value, twin(rewards).value)
    assert torch.equal(reduce.running, twin.running)


def test_reduce_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="tau: expected a number for kind 'softmin', got None"):
        MaxMinReduce(2, "softmin")
    with pytest.raises(ValueError, match="momentum: expected a number in"):
        MaxMinReduce(2, momentum=1.0)
    with pytest.raises(ValueError, match="n_groups: expected at least 1, got 0"):
        MaxMinReduce(0)
    with pytest.raises(ValueError, match="kind: expected one of"):
        MaxMinReduce(2, "max")

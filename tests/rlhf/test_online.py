"""Running responsibilities: the gradient against the plain formula, batches against whole data, splitting, state, errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from maxmin_rlhf.mixture.online import RunningResponsibilities


def panel(n: int = 12, k: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, 4, (n,), generator=generator).sort().values
    return torch.randn(n, k, generator=generator, dtype=torch.float64) * 2, owner


def running(k: int = 3, counts: Any = (9, 9, 9, 9), **options: Any) -> RunningResponsibilities:
    state = RunningResponsibilities(["a", "b", "c", "d"], counts, k, **options)
    state.evidence = torch.linspace(-3, 0, 4 * k, dtype=torch.float64).view(4, k).flip(1)
    state.shares = torch.arange(1.0, k + 1, dtype=torch.float64) / sum(range(1, k + 1))
    return state


def plain(state: RunningResponsibilities, margins: torch.Tensor, owner: torch.Tensor) -> Any:
    """Σ_a log p(batch of a | before), written out."""
    total = torch.zeros((), dtype=torch.float64)
    for a in owner.unique().tolist():
        rows = margins[owner == a]
        kept = state.evidence[a] * (1 - len(rows) / float(state.counts[a]))
        prior = state.shares.log() + kept
        total = total + (prior + logsigmoid(rows).sum(0)).logsumexp(0) - prior.logsumexp(0)
    return total


@pytest.mark.parametrize("k", [1, 3])
def test_value_and_gradient(k: int) -> None:
    margins, owner = panel(k=k)
    a, b = margins.clone().requires_grad_(), margins.clone().requires_grad_()
    ours, theirs = running(k).log_predictive(a, owner), plain(running(k), b, owner)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10)


def test_two_processes_add_up_to_one() -> None:
    """The middle of an annotator's pairs is where the batch is cut."""
    margins, owner = panel()
    at = next(i for i in range(4, 12) if owner[i] == owner[i - 1])
    whole = margins.clone().requires_grad_()
    one = running()
    total = one.log_predictive(whole, owner)
    total.backward()
    values, gradients, states = [], [], []
    for part in (slice(0, at), slice(at, None)):
        mine = margins[part].clone().requires_grad_()
        state = running()
        value = state.log_predictive(
            mine, owner[part], gather=lambda _: (owner, logsigmoid(margins))
        )
        value.backward()
        values.append(value), gradients.append(mine.grad), states.append(state)
    torch.testing.assert_close(sum(values), total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(gradients), whole.grad, rtol=1e-9, atol=1e-12)
    for state in states:
        assert torch.equal(state.evidence, one.evidence) and torch.equal(state.shares, one.shares)


def test_an_epoch_of_steady_margins_is_the_whole_data() -> None:
    """A trunk that stands still: after a few epochs in halves, responsibilities and shares are those of EM's fixed point."""
    generator = torch.Generator().manual_seed(1)
    n = 8
    owner = torch.arange(4).repeat_interleave(n)
    # Each half says the same, so that what fades and what comes weigh alike.
    half = torch.randn(4, n // 2, 2, generator=generator, dtype=torch.float64)
    margins = torch.cat([half, half], 1).view(-1, 2)
    state = RunningResponsibilities(range(4), [n] * 4, 2)
    first = (torch.arange(4 * n) % n) < n // 2
    for _ in range(200):
        for rows in (first, ~first):
            state.log_predictive(margins[rows], owner[rows])
    joint = logsigmoid(margins).view(4, n, 2).sum(1) + state.shares.log()
    torch.testing.assert_close(state.responsibilities, joint.softmax(1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(state.shares, state.responsibilities.mean(0), rtol=1e-9, atol=0.0)


def test_not_learning_changes_nothing() -> None:
    margins, owner = panel()
    state = running()
    before = [t.clone() for t in (state.evidence, state.responsibilities, state.shares)]
    state.log_predictive(margins, owner, learn=False)
    for old, new in zip(
        before, (state.evidence, state.responsibilities, state.shares), strict=True
    ):
        assert torch.equal(old, new)


def test_prediction() -> None:
    state = running(2)
    state.responsibilities[1] = torch.tensor([0.25, 0.75])
    margins = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    found = state.log_probability(margins, torch.tensor([1, -1])).exp()
    s = torch.sigmoid(margins.double())
    np.testing.assert_allclose(found[0], 0.25 * s[0, 0] + 0.75 * s[0, 1], rtol=1e-7)
    np.testing.assert_allclose(found[1], s[1, 0] / 3 + 2 * s[1, 1] / 3, rtol=1e-7)


def test_extremes_stay_finite() -> None:
    margins = torch.tensor([[1e4, -1e4], [80.0, 0.0], [0.0, -80.0]], requires_grad=True)
    state = RunningResponsibilities([0, 1], [2, 1], 2)
    for _ in range(3):
        state.log_predictive(margins, torch.tensor([0, 0, 1])).backward()
    assert bool(margins.grad.isfinite().all()) and bool(state.evidence.isfinite().all())
    assert float(state.shares.sum()) == pytest.approx(1)


def test_start_from_a_fit() -> None:
    fit = SimpleNamespace(
        weights_=np.array([0.3, 0.7]),
        annotators_=np.array(["d", "z", "b"], object),
        responsibilities_=np.array([[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]]),
    )
    state = RunningResponsibilities(["a", "b", "c", "d"], [1] * 4, 2)
    state.start(fit)
    posterior = (state.evidence + state.shares.log()).softmax(1)
    expected = [[0.3, 0.7], [0.0, 1.0], [0.3, 0.7], [0.9, 0.1]]
    np.testing.assert_allclose(posterior, expected, atol=1e-12)
    np.testing.assert_allclose(state.responsibilities, expected, atol=1e-12)
    with pytest.raises(ValueError, match="mixture: expected 3 groups as the model has, got 2"):
        RunningResponsibilities(["a"], [1], 3).start(fit)


def test_state_goes_on_exactly(tmp_path: Path) -> None:
    margins, owner = panel()
    one = running()
    one.log_predictive(margins, owner)
    one.save(tmp_path / "state.safetensors")
    other = running()
    other.load(tmp_path / "state.safetensors")
    for state in (one, other):
        state.log_predictive(margins * 0.5, owner)
    assert torch.equal(one.evidence, other.evidence) and torch.equal(one.shares, other.shares)
    assert torch.equal(one.responsibilities, other.responsibilities)
    with pytest.raises(ValueError, match="expected the annotators of this data set"):
        RunningResponsibilities(["a"], [1], 3).load(tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="expected 2 groups, got 3"):
        running(2).load(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"decay": 1.5}, "decay: expected a number in"), ({"alpha": 0.5}, "alpha: expected a finite")],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunningResponsibilities(["a"], [1], 2, **options)

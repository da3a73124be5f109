"""A fit leaves its device alone: within a round the host asks for no number, and asking rarely changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

import maxmin_kernels as mk
from maxmin_kernels.ops import _registry
from maxmin_rlhf.mixture import solver
from maxmin_rlhf.mixture.objective import Objective
from maxmin_rlhf.mixture.solver import Preconditioner
from maxmin_rlhf.mixture.starts import Landscape
from tests.rlhf.panels import planted
from tests.rlhf.test_solver import random_bank

# What makes the host wait for a device: sizes or values that only the data tell.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class Waits(TorchDispatchMode):
    """Notes every operation that would wait for a device, those inside our own operations too."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        if func.namespace == "maxmin":
            with self:
                return _registry.choose(name, args).function(*args, **kwargs)
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        unsized = func is torch.ops.aten.repeat_interleave.Tensor and not kwargs.get("output_size")
        if name in _WAITS or by_mask or unsized:
            self.seen.append(name)
        return func(*args, **kwargs)


@contextmanager
def waits():
    mode = Waits()
    with mode:
        yield mode.seen


def setting(form="items", dtype=np.float64, **options):
    panel = planted(3, 3, form=form, n_annotators=40, per_annotator=8, dtype=dtype)
    objective = Objective.of(panel.data, **options)
    flat = torch.zeros(objective.data.n_features, dtype=torch.float64)
    steer = Preconditioner.of(objective, objective.pooled_curvature(flat))
    return objective, steer, random_bank(5, [2, 3, 3, 4], 0.3, seed=7)


def test_what_waits_is_noticed():
    x = torch.arange(4.0)
    with waits() as seen:
        x.sum().item(), x[x > 1], x.nonzero(), x.repeat_interleave(x.long())
    assert len(seen) == 4


@pytest.mark.parametrize("form", ["pairs", "sets", "items"])
def test_no_wait_within_a_round(form):
    objective, steer, bank = setting(form)
    state = solver.start(objective, bank, steer)
    room = torch.full((len(bank), 3), torch.nan, dtype=torch.float64)
    state = replace(state, history=torch.cat([state.history, room], dim=1))
    bank = state.bank
    assert len(bank.slots) == 12
    with mk.backend("cpu"), waits() as seen:
        for _ in range(3):
            state = solver._rest(state, solver.advance(objective, state, steer, 1e-9, bank))
    assert seen == []


def test_few_waits_in_a_climb():
    """Without a mixture that finishes, the looks alone: one before every eight rounds, and four around them."""
    objective, steer, bank = setting()
    state = solver.start(objective, bank, steer)
    with mk.backend("cpu"), waits() as seen:
        state = solver.climb(objective, state, steer, max_iter=33, tol=0.0, look=8)
    assert state.rounds.tolist() == [33] * 4
    assert len(seen) <= 4 + 4


@pytest.mark.parametrize("look", [3, 8])
@pytest.mark.parametrize("max_iter", [7, 500])
def test_looking_rarely_ends_at_the_same(look, max_iter):
    objective, steer, bank = setting()
    begin = solver.start(objective, bank, steer)
    ours, theirs = (
        solver.climb(objective, begin, steer, max_iter=max_iter, tol=1e-9, look=n)
        for n in (look, 1)
    )
    assert len(set(theirs.rounds.tolist())) > 1 or max_iter == 7  # some wait for the others
    assert ours.rounds.tolist() == theirs.rounds.tolist()
    for name in ("finished", "converged"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    for name in ("theta", "value", "log_likelihood", "history"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-9, equal_nan=True
        )


def test_starts_are_drawn_without_waiting():
    objective = setting()[0]
    rng = np.random.default_rng(0)
    head = torch.zeros(5, dtype=torch.float64)
    landscape = Landscape.of(objective, head, objective.pooled_curvature(head), rng)
    with waits() as seen:
        starts = landscape.draw("auto", 3, 6, rng)
    assert seen == [] and len(starts) == 6


@pytest.fixture
def fake_device():
    """Tensors without values on a device that any torch knows: to mix them with those of the CPU is an error."""
    with FakeTensorMode() as mode:
        yield lambda t: mode.from_tensor(t).to("lazy:0")


def moved(value, to):
    """A dataclass with its tensors on the device."""
    parts = {f.name: getattr(value, f.name) for f in fields(value)}
    parts = {name: to(t) for name, t in parts.items() if isinstance(t, torch.Tensor)}
    return copy_of(value, **parts)


def copy_of(value, /, **parts):
    """``replace`` without the checks of a constructor, which look at values."""
    copy = object.__new__(type(value))
    copy.__dict__.update({**{f.name: getattr(value, f.name) for f in fields(value)}, **parts})
    return copy


@pytest.mark.parametrize("form", ["pairs", "sets", "items"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_round_has_its_tensors_on_one_device(form, dtype, fake_device):
    with unset_fake_temporarily():
        objective, steer, bank = setting(form, dtype, alpha=2.0)
        state = solver.start(objective, bank, steer)
        state = replace(state, history=torch.cat([state.history] * 3, dim=1))
        landscape = Landscape.of(
            objective, bank.theta[0, 0, :-1], steer.basis, np.random.default_rng(0)
        )
    bank, slots = moved(bank, fake_device), fake_device(bank.slots)
    bank.__dict__["slots"] = slots
    objective = copy_of(
        objective, data=moved(objective.data, fake_device), plan=moved(objective.plan, fake_device)
    )
    state, steer = moved(state, fake_device), moved(steer, fake_device)
    with mk.backend("reference"):
        state = solver._rest(state, solver.advance(objective, state, steer, 1e-9, bank))
    assert state.theta.device.type == state.history.device.type == "lazy"
    rng, landscape = np.random.default_rng(0), moved(landscape, fake_device)
    starts = landscape.draw("auto", 3, 4, rng)
    moves = [
        tensor for move in landscape.split_and_merge(state.theta[3], 5, rng) for tensor in move
    ]
    assert {t.device.type for t in (*starts, *moves)} == {"lazy"}

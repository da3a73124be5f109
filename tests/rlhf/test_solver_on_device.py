"""A fit leaves its device alone: within a round the host asks for no number, and asking rarely changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
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

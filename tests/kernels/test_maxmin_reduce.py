"""maxmin_reduce: group means of what is there in a batch, then their welfare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import LAYOUTS, assert_close_enough, cases, with_layout
from tests.kernels.harness import (
    BACKENDS,
    assert_compiles,
    both_backends,
    fake_outputs,
    native,
    run_python,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS: dict[str, dict[str, Any]] = {
    "min": {},
    "softmin": {"tau": 0.3},
    "mean": {},
    "cvar": {"alpha": 0.4},
    "kl": {"radius": 0.1},
    "leximin": {},
}


def make_inputs(
    batch: int = 9, groups: int = 4, seed: int = 0, absent: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """rewards with NaN in places, mask, running; ``absent``: the last group has nothing."""
    g = torch.Generator().manual_seed(seed)
    rewards = torch.randn(batch, groups, generator=g, dtype=torch.float64)
    rewards[torch.rand(batch, groups, generator=g) < 0.2] = torch.nan
    mask = torch.rand(batch, groups, generator=g) < 0.8
    if batch > 1:  # at least one reward a group
        rewards[0], mask[0] = torch.linspace(-1, 1, groups), True
    if absent:
        mask[:, -1] = False
    return rewards, mask, torch.linspace(2, 3, groups, dtype=torch.float64)


def formula(rewards: Tensor, mask: Tensor | None, kind: str, **options: Any) -> list[Tensor]:
    """By hand, group by group; differentiable."""
    there = ~rewards.isnan() & (True if mask is None else mask)
    means = [rewards[there[:, k], k].mean() for k in range(rewards.shape[1])]
    utilities = torch.stack(means)
    return [mk.welfare(utilities, kind, **options).value, utilities]


@pytest.mark.parametrize("backend", BACKENDS)
@cases(
    kind=list(KINDS),
    dtype=DTYPES,
    layout=list(LAYOUTS),
    mask_layout=[None, *LAYOUTS],
    batch=[2, 3, 17, 130, 5000],
    groups=[1, 2, 3, 8, 33],
    absent=[False, True],
)
def test_matches_float64(backend: str, case: dict) -> None:
    rewards, mask, running = make_inputs(case["batch"], case["groups"], absent=case["absent"])
    r = with_layout(case["layout"], rewards.to(case["dtype"]), requires_grad=True)
    m = with_layout(case["mask_layout"], mask) if case["mask_layout"] else None
    kind, options = case["kind"], KINDS[case["kind"]]
    with mk.backend(backend):
        out = mk.maxmin_reduce(r, kind, m, running=running, **options)
        (by_r,) = torch.autograd.grad(2 * out.value + (out.utilities * running).sum(), r)
    assert out.value.dtype == (torch.float64 if r.dtype == torch.float64 else torch.float32)

    wide = r.detach().double()
    there = ~wide.isnan() & (True if m is None else m)
    count = there.sum(0)
    total = torch.where(there, wide, 0.0).sum(0)
    utilities = torch.where(count > 0, total / count, running)
    value, weights = mk.welfare(utilities, kind, **options)
    # A batch is summed in the accumulation dtype: an ulp of the largest sum, over the count.
    floor = 1e-13 if r.dtype == torch.float64 else 5e-6
    assert_close_enough(out.utilities, utilities, floor=floor, name="utilities")
    # Means of either sign may cancel in the value.
    size = utilities.abs().max().item()
    torch.testing.assert_close(out.value.double(), value, rtol=0, atol=floor * size)
    assert_close_enough(out.weights, weights, floor=2e-5 if floor > 1e-6 else 1e-12, name="weights")
    by_utility = (2 * weights + running) / count
    expected = torch.where(there, by_utility, 0.0)
    assert_close_enough(by_r, expected, expected.to(r.dtype), name="gradient")
    assert (by_r[~there] == 0).all()


@both_backends
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, backend: str) -> None:
    rewards, mask, _ = make_inputs()
    there = ~rewards.isnan()
    values = rewards[there].requires_grad_()

    def of_values(values: Tensor) -> tuple[Tensor, Tensor]:
        # Numerical differences must not touch the NaN.
        full = torch.full_like(rewards, torch.nan).masked_scatter(there, values)
        out = mk.maxmin_reduce(full, kind, mask, **KINDS[kind])
        return out.value, out.utilities

    with mk.backend(backend):
        assert torch.autograd.gradcheck(of_values, values)


@both_backends
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_group_by_group_means(kind: str, backend: str) -> None:
    rewards, mask, _ = make_inputs(31, 5)
    r = rewards.requires_grad_()
    with mk.backend(backend):
        out = mk.maxmin_reduce(r, kind, mask, **KINDS[kind])
    value, utilities = formula(r, mask, kind, **KINDS[kind])
    torch.testing.assert_close(out.value, value)
    torch.testing.assert_close(out.utilities, utilities)
    grads = [torch.autograd.grad(v, r)[0] for v in (out.value, value)]
    torch.testing.assert_close(grads[0], grads[1].nan_to_num())


@both_backends
def test_an_absent_group_keeps_its_running_estimate(backend: str) -> None:
    rewards, mask, running = make_inputs(absent=True)
    running[-1] = -7.0
    with mk.backend(backend):
        out = mk.maxmin_reduce(rewards.requires_grad_(), "min", mask, running=running)
        alone = mk.maxmin_reduce(rewards, "min", mask)
        (grad,) = torch.autograd.grad(out.value, rewards)
    assert out.value == -7.0 and out.weights.tolist() == [0, 0, 0, 1]
    assert (grad == 0).all()
    # Without an estimate nobody knows how that group is.
    assert alone.value.isnan() and alone.utilities.isnan().tolist() == [False, False, False, True]


@both_backends
def test_the_minimum_comes_after_the_mean(backend: str) -> None:
    rewards = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    with mk.backend(backend):
        out = mk.maxmin_reduce(rewards)
    assert out.value == 0 and rewards.amin(1).mean() == -1


@both_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batch(dtype: torch.dtype, backend: str) -> None:
    rewards = torch.empty(0, 3, dtype=dtype, requires_grad=True)
    running = torch.tensor([3.0, 1.0, 2.0])
    with mk.backend(backend):
        out = mk.maxmin_reduce(rewards, running=running)
        nothing = mk.maxmin_reduce(rewards)
        (grad,) = torch.autograd.grad(out.value, rewards)
    assert out.value == 1 and torch.equal(out.utilities, running.to(out.utilities))
    assert nothing.value.isnan() and grad.shape == (0, 3)


@both_backends
def test_infinite_rewards_are_not_hidden(backend: str) -> None:
    rewards = torch.tensor([[1.0, 2.0], [-torch.inf, 0.0]])
    with mk.backend(backend):
        out = mk.maxmin_reduce(rewards)
    assert out.value == -torch.inf and out.weights.tolist() == [1, 0]


@both_backends
def test_large_batches_keep_their_digits(backend: str) -> None:
    rewards = torch.full((1_000_000, 2), 1000.1)
    rewards[:, 1] += 1
    with mk.backend(backend):
        out = mk.maxmin_reduce(rewards)
    torch.testing.assert_close(out.value, torch.tensor(1000.1), rtol=1e-6, atol=0)


@both_backends
def test_upstream_gradients_of_one_output_only(backend: str) -> None:
    rewards, mask, _ = make_inputs()
    with mk.backend(backend):
        out = mk.maxmin_reduce(rewards.requires_grad_(), "softmin", mask, tau=0.5)
        by_value, by_utilities = (
            torch.autograd.grad(x, rewards, torch.ones_like(x), retain_graph=True)[0]
            for x in (out.value, out.utilities)
        )
    torch.testing.assert_close(by_value, by_utilities * out.weights)
    assert not out.weights.requires_grad


@both_backends
def test_opcheck(backend: str) -> None:
    rewards, mask, running = make_inputs()
    r = rewards.requires_grad_()
    with mk.backend(backend):
        for m, estimate in ((None, None), (mask, running)):
            arguments = (r, "softmin", m, estimate, None, None, None, 0.5)
            torch.library.opcheck(torch.ops.maxmin.maxmin_reduce_fwd.default, arguments)
            grads = (torch.ones(()).double(), torch.ones(4).double())
            torch.library.opcheck(
                torch.ops.maxmin.maxmin_reduce_bwd.default,
                (*grads, rewards.detach(), m, torch.ones(4).double()),
            )


@both_backends
def test_compiles(backend: str) -> None:
    rewards, mask, _ = make_inputs()
    r = rewards.float().requires_grad_()
    with mk.backend(backend):
        assert_compiles(lambda r: mk.maxmin_reduce(r, "kl", mask, radius=0.1).value, [r])


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors(dtype: torch.dtype) -> None:
    rewards = make_inputs()[0].to(dtype)
    fakes = fake_outputs(lambda r: mk.maxmin_reduce(r), [rewards])
    for real, fake in zip(mk.maxmin_reduce(rewards), fakes, strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@native
def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    rewards, mask, _ = make_inputs(100_003, 5)
    r = rewards.float().requires_grad_()
    threads = torch.get_num_threads()
    runs = []
    try:
        for n in (1, 1, 2, 3):
            torch.set_num_threads(n)
            with mk.backend("cpu"):
                out = mk.maxmin_reduce(r, "softmin", mask, tau=0.1)
                runs.append([*out, *torch.autograd.grad(out.value, r)])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@native
def test_offsets_beyond_int32() -> None:
    # Rows 2^31 + 8 elements apart, in memory of which only a few pages are ever touched.
    run_python("""
import torch, maxmin_kernels as mk
far = 2**31 + 8
base = torch.empty(far + 8, dtype=torch.bfloat16)
rewards = base.as_strided((2, 3), (far, 1))
rewards.copy_(torch.arange(6.).view(2, 3))
with mk.backend("cpu"):
    out = mk.maxmin_reduce(rewards)
assert out.utilities.tolist() == [1.5, 2.5, 3.5] and out.value == 1.5, out
""")


def test_the_reference_is_what_the_operation_computes() -> None:
    rewards, mask, running = make_inputs()
    with mk.backend("reference"):
        out = mk.maxmin_reduce(rewards, "min", mask, running=running)
    for a, b in zip(out, reference.maxmin_reduce(rewards, "min", mask, running), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rewards": torch.ones(3)}, ValueError, r"rewards: expected shape \(B, K\), got \(3,\)"),
        ({"rewards": torch.ones(3, 2).int()}, TypeError, "rewards: expected dtype float64"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask: expected dtype bool, got float32"),
        (
            {"mask": torch.ones(2, 2, dtype=torch.bool)},
            ValueError,
            r"mask: expected shape \(2, 3\), got \(2, 2\)",
        ),
        ({"running": torch.ones(2)}, ValueError, r"running: expected shape \(3,\), got \(2,\)"),
        ({"running": torch.ones(3, device="meta")}, ValueError, "running: expected device cpu"),
        ({"kind": "softmin"}, ValueError, "tau: expected a number"),
        (
            {"rewards": torch.tensor([[1.0, torch.inf, torch.nan]]), "validate": True},
            ValueError,
            r"rewards: expected finite numbers, got inf at \(0, 1\)",
        ),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mk.maxmin_reduce(**({"rewards": torch.ones(2, 3)} | change))

"""welfare and maxmin_reduce by Triton: every kind against float64, gradients, NaN, ties, large batches."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import LAYOUTS, assert_close_enough, cases, upstream, with_layout
from tests.kernels.test_maxmin_reduce import KINDS, make_inputs
from tests.kernels.test_welfare_native import FLOORS, VARIANTS, options_for, utilities_for
from tests.kernels.triton.where import DEVICE, on_triton

pytestmark = on_triton

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def on_reference(function, *args, **kwargs):
    with mk.backend("reference"):
        return function(*args, **kwargs)


@cases(
    variant=list(VARIANTS),
    dtype=DTYPES,
    layout=list(LAYOUTS),
    groups=[1, 2, 3, 17],
    lead=[(), (0,), (1,), (9,), (3, 5)],
    shares=["equal", "given", "some zero"],
    upstream=["random", "sum"],
)
def test_welfare_matches_float64(case):
    kind, scalars = VARIANTS[case["variant"]]
    values = utilities_for(kind, (*case["lead"], case["groups"]), case["dtype"]).to(DEVICE)
    layout = case["layout"] if values.numel() else "contiguous"
    u = with_layout(layout, values, requires_grad=True)
    given = options_for(kind, case["groups"], case["shares"])
    options = {**scalars, **{name: t.to(DEVICE) for name, t in given.items()}}
    out = mk.welfare(u, kind, **options)
    ref = on_reference(mk.welfare, u.detach().double(), kind, **options)
    peer = on_reference(mk.welfare, u.detach(), kind, **options)
    assert_close_enough(out.value, ref.value, peer.value, FLOORS, name="value")
    assert_close_enough(out.weights, ref.weights, peer.weights, FLOORS, name="weights")
    push = upstream(case["upstream"], out.value)
    (grad,) = torch.autograd.grad(out.value, u, push)
    expected = push.double()[..., None] * ref.weights
    rounded = (push[..., None] * peer.weights).to(u.dtype)
    assert grad.dtype == u.dtype
    assert_close_enough(grad, expected, rounded, FLOORS, name="gradient")


@every_variant
def test_nan_ties_and_sizes(variant):
    kind, scalars = VARIANTS[variant]
    u = utilities_for(kind, (7, 5), torch.float32).to(DEVICE)
    u[1] *= 1e4
    u[2, 3] = torch.nan
    u[4] *= 1e-4
    u[5] = 1e4
    u[6, 0] = -1.0  # outside the domain of nash and power
    options = {**scalars, **{n: t.to(DEVICE) for n, t in options_for(kind, 5, "given").items()}}
    out = mk.welfare(u, kind, **options)
    ref = on_reference(mk.welfare, u.double(), kind, **options)
    peer = on_reference(mk.welfare, u, kind, **options)
    for i in range(7):  # row by row: each has a size of its own
        floor = {torch.float32: 2e-6}
        assert_close_enough(out.value[i], ref.value[i], peer.value[i], floor, name=f"value {i}")
        assert_close_enough(out.weights[i], ref.weights[i], peer.weights[i], floor, name=f"row {i}")


@cases(
    kind=list(KINDS),
    dtype=DTYPES,
    layout=list(LAYOUTS),
    mask_layout=[None, *LAYOUTS],
    batch=[2, 3, 17, 130, 5000],
    groups=[1, 2, 3, 8, 33],
    absent=[False, True],
)
def test_reduce_matches_float64(case):
    rewards, mask, running = make_inputs(case["batch"], case["groups"], absent=case["absent"])
    rewards, mask, running = rewards.to(DEVICE), mask.to(DEVICE), running.to(DEVICE)
    r = with_layout(case["layout"], rewards.to(case["dtype"]), requires_grad=True)
    m = with_layout(case["mask_layout"], mask) if case["mask_layout"] else None
    kind, options = case["kind"], KINDS[case["kind"]]
    out = mk.maxmin_reduce(r, kind, m, running=running, **options)
    (by_r,) = torch.autograd.grad(2 * out.value + (out.utilities * running).sum(), r)
    double = r.detach().double().requires_grad_()
    ref = on_reference(mk.maxmin_reduce, double, kind, m, running=running, **options)
    (ref_by_r,) = torch.autograd.grad(2 * ref.value + (ref.utilities * running).sum(), double)
    floor = 1e-12 if r.dtype == torch.float64 else 2e-6
    size = ref.utilities.abs().max().item()
    assert_close_enough(out.utilities, ref.utilities, floor=floor, name="utilities")
    torch.testing.assert_close(out.value.double(), ref.value, rtol=0, atol=floor * size)
    assert_close_enough(out.weights, ref.weights, floor=10 * floor, name="weights")
    assert_close_enough(by_r, ref_by_r, ref_by_r.to(r.dtype), name="gradient")


def test_a_large_batch_is_summed_in_two_launches_and_repeats():
    rewards = torch.randn(20_000, 8, device=DEVICE)
    first, again = (mk.maxmin_reduce(rewards, "softmin", tau=0.3) for _ in range(2))
    ref = reference.maxmin_reduce(rewards.double(), "softmin", param=0.3)
    for out, same, exact in zip(first, again, ref, strict=True):
        assert torch.equal(out, same)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-7)


def test_nothing_there_is_unknown():
    rewards = torch.full((4, 2), torch.nan, device=DEVICE)
    out = mk.maxmin_reduce(rewards, "min")
    assert out.value.isnan() and out.utilities.isnan().all()


def test_compiles():
    u = torch.randn(6, 3, device=DEVICE, requires_grad=True)

    def value(x):
        return mk.welfare(x, "kl", radius=0.1).value.sum() + mk.maxmin_reduce(x, "min").value

    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(u), u)[0], torch.autograd.grad(value(u), u)[0])

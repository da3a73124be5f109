"""The compiled welfare and maxmin_reduce against their reference in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import maxmin_kernels as mk
from tests.kernels.criterion import (
    FLOOR,
    LAYOUTS,
    assert_close_enough,
    cases,
    upstream,
    with_layout,
)
from tests.kernels.harness import NEEDS_LIBRARY, assert_compiles, run_python

pytestmark = list(NEEDS_LIBRARY)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# In float64 the reference rounds as often as the kernel does, and a power of -40 multiplies that.
FLOORS = {**FLOOR, torch.float64: 1e-13}
# Every kind at parameters where it is in its middle, at an end, or hard to compute.
_SETTINGS: list[tuple[str, str, tuple[float, ...]]] = [
    ("min", "", ()),
    ("softmin", "tau", (0.02, 1.0, 50.0)),
    ("mean", "", ()),
    ("nash", "", ()),
    ("power", "p", (1.0, 0.5, 1e-9, 0.0, -1.0, -40.0)),
    ("cvar", "alpha", (1.0, 0.4, 0.01)),
    ("owa", "", ()),
    ("leximin", "", ()),
    ("kl", "radius", (0.0, 1e-6, 0.2, 50.0)),
    ("chi2", "radius", (0.0, 1e-6, 0.2, 1.5, 500.0)),
    ("tv", "radius", (0.0, 0.1, 1.0)),
    ("floor", "radius", (0.1, math.inf)),
]
VARIANTS: dict[str, tuple[str, dict[str, float]]] = {
    f"{kind} {name}={value:g}" if name else kind: (kind, {name: value} if name else {})
    for kind, name, values in _SETTINGS
    for value in values or (0.0,)
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def utilities_for(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    u = torch.randn(shape, dtype=torch.float64)
    if kind in ("nash", "power"):
        u = u.abs() + 0.05
    elif u.numel():
        u.view(-1, shape[-1])[0] = 1.5  # all tied
    return u.to(dtype)


def options_for(kind: str, n_groups: int, shares: str) -> dict[str, Tensor]:
    options = {}
    eta = torch.ones(n_groups, dtype=torch.float64)
    if shares != "equal":
        eta = torch.rand(n_groups, dtype=torch.float64) + 0.01
        if shares == "some zero" and n_groups > 1:
            eta[0] = 0.0
        options["group_weights"] = eta
    if kind == "owa":
        options["rank_weights"] = torch.linspace(1, 0, n_groups + 1)[:-1].softmax(0)
    if kind == "floor":
        options["floor"] = 0.4 * eta / eta.sum()
    return options


def run(backend: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    with mk.backend(backend):
        return function(*args, **kwargs)


@cases(
    variant=list(VARIANTS),
    dtype=DTYPES,
    layout=list(LAYOUTS),
    groups=[1, 2, 3, 17],
    lead=[(), (0,), (1,), (130,), (3, 5)],
    shares=["equal", "given", "some zero"],
    upstream=["random", "sum"],
)
def test_welfare_matches_float64(case: dict) -> None:
    kind, scalars = VARIANTS[case["variant"]]
    values = utilities_for(kind, (*case["lead"], case["groups"]), case["dtype"])
    layout = case["layout"] if values.numel() else "contiguous"
    u = with_layout(layout, values, requires_grad=True)
    options = {**scalars, **options_for(kind, case["groups"], case["shares"])}
    out = run("cpu", mk.welfare, u, kind, **options)
    ref = run("reference", mk.welfare, u.detach().double(), kind, **options)
    peer = run("reference", mk.welfare, u.detach(), kind, **options)
    assert_close_enough(out.value, ref.value, peer.value, FLOORS, name="value")
    assert_close_enough(out.weights, ref.weights, peer.weights, FLOORS, name="weights")
    push = upstream(case["upstream"], out.value)
    (grad,) = torch.autograd.grad(out.value, u, push)
    expected = push.double()[..., None] * ref.weights
    assert grad.dtype == u.dtype
    rounded = (push[..., None] * peer.weights).to(u.dtype)
    assert_close_enough(grad, expected, rounded, FLOORS, name="gradient")


@every_variant
def test_gradcheck(variant: str) -> None:
    kind, scalars = VARIANTS[variant]
    u = utilities_for(kind, (3, 4), torch.float64)
    u[0] += torch.arange(4)  # no ties
    options = {**scalars, **options_for(kind, 4, "given")}
    with mk.backend("cpu"):
        assert torch.autograd.gradcheck(
            lambda x: mk.welfare(x, kind, **options).value, u.requires_grad_(), atol=1e-5
        )


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nan_and_large_utilities(variant: str, dtype: torch.dtype) -> None:
    kind, scalars = VARIANTS[variant]
    u = utilities_for(kind, (8, 5), dtype)
    u[1] *= 1e4
    u[2, 3] = torch.nan
    u[4] *= 1e-4
    u[5] = 1e4
    u[6, 0] = -1.0  # outside the domain of nash and power
    options = {**scalars, **options_for(kind, 5, "given")}
    out = run("cpu", mk.welfare, u, kind, **options)
    ref = run("reference", mk.welfare, u.double(), kind, **options)
    peer = run("reference", mk.welfare, u, kind, **options)
    assert out.value[2].isnan() and out.weights[2].isnan().all()
    # In float64 the reference errs as much as the kernel: logarithms, sums that cancel.
    digits = (64 if dtype == torch.float64 else 4) * torch.finfo(dtype).eps
    for i in range(8):  # row by row: each has a size of its own
        if ref.value[i].isnan():
            assert out.value[i].isnan() and out.weights[i].isnan().all()
            continue
        error, peer_error = (float(abs(x.value[i].double() - ref.value[i])) for x in (out, peer))
        size = max(float(u[i].abs().max()), float(abs(ref.value[i])), scalars.get("tau", 0.0))
        assert error <= 2 * peer_error + digits * size
        assert_close_enough(
            out.weights[i], ref.weights[i], peer.weights[i], digits, name=f"row {i}"
        )


@every_variant
def test_opcheck(variant: str) -> None:
    kind, scalars = VARIANTS[variant]
    if kind == "leximin":
        pytest.skip("an owa by the time the op sees it")
    options = options_for(kind, 4, "given")
    shares = options.get("group_weights")
    args = (
        utilities_for(kind, (3, 4), torch.float32).requires_grad_(),
        kind,
        None if shares is None else shares / shares.sum(),
        options.get("rank_weights"),
        options.get("floor"),
        next(iter(scalars.values()), 0.0),
    )
    with mk.backend("cpu"):
        torch.library.opcheck(torch.ops.maxmin.welfare_fwd.default, args)


def test_compiles() -> None:
    u = utilities_for("softmin", (6, 4), torch.bfloat16).requires_grad_()
    with mk.backend("cpu"):
        assert_compiles(lambda x: mk.welfare(x, "softmin", tau=0.3).value, [u])
        assert_compiles(lambda x: mk.maxmin_reduce(x, "kl", radius=0.1).value, [u])


def reduce_inputs(
    rows: int, groups: int, dtype: torch.dtype, layout: str, masked: bool, running: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    rewards = torch.randn(rows, groups, dtype=torch.float64).to(dtype)
    rewards[torch.rand(rows, groups) < 0.2] = math.nan
    if groups > 1:
        rewards[:, 1] = math.nan  # a group that is absent
    layout = layout if rows else "contiguous"
    mask = LAYOUTS[layout](torch.rand(rows, groups) > 0.3) if masked else None
    estimates = torch.randn(groups) if running else None
    return with_layout(layout, rewards, requires_grad=True), mask, estimates


@cases(
    kind=["min", "softmin", "mean", "kl"],
    dtype=DTYPES,
    layout=list(LAYOUTS),
    rows=[0, 1, 3, 127, 20_011],
    groups=[1, 2, 5, 33],
    masked=[False, True],
    running=[True, False],
    upstream=["random", "sum"],
)
def test_reduce_matches_float64(case: dict) -> None:
    kind = case["kind"]
    scalars = {"softmin": {"tau": 0.5}, "kl": {"radius": 0.1}}.get(kind, {})
    rewards, mask, running = reduce_inputs(
        *(case[n] for n in ("rows", "groups", "dtype", "layout", "masked", "running"))
    )
    results = []
    for backend, dtype in (("cpu", None), ("reference", torch.float64), ("reference", None)):
        r = rewards.detach().to(dtype or rewards.dtype).requires_grad_()
        if dtype is None and backend == "cpu":
            r = rewards
        out = run(backend, mk.maxmin_reduce, r, kind, mask, running=running, **scalars)
        pushes = [torch.ones_like(out.value), upstream(case["upstream"], out.utilities)]
        with mk.backend(backend):
            (grad,) = torch.autograd.grad((out.value, out.utilities), r, pushes)
        results.append((*out, grad))
    for name, out, ref, peer in zip(
        ("value", "weights", "utilities", "gradient"), *results, strict=True
    ):
        assert_close_enough(out, ref, peer, name=name)
    assert results[0][3].dtype == rewards.dtype


def test_reduce_gradcheck_and_opcheck() -> None:
    rewards, mask, running = reduce_inputs(9, 3, torch.float64, "sliced", True, True)
    there = rewards.isfinite()
    plain = rewards.detach().nan_to_num().requires_grad_()
    with mk.backend("cpu"):
        assert torch.autograd.gradcheck(
            lambda r: mk.maxmin_reduce(
                torch.where(there, r, math.nan), "softmin", mask, running=running, tau=0.5
            )[::2],
            plain,
        )
        # opcheck takes NaN for a difference.
        args = (plain, "softmin", mask, running.double(), None, None, None, 0.5)
        torch.library.opcheck(torch.ops.maxmin.maxmin_reduce_fwd.default, args)
        value, weights, utilities = torch.ops.maxmin.maxmin_reduce_fwd(*args)
        torch.library.opcheck(
            torch.ops.maxmin.maxmin_reduce_bwd.default,
            (
                torch.ones_like(value.detach()),
                torch.randn_like(utilities.detach()),
                plain.detach(),
                mask,
                weights,
            ),
        )


def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    u = torch.randn(20_011, 5)
    threads = torch.get_num_threads()
    runs = []
    try:
        for n in (1, 1, 2, 3):
            torch.set_num_threads(n)
            r = u.clone().requires_grad_()
            with mk.backend("cpu"):
                rows = mk.welfare(u, "softmin", tau=0.1)
                batch = mk.maxmin_reduce(r, "kl", radius=0.1)
                runs.append([*rows, *batch, *torch.autograd.grad(batch.value, r)])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_offsets_beyond_int32() -> None:
    # Rows 2^31 + 8 elements apart, in memory of which only a few pages are ever touched.
    run_python("""
import torch, maxmin_kernels as mk
far = 2**31 + 8
u = torch.empty(far + 64, dtype=torch.bfloat16).as_strided((2, 3), (far, 1))
u.copy_(torch.tensor([[3., 1., 2.], [4., 6., 5.]]))
with mk.backend("cpu"):
    assert mk.welfare(u).value.tolist() == [1, 4]
    assert mk.maxmin_reduce(u).utilities.tolist() == [3.5, 3.5, 3.5]
""")

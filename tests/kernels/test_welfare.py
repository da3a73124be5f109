"""welfare: section 5, the value of utilities to a planner and the weights it gives to the groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import LAYOUTS, assert_close_enough, cases, upstream, with_layout
from tests.kernels.harness import (
    BACKENDS,
    assert_compiles,
    both_backends,
    fake_outputs,
    native,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def options(kind: str, n_groups: int = 4) -> dict[str, Any]:
    """Parameters of a kind that are neither trivial nor at the corner."""
    shares = torch.arange(1.0, n_groups + 1, dtype=torch.float64)
    common = {"kind": kind.partition("_")[0], "group_weights": shares}
    ranks = torch.linspace(2, 0.5, n_groups, dtype=torch.float64)
    return common | {
        "softmin": {"tau": 0.3},
        "power": {"p": -1.5},
        "power_0": {"p": 0.0},
        "power_1": {"p": 1.0},
        "cvar": {"alpha": 0.35},
        "owa": {"rank_weights": ranks},
        "kl": {"radius": 0.15},
        "chi2": {"radius": 0.2},
        "tv": {"radius": 0.15},
        "floor": {"radius": 0.15, "floor": 0.4 * shares / shares.sum()},
        "floor_free": {"floor": 0.4 * shares / shares.sum()},
    }.get(kind, {})


KINDS = (
    *("min", "softmin", "mean", "nash", "power", "power_0", "power_1", "cvar"),
    *("owa", "leximin", "kl", "chi2", "tv", "floor", "floor_free"),
)
BALLS = ("cvar", "kl", "chi2", "tv", "floor", "floor_free")


def op_arguments(kind: str, n_groups: int) -> tuple[Any, ...]:
    """What the face hands to the op after the utilities."""
    from maxmin_kernels._functional_welfare import _parameters

    o = options(kind, n_groups)
    scalars = {name: o.get(name) for name in ("tau", "alpha", "p", "radius")}
    like = torch.zeros(n_groups)
    return _parameters(
        like, o["kind"], o["group_weights"], scalars, o.get("floor"), o.get("rank_weights"), True
    )


def positive(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).exp()


@pytest.mark.parametrize("backend", BACKENDS)
@cases(
    kind=KINDS,
    dtype=DTYPES,
    layout=list(LAYOUTS),
    rows=[(0,), (1,), (17,), (2, 0, 3), (3, 43), ()],
    groups=[1, 2, 3, 8, 33],
    upstream=["random", "sum", "sliced", "transposed"],
)
def test_matches_float64(backend: str, case: dict) -> None:
    shape = (*case["rows"], case["groups"])
    layout = case["layout"] if 0 not in shape and len(shape) > 1 else "contiguous"
    u = with_layout(layout, positive(*shape).to(case["dtype"]), requires_grad=True)
    arguments = op_arguments(case["kind"], case["groups"])
    with mk.backend(backend):
        out = mk.welfare(u, **options(case["kind"], case["groups"]))
    wide = reference.welfare(u.detach().double(), *arguments)
    peer = reference.welfare(u.detach(), *arguments)
    assert_close_enough(out.value, wide[0], peer[0], name="value")
    assert_close_enough(out.weights, wide[1], peer[1], name="weights")
    assert out.value.dtype == (torch.float64 if u.dtype == torch.float64 else torch.float32)
    grad = upstream(case["upstream"], out.value)
    (by_u,) = torch.autograd.grad(out.value, u, grad)
    assert by_u.dtype == u.dtype
    torch.testing.assert_close(by_u, (grad[..., None] * out.weights).to(u.dtype), rtol=0, atol=0)


# ---- values, by other programs


def brute_force(kind: str, u: np.ndarray, shares: np.ndarray) -> float:
    """The definition, by formula or by a general solver."""
    o = options(kind)
    n = len(u)
    ordered = np.sort(u)
    if kind == "min":
        return u.min()
    if kind == "softmin":
        return -o["tau"] * math.log(sum(shares * np.exp(-u / o["tau"])))
    if kind in ("mean", "power_1"):
        return shares @ u
    if kind == "nash":
        return shares @ np.log(u)
    if kind == "power":
        return (shares @ u ** o["p"]) ** (1 / o["p"])
    if kind == "power_0":
        return math.exp(shares @ np.log(u))
    if kind == "owa":
        return ordered @ o["rank_weights"].numpy()
    if kind == "leximin":
        ranks = 1e-3 ** np.arange(n)
        return ordered @ ranks / ranks.sum()
    simplex = {"A_eq": np.ones((1, n)), "b_eq": [1.0]}
    if kind == "cvar":
        bounds = [(0, s / o["alpha"]) for s in shares]
        return optimize.linprog(u, bounds=bounds, **simplex).fun
    floor = o["floor"].numpy() if kind.startswith("floor") else np.zeros(n)
    if kind == "floor_free":
        return optimize.linprog(u, bounds=[(f, 1) for f in floor], **simplex).fun
    if kind == "tv":  # q - shares = up - down
        both = np.concatenate([u, -u])
        a_ub = [np.concatenate([-np.eye(n)[k], np.eye(n)[k]]) for k in range(n)]
        a_ub.append(np.full(2 * n, 0.5))
        b_ub = [*shares, o["radius"]]
        a_eq = [np.concatenate([np.ones(n), -np.ones(n)])]
        return shares @ u + optimize.linprog(both, a_ub, b_ub, a_eq, [0.0]).fun
    divergence = {
        "kl": lambda q: np.sum(q * np.log(q / shares)),
        "chi2": lambda q: np.sum((q - shares) ** 2 / shares),
    }["chi2" if kind == "chi2" else "kl"]
    solved = optimize.minimize(
        lambda q: q @ u,
        0.9 * shares + 0.1 / n,
        method="SLSQP",
        bounds=[(max(f, 1e-9), 1) for f in floor],
        constraints=[
            {"type": "eq", "fun": lambda q: q.sum() - 1},
            {"type": "ineq", "fun": lambda q: o["radius"] - divergence(q)},
        ],
        options={"ftol": 1e-13, "maxiter": 500},
    )
    # Status 8 is SLSQP's way to say that it can get no closer.
    assert solved.status in (0, 8) and divergence(solved.x) <= o["radius"] + 1e-6, solved.message
    return solved.fun


@both_backends
@pytest.mark.parametrize("kind", KINDS)
def test_value_agrees_with_a_general_solver(kind: str, backend: str) -> None:
    u = positive(6, 4, seed=3)
    with mk.backend(backend):
        value = mk.welfare(u, **options(kind)).value
    expected = [brute_force(kind, row, SHARES.numpy()) for row in u.numpy()]
    np.testing.assert_allclose(value.numpy(), expected, rtol=2e-6, atol=2e-6)


@both_backends
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_gradient(kind: str, backend: str) -> None:
    u = positive(5, 4, seed=1).requires_grad_()
    with mk.backend(backend):
        assert torch.autograd.gradcheck(lambda u: mk.welfare(u, **options(kind)).value, u)


@both_backends
@pytest.mark.parametrize("p", [1e-3, 1e-7, -1e-9, 1e-14])
def test_power_mean_near_zero_is_the_geometric_mean(p: float, backend: str) -> None:
    u = positive(8, 4)
    with mk.backend(backend):
        near = mk.welfare(u, "power", p=p, group_weights=SHARES).value
    log_u = u.log()
    centre = (SHARES * log_u).sum(-1)
    variance = (SHARES * (log_u - centre[:, None]).square()).sum(-1)
    # log M_p = mean + p variance / 2 + O(p^2)
    torch.testing.assert_close(
        near.log(), centre + p * variance / 2, rtol=0, atol=20 * p * p + 1e-14
    )


@both_backends
def test_power_mean_of_far_apart_utilities(backend: str) -> None:
    u = torch.tensor([1e-150, 1.0, 1e150], dtype=torch.float64)
    with mk.backend(backend):
        low = mk.welfare(u, "power", p=-50.0)
    assert low.value.item() == pytest.approx(1e-150 * 3 ** (1 / 50), rel=1e-12)
    torch.testing.assert_close(low.weights[0], torch.tensor(3.0**0.02).double(), rtol=1e-6, atol=0)


# ---- what section 5 says of radii

# Distances from the shares to the egalitarian corner, by the mass of the worst groups.
CORNER = {
    "kl": ("radius", lambda mass: -math.log(mass)),
    "chi2": ("radius", lambda mass: 1 / mass - 1),
    "tv": ("radius", lambda mass: 1 - mass),
    "cvar": ("alpha", lambda mass: mass),
}


@both_backends
@pytest.mark.parametrize("kind", CORNER)
@pytest.mark.parametrize("tied", [False, True])
def test_minimum_is_reached_at_a_finite_radius(kind: str, tied: bool, backend: str) -> None:
    u = torch.tensor([0.3, -1.0, 0.9, -1.0 if tied else 2.0], dtype=torch.float64)
    name, corner = CORNER[kind]
    at = corner(0.6 if tied else 0.2)
    inward = 1.02 if kind == "cvar" else 0.98  # a little less adversarial
    outward = 2 - inward
    with mk.backend(backend):
        below, beyond = (
            mk.welfare(u, kind, group_weights=SHARES, **{name: at * factor})
            for factor in (inward, outward)
        )
    assert beyond.value.item() == pytest.approx(-1.0, abs=1e-12)
    assert below.value.item() > -1.0 + 1e-4
    worst = u == -1.0
    assert beyond.weights[~worst].abs().max() < 1e-12
    assert beyond.weights[worst].sum().item() == pytest.approx(1.0, abs=1e-12)


@both_backends
@pytest.mark.parametrize("kind", ["kl", "chi2", "tv"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_radius_zero_is_the_mean(kind: str, dtype: torch.dtype, backend: str) -> None:
    u = positive(5, 4).to(dtype)
    with mk.backend(backend):
        ball = mk.welfare(u, kind, radius=0.0, group_weights=SHARES)
        mean = mk.welfare(u, "mean", group_weights=SHARES)
    torch.testing.assert_close(ball, mean)


@both_backends
@pytest.mark.parametrize("radius", [1e-14, 1e-9, 1e-4])
def test_small_radii_cost_in_proportion_to_the_standard_deviation(
    radius: float, backend: str
) -> None:
    u = positive(6, 4)
    mean = (SHARES * u).sum(-1)
    deviation = (SHARES * (u - mean[:, None]).square()).sum(-1).sqrt()
    with mk.backend(backend):
        chi2 = mk.welfare(u, "chi2", radius=radius, group_weights=SHARES).value
        kl = mk.welfare(u, "kl", radius=radius, group_weights=SHARES).value
    torch.testing.assert_close(chi2, mean - math.sqrt(radius) * deviation, rtol=0, atol=1e-13)
    # KL is half of chi2 to the second order.
    torch.testing.assert_close(
        (mean - kl) / math.sqrt(2 * radius),
        deviation,
        rtol=2e-2 if radius > 1e-6 else 1e-4,
        atol=1e-7,
    )


@both_backends
def test_floor_of_zero_is_the_kl_ball_and_a_full_floor_is_the_mean(backend: str) -> None:
    u = positive(7, 4)
    with mk.backend(backend):
        none = mk.welfare(u, "floor", floor=torch.zeros(4), radius=0.2, group_weights=SHARES)
        kl = mk.welfare(u, "kl", radius=0.2, group_weights=SHARES)
        full = mk.welfare(u, "floor", floor=SHARES, radius=0.2, group_weights=SHARES)
        mean = mk.welfare(u, "mean", group_weights=SHARES)
    torch.testing.assert_close(none, kl)
    torch.testing.assert_close(full, mean)


@both_backends
def test_softmin_tends_to_min(backend: str) -> None:
    u = positive(9, 4)
    with mk.backend(backend):
        low = mk.welfare(u)
        near = mk.welfare(u, "softmin", tau=1e-4, group_weights=SHARES)
    torch.testing.assert_close(near.value, low.value, rtol=0, atol=1e-3)
    torch.testing.assert_close(near.weights, low.weights, rtol=0, atol=1e-6)


@both_backends
def test_leximin_looks_at_the_second_worst(backend: str) -> None:
    u = torch.tensor([[1.0, 5.0, 1.0], [1.0, 1.1, 9.0], [0.9, 9.0, 9.0]], dtype=torch.float64)
    with mk.backend(backend):
        values = mk.welfare(u, "leximin").value
    assert values.argsort(descending=True).tolist() == [1, 0, 2]


@both_backends
@pytest.mark.parametrize("kind", ["min", "owa", "cvar", "tv", "leximin"])
def test_the_first_of_tied_groups_counts_as_worst(kind: str, backend: str) -> None:
    u = torch.tensor([2.0, 1.0, 1.0, 3.0], dtype=torch.float64)
    with mk.backend(backend):
        w = mk.welfare(u, **(options(kind) | {"group_weights": None})).weights
    assert w[1] > w[2] or kind == "tv"
    assert kind != "tv" or w.tolist() == pytest.approx([0.25, 0.4, 0.25, 0.1])
    if kind == "min":
        assert w.tolist() == [0, 1, 0, 0]


# ---- properties

numbers = st.floats(-50, 50, allow_subnormal=False)


@given(
    u=st.lists(numbers, min_size=3, max_size=3),
    shares=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    size=st.floats(1e-3, 0.9),
    shift=numbers,
)
@pytest.mark.parametrize("kind", ["cvar", "kl", "chi2", "tv"])
def test_balls(kind: str, u: list, shares: list, size: float, shift: float) -> None:
    """In the ball, on the simplex, between min and mean, and moving along with the utilities."""
    x, eta = torch.tensor(u).double(), torch.tensor(shares).double()
    eta = eta / eta.sum()
    name = "alpha" if kind == "cvar" else "radius"
    value, q = mk.welfare(x, kind, group_weights=eta, **{name: size})
    assert q.min() >= 0 and q.sum().item() == pytest.approx(1, abs=1e-12)
    distance = {
        "cvar": lambda: (q / eta).max().item() - 1 / size,
        "kl": lambda: torch.special.xlogy(q, q / eta).sum().item() - size,
        "chi2": lambda: ((q - eta).square() / eta).sum().item() - size,
        "tv": lambda: (q - eta).abs().sum().item() / 2 - size,
    }[kind]()
    assert distance <= 1e-9
    slack = 1e-10 * (1 + x.abs().max().item())
    assert x.min() - slack <= value <= (eta * x).sum() + slack
    moved = mk.welfare(2 * x + shift, kind, group_weights=eta, **{name: size}).value
    assert moved.item() == pytest.approx(2 * value.item() + shift, abs=1e-8)


@given(u=st.lists(numbers, min_size=4, max_size=4), seed=st.integers(0, 99))
@pytest.mark.parametrize("kind", ["min", "softmin", "mean", "owa", *BALLS])
def test_concave_and_monotone(kind: str, u: list, seed: int) -> None:
    x, o = torch.tensor(u).double(), options(kind)
    other = 5 * torch.randn(4, generator=torch.Generator().manual_seed(seed)).double()
    ends = mk.welfare(torch.stack([x, other, (x + other) / 2, x + other.abs()]), **o)
    a, b, middle, more = ends.value.tolist()
    assert middle >= (a + b) / 2 - 1e-9
    assert more >= a - 1e-9
    # The weights are a supergradient.
    assert b <= a + (ends.weights[0] @ (other - x)).item() + 1e-8


# ---- NaN, extremes, empty groups


@both_backends
@pytest.mark.parametrize("kind", KINDS)
def test_nan_makes_its_row_nan(kind: str, backend: str) -> None:
    u = positive(4, 4)
    clean = mk.welfare(u, **options(kind))
    u[2, 3] = torch.nan
    with mk.backend(backend):
        out = mk.welfare(u, **options(kind))
    assert out.value[2].isnan() and out.weights[2].isnan().all()
    rest = [0, 1, 3]
    torch.testing.assert_close(out.value[rest], clean.value[rest])
    torch.testing.assert_close(out.weights[rest], clean.weights[rest])


@both_backends
@pytest.mark.parametrize("kind", ["nash", "power", "power_0"])
def test_outside_the_domain_is_nan(kind: str, backend: str) -> None:
    u = torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.0, -2.0, 3.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    with mk.backend(backend):
        out = mk.welfare(u, **options(kind))
    assert out.value.isnan().tolist() == [True, True, False]
    assert out.weights.isnan().all(1).tolist() == [True, True, False]


@both_backends
@pytest.mark.parametrize("kind", ["softmin", "mean", "nash", "power", "cvar", "kl", "chi2"])
def test_groups_without_a_share_do_not_count(kind: str, backend: str) -> None:
    shares = torch.tensor([0.0, 0.5, 0.2, 0.3])
    u = positive(6, 4)
    u[:, 0] = -3.0
    given_ = {k: v for k, v in options(kind).items() if k != "group_weights"}
    with mk.backend(backend):
        out = mk.welfare(u, **given_, group_weights=shares)
        rest = mk.welfare(u[:, 1:], **given_, group_weights=shares[1:])
    torch.testing.assert_close(out.value, rest.value)
    assert (out.weights[:, 0] == 0).all()
    torch.testing.assert_close(out.weights[:, 1:], rest.weights)


@both_backends
@pytest.mark.parametrize("kind", ["min", "softmin", "mean", "owa", *BALLS])
@pytest.mark.parametrize("size", [1e4, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_and_small_utilities(
    kind: str, size: float, dtype: torch.dtype, backend: str
) -> None:
    u = (size * torch.tensor([[1.0, -1.0, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0]])).to(dtype)
    with mk.backend(backend):
        out = mk.welfare(u, **options(kind))
    assert out.value.isfinite().all() and out.weights.isfinite().all()
    total = 1.0 if kind != "owa" else options(kind)["rank_weights"].sum().item()
    torch.testing.assert_close(out.value[1], total * u[1, 0], rtol=1e-5, atol=0)


@both_backends
def test_nearly_tied_groups(backend: str) -> None:
    u = torch.tensor([1.0, 1.0 + 1e-13, 2.0, 3.0], dtype=torch.float64)
    for kind in ("kl", "chi2", "tv", "cvar", "floor"):
        with mk.backend(backend):
            out = mk.welfare(u, **options(kind))
        assert out.weights.sum().item() == pytest.approx(1, abs=1e-12), kind
        tied = mk.welfare(torch.tensor([1.0, 1.0, 2.0, 3.0]).double(), **options(kind)).value
        assert out.value.item() == pytest.approx(tied.item(), abs=1e-10)


# ---- as an operation


@both_backends
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, backend: str) -> None:
    arguments = op_arguments(kind, 4)
    for u in (positive(3, 4), positive(4), positive(2, 3, 4).float().transpose(0, 1)):
        with mk.backend(backend):
            torch.library.opcheck(
                torch.ops.maxmin.welfare_fwd.default, (u.requires_grad_(), *arguments)
            )


@both_backends
@pytest.mark.parametrize("kind", ["min", "kl", "leximin", "floor_free"])
def test_compiles(kind: str, backend: str) -> None:
    u = positive(3, 4).float().requires_grad_()
    with mk.backend(backend):
        assert_compiles(lambda u: mk.welfare(u, **options(kind)).value, [u])


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors(dtype: torch.dtype) -> None:
    u = positive(2, 3, 4).to(dtype).transpose(0, 1)
    for real, fake in zip(mk.welfare(u), fake_outputs(lambda u: mk.welfare(u), [u]), strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@native
def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    u = positive(5003, 7).float()
    threads = torch.get_num_threads()
    runs = []
    try:
        for n in (1, 1, 2, 3):
            torch.set_num_threads(n)
            with mk.backend("cpu"):
                runs.append(mk.welfare(u, "kl", radius=0.1))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


U = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"utilities": [1.0]}, TypeError, r"utilities: expected a torch.Tensor .* got list"),
        (
            {"utilities": torch.ones(())},
            ValueError,
            r"utilities: expected .*\(\.\.\., K\), got \(\)",
        ),
        ({"utilities": torch.ones(2, 0)}, ValueError, "utilities: expected at least one group"),
        ({"utilities": torch.ones(3, dtype=torch.int64)}, TypeError, "utilities: expected dtype"),
        ({"kind": "max"}, ValueError, "kind: expected one of min, softmin, .* got 'max'"),
        ({"kind": "softmin"}, ValueError, "tau: expected a number for kind 'softmin', got None"),
        (
            {"kind": "softmin", "tau": 0.0},
            ValueError,
            r"tau: expected a number in \(0, inf\), got 0",
        ),
        ({"kind": "softmin", "tau": "1"}, TypeError, "tau: expected a number, got str"),
        ({"kind": "cvar", "alpha": 0.0}, ValueError, r"alpha: expected a number in \(0, 1\]"),
        (
            {"kind": "cvar", "alpha": 1.5},
            ValueError,
            r"alpha: expected a number in \(0, 1\], got 1.5",
        ),
        ({"kind": "power", "p": 1.5}, ValueError, r"p: expected a number in \(-inf, 1\], got 1.5"),
        ({"kind": "power", "p": -math.inf}, ValueError, r"p: expected a number in \(-inf, 1\]"),
        ({"kind": "kl", "radius": -0.1}, ValueError, r"radius: expected a number in \[0, inf\]"),
        ({"kind": "tv", "radius": math.nan}, ValueError, r"radius: expected .* got nan"),
        ({"kind": "kl", "tau": 1.0, "radius": 1.0}, ValueError, "tau: kind 'kl' takes radius, got"),
        ({"kind": "min", "alpha": 1.0}, ValueError, "alpha: kind 'min' takes no such parameter"),
        ({"kind": "owa"}, ValueError, r"rank_weights: expected a tensor \(K,\) for kind 'owa'"),
        ({"kind": "floor"}, ValueError, r"floor: expected a tensor \(K,\) for kind 'floor'"),
        ({"floor": torch.ones(3)}, ValueError, "floor: expected None for kind 'min', got a tensor"),
        ({"group_weights": torch.ones(2)}, ValueError, r"group_weights: expected shape \(3,\)"),
        (
            {"group_weights": torch.ones(3, device="meta")},
            ValueError,
            "group_weights: expected device cpu, got meta",
        ),
        (
            {"group_weights": torch.tensor([1.0, -1, 1]), "validate": True},
            ValueError,
            r"group_weights: expected numbers >= 0, got -1.0 at row 1",
        ),
        (
            {"group_weights": torch.zeros(3), "validate": True},
            ValueError,
            "group_weights: expected a positive sum, got 0",
        ),
        (
            {"kind": "floor", "floor": torch.tensor([0.1, 0.5, 0.1]), "validate": True},
            ValueError,
            "floor: expected at most the group's share 0.333333, got 0.5 for group 1",
        ),
        (
            {"kind": "owa", "rank_weights": torch.tensor([0.5, 0.2, 0.3]), "validate": True},
            ValueError,
            r"rank_weights: expected weights that do not rise .* got 0.2 before 0.3",
        ),
        (
            {"utilities": torch.tensor([[0.0, 1, torch.nan]]), "validate": True},
            ValueError,
            r"utilities: expected finite numbers, got nan at \(0, 2\)",
        ),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mk.welfare(**({"utilities": U} | change))

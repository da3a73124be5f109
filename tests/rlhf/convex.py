"""MaxMin and its relatives by SciPy's solvers from the definitions alone: random problems small enough to enumerate.

Nothing here is taken from the package. The dual (13') is written down kind by kind, with the set of weights spelt out as
constraints, and handed to SLSQP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

KINDS = (
    *("maxmin", "mean", "softmin", "nash", "power", "cvar"),
    *("owa", "leximin", "kl", "chi2", "tv", "floor"),
)
Array = np.ndarray


@dataclass(frozen=True)
class Instance:
    """One problem: (P, S, K) rewards, the penalty, the shares, the objective's own parameters."""

    kind: str
    rewards: Array
    beta: float
    shares: Array
    options: dict[str, Any]


def random_instance(kind: str, seed: int) -> Instance:
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    K = int(rng.integers(2, 17))
    rewards = rng.standard_normal((rng.integers(1, 4), rng.integers(3, 13), K))
    if seed % 4 == 0:  # groups that agree, in part or wholly
        rewards = rewards[..., rng.integers(0, K // 2 + 1, K)]
    if seed % 4 == 1:  # of very different decisiveness
        rewards = rewards * np.exp(rng.standard_normal(K))
    rewards = rewards - rewards.mean(1, keepdims=True)
    if kind in ("nash", "power"):
        rewards = rewards - rewards.min((0, 1)) + 0.1
    shares = rng.dirichlet(np.full(K, 2.0))
    radius = {"radius": float(10 ** rng.uniform(-2.5, 0.5))}
    options: dict[str, Any] = {
        "softmin": {"tau": float(10 ** rng.uniform(-2, 1))},
        "power": {"p": float(rng.choice([-8.0, -2.0, -0.5, 0.0, 0.4, 0.8]))},
        "cvar": {"alpha": float(rng.uniform(0.05, 1))},
        "owa": {"rank_weights": np.sort(rng.exponential(size=K))[::-1] / K},
        "tv": {"radius": float(rng.uniform(0, 0.9))},
        "floor": {"floor": shares * rng.uniform(0, 0.9, K)} | (radius if seed % 2 else {}),
        "kl": radius,
        "chi2": radius,
    }.get(kind, {})
    return Instance(kind, rewards, float(10 ** rng.uniform(-1.0, 0.5)), shares, options)


def best(w: Array, instance: Instance) -> tuple[float, Array]:
    """D of (13) at weights of sum one, and its gradient."""
    z = instance.rewards @ w / instance.beta
    n_prompts, n_samples, _ = instance.rewards.shape
    value = instance.beta * (special.logsumexp(z, 1) - np.log(n_samples)).mean()
    policy = special.softmax(z, 1)
    return value, np.einsum("ps,psk->k", policy, instance.rewards) / n_prompts


def value_by_scipy(instance: Instance) -> float:
    """The optimum of the dual (13')."""
    eta, options = instance.shares, instance.options
    K = len(eta)
    if instance.kind == "mean":
        return best(eta, instance)[0]
    if instance.kind == "owa":
        return _over_permutations(instance)
    simplex = [{"type": "eq", "fun": lambda q: q.sum() - 1, "jac": np.ones_like}]
    low, high = np.zeros(K), np.ones(K)

    def objective(q: Array) -> tuple[float, Array]:
        return best(q, instance)

    if instance.kind == "softmin":
        low = np.full(K, 1e-300)

        def objective(q: Array) -> tuple[float, Array]:
            value, grad = best(q, instance)
            log = np.log(np.maximum(q, 1e-300) / eta)
            return value + options["tau"] * (q @ log), grad + options["tau"] * (log + 1)

    if instance.kind in ("nash", "power"):
        low = np.full(K, 1e-9)
        p = options.get("p", 0.0)

        def objective(q: Array) -> tuple[float, Array]:
            # The logarithm of both; at p = 0 the geometric mean.
            value, grad = best(q, instance)
            if p == 0:
                return np.log(value) - eta @ np.log(q / eta), grad / value - eta / q
            dual = p / (p - 1)
            terms = np.log(eta) + dual * np.log(q / eta)
            log_mean = special.logsumexp(terms) / dual
            return np.log(value) - log_mean, grad / value - special.softmax(terms) / q

    if instance.kind == "cvar":
        high = np.minimum(eta / options["alpha"], 1)
    if instance.kind == "floor":
        low = options["floor"]
    if instance.kind == "tv":
        return _over_moves(instance)
    if instance.kind in ("kl", "chi2", "floor") and "radius" in options:
        simplex.append(_ball(instance))
    solved = _slsqp(objective, eta, simplex, low, high)
    if instance.kind == "power" or (instance.kind == "nash"):
        return float(np.exp(solved)) if instance.kind == "power" else solved
    return solved


def _slsqp(
    objective: Callable[[Array], tuple[float, Array]],
    start: Array,
    constraints: list[dict[str, Any]],
    low: Array,
    high: Array,
) -> float:
    """From the solution once more until nothing is gained: SLSQP stops early where its model is stale."""
    value = np.inf
    for _ in range(20):
        solved = optimize.minimize(
            objective,
            start,
            jac=True,
            method="SLSQP",
            bounds=list(zip(low, high, strict=True)),
            constraints=constraints,
            options={"ftol": 1e-16, "maxiter": 500},
        )
        gain, value = value - float(solved.fun), min(value, float(solved.fun))
        if not gain > 1e-13 * abs(value):
            break
        start = solved.x
    return value


def _ball(instance: Instance) -> dict[str, Any]:
    eta, radius = instance.shares, instance.options["radius"]
    if instance.kind == "chi2":
        return {
            "type": "ineq",
            "fun": lambda q: radius - ((q - eta) ** 2 / eta).sum(),
            "jac": lambda q: -2 * (q - eta) / eta,
        }
    return {
        "type": "ineq",
        "fun": lambda q: radius - special.rel_entr(q, eta).sum(),
        "jac": lambda q: -(np.log(np.maximum(q, 1e-300) / eta) + 1),
    }


def _over_moves(instance: Instance) -> float:
    """Total variation: what is taken from groups and what is given to them, both variables."""
    eta, K = instance.shares, len(instance.shares)

    def objective(x: Array) -> tuple[float, Array]:
        value, grad = best(eta - x[:K] + x[K:], instance)
        return value, np.concatenate([-grad, grad])

    ones = np.ones(K)
    even = np.concatenate([ones, -ones])
    moved = np.concatenate([0 * ones, ones])
    radius = instance.options["radius"]
    return _slsqp(
        objective,
        np.zeros(2 * K),
        [
            {"type": "eq", "fun": lambda x: even @ x, "jac": lambda x: even},
            {"type": "ineq", "fun": lambda x: radius - moved @ x, "jac": lambda x: -moved},
        ],
        np.zeros(2 * K),
        np.concatenate([eta, ones]),
    )


def _over_permutations(instance: Instance) -> float:
    """OWA: no j weights may sum to more than the first j rank weights; those that are violated are added in turn."""
    ranks = instance.options["rank_weights"] / instance.options["rank_weights"].sum()
    K, most = len(ranks), np.cumsum(ranks)
    constraints = [{"type": "eq", "fun": lambda q: q.sum() - 1, "jac": np.ones_like}]
    q = np.full(K, 1 / K)
    for _ in range(200):
        solved = optimize.minimize(
            lambda q: best(q, instance), q, jac=True, method="SLSQP", bounds=[(0, ranks[0])] * K,
            constraints=constraints, options={"ftol": 1e-16, "maxiter": 500},
        )  # fmt: skip
        q = solved.x
        order = np.argsort(-q)
        over = np.flatnonzero(np.cumsum(q[order]) > most + 1e-11)
        if not over.size:
            break
        for j in over:
            some = np.zeros(K)
            some[order[: j + 1]] = 1
            bound = most[j]
            constraints.append(
                {
                    "type": "ineq",
                    "fun": lambda q, s=some, b=bound: b - s @ q,
                    "jac": lambda q, s=some: -s,
                }
            )
    return float(solved.fun)

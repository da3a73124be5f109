"""The same pass in JAX, jit-compiled, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from batch import RIDGE, climb

jax.config.update("jax_enable_x64", True)


def one_pass(heads: Any, log_weights: Any, x: Any, outer: Any, owner: Any, n: int) -> Any:
    g, k, d = heads.shape
    w = heads.reshape(g * k, d)
    margins = x @ w.T  # (C, J - 1, H)
    padded = jnp.pad(-margins, ((0, 0), (0, 1), (0, 0)))
    share = jax.nn.softmax(padded, 1)[:, :-1]
    log_p = -jax.nn.logsumexp(padded, 1)
    joint = log_weights.reshape(-1) + jax.ops.segment_sum(log_p, owner, n, indices_are_sorted=True)
    joint = joint.reshape(n, g, k)
    evidence = jax.nn.logsumexp(joint, 2, keepdims=True)
    resp = jnp.exp(joint - evidence).reshape(n, g * k)
    held = resp[owner]
    pull = (held[:, None] * share).reshape(-1, g * k)
    gradient = pull.T @ x.reshape(-1, d)
    mean = jnp.einsum("cjh,cjd->hcd", share, x)
    hessian = (pull.T @ outer).reshape(g * k, d, d)
    hessian = hessian - jnp.einsum("hcd,ch,hce->hde", mean, held, mean)
    step = jnp.linalg.solve(hessian + RIDGE * jnp.eye(d), gradient[..., None])[..., 0]
    log_mass = jnp.log(jnp.maximum(resp.mean(0), 1e-300)).reshape(g, k)
    return step.reshape(g, k, d), log_mass, evidence.sum((0, 2))


compiled = jax.jit(one_pass, static_argnums=5)


def prepare(problem: Any) -> None:
    pass


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    x = problem.differences
    flat = x.reshape(-1, x.shape[2])
    outer = (flat[:, :, None] * flat[:, None, :]).reshape(flat.shape[0], -1)
    n = int(problem.household[-1]) + 1
    data = [jax.device_put(a) for a in (x, outer, problem.household)]

    def step(heads: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(a) for a in compiled(heads, log_weights, *data, n))

    return climb(step, problem.starts[n_groups][:n_starts])

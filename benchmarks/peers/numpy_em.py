"""Plain NumPy, one start after the other, vectorised over choices and groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from batch import RIDGE, climb


def prepare(problem: Any) -> None:
    pass


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    first, owner = problem.first, problem.household
    x = np.ascontiguousarray(problem.differences.swapaxes(0, 1))  # (J - 1, C, D)
    n_others, n_choices, n_features = x.shape
    flat = x.reshape(-1, n_features)
    outer = (flat[:, :, None] * flat[:, None, :]).reshape(-1, n_features**2)

    def one_pass(heads: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, ...]:
        w = heads[0]
        margins = (flat @ w.T).reshape(n_others, n_choices, -1)
        low = np.minimum(margins.min(0), 0.0)  # (C, K)
        odds = np.exp(low - margins)
        total = np.exp(low) + odds.sum(0)
        shares = odds / total  # (J - 1, C, K) of the offers not taken
        joint = log_weights[0] + np.add.reduceat(low - np.log(total), first, axis=0)
        top = joint.max(1, keepdims=True)
        evidence = top + np.log(np.exp(joint - top).sum(1, keepdims=True))
        resp = np.exp(joint - evidence)  # (A, K)
        held = resp[owner]
        pull = (held * shares).reshape(flat.shape[0], -1)
        gradient = pull.T @ flat
        hessian = (pull.T @ outer).reshape(-1, n_features, n_features)
        for k in range(w.shape[0]):
            mean = sum(shares[j, :, k, None] * x[j] for j in range(n_others))
            hessian[k] -= (mean * held[:, k, None]).T @ mean
        hessian += RIDGE * np.eye(n_features)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        log_mass = np.log(np.maximum(resp.mean(0), 1e-300))
        return step[None], log_mass[None], np.array([evidence.sum()])

    ends = [climb(one_pass, start[None]) for start in problem.starts[n_groups][:n_starts]]
    values = np.array([end["ends"][0] for end in ends])
    best = ends[int(np.nanargmax(values))]
    return best | {
        "passes": sum(e["passes"] for e in ends),
        "starts": len(ends),
        "ends": values,
    }

"""Vectorised PyTorch in float64: every start and group at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batch import RIDGE, climb
from torch import Tensor


def one_pass(
    heads: Tensor, log_weights: Tensor, x: Tensor, outer: Tensor, owner: Tensor, n: int
) -> Any:
    """heads (G, K, D); x (C, J - 1, D); outer (C (J - 1), D D)."""
    g, k, d = heads.shape
    w = heads.reshape(g * k, d)
    margins = x @ w.T  # (C, J - 1, H)
    share = torch.softmax(torch.nn.functional.pad(-margins, (0, 0, 0, 1)), 1)[:, :-1]
    log_p = -torch.nn.functional.pad(-margins, (0, 0, 0, 1)).logsumexp(1)  # (C, H)
    joint = log_weights.reshape(-1) + x.new_zeros(n, g * k).index_add(0, owner, log_p)
    joint = joint.view(n, g, k)
    evidence = joint.logsumexp(2, keepdim=True)
    resp = (joint - evidence).exp().view(n, g * k)
    held = resp[owner]
    pull = (held[:, None] * share).reshape(-1, g * k)
    gradient = pull.T @ x.reshape(-1, d)
    mean = torch.einsum("cjh,cjd->hcd", share, x)
    hessian = (pull.T @ outer).view(g * k, d, d)
    hessian = hessian - torch.bmm((mean * held.T[..., None]).transpose(1, 2), mean)
    hessian = hessian + RIDGE * torch.eye(d, dtype=x.dtype)
    step = torch.linalg.solve(hessian, gradient)
    log_mass = resp.mean(0).clamp_min(1e-300).log()
    return step.view(g, k, d), log_mass.view(g, k), evidence.sum((0, 2))


def arrays(problem: Any) -> tuple[Tensor, Tensor, Tensor, int]:
    x = torch.from_numpy(problem.differences)
    flat = x.reshape(-1, x.shape[2])
    outer = (flat[:, :, None] * flat[:, None, :]).reshape(flat.shape[0], -1)
    return x, outer, torch.from_numpy(problem.household), int(problem.household[-1]) + 1


run: Any = one_pass


def prepare(problem: Any) -> None:
    torch.set_grad_enabled(False)


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    data = arrays(problem)

    def step(heads: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, ...]:
        out = run(torch.from_numpy(heads), torch.from_numpy(log_weights), *data)
        return tuple(t.numpy() for t in out)

    return climb(step, problem.starts[n_groups][:n_starts])

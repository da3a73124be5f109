"""Autograd on the marginal likelihood in float64: all starts in one batch under Adam, or one after the other by L-BFGS."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batch import TOL
from torch import Tensor

METHOD = "adam"
STEPS, LOOK = 3000, 50  # Adam: at most, and between two looks at what was gained
RATE = 0.05


def marginal(heads: Tensor, logits: Tensor, x: Tensor, owner: Tensor, n: int) -> Tensor:
    """(G,) log-likelihoods."""
    g, k, d = heads.shape
    margins = x @ heads.reshape(g * k, d).T
    log_p = -torch.nn.functional.pad(-margins, (0, 0, 0, 1)).logsumexp(1)
    by_owner = x.new_zeros(n, g * k).index_add(0, owner, log_p).view(n, g, k)
    return (by_owner + logits.log_softmax(1)).logsumexp(2).sum(0)


def prepare(problem: Any) -> None:
    pass


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    x, owner = torch.from_numpy(problem.differences), torch.from_numpy(problem.household)
    data = (x, owner, int(problem.household[-1]) + 1)
    starts = torch.from_numpy(problem.starts[n_groups][:n_starts])
    if METHOD == "adam":
        heads, logits, passes = adam(starts, data)
    else:
        ends = [lbfgs(start[None], data) for start in starts]
        heads, logits = (torch.cat([end[i] for end in ends]) for i in (0, 1))
        passes = sum(end[2] for end in ends)
    with torch.no_grad():
        values = marginal(heads, logits, *data).numpy()
    best = int(np.nanargmax(values))
    return {
        "heads": heads[best].detach().numpy(),
        "log_weights": logits[best].log_softmax(0).detach().numpy(),
        "passes": passes,
        "starts": len(starts),
        "ends": values,
    }


def adam(starts: Tensor, data: Any) -> tuple[Tensor, Tensor, int]:
    heads = starts.clone().requires_grad_()
    logits = starts.new_zeros(starts.shape[:2], requires_grad=True)
    optimiser = torch.optim.Adam([heads, logits], lr=RATE)
    last, passes = torch.full((len(starts),), -torch.inf, dtype=torch.float64), 0
    for step in range(STEPS):
        optimiser.zero_grad()
        value = marginal(heads, logits, *data)
        (-value.sum()).backward()
        optimiser.step()
        passes += len(starts)
        if step % LOOK == 0:
            now = value.detach()
            if bool((now - last <= LOOK * TOL * now.abs()).all()):
                break
            last = now
    return heads, logits, passes


def lbfgs(start: Tensor, data: Any) -> tuple[Tensor, Tensor, int]:
    heads = start.clone().requires_grad_()
    logits = start.new_zeros(start.shape[:2], requires_grad=True)
    n_choices = data[0].shape[0]  # a mean is what its step sizes are made for
    optimiser = torch.optim.LBFGS(
        [heads, logits], max_iter=500, max_eval=1000, tolerance_grad=1e-7,
        tolerance_change=1e-9, history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip
    passes = 0

    def loss() -> Tensor:
        nonlocal passes
        passes += 1
        optimiser.zero_grad()
        value = -marginal(heads, logits, *data).sum() / n_choices
        value.backward()
        return value

    optimiser.step(loss)
    return heads, logits, passes

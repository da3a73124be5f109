"""The structure of MaxMin-RLHF's published loop, on frozen features: K separate models, one pair at a time, hard EM.

Written from its description: groups start as user number modulo K; each of ten rounds scores every pair by every model in
batches of one, gives a user wholly to the model that likes their pairs best, and trains each model on its users' pairs for
ten epochs. No mixing weights, no restarts. A choice among J is J - 1 pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

ROUNDS, EPOCHS, BATCH, RATE = 10, 10, 32, 0.01


def prepare(problem: Any) -> None:
    pass


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    n_others = problem.differences.shape[1]
    pairs = torch.from_numpy(problem.differences).float().flatten(0, 1)
    owner = torch.from_numpy(problem.household).repeat_interleave(n_others)
    n_users = int(owner[-1]) + 1
    models = [torch.nn.Linear(pairs.shape[1], 1, bias=False) for _ in range(n_groups)]
    group = torch.arange(n_users) % n_groups
    for _ in range(ROUNDS):
        for k, model in enumerate(models):
            train(model, pairs[group[owner] == k])
        group = score(models, pairs, owner, n_users).argmax(1)
    shares = torch.bincount(group, minlength=n_groups) / n_users
    return {
        "heads": np.stack([model.weight.detach().double().numpy()[0] for model in models]),
        "log_weights": shares.clamp_min(1e-12).log().double().numpy(),
        "passes": ROUNDS,
        "starts": 1,
        "ends": [],
    }


def train(model: torch.nn.Module, pairs: torch.Tensor) -> None:
    if not len(pairs):
        return
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for batch in pairs[torch.randperm(len(pairs))].split(BATCH):
            optimiser.zero_grad()
            (-logsigmoid(model(batch)).mean()).backward()
            optimiser.step()


@torch.no_grad()
def score(
    models: list[Any], pairs: torch.Tensor, owner: torch.Tensor, n_users: int
) -> torch.Tensor:
    total = torch.zeros(n_users, len(models))
    users = owner.tolist()
    for i, pair in enumerate(pairs.split(1)):
        for k, model in enumerate(models):
            total[users[i], k] += logsigmoid(model(pair)).item()
    return total

"""What a call costs where the work is nothing: our operations beside plain PyTorch of the same size, with pytest-benchmark.

python -m pytest benchmarks --benchmark-only [--benchmark-json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import maxmin_kernels as mk

N, D, H, A, P, S = 64, 16, 4, 8, 4, 4


def cases() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """{operation: (ours, plain PyTorch)}"""
    torch.manual_seed(0)
    features, other = torch.randn(N, D), torch.randn(N, D)
    weight = torch.randn(H, D)
    log_weights = torch.full((H,), 1 / H).log()
    indptr = torch.arange(0, N + 1, N // A)
    owner = torch.arange(N) // (N // A)
    margins = features @ weight.T
    rewards = torch.randn(P, S, H)
    batch = rewards.view(-1, H)
    shares = torch.full((H,), 1 / H)

    def em() -> Any:
        m = features @ weight.T
        joint = log_weights + m.new_zeros(A, H).index_add(0, owner, F.logsigmoid(m))
        evidence = joint.logsumexp(1, keepdim=True)
        resp = (joint - evidence).exp()
        return evidence.sum(), resp, resp.sum(0), (resp[owner] * torch.sigmoid(-m)).T @ features

    def likelihood() -> Any:
        joint = log_weights + margins.new_zeros(A, H).index_add(0, owner, F.logsigmoid(margins))
        return joint.logsumexp(1)

    def advantages() -> Any:
        centred = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        return centred @ shares

    return {
        "em_pass": (lambda: mk.em_pass(features, indptr, weight, log_weights), em),
        "mixture_log_likelihood": (
            lambda: mk.mixture_log_likelihood(margins, indptr, log_weights),
            likelihood,
        ),
        "preference_margins": (
            lambda: mk.preference_margins(features, other, weight),
            lambda: (features - other) @ weight.T,
        ),
        "reward_heads": (lambda: mk.reward_heads(features, weight), lambda: features @ weight.T),
        "maxmin_reduce": (lambda: mk.maxmin_reduce(batch, "min"), lambda: batch.nanmean(0).min(0)),
        "maxmin_advantages": (lambda: mk.maxmin_advantages(rewards, shares), advantages),
        "welfare": (lambda: mk.welfare(batch, "min"), lambda: batch.min(1)),
    }


@pytest.mark.parametrize("who", ["maxmin_kernels", "pytorch"])
@pytest.mark.parametrize("operation", cases())
def test_call(benchmark: Any, operation: str, who: str) -> None:
    benchmark.group = operation
    benchmark(cases()[operation][who == "pytorch"])

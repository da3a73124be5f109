"""What only a device can show: captured in a CUDA graph, on a second stream, on the device of the tensors."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def calls():
    """{operation: a call of it on tensors of the device}"""
    torch.manual_seed(0)
    make = {"device": "cuda"}
    x = torch.randn(1024, 256, dtype=torch.bfloat16, **make)
    indptr = torch.arange(0, 1025, 32, **make)
    weight, logs = torch.randn(4, 256, **make) / 16, torch.zeros(4, **make)
    margins = torch.randn(1024, 4, requires_grad=True, **make)
    rewards = torch.randn(64, 8, 4, **make)
    shares = torch.full((4,), 0.25, **make)
    hidden, token = torch.randn(8, 16, 256, **make), torch.arange(8, **make)
    chosen, rejected = torch.randint(0, 1024, (2, 640), **make)
    some = torch.arange(0, 641, 32, **make)
    plan = mk.em_plan(some, chosen=chosen, rejected=rejected, n_items=1024)
    wide, heads = torch.randn(1024, 1024, dtype=torch.bfloat16, **make), torch.randn(4, 1024, **make) / 32  # fmt: skip

    def gradient():
        return torch.autograd.grad(mk.mixture_log_likelihood(margins, indptr, logs)[0].sum(), margins)  # fmt: skip

    return {
        "em_pass": lambda: mk.em_pass(x, indptr, weight, logs),
        "em_pass, read once": lambda: mk.em_pass(wide, indptr, heads, logs),
        "em_pass, indexed": lambda: mk.em_pass(
            x, some, weight, logs, chosen=chosen, rejected=rejected, plan=plan
        ),
        "mixture_log_likelihood": gradient,
        "reward_heads": lambda: (mk.reward_heads(hidden, weight, token_index=token),),
        "preference_margins": lambda: (mk.preference_margins(x, x.flip(0), weight.bfloat16()),),
        "welfare": lambda: mk.welfare(rewards, "kl", radius=0.1),
        "maxmin_reduce": lambda: mk.maxmin_reduce(rewards.flatten(0, 1), "softmin", tau=0.3),
        "maxmin_advantages": lambda: (mk.maxmin_advantages(rewards, shares, scale="batch"),),
        "maxmin_dual": lambda: mk.maxmin_dual(rewards, 0.5, max_iter=24),
        "last_token_index": lambda: (mk.last_token_index(torch.ones(8, 16, **make)[:, :9].bool()),),
        "weighted_gram": lambda: (
            mk.weighted_gram(x[:, :8], shares.expand(32, 4), margins.detach().sigmoid(), indptr),
        ),
    }


@pytest.mark.parametrize("name", calls() if torch.cuda.is_available() else ["nothing"])
def test_captured_on_a_second_stream_it_finds_the_same(name):
    run = calls()[name]
    with mk.backend("triton"):
        eager = run()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            other = run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = run()
        for _ in range(2):
            graph.replay()
    torch.cuda.synchronize()
    for a, b, c in zip(eager, other, replayed, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_a_long_annotator_among_short_ones():
    lengths = torch.tensor([100_000, 1, 0, 31, 5000])
    indptr = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).cuda()
    x = torch.randn(int(indptr[-1]), 1024, device="cuda", dtype=torch.bfloat16)
    weight, logs = torch.randn(3, 1024, device="cuda") / 100, torch.zeros(3, device="cuda")
    with mk.backend("triton"):
        out = mk.em_pass(x, indptr, weight, logs)
    with mk.backend("reference"):
        exact = mk.em_pass(x.double(), indptr, weight.double(), logs.double())
    torch.testing.assert_close(out.log_likelihood, exact.log_likelihood, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.log_resp.exp().double(), exact.log_resp.exp(), rtol=0, atol=1e-3)
    size = exact.grad_weight.abs().max()
    assert (out.grad_weight.double() - exact.grad_weight).abs().max() < 1e-4 * size

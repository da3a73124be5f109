"""The definitions themselves, against loops over annotators written from the formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from maxmin_kernels import reference


def problem(n_features: int = 3, n_heads: int = 4, sets: bool = True, seed: int = 0):
    """A few annotators, one of them empty, with pairs or sets of two to four rows."""
    rng = torch.Generator().manual_seed(seed)
    per_annotator = torch.tensor([3, 0, 1, 5, 2])
    indptr = torch.nn.functional.pad(per_annotator.cumsum(0), (1, 0))
    n_choices = int(indptr[-1])
    sizes = (
        torch.randint(1, 4, (n_choices,), generator=rng) if sets else torch.ones(n_choices).long()
    )
    choice_indptr = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    n_rows = int(choice_indptr[-1])

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return {
        "features": draw(n_rows, n_features),
        "weight": draw(n_heads, n_features),
        "log_weights": draw(n_heads).log_softmax(0),
        "indptr": indptr,
        "choice_indptr": choice_indptr if sets else None,
        "mixture_indptr": torch.tensor([0, 1, n_heads]),
        "comparison_weight": draw(n_choices).exp(),
    }


def loop_log_prob(features, weight, rows, noise):
    """log-probability of one choice under one head."""
    p = 1.0 / (1.0 + sum(math.exp(-float(features[i] @ weight)) for i in rows))
    return math.log((1 - noise) * p + noise / (len(rows) + 1))


def loop_evidence(p: dict, noise: float, hard: bool, temperature: float):
    """Z (A, G) and responsibilities (A, H) by loops."""
    n_heads, ends = len(p["weight"]), p["mixture_indptr"].tolist()
    rows = (
        p["choice_indptr"]
        if p["choice_indptr"] is not None
        else torch.arange(len(p["features"]) + 1)
    )
    z, resp = [], []
    for a in range(len(p["indptr"]) - 1):
        joint = []
        for h in range(n_heads):
            total = float(p["log_weights"][h])
            for c in range(int(p["indptr"][a]), int(p["indptr"][a + 1])):
                span = range(int(rows[c]), int(rows[c + 1]))
                log_prob = loop_log_prob(p["features"], p["weight"][h], span, noise)
                total += float(p["comparison_weight"][c]) * log_prob
            joint.append(total)
        z.append([])
        resp.append([])
        for begin, end in itertools.pairwise(ends):
            part = joint[begin:end]
            if hard:
                z[-1].append(max(part))
                resp[-1] += [float(i == part.index(max(part))) for i in range(len(part))]
            else:
                total = sum(math.exp(x / temperature) for x in part)
                z[-1].append(temperature * math.log(total))
                resp[-1] += [math.exp(x / temperature) / total for x in part]
    return torch.tensor(z, dtype=torch.float64), torch.tensor(resp, dtype=torch.float64)


OPTIONS = {
    "soft": (0.0, False, 1.0),
    "noise": (0.2, False, 1.0),
    "tempered": (0.0, False, 3.0),
    "hard": (0.0, True, 1.0),
}


@pytest.mark.parametrize("sets", [False, True], ids=["pairs", "sets"])
@pytest.mark.parametrize("option", OPTIONS)
def test_em_pass_is_its_formula(sets, option):
    noise, hard, temperature = OPTIONS[option]
    p = problem(sets=sets)
    z, resp = loop_evidence(p, noise, hard, temperature)
    out = reference.em_pass(
        p["features"], p["indptr"], p["weight"], p["log_weights"], None, None, p["choice_indptr"],
        p["mixture_indptr"], p["comparison_weight"], noise, hard, temperature,
    )  # fmt: skip
    torch.testing.assert_close(out.log_likelihood, z.sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.log_resp.exp(), resp, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.mass, resp.sum(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sets", [False, True], ids=["pairs", "sets"])
@pytest.mark.parametrize("option", OPTIONS)
def test_gradient_is_that_of_the_objective(sets, option):
    """Fisher's identity: (8) is the slope of the loops' own objective, by central differences."""
    noise, hard, temperature = OPTIONS[option]
    p = problem(sets=sets, seed=1)
    out = reference.em_pass(
        p["features"], p["indptr"], p["weight"], p["log_weights"], None, None, p["choice_indptr"],
        p["mixture_indptr"], p["comparison_weight"], noise, hard, temperature,
    )  # fmt: skip
    step = 1e-5
    for h, d in [(0, 0), (1, 2), (3, 1)]:
        values = []
        for sign in (1, -1):
            moved = p["weight"].clone()
            moved[h, d] += sign * step
            values.append(loop_evidence({**p, "weight": moved}, noise, hard, temperature)[0].sum())
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(out.grad_weight[h, d], slope, rtol=1e-6, atol=1e-7)


def test_weighted_gram_is_the_curvature():
    """Hess against second differences of the log-likelihood with responsibilities held fixed."""
    p = problem(n_heads=2, seed=2)
    resp = torch.rand(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    owner = torch.repeat_interleave(p["indptr"].diff())

    def gradient(weight):
        weight = weight.detach().requires_grad_()
        log_prob, _ = reference.choice_shares(p["features"] @ weight.T, p["choice_indptr"])
        total = (resp[owner] * p["comparison_weight"][:, None] * log_prob).sum()
        return torch.autograd.grad(total, weight)[0]

    _, share = reference.choice_shares(p["features"] @ p["weight"].T, p["choice_indptr"])
    gram = reference.weighted_gram(
        p["features"],
        resp,
        share,
        p["indptr"],
        None,
        None,
        p["choice_indptr"],
        p["comparison_weight"],
    )
    for d in range(3):
        step = torch.zeros(2, 3, dtype=torch.float64)
        step[:, d] = 1e-5
        slope = (gradient(p["weight"] - step) - gradient(p["weight"] + step)) / 2e-5
        torch.testing.assert_close(gram[:, :, d], slope, rtol=1e-6, atol=1e-8)


def test_observed_information_is_the_hessian():
    """The Hess and the annotators' pulls together are minus the second derivative of (7)."""
    p = problem(n_heads=3, seed=4)
    p["mixture_indptr"] = None

    def evidence(weight):
        z, _ = reference.mixture_log_likelihood(
            p["features"] @ weight.T, p["indptr"], p["log_weights"], p["choice_indptr"], None,
            p["comparison_weight"],
        )  # fmt: skip
        return z.sum()

    hessian = torch.autograd.functional.hessian(evidence, p["weight"])
    margins = p["features"] @ p["weight"].T
    _, share = reference.choice_shares(margins, p["choice_indptr"])
    _, log_resp = reference.mixture_log_likelihood(
        margins, p["indptr"], p["log_weights"], p["choice_indptr"], None, p["comparison_weight"]
    )
    resp = log_resp.exp()
    gram = reference.weighted_gram(
        p["features"],
        resp,
        share,
        p["indptr"],
        None,
        None,
        p["choice_indptr"],
        p["comparison_weight"],
    )
    owner = torch.repeat_interleave(p["choice_indptr"].diff())
    pull = share * p["comparison_weight"][owner, None]
    rows = pull[:, :, None] * p["features"][:, None, :]
    ends = p["choice_indptr"][p["indptr"]].tolist()
    g = torch.stack([rows[b:e].sum(0) for b, e in itertools.pairwise(ends)])  # (A, H, D)
    for h in range(3):
        for k in range(3):
            same = float(h == k)
            mix = same * resp[:, h] - resp[:, h] * resp[:, k]
            information = same * gram[h] - torch.einsum("a,ad,ae->de", mix, g[:, h], g[:, k])
            torch.testing.assert_close(-hessian[h, :, k], information, rtol=1e-8, atol=1e-10)


def test_hard_ties_go_to_the_first():
    joint = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]], dtype=torch.float64)
    _, log_resp = reference.mixture_posterior(joint, None, hard=True, temperature=1.0)
    assert log_resp.exp().tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]

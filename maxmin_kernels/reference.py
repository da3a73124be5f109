"""Every operation in plain PyTorch: its definition, and the truth in tests.

Vectorised, for any device and dtype; give float64 to have float64 throughout. Sums over an annotator's comparisons
(MATH (4)) are in float64 always. Numbers in brackets are the equations of docs/math.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels._reference_dual import DualSolution as DualSolution
from maxmin_kernels._reference_dual import maxmin_dual as maxmin_dual
from maxmin_kernels._reference_dual import maxmin_dual_bwd as maxmin_dual_bwd
from maxmin_kernels._reference_welfare import maxmin_advantages as maxmin_advantages
from maxmin_kernels._reference_welfare import maxmin_reduce as maxmin_reduce
from maxmin_kernels._reference_welfare import maxmin_reduce_bwd as maxmin_reduce_bwd
from maxmin_kernels._reference_welfare import welfare as welfare


class EMPass(NamedTuple):
    """What one EM pass yields, for ``G`` mixtures with ``H`` heads in all over ``A`` annotators."""

    log_likelihood: Tensor  # (G,) float64: sum over annotators of the log-evidence, unpenalised
    log_resp: Tensor  # (A, H): log responsibilities
    mass: Tensor  # (H,) float64: sum of responsibilities
    grad_weight: Tensor  # (H, D): (8) without the penalty's part


def owner_of(indptr: Tensor, size: int) -> Tensor:
    """(size,) the segment that each element of a CSR layout belongs to."""
    segments = torch.arange(indptr.numel() - 1, device=indptr.device)
    return torch.repeat_interleave(segments, indptr.diff(), output_size=size)


def segment_sum(values: Tensor, indptr: Tensor) -> Tensor:
    """(n, H) to (segments, H): sums of contiguous segments, empty ones 0."""
    owner = owner_of(indptr, values.shape[0])
    return values.new_zeros(indptr.numel() - 1, values.shape[1]).index_add(0, owner, values)


def choice_shares(
    margins: Tensor, choice_indptr: Tensor | None = None, label_noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(3) or (3b), and (3'): log-probability of each choice (C, H) and its rows' shares (N, H)."""
    m = margins.to(accumulation_dtype(margins))
    if choice_indptr is None:
        log_prob, share = F.logsigmoid(m), torch.sigmoid(-m)
        owner, n_rows = None, m.new_ones(())
    else:
        n_choices = choice_indptr.numel() - 1
        owner = owner_of(choice_indptr, m.shape[0])
        shift = m.new_zeros(n_choices, m.shape[1]).scatter_reduce(
            0, owner[:, None].expand_as(m), -m.detach(), "amax", include_self=True
        )
        total = (-shift).exp().index_add(0, owner, (-m - shift[owner]).exp())
        log_prob = -(shift + total.log())
        share = (log_prob[owner] - m).exp()
        n_rows = choice_indptr.diff()[:, None].to(m.dtype)
    if label_noise == 0.0:
        return log_prob, share
    kept = math.log1p(-label_noise) + log_prob
    noisy = torch.logaddexp(kept, torch.log(label_noise / (n_rows + torch.ones_like(kept))))
    rho = (kept - noisy).exp()
    return noisy, share * (rho if owner is None else rho[owner])


def choice_shares_bwd(grad_log_prob: Tensor, share: Tensor, choice_indptr: Tensor | None) -> Tensor:
    """Gradient of the log-probabilities by the margins: a row's share of its choice's upstream."""
    if choice_indptr is None:
        return grad_log_prob * share
    return grad_log_prob[owner_of(choice_indptr, share.shape[0])] * share


def _head_owner(
    mixture_indptr: Tensor | None, n_heads: int, device: torch.device
) -> tuple[Tensor, int]:
    if mixture_indptr is None:
        return torch.zeros(n_heads, dtype=torch.int64, device=device), 1
    return owner_of(mixture_indptr, n_heads), mixture_indptr.numel() - 1


def mixture_posterior(
    joint: Tensor, mixture_indptr: Tensor | None, hard: bool, temperature: float
) -> tuple[Tensor, Tensor]:
    """(5)-(6), (7T) or (7H) from L (A, H): log-evidence (A, G) and log responsibilities (A, H)."""
    owner, n_mixtures = _head_owner(mixture_indptr, joint.shape[1], joint.device)
    index = owner.expand_as(joint)
    scaled = joint if hard else joint / temperature
    top = scaled.new_full((joint.shape[0], n_mixtures), -math.inf)
    top = top.scatter_reduce(1, index, scaled, "amax")
    if hard:
        heads = torch.arange(joint.shape[1], device=joint.device).expand_as(joint)
        candidates = torch.where(joint == top[:, owner], heads, joint.shape[1])
        first = torch.full_like(top, joint.shape[1], dtype=torch.int64)
        first = first.scatter_reduce(1, index, candidates, "amin")
        log_resp = torch.where(heads == first[:, owner], 0.0, -math.inf).to(joint.dtype)
        return top, torch.where(top[:, owner].isnan(), math.nan, log_resp)
    shift = torch.where(top == -math.inf, 0.0, top)
    total = torch.zeros_like(top).index_add(1, owner, (scaled - shift[:, owner]).exp())
    evidence = shift + total.log()
    return temperature * evidence, scaled - evidence[:, owner]


def mixture_log_likelihood(
    margins: Tensor,
    indptr: Tensor,
    log_weights: Tensor,
    choice_indptr: Tensor | None = None,
    mixture_indptr: Tensor | None = None,
    comparison_weight: Tensor | None = None,
    label_noise: float = 0.0,
    hard: bool = False,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(3)-(6): log-evidence Z (A, G) and log responsibilities (A, H), both in float64 as summed."""
    log_prob, _ = choice_shares(margins, choice_indptr, label_noise)
    log_prob = log_prob.double()
    if comparison_weight is not None:
        log_prob = log_prob * comparison_weight[:, None]
    joint = log_weights.double() + segment_sum(log_prob, indptr)
    return mixture_posterior(joint, mixture_indptr, hard, temperature)


def mixture_log_likelihood_bwd(
    grad_z: Tensor,
    margins: Tensor,
    indptr: Tensor,
    log_resp: Tensor,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
) -> tuple[Tensor, Tensor]:
    """(10): gradients of the log-evidence by the margins (N, H) and by the log mixing weights (H,)."""
    owner, _ = _head_owner(mixture_indptr, log_resp.shape[1], log_resp.device)
    upstream = log_resp.exp() * grad_z[:, owner]
    _, share = choice_shares(margins, choice_indptr, label_noise)
    per_choice = upstream[owner_of(indptr, _n_choices(margins, choice_indptr))]
    if comparison_weight is not None:
        per_choice = per_choice * comparison_weight[:, None]
    return choice_shares_bwd(per_choice.to(share.dtype), share, choice_indptr), upstream.sum(0)


def _n_choices(rows: Tensor, choice_indptr: Tensor | None) -> int:
    return rows.shape[0] if choice_indptr is None else choice_indptr.numel() - 1


def differences(features: Tensor, chosen: Tensor | None, rejected: Tensor | None) -> Tensor:
    """(1): rows of differences, of the features themselves or of an item table."""
    if chosen is None or rejected is None:
        return features
    return features[chosen] - features[rejected]


def em_pass(
    features: Tensor,
    indptr: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    chosen: Tensor | None = None,
    rejected: Tensor | None = None,
    choice_indptr: Tensor | None = None,
    mixture_indptr: Tensor | None = None,
    comparison_weight: Tensor | None = None,
    label_noise: float = 0.0,
    hard: bool = False,
    temperature: float = 1.0,
) -> EMPass:
    """(2)-(6), (8) and the group masses."""
    acc = accumulation_dtype(features)
    x, w = features.to(acc), weight.to(acc)
    scores = x @ w.T
    margins = differences(scores, chosen, rejected)
    z, log_resp = mixture_log_likelihood(
        margins,
        indptr,
        log_weights,
        choice_indptr,
        mixture_indptr,
        comparison_weight,
        label_noise,
        hard,
        temperature,
    )
    pull, _ = mixture_log_likelihood_bwd(
        torch.ones_like(z),
        margins,
        indptr,
        log_resp,
        choice_indptr,
        mixture_indptr,
        comparison_weight,
        label_noise,
    )
    if chosen is not None and rejected is not None:
        by_item = torch.zeros_like(scores).index_add(0, chosen, pull)
        pull = by_item.index_add(0, rejected, -pull)
    return EMPass(z.sum(0), log_resp.to(acc), log_resp.exp().sum(0), pull.T @ x)


def weighted_gram(
    features: Tensor,
    resp: Tensor,
    share: Tensor,
    indptr: Tensor,
    chosen: Tensor | None = None,
    rejected: Tensor | None = None,
    choice_indptr: Tensor | None = None,
    comparison_weight: Tensor | None = None,
) -> Tensor:
    """Newton's curvature (Hess of docs/math.md without its ridge): (H, D, D)."""
    acc = accumulation_dtype(features)
    x, s = differences(features.to(acc), chosen, rejected), share.to(acc)
    n_choices = _n_choices(x, choice_indptr)
    scale = resp.to(acc)[owner_of(indptr, n_choices)]
    if comparison_weight is not None:
        scale = scale * comparison_weight[:, None].to(acc)
    if choice_indptr is None:
        rows = scale * s * (1 - s)
        return torch.stack([(x * rows[:, h, None]).T @ x for h in range(s.shape[1])])
    owner = owner_of(choice_indptr, x.shape[0])
    grams = []
    for h in range(s.shape[1]):
        pull = x * s[:, h, None]
        mean = x.new_zeros(n_choices, x.shape[1]).index_add(0, owner, pull)
        grams.append((pull * scale[owner, h, None]).T @ x - (mean * scale[:, h, None]).T @ mean)
    return torch.stack(grams)


def rows_of(hidden: Tensor, token_index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(B, D) the rows that heads read, and which of them are there (None: all)."""
    if token_index is None:
        return hidden, None
    present = (token_index >= 0) & (token_index < hidden.shape[1])
    batch = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[batch, torch.where(present, token_index, 0)], present[:, None]


def reward_heads(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, token_index: Tensor | None = None
) -> Tensor:
    """Reward logits (B, H) of a row, or of one token of a sequence; NaN where there is no such token."""
    acc = accumulation_dtype(hidden)
    rows, present = rows_of(hidden, token_index)
    out = rows.to(acc) @ weight.to(acc).T
    if bias is not None:
        out = out + bias.to(acc)
    return out if present is None else torch.where(present, out, math.nan)


def reward_heads_bwd(
    grad: Tensor, hidden: Tensor, weight: Tensor, token_index: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the hidden states (zero at tokens that were not read), the weights and the bias."""
    acc = accumulation_dtype(hidden)
    rows, present = rows_of(hidden, token_index)
    rows, grad = rows.to(acc), grad.to(acc)
    if present is not None:
        rows, grad = torch.where(present, rows, 0.0), torch.where(present, grad, 0.0)
    grad_weight, grad_bias = (grad.T @ rows).to(weight.dtype), grad.sum(0)
    grad_hidden = (grad @ weight.to(acc)).to(hidden.dtype)
    if token_index is not None and present is not None:
        grad_hidden = torch.where(present, grad_hidden, 0.0)
        at = (
            torch.arange(hidden.shape[0], device=hidden.device),
            token_index.where(present[:, 0], 0),
        )
        grad_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format).index_put(
            at, grad_hidden
        )
    return grad_hidden, grad_weight, grad_bias


def preference_margins(chosen: Tensor, rejected: Tensor, weight: Tensor) -> Tensor:
    """(1), (2): (N, H) by how much each head prefers the chosen row."""
    acc = accumulation_dtype(chosen)
    return (chosen.to(acc) - rejected.to(acc)) @ weight.to(acc).T


def preference_margins_bwd(
    grad: Tensor, chosen: Tensor, rejected: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by both rows' features and by the heads."""
    acc = accumulation_dtype(chosen)
    grad = grad.to(acc)
    grad_chosen = (grad @ weight.to(acc)).to(chosen.dtype)
    grad_weight = grad.T @ (chosen.to(acc) - rejected.to(acc))
    return grad_chosen, -grad_chosen, grad_weight.to(weight.dtype)


def last_token_index(attention_mask: Tensor) -> Tensor:
    """(B,) position of the last real token, whichever side is padded; -1 if there is none."""
    # A leading -1 stands for "none", and serves sequences of length 0 as well.
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    found = torch.where(attention_mask != 0, positions, -1)
    return torch.cat([found.new_full((found.shape[0], 1), -1), found], 1).amax(1)

"""The faces of the mixture operations on margins; their names are part of ``maxmin_kernels.functional``."""

from __future__ import annotations

import torch
from torch import Tensor

from maxmin_kernels._checks import (
    accumulation_dtype,
    check_indptr,
    check_scalar,
    check_tensor,
    validate_finite,
    validate_index,
    validate_indptr,
    validate_log_weights,
    validate_nonnegative,
)
from maxmin_kernels.ops import call


def _check_noise(label_noise: float) -> None:
    check_scalar("label_noise", label_noise, low=0.0, high=1.0, high_open=True)


def _n_choices(n_rows: int, choice_indptr: Tensor | None, device: torch.device) -> int:
    if choice_indptr is None:
        return n_rows
    return check_indptr("choice_indptr", choice_indptr, device).shape[0] - 1


def _validate_pointers(
    indptr: Tensor | None, choice_indptr: Tensor | None, n_choices: int, n_rows: int
) -> None:
    if indptr is not None:
        validate_indptr("indptr", indptr, n_choices)
    if choice_indptr is not None:
        validate_indptr("choice_indptr", choice_indptr, n_rows)


def mixture_log_likelihood(
    margins: Tensor,
    indptr: Tensor,
    log_weights: Tensor,
    *,
    choice_indptr: Tensor | None = None,
    mixture_indptr: Tensor | None = None,
    comparison_weight: Tensor | None = None,
    label_noise: float = 0.0,
    hard: bool = False,
    temperature: float = 1.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-evidence of each annotator under mixtures of heads, and its log responsibilities: (3)-(6).

    Args:
        margins: ``(N, H)``, as from `preference_margins`; float64, float32, bfloat16 or float16, any strides.
        indptr: ``(A + 1)`` int64, comparisons of each annotator. One without comparisons has the prior alone.
        log_weights: ``(H,)`` log mixing weights; -inf is an empty group.
        choice_indptr: ``(C + 1)`` int64, rows of each comparison; None: every row is a pair.
        mixture_indptr: ``(G + 1)`` int64, heads of each mixture; None: one mixture.
        comparison_weight: ``(C,)`` weights v >= 0 of the comparisons. Not differentiated.
        label_noise: the epsilon of (3b), in [0, 1).
        hard: one-hot responsibilities, (7H); the first of equal heads wins.
        temperature: T > 0 of (7T); the log-evidence is then ``T logsumexp(L / T)``.
        validate: check values too (NaN, pointers, weights): waits for the device.

    Returns:
        ``(z (A, G), log_resp (A, H))`` in float32 (float64 for float64 margins). ``z`` is differentiable once, by
        ``margins`` (10) and ``log_weights``; ``log_resp`` is not.

    Note:
        Deterministic, whatever the number of threads. Sums over an annotator's comparisons are in float64.
    """
    device = check_tensor("margins", margins, ("N", "H")).device
    n_rows, n_heads = margins.shape
    check_indptr("indptr", indptr, device)
    check_tensor("log_weights", log_weights, (n_heads,), device=device)
    n_choices = _n_choices(n_rows, choice_indptr, device)
    if mixture_indptr is not None:
        check_indptr("mixture_indptr", mixture_indptr, device)
    if comparison_weight is not None:
        check_tensor("comparison_weight", comparison_weight, (n_choices,), device=device)
    _check_noise(label_noise)
    check_scalar("temperature", temperature, low=0.0, low_open=True, high_open=True)
    if validate:
        validate_finite("margins", margins)
        validate_log_weights("log_weights", log_weights)
        _validate_pointers(indptr, choice_indptr, n_choices, n_rows)
        if mixture_indptr is not None:
            validate_indptr("mixture_indptr", mixture_indptr, n_heads)
        if comparison_weight is not None:
            validate_nonnegative("comparison_weight", comparison_weight)
    acc = accumulation_dtype(margins)
    z, log_resp = call(
        "mixture_log_likelihood_fwd",
        margins,
        indptr,
        log_weights.to(acc),
        choice_indptr,
        mixture_indptr,
        None if comparison_weight is None else comparison_weight.to(acc),
        label_noise,
        hard,
        temperature,
    )
    return z, log_resp


def choice_shares(
    margins: Tensor,
    choice_indptr: Tensor | None = None,
    *,
    label_noise: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each choice under each head, and its rows' shares: (3) or (3b), and (3').

    A row's share is the derivative of its choice's log-probability by the row's margin.

    Args:
        margins: ``(N, H)``; float64, float32, bfloat16 or float16, any strides.
        choice_indptr: ``(C + 1)`` int64, rows of each comparison; None: every row is a pair.
        label_noise: the epsilon of (3b), in [0, 1).
        validate: check values too (NaN, pointers): waits for the device.

    Returns:
        ``(log_prob (C, H), share (N, H))`` in float32 (float64 for float64 margins). ``log_prob`` is differentiable
        once; ``share`` is not differentiated.

    Note:
        Deterministic, whatever the number of threads.
    """
    device = check_tensor("margins", margins, ("N", "H")).device
    n_choices = _n_choices(margins.shape[0], choice_indptr, device)
    _check_noise(label_noise)
    if validate:
        validate_finite("margins", margins)
        _validate_pointers(None, choice_indptr, n_choices, margins.shape[0])
    log_prob, share = call("choice_shares_fwd", margins, choice_indptr, label_noise)
    return log_prob, share


def weighted_gram(
    features: Tensor,
    resp: Tensor,
    share: Tensor,
    indptr: Tensor,
    *,
    chosen: Tensor | None = None,
    rejected: Tensor | None = None,
    choice_indptr: Tensor | None = None,
    comparison_weight: Tensor | None = None,
    validate: bool = False,
) -> Tensor:
    """Curvature of each head's M-step, Hess of docs/math.md section 2 without its ridge.

    Sums over the comparisons ``gamma v [sum_i s_i x_i x_i^T - u u^T]`` with ``u = sum_i s_i x_i``; for pairs
    ``gamma v s (1 - s) x x^T``.

    Args:
        features: ``(N, D)`` differences, or ``(M, D)`` items with ``chosen`` and ``rejected``; float64, float32,
            bfloat16 or float16, any strides.
        resp: ``(A, H)`` responsibilities gamma (not their logarithms).
        share: ``(N, H)`` the s of (3'), from `choice_shares` without label noise.
        indptr: ``(A + 1)`` int64, comparisons of each annotator.
        chosen, rejected: ``(N,)`` int64 rows of the item table.
        choice_indptr: ``(C + 1)`` int64, rows of each comparison; None: every row is a pair.
        comparison_weight: ``(C,)`` weights v >= 0 of the comparisons.
        validate: check values too (NaN, indices, pointers): waits for the device.

    Returns:
        ``(H, D, D)`` in float32 (float64 for float64 features), symmetric up to rounding. Not differentiated.

    Note:
        Deterministic, whatever the number of threads. With items far fewer than rows the sums are taken between
        items, and the features are multiplied in at the end.
    """
    device = check_tensor("features", features, ("N", "D")).device
    check_indptr("indptr", indptr, device)
    if (chosen is None) != (rejected is None):
        given, missing = ("chosen", "rejected") if rejected is None else ("rejected", "chosen")
        raise ValueError(f"{missing}: expected item rows beside {given}, got None")
    n_rows = features.shape[0]
    if chosen is not None and rejected is not None:
        n_rows = check_tensor("chosen", chosen, ("N",), dtypes=(torch.int64,), device=device).shape[
            0
        ]
        check_tensor("rejected", rejected, (n_rows,), dtypes=(torch.int64,), device=device)
    check_tensor("share", share, (n_rows, "H"), device=device)
    check_tensor("resp", resp, (indptr.shape[0] - 1, share.shape[1]), device=device)
    n_choices = _n_choices(n_rows, choice_indptr, device)
    if comparison_weight is not None:
        check_tensor("comparison_weight", comparison_weight, (n_choices,), device=device)
    if validate:
        for name, value in (("features", features), ("resp", resp), ("share", share)):
            validate_finite(name, value)
        _validate_pointers(indptr, choice_indptr, n_choices, n_rows)
        if chosen is not None and rejected is not None:
            validate_index("chosen", chosen, features.shape[0])
            validate_index("rejected", rejected, features.shape[0])
        if comparison_weight is not None:
            validate_nonnegative("comparison_weight", comparison_weight)
    acc = accumulation_dtype(features)
    out: Tensor = call(
        "weighted_gram_fwd",
        features.detach(),
        resp.detach().to(acc),
        share.detach().to(acc),
        indptr,
        chosen,
        rejected,
        choice_indptr,
        None if comparison_weight is None else comparison_weight.detach().to(acc),
    )
    return out

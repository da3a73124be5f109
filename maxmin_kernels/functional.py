"""The operations that users call: validated, documented, differentiable where it means something.

Numbers in brackets are the equations of docs/math.md. Checks of shape, dtype and device are always made; checks of
values only with ``validate=True``, because they wait for the device.
"""

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
    validate_nonnegative,
)
from maxmin_kernels.ops import call
from maxmin_kernels.plan import EMPlan
from maxmin_kernels.reference import EMPass

__all__ = ["EMPass", "em_pass"]


def em_pass(
    features: Tensor,
    indptr: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    *,
    chosen: Tensor | None = None,
    rejected: Tensor | None = None,
    choice_indptr: Tensor | None = None,
    mixture_indptr: Tensor | None = None,
    comparison_weight: Tensor | None = None,
    label_noise: float = 0.0,
    hard: bool = False,
    temperature: float = 1.0,
    plan: EMPlan | None = None,
    validate: bool = False,
) -> EMPass:
    """One EM pass over the heads of all mixtures from one read of the features: (2)-(6), (8) and the masses.

    Comparisons come sorted by annotator. With ``chosen`` and ``rejected`` the features are an item table and a row
    is the difference of two of its entries (the indexed form), else a row of features is the difference itself.

    Args:
        features: ``(N, D)`` differences chosen - rejected, or ``(M, D)`` items; float64, float32, bfloat16 or
            float16, any strides.
        indptr: ``(A + 1)`` int64, comparisons of each annotator.
        weight: ``(H, D)`` heads; any floating dtype, used in the accumulation dtype (float64 for float64 features,
            else float32).
        log_weights: ``(H,)`` log mixing weights; -inf is an empty group.
        chosen, rejected: ``(N,)`` int64 rows of the item table.
        choice_indptr: ``(C + 1)`` int64, rows of each comparison; None: every row is a pair.
        mixture_indptr: ``(G + 1)`` int64, heads of each mixture; None: one mixture.
        comparison_weight: ``(C,)`` weights v >= 0 of the comparisons.
        label_noise: the epsilon of (3b), in [0, 1).
        hard: one-hot responsibilities, (7H). The first of equal heads wins.
        temperature: T > 0 of (7T); log_likelihood is then the sum of ``T logsumexp(L / T)``.
        plan: what depends on the data alone, from :func:`em_plan`; saves time when many passes are made.
        validate: check values too (NaN, indices, pointers).

    Returns:
        ``EMPass(log_likelihood (G,) float64, log_resp (A, H), mass (H,) float64, grad_weight (H, D))``, all
        unpenalised. ``log_likelihood`` is differentiable once by ``weight`` and ``log_weights``.

    Note:
        Deterministic, whatever the number of threads. L of (4) is summed in float64.
    """
    device = check_tensor("features", features, ("N", "D")).device
    acc = accumulation_dtype(features)
    check_tensor("weight", weight, ("H", features.shape[1]), device=device)
    n_heads = weight.shape[0]
    check_tensor("log_weights", log_weights, (n_heads,), device=device)
    check_indptr("indptr", indptr, device)
    if (chosen is None) != (rejected is None):
        given, missing = ("chosen", "rejected") if rejected is None else ("rejected", "chosen")
        raise ValueError(f"{missing}: expected item rows beside {given}, got None")
    if chosen is not None and rejected is not None:
        check_tensor("chosen", chosen, ("N",), dtypes=(torch.int64,), device=device)
        check_tensor("rejected", rejected, (chosen.shape[0],), dtypes=(torch.int64,), device=device)
    n_rows = features.shape[0] if chosen is None else chosen.shape[0]
    n_choices = n_rows
    if choice_indptr is not None:
        n_choices = check_indptr("choice_indptr", choice_indptr, device).numel() - 1
    if mixture_indptr is not None:
        check_indptr("mixture_indptr", mixture_indptr, device)
    if comparison_weight is not None:
        check_tensor("comparison_weight", comparison_weight, (n_choices,), device=device)
    check_scalar("label_noise", label_noise, low=0.0, high=1.0, high_open=True)
    check_scalar("temperature", temperature, low=0.0, low_open=True)
    if validate:
        validate_finite("features", features)
        validate_finite("weight", weight)
        validate_indptr("indptr", indptr, n_choices)
        if choice_indptr is not None:
            validate_indptr("choice_indptr", choice_indptr, n_rows)
        if mixture_indptr is not None:
            validate_indptr("mixture_indptr", mixture_indptr, n_heads)
        if chosen is not None and rejected is not None:
            validate_index("chosen", chosen, features.shape[0])
            validate_index("rejected", rejected, features.shape[0])
        if comparison_weight is not None:
            validate_nonnegative("comparison_weight", comparison_weight)
    return EMPass(
        *call(
            "em_pass_fwd",
            features,
            indptr,
            weight.to(acc),
            log_weights.to(acc),
            chosen,
            rejected,
            choice_indptr,
            mixture_indptr,
            None if comparison_weight is None else comparison_weight.to(acc),
            label_noise,
            hard,
            temperature,
            [] if plan is None else plan.tensors,
        )
    )

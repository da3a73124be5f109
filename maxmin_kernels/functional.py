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
    validate_log_weights,
    validate_nonnegative,
)
from maxmin_kernels._functional_mixture import (
    choice_shares,
    mixture_log_likelihood,
    weighted_gram,
)
from maxmin_kernels._functional_welfare import (
    DualSolution,
    MaxMinReduction,
    Welfare,
    maxmin_advantages,
    maxmin_dual,
    maxmin_reduce,
    welfare,
)
from maxmin_kernels.ops import call
from maxmin_kernels.plan import EMPlan
from maxmin_kernels.reference import EMPass

_MASK_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

__all__ = [
    "DualSolution",
    "EMPass",
    "MaxMinReduction",
    "Welfare",
    "choice_shares",
    "em_pass",
    "last_token_index",
    "maxmin_advantages",
    "maxmin_dual",
    "maxmin_reduce",
    "mixture_log_likelihood",
    "preference_margins",
    "reward_heads",
    "weighted_gram",
    "welfare",
]


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
        plan: what depends on the data alone, from `em_plan`; saves time when many passes are made.
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
    check_scalar("temperature", temperature, low=0.0, low_open=True, high_open=True)
    if validate:
        validate_finite("features", features)
        validate_finite("weight", weight)
        validate_log_weights("log_weights", log_weights)
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


def last_token_index(attention_mask: Tensor, *, validate: bool = False) -> Tensor:
    """Position of the last real token of each sequence, whichever side is padded.

    Args:
        attention_mask: ``(B, T)`` bool or integers, nonzero at real tokens; any strides.
        validate: an empty row is an error (waits for the device).

    Returns:
        ``(B,)`` int64; -1 for a row without a real token.
    """
    check_tensor("attention_mask", attention_mask, ("B", "T"), dtypes=_MASK_DTYPES)
    index: Tensor = call("last_token_index_fwd", attention_mask)
    if validate and bool((index < 0).any()):
        row = int((index < 0).nonzero()[0, 0])
        raise ValueError(
            f"attention_mask: expected a real token in every row, got none in row {row}"
        )
    return index


def _check_heads(weight: Tensor, rows: Tensor, rows_name: str) -> None:
    """Heads (H, D) for rows (..., D): in the rows' dtype or in float32."""
    check_tensor("weight", weight, ("H", rows.shape[-1]), device=rows.device)
    if weight.dtype not in (rows.dtype, torch.float32):
        raise TypeError(
            f"weight: expected dtype float32 or that of {rows_name}, {rows.dtype}, got {weight.dtype}"
        )


def reward_heads(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    token_index: Tensor | None = None,
    *,
    validate: bool = False,
) -> Tensor:
    """Reward logits of several linear heads, of a row of features or of one token of each sequence.

    With ``token_index`` it gathers before it multiplies: only B of the B x T hidden states are read.

    Args:
        hidden: ``(B, D)``, or ``(B, T, D)`` with ``token_index``; float64, float32, bfloat16 or float16, any strides.
        weight: ``(H, D)`` in the dtype of ``hidden`` or in float32.
        bias: ``(H,)``, optional; any of these dtypes.
        token_index: ``(B,)`` int64, the token to read, as from `last_token_index`. -1 gives a row of NaN
            and no gradient.
        validate: an index outside [-1, T) is an error (waits for the device); else it counts as -1.

    Returns:
        ``(B, H)`` in float32 (float64 for float64 ``hidden``), accumulated in that dtype. Differentiable once; the
        gradient by ``hidden`` is dense, zero at tokens that were not read.

    Note:
        Deterministic, whatever the number of threads.
    """
    if token_index is None:
        check_tensor("hidden", hidden, ("B", "D"))
    else:
        check_tensor("hidden", hidden, ("B", "T", "D"))
        n_rows, n_tokens = hidden.shape[:2]
        check_tensor(
            "token_index", token_index, (n_rows,), dtypes=(torch.int64,), device=hidden.device
        )
        if n_rows > 0 and n_tokens == 0:
            raise ValueError("hidden: expected at least one token a sequence, got none")
        if validate and bool(((token_index < -1) | (token_index >= n_tokens)).any()):
            low, high = int(token_index.min()), int(token_index.max())
            raise ValueError(
                f"token_index: expected indices in [-1, {n_tokens}), got {low} to {high}"
            )
    _check_heads(weight, hidden, "hidden")
    if bias is not None:
        check_tensor("bias", bias, (weight.shape[0],), device=hidden.device)
    out: Tensor = call("reward_heads_fwd", hidden, weight, bias, token_index)
    return out


def preference_margins(
    chosen: Tensor, rejected: Tensor, weight: Tensor, *, validate: bool = False
) -> Tensor:
    """By how much each head prefers the chosen response: (1), (2) in one pass over the features.

    Args:
        chosen, rejected: ``(N, D)`` features of either response, of one dtype: float64, float32, bfloat16 or
            float16, any strides.
        weight: ``(H, D)`` in the features' dtype or in float32.
        validate: NaN and infinities in the features are an error (waits for the device).

    Returns:
        ``(N, H)`` margins in float32 (float64 for float64 features). The differences are taken in that dtype
        too, so nothing of bfloat16 is lost. Differentiable once, by all three.

    Note:
        Deterministic, whatever the number of threads. The differences are never stored.
    """
    device = check_tensor("chosen", chosen, ("N", "D")).device
    check_tensor("rejected", rejected, tuple(chosen.shape), dtypes=(chosen.dtype,), device=device)
    _check_heads(weight, chosen, "chosen")
    if validate:
        validate_finite("chosen", chosen)
        validate_finite("rejected", rejected)
    out: Tensor = call("preference_margins_fwd", chosen, rejected, weight)
    return out

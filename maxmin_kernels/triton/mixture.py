"""Annotators under mixtures of heads: (4)-(6), (7T), (7H).

    L_ah = log η_h + sum of v_c l_ch over the annotator's choices        in float64
    Z_ag = T logsumexp over the mixture's heads of L / T                 hard: their maximum
    log γ_ah = L_ah / T - Z_ag / T                                       hard: 0 at the first best head, else -inf

A program owns a few annotators and walks through their choices a few at a time; nobody else adds to their sums. Where a plan
has cut long annotators into chunks, programs own chunks first, whose sums are then added in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels import reference
from maxmin_kernels._checks import accumulation_dtype
from maxmin_kernels.triton._math import log_sigmoid
from maxmin_kernels.triton.choices import ACC, load_margins, log_probabilities, noisy, pull


@dataclass(frozen=True)
class Config:
    """Annotators, choices of each at a time, and heads of a program."""

    block_a: int
    block_j: int
    block_h: int


def _config_mixture(n_heads: int, n_choices: int, n_annotators: int) -> Config:
    block_h = triton.next_power_of_2(max(1, n_heads))
    room = max(1, 2048 // block_h)
    # As many choices at a time as an annotator has; long ones leave no room for a second annotator.
    each = triton.next_power_of_2(max(1, n_choices // max(1, n_annotators)))
    block_j = min(room, max(4, each), 32)
    return Config(max(1, min(room // block_j, 16)), block_j, block_h)


@triton.jit
def _annotators_kernel(
    x_ptr,
    chosen_ptr,
    rejected_ptr,
    indptr_ptr,
    log_weights_ptr,
    v_ptr,
    mixture_ptr,
    z_ptr,
    log_resp_ptr,
    A,
    H,
    G,
    stride_xn,
    stride_xh,
    log_kept: tl.float64,
    log_other: tl.float64,
    temperature: tl.float64,
    MARGINS: tl.constexpr,
    GATHER: tl.constexpr,
    NOISE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MIXTURES: tl.constexpr,
    HARD: tl.constexpr,
    ONLY_SUM: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    a = tl.program_id(0).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    h = tl.arange(0, BLOCK_H).to(tl.int64)
    begin = tl.load(indptr_ptr + a, mask=a < A, other=0)
    end = tl.load(indptr_ptr + a + 1, mask=a < A, other=0)
    at = a[:, None] * H + h[None, :]
    joint = tl.zeros((BLOCK_A, BLOCK_H), tl.float64)
    if not ONLY_SUM:
        joint += tl.load(log_weights_ptr + h, mask=h < H, other=0.0).to(tl.float64)[None, :]
    for j in tl.range(0, tl.max(end - begin), BLOCK_J):
        c = (begin[:, None] + j + tl.arange(0, BLOCK_J)[None, :])[:, :, None]
        there = c < end[:, None, None]
        ok = there & (h < H)[None, None, :]
        x = load_margins(
            x_ptr, chosen_ptr, rejected_ptr, c, h[None, None, :], ok, stride_xn, stride_xh, GATHER, ACC
        )  # fmt: skip
        if MARGINS:
            x = log_sigmoid(x)
            if NOISE:
                x, _ = noisy(
                    x, tl.full((1, 1, 1), log_kept, ACC), tl.full((1, 1, 1), log_other, ACC)
                )
        if WEIGHTED:
            x *= tl.load(v_ptr + c, mask=there, other=0.0).to(ACC)
        joint += tl.sum(tl.where(ok, x, 0.0).to(tl.float64), 1)
    if ONLY_SUM:
        tl.store(log_resp_ptr + at, joint, mask=(a < A)[:, None] & (h < H)[None, :])
        return
    if not HARD:
        joint = joint / temperature
    top = tl.zeros((BLOCK_A, BLOCK_H), tl.float64)
    for g in tl.range(0, G):
        inside = _heads_of(mixture_ptr, g, h, H, MIXTURES)
        best = tl.max(tl.where(inside, joint, float("-inf")), 1)
        top = tl.where(inside, best[:, None], top)
    if not HARD:
        shift = tl.where(top == float("-inf"), 0.0, top)
        part = tl.exp(joint - shift)
    log_resp = tl.zeros((BLOCK_A, BLOCK_H), tl.float64)
    for g in tl.range(0, G):
        inside = _heads_of(mixture_ptr, g, h, H, MIXTURES)
        if HARD:
            # tl.max lets a NaN pass by; it must not.
            lost = tl.max(tl.where(inside & (joint != joint), 1, 0), 1) == 1
            z = tl.max(tl.where(inside, joint, float("-inf")), 1)
            first = tl.min(tl.where(inside & (joint == top), h[None, :], BLOCK_H), 1)
            one = tl.where(h[None, :] == first[:, None], 0.0, float("-inf"))
            z = tl.where(lost, float("nan"), z)
            log_resp = tl.where(
                inside, tl.where(lost[:, None], float("nan"), one.to(tl.float64)), log_resp
            )
        else:
            total = tl.sum(tl.where(inside, part, 0.0), 1)
            base = tl.max(tl.where(inside, shift, float("-inf")), 1)
            z = tl.where(base == float("-inf"), 0.0, base) + tl.log(total)
            log_resp = tl.where(inside, joint - z[:, None], log_resp)
            z *= temperature
        tl.store(z_ptr + a * G + g, z, mask=a < A)
    tl.store(log_resp_ptr + at, log_resp, mask=(a < A)[:, None] & (h < H)[None, :])


@triton.jit
def _heads_of(mixture_ptr, g, h, H, MIXTURES: tl.constexpr):
    """(1, BLOCK_H) is it a head of mixture ``g``?"""
    if MIXTURES:
        inside = (h >= tl.load(mixture_ptr + g)) & (h < tl.load(mixture_ptr + g + 1))
    else:
        inside = h < H
    return inside[None, :]


def annotators(
    margins: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    indptr: Tensor,
    log_weights: Tensor,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    weight: Tensor | None,
    label_noise: float,
    hard: bool,
    temperature: float,
    n_rows: int,
    dtype: torch.dtype,
    chunks: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """``Z (A, G)`` and ``log γ (A, H)`` in ``dtype``; ``chunks`` of a plan, or none."""
    n_annotators, n_heads = indptr.shape[0] - 1, margins.shape[1]
    n_mixtures = 1 if mixture_indptr is None else mixture_indptr.shape[0] - 1
    z = margins.new_empty(n_annotators, n_mixtures, dtype=dtype)
    log_resp = margins.new_empty(n_annotators, n_heads, dtype=dtype)
    if n_annotators == 0 or n_mixtures == 0:
        return z, log_resp
    n_choices, values = n_rows, margins
    if choice_indptr is not None:
        n_choices = choice_indptr.shape[0] - 1
        values = log_probabilities(margins, chosen, rejected, choice_indptr, label_noise, n_rows)
        chosen = rejected = None
    if chunks:
        sums = margins.new_empty(chunks[0].shape[0] - 1, n_heads, dtype=torch.float64)
        noise = label_noise if choice_indptr is None else None
        _launch(values, chosen, rejected, chunks[0], n_choices, weight, noise, None, None, sums)
        values, indptr, n_choices = sums, chunks[1], sums.shape[0]
        chosen = rejected = weight = None
    noise = label_noise if choice_indptr is None and not chunks else None
    posterior = (log_weights.contiguous(), mixture_indptr, hard, float(temperature))
    _launch(values, chosen, rejected, indptr, n_choices, weight, noise, posterior, z, log_resp)
    return z, log_resp


def _launch(
    values: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    indptr: Tensor,
    n_choices: int,
    weight: Tensor | None,
    noise: float | None,
    posterior: tuple[Tensor, Tensor | None, bool, float] | None,
    z: Tensor | None,
    out: Tensor,
) -> None:
    """Sums over the segments of ``indptr`` (``posterior`` None), or what follows from them.

    ``noise`` is the label noise of the pairs whose margins ``values`` are; None: they are log-probabilities.
    """
    n_segments, n_heads = out.shape
    log_weights, mixture_indptr, hard, temperature = posterior or (indptr, None, False, 1.0)
    config = _config_mixture(n_heads, n_choices, n_segments)
    with torch.cuda.device_of(values):
        _annotators_kernel[(triton.cdiv(n_segments, config.block_a),)](
            values,
            indptr if chosen is None else chosen,
            indptr if rejected is None else rejected,
            indptr.contiguous(),
            log_weights,
            indptr if weight is None else weight.contiguous(),
            indptr if mixture_indptr is None else mixture_indptr.contiguous(),
            out if z is None else z,
            out,
            n_segments,
            n_heads,
            1 if mixture_indptr is None else mixture_indptr.shape[0] - 1,
            values.stride(0),
            values.stride(1),
            math.log1p(-noise) if noise else 0.0,
            math.log(noise / 2) if noise else 0.0,
            temperature,
            MARGINS=noise is not None,
            GATHER=chosen is not None,
            NOISE=bool(noise),
            WEIGHTED=weight is not None,
            MIXTURES=mixture_indptr is not None,
            HARD=hard,
            ONLY_SUM=posterior is None,
            ACC=ACC[accumulation_dtype(values)],
            BLOCK_A=config.block_a,
            BLOCK_J=config.block_j,
            BLOCK_H=config.block_h,
        )


def mixture_log_likelihood_fwd(
    margins: Tensor,
    indptr: Tensor,
    log_weights: Tensor,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
    hard: bool,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """``Z (A, G)`` and ``log γ (A, H)`` in the accumulation dtype."""
    return annotators(
        margins,
        None,
        None,
        indptr,
        log_weights,
        choice_indptr,
        mixture_indptr,
        comparison_weight,
        label_noise,
        hard,
        temperature,
        margins.shape[0],
        accumulation_dtype(margins),
        [],
    )


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
    """(10): by the margins (N, H) and by the log mixing weights (H,)."""
    n_rows, n_heads = margins.shape
    upstream = log_resp.exp()
    if mixture_indptr is None:
        upstream = upstream * grad_z
    else:
        upstream = upstream * grad_z[:, reference.owner_of(mixture_indptr, n_heads)]
    n_choices = n_rows if choice_indptr is None else choice_indptr.shape[0] - 1
    by_margins = pull(
        margins,
        None,
        None,
        choice_indptr,
        label_noise,
        n_rows,
        reference.owner_of(indptr, n_choices),
        upstream,
        None if comparison_weight is None else comparison_weight.contiguous(),
        margins.dtype,
    )
    return by_margins, upstream.sum(0)

"""EM over rows in one launch that reads the features once: (2)-(6) and (8) of pairs in bfloat16, for Hopper and later.

A row's weight in the gradient needs its whole margin, not its whole annotator: ``∂w_h = Σ_a γ_ah (Σ_{i∈a} v_i s_ih x_i)``.
A program goes through whole annotators, R rows of all D columns at a time, brought by TMA while the rows before are worked
on. The tile is (NB, R, D / NB): a product of rank 3 puts the batch dimension on the warps, so a warp owns D / NB columns in
both products, which read the same shared bytes; the gradient stays in registers for the program's life. An annotator that
ends in the tile scales its rows by γ; the rows of one that goes on wait unscaled in a second accumulator. Programs write
their parts, which are added in order.

Sums within a tile are in float32, those an annotator carries over tiles in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxmin_kernels import _triton, reference


@dataclass(frozen=True)
class Config:
    """Rows of a tile, warps (each owns D / warps columns), buffers of tiles."""

    rows: int
    warps: int
    stages: int = 4


# By features and padded heads; what is not here would spill registers or not fit the shared memory.
CONFIGS = {
    (512, 8): Config(16, 8),
    (512, 16): Config(16, 8),
    (1024, 8): Config(16, 8),
}


@triton.jit
def _product(x, w, acc, PARTS: tl.constexpr):
    """``acc + x w``; w float32, cut into three bfloat16 parts where x is bfloat16."""
    if PARTS:
        high = w.to(tl.bfloat16)
        rest = w - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        acc = tl.dot(x, low, acc)
        acc = tl.dot(x, middle, acc)
        acc = tl.dot(x, high, acc)
    else:
        acc = tl.dot(x.to(tl.float32), w, acc, input_precision="ieee")
    return acc


@triton.jit
def _one_read_kernel(
    x_desc,
    w_ptr,
    log_weights_ptr,
    owner_ptr,
    v_ptr,
    mixture_ptr,
    bounds_ptr,
    z_ptr,
    log_resp_ptr,
    part_ptr,
    WEIGHTED: tl.constexpr,
    PARTS: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    NB: tl.constexpr,
    DB: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0)
    r = tl.arange(0, R)
    h = tl.arange(0, H)
    nb = tl.arange(0, NB)
    at = (nb[:, None, None] * DB + tl.arange(0, DB)[None, :, None]) * H + h[None, None, :]
    w = tl.load(w_ptr + at)
    log_weights = tl.load(log_weights_ptr + h)
    acc = tl.zeros((NB, DB, H), tl.float32)
    waiting = tl.zeros((NB, DB, H), tl.float32)
    before = tl.zeros((H,), tl.float64)
    begin, end = tl.load(bounds_ptr + program), tl.load(bounds_ptr + program + 1)
    for row0 in tl.range(begin, end, R, num_stages=STAGES):
        x = x_desc.load([0, row0, 0])
        m = tl.sum(_product(x, w, tl.zeros((NB, R, H), tl.float32), PARTS), 0)
        i = row0 + r
        ok = i < end
        owner = tl.load(owner_ptr + i, mask=ok, other=-1)
        previous = tl.load(owner_ptr + i - 1, mask=ok & (i > begin), other=-1)
        head = tl.load(owner_ptr + row0)
        tail = tl.load(owner_ptr + tl.minimum(row0 + R, end) - 1)
        following = tl.load(owner_ptr + row0 + R, mask=row0 + R < end, other=-1)
        open_in = (row0 > begin) & (tl.load(owner_ptr + row0 - 1, mask=row0 > begin, other=-1) == head)  # fmt: skip
        open_out = tail == following
        # (3), (3') of pairs
        e = tl.exp(-tl.abs(m))
        s = tl.where(m >= 0, e, 1.0) / (1.0 + e)
        u = 1.0 + e
        log1p = tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))
        log_prob = tl.minimum(m, 0.0) - log1p
        if WEIGHTED:
            v = tl.load(v_ptr + i, mask=ok, other=0.0)[:, None]
            s *= v
            log_prob *= v
        s = tl.where(ok[:, None], s, 0.0)
        log_prob = tl.where(ok[:, None], log_prob, 0.0)
        # (4): the annotator's sum, at each of its rows
        same = (owner[:, None] == owner[None, :]).to(tl.float32)
        joint = tl.sum(same[:, :, None] * log_prob[None, :, :], 1).to(tl.float64)
        joint += tl.where((owner == head)[:, None] & open_in, before[None, :], 0.0)
        goes_on = ok & (owner == tail) & open_out
        last = goes_on & (r == R - 1)
        before = tl.sum(tl.where(last[:, None], joint, 0.0), 0)
        # (5), (6)
        joint += log_weights[None, :]
        ends = ok & (goes_on == 0)
        first = ends & ((owner != previous) | (r == 0))
        where = owner.to(tl.int64)
        log_resp = tl.full((R, H), float("-inf"), tl.float64)
        for g in tl.static_range(G):
            inside = (h >= tl.load(mixture_ptr + g)) & (h < tl.load(mixture_ptr + g + 1))
            part = tl.where(inside[None, :], joint, float("-inf"))
            top = tl.max(part, 1)
            z = top + tl.log(tl.sum(tl.exp(part - top[:, None]), 1))
            log_resp = tl.where(inside[None, :], joint - z[:, None], log_resp)
            tl.store(z_ptr + where * G + g, z, mask=first)
        tl.store(log_resp_ptr + where[:, None] * H + h[None, :], log_resp, mask=first[:, None])
        resp = tl.exp(log_resp).to(tl.float32)
        # (8)
        closing = tl.where(((r == 0) & ends)[:, None] & open_in, resp, 0.0)
        acc += waiting * tl.sum(closing, 0)[None, None, :]
        through = open_in & (head == tail) & open_out
        waiting = tl.where(through, waiting, 0.0)
        xt = tl.trans(x, 0, 2, 1)
        own = tl.where(ends[:, None], resp * s, 0.0)
        acc = _product(xt, tl.broadcast_to(own[None], (NB, R, H)), acc, PARTS)
        if open_out:
            rest = tl.where(goes_on[:, None], s, 0.0)
            waiting = _product(xt, tl.broadcast_to(rest[None], (NB, R, H)), waiting, PARTS)
    tl.store(part_ptr + program.to(tl.int64) * NB * DB * H + at, acc)


def config_for(features: Tensor, n_heads: int, n_mixtures: int, plain_pairs: bool) -> Config | None:
    """How these rows are read once, or None: they are read twice."""
    half = features.dtype == torch.bfloat16
    if not plain_pairs or n_mixtures > 4 or not (half or _triton.interpreted()):
        return None
    aligned = features.stride(1) == 1 and features.stride(0) % 8 == 0 and features.data_ptr() % 16 == 0  # fmt: skip
    if not aligned or not 32 <= features.shape[0] < 2**31 or not _triton.has_tma():
        return None
    return CONFIGS.get((features.shape[1], _padded(n_heads)))


def _padded(n_heads: int) -> int:
    return max(8, triton.next_power_of_2(n_heads))


def em_pass(
    config: Config,
    features: Tensor,
    indptr: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``log_likelihood (G,)``, ``log_resp (A, H)``, ``mass (H,)``, ``grad_weight (H, D)``."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    (n_rows, n_features), n_heads = features.shape, weight.shape[0]
    n_annotators, heads = indptr.shape[0] - 1, _padded(n_heads)
    w = weight.new_zeros(n_features, heads, dtype=torch.float32)
    w[:, :n_heads] = weight.T
    logs = log_weights.new_full((heads,), -torch.inf, dtype=torch.float64)
    logs[:n_heads] = log_weights
    # Annotators without a row are in no tile: theirs is the prior.
    prior, log_prior = reference.mixture_posterior(logs[None, :n_heads], mixture_indptr, False, 1.0)
    z = prior.repeat(n_annotators, 1)
    log_resp = torch.nn.functional.pad(log_prior, (0, heads - n_heads)).repeat(n_annotators, 1)
    if mixture_indptr is None:
        mixture_indptr = torch.arange(2, device=indptr.device) * n_heads
    programs = _triton.n_multiprocessors(features.device)
    wanted = torch.arange(programs + 1, device=indptr.device) * n_rows // programs
    bounds = indptr[torch.searchsorted(indptr, wanted)].to(torch.int32)
    width = n_features // config.warps
    parts = w.new_empty(programs, n_features, heads)
    tiles = TensorDescriptor(
        features,
        [config.warps, n_rows, width],
        [width, features.stride(0), 1],
        [config.warps, config.rows, width],
    )
    with torch.cuda.device_of(features):
        _one_read_kernel[(programs,)](
            tiles,
            w,
            logs,
            reference.owner_of(indptr, n_rows).to(torch.int32),
            w if comparison_weight is None else comparison_weight.contiguous(),
            mixture_indptr,
            bounds,
            z,
            log_resp,
            parts,
            WEIGHTED=comparison_weight is not None,
            PARTS=not _triton.interpreted(),
            H=heads,
            G=z.shape[1],
            R=config.rows,
            NB=config.warps,
            DB=width,
            STAGES=config.stages,
            num_warps=config.warps,
        )
    log_resp = log_resp[:, :n_heads]
    gradient = parts.sum(0)[:, :n_heads].T.contiguous()
    return z.sum(0), log_resp.to(weight.dtype), log_resp.exp().sum(0), gradient

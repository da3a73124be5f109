"""The compiled CUDA kernels: what they serve, and the EM pass around the one that reads the features once.

Opt-in: they are compiled and have been run on a device in software, thread by thread, never on a GPU. Nothing chooses
them but ``MAXMIN_BACKEND=em_pass:cuda`` or ``with maxmin_kernels.backend("em_pass:cuda")``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxmin_kernels import _native, reference
from maxmin_kernels._cuda_heads import (
    MOST_FEATURES,
    block_of,
    places_in_blocks,
    places_of,
    scaled_for_float16,
)
from maxmin_kernels._memory import Memory

# Longer annotators are shared by clusters.
CHUNK_ROWS = 4096
_TILE_ROWS, _TILE_BYTES = 32, 256


def native() -> Any:
    """The compiled operations."""
    return torch.ops.maxmin_native


def load() -> str | None:
    """``None`` when the CUDA kernels are compiled in, else the reason why they are not there."""
    why_not = _native.load()
    if why_not is None and not hasattr(native(), "em_pass_cuda"):
        why_not = "the compiled library was built without CUDA (MAXMIN_CUDA=1 asks for it)"
    return why_not


def em_pass_refusal(
    features: Tensor,
    indptr: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
    hard: bool,
    temperature: float,
    plan: list[Tensor],
) -> str | None:
    """Why the CUDA kernels cannot serve this pass (``None``: they can)."""
    (n_rows, n_features), n_heads = features.shape, weight.shape[0]
    if chosen is not None:
        return "it serves rows, got an item table with chosen and rejected"
    if features.dtype not in (torch.bfloat16, torch.float16):
        return f"it serves bfloat16 and float16 features, got {features.dtype}"
    if n_heads < 1:
        return f"it serves 1 head or more, got {n_heads}"
    if not 1 <= n_features <= MOST_FEATURES:
        return f"it serves 1 to {MOST_FEATURES} features, got {n_features}"
    block = block_of(n_features)
    if n_heads > block and (
        mixture_indptr is None or places_in_blocks(mixture_indptr, block) is None
    ):
        sizes = torch.tensor([n_heads]) if mixture_indptr is None else mixture_indptr.diff()
        return (
            f"with {n_features} features it serves mixtures of at most {block} heads each, got "
            f"{sizes.numel()} of {int(sizes.min())} to {int(sizes.max())}"
        )
    if not 1 <= n_rows < 2**31 - _TILE_ROWS:
        return f"it serves 1 to 2^31 rows, got {n_rows}"
    if features.stride(1) != 1 or features.stride(0) % 8 or features.data_ptr() % 16:
        return (
            "it serves rows without gaps whose base and pitch are multiples of 16 bytes, got strides "
            f"{tuple(features.stride())} of 2 bytes at an address that leaves {features.data_ptr() % 16}"
        )
    if not 1e-30 <= temperature <= 1e30:  # float32 on the device
        return f"it serves temperatures from 1e-30 to 1e30, got {temperature}"
    if choice_indptr is not None and (longest := _longest(choice_indptr)) > _TILE_ROWS:
        return f"it serves comparisons of at most {_TILE_ROWS} rows, got one of {longest}"
    return _device_refusal(features.device) or load()


def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it serves tensors on an NVIDIA GPU, got one on {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability != (9, 0):  # sm_90a runs nowhere else
        return f"it serves compute capability 9.0 (Hopper), got {capability[0]}.{capability[1]}"
    return None


class _Tiles(NamedTuple):
    tiles: Tensor  # (T, 256) uint8
    begin: Tensor
    carry: bool
    split_begin: Tensor
    split_annotator: Tensor
    n_chunks: int
    present: Tensor | None  # annotators with a row; None: all


# Tiles are cut once a data set and kernel: {indptr: ({kernel: tiles} of pairs, {choice_indptr: {kernel: tiles}})}.
_cut = Memory()
_longest_of = Memory()


def _longest(choice_indptr: Tensor) -> int:
    """Rows of the longest comparison; waits for the device when it sees the pointer for the first time."""
    if choice_indptr.shape[0] < 2:
        return 0
    return _longest_of.of(choice_indptr, lambda: int(choice_indptr.diff().max()))


def _tiles_of(
    features: Tensor, indptr: Tensor, heads: int, choice_indptr: Tensor | None = None
) -> _Tiles:
    """Waits for the device when it sees a pointer for the first time: not while a CUDA graph is captured."""
    of_pairs, of_choices = _cut.of(indptr, lambda: ({}, Memory()))
    known = of_pairs if choice_indptr is None else of_choices.of(choice_indptr, dict)
    kernel = (features.device, features.dtype, heads, features.shape[1])
    if kernel not in known:
        known[kernel] = _cut_tiles(features, indptr, heads, choice_indptr)
    return known[kernel]


def _checked_sizes(name: str, indptr: Tensor, n: int) -> Tensor:
    """Sizes of the segments, on the host; the kernel follows these numbers into memory."""
    sizes = indptr.diff().cpu()
    least = int(sizes.min()) if sizes.numel() else 0
    if least < 0 or int(indptr[0]) != 0 or int(indptr[-1]) != n:
        raise ValueError(
            f"{name}: expected 0 to {n} without a step down, got "
            f"{int(indptr[0])} to {int(indptr[-1])} and a smallest step of {least}"
        )
    return sizes


def _cut_tiles(
    features: Tensor, indptr: Tensor, heads: int, choice_indptr: Tensor | None
) -> _Tiles:
    ops, device, n_rows = native(), features.device, features.shape[0]
    n_choices = n_rows if choice_indptr is None else choice_indptr.shape[0] - 1
    sizes, lengths = _checked_sizes("indptr", indptr, n_choices), None
    if choice_indptr is not None:
        lengths = _checked_sizes("choice_indptr", choice_indptr, n_rows)
        sizes = choice_indptr.cpu()[indptr.cpu()].diff()
        lengths = lengths[lengths > 0].contiguous()  # a choice from one has probability 1
    present = sizes.nonzero().flatten()
    full = present.numel() == sizes.numel()
    sizes = sizes[present].contiguous()
    carry = ops.em_pass_wants_carry(sizes)
    clusters = ops.em_pass_clusters(features, heads, carry)
    tiles, begin, split_begin, split_annotator = ops.em_pass_tiles(
        sizes, lengths, carry, clusters, CHUNK_ROWS
    )
    return _Tiles(
        tiles.view(-1, _TILE_BYTES).to(device),
        begin.to(device),
        carry,
        split_begin.to(device),
        split_annotator.to(device),
        int(split_begin[-1]),
        None if full else present.to(device),
    )


def _weighted(tiles: Tensor, row_weight: Tensor) -> Tensor:
    """The tiles with a weight for each row, at byte 128 of 256; 0 past the end."""
    offsets = torch.arange(_TILE_ROWS, device=tiles.device)
    rows = tiles[:, :8].contiguous().view(torch.int64) + offsets
    inside = offsets < tiles[:, 16:18].contiguous().view(torch.int16)
    v = row_weight.float()[rows.clamp(max=row_weight.shape[0] - 1)]
    v = torch.where(inside, v, 0.0)
    return torch.cat([tiles[:, :128], v.contiguous().view(torch.uint8)], 1)


def _of_rows(values: Tensor, choice_indptr: Tensor | None, n_rows: int) -> Tensor:
    return values if choice_indptr is None else values[reference.owner_of(choice_indptr, n_rows)]


def em_pass_fwd(
    features: Tensor,
    indptr: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
    hard: bool,
    temperature: float,
    plan: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(2)-(8) and the masses, as the schema of ``maxmin::em_pass_fwd`` says."""
    n_heads = weight.shape[0]
    if mixture_indptr is None:
        mixture_indptr = torch.arange(2, device=indptr.device) * n_heads
    places = places_of(mixture_indptr, n_heads, features.shape[1])
    heads = places.padded
    cut = _tiles_of(features, indptr, heads, choice_indptr)
    tiles = cut.tiles
    if comparison_weight is not None:
        tiles = _weighted(tiles, _of_rows(comparison_weight, choice_indptr, features.shape[0]))
    w = weight.new_zeros(heads, weight.shape[1], dtype=torch.float32)
    w[places.head] = weight.float()
    scales = None
    if features.dtype == torch.float16:
        w, scales = scaled_for_float16(w, comparison_weight)
    logs = weight.new_zeros(heads, dtype=torch.float32)
    logs[places.head] = log_weights.float()
    log_resp, evidence, mass, gradient = native().em_pass_cuda(
        features,
        tiles,
        cut.begin,
        cut.carry,
        cut.split_begin,
        cut.split_annotator,
        indptr.shape[0] - 1 if cut.present is None else cut.present.shape[0],
        w,
        logs,
        places.begin,
        places.end,
        scales,
        choice_indptr is not None,
        label_noise,
        hard,
        temperature,
        cut.n_chunks,
    )
    log_resp, mass = log_resp[:, places.head], mass[places.head]
    # Every head of a mixture holds its evidence.
    log_likelihood = torch.where(mixture_indptr.diff() > 0, evidence[places.first], -torch.inf)
    if cut.present is not None:  # of annotators without a row there is the prior
        prior = reference.mixture_posterior(log_weights[None].double(), mixture_indptr, hard, temperature)  # fmt: skip
        n_absent = indptr.shape[0] - 1 - cut.present.shape[0]
        log_likelihood = log_likelihood + n_absent * prior[0][0]
        mass = mass + n_absent * prior[1][0].exp()
        every = prior[1].float().repeat(indptr.shape[0] - 1, 1)
        log_resp = every.index_copy(0, cut.present, log_resp)
    return log_likelihood, log_resp.contiguous(), mass, gradient[places.head]

"""csrc/cuda compiled for a device in software: the operations of the binding, on the CPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[3]
SOURCES = Path(__file__).parent / "emulated"
KERNEL = ROOT / "csrc" / "cuda"
COMPILER = shutil.which("g++") or shutil.which("clang++")
needs_sources = pytest.mark.skipif(
    COMPILER is None or not KERNEL.is_dir(), reason="needs a C++ compiler and csrc/cuda"
)


def compile_library(target: Path, *flags: str, kernel: Path = KERNEL) -> Path:
    """The emulated pass as a shared library; ``kernel``: the folder of the kernel's sources."""
    assert COMPILER is not None
    # No contraction: sums of two floats must be exact.
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-w", "-fPIC", "-shared", *flags]
    include = [f"-I{kernel}", f"-I{SOURCES}", f"-I{ROOT / 'csrc' / 'include'}"]
    command = [COMPILER, *options, *include, str(SOURCES / "em_pass.cpp"), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


@functools.cache
def library() -> ctypes.CDLL:
    folder = tempfile.mkdtemp(prefix="maxmin-emulated-")
    loaded = ctypes.CDLL(str(compile_library(Path(folder) / "em_pass.so")))
    shutil.rmtree(folder)
    return loaded


def _struct(name: str, *fields: tuple[str, type]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
# As csrc/include/maxmin/em_pass_cuda.h.
Plan = _struct("Plan", ("tiles", _P), ("tile_begin", _P), ("n_clusters", _L), ("carry", _I), ("steps", _I), ("n_chunks", _L), ("n_split", _L), ("split_begin", _P), ("split_annotator", _P))  # fmt: skip
Heads = _struct("Heads", ("n_heads", _L), ("n_features", _L), ("weight", _P), ("log_weights", _P), ("mixture_begin", _P), ("mixture_end", _P), ("half", _I), ("margin_scale", _P), ("coef_scale", _P))  # fmt: skip
Objective = _struct("Objective", ("sets", _I), ("hard", _I), ("label_noise", ctypes.c_double), ("temperature", ctypes.c_double))  # fmt: skip
Outputs = _struct("Outputs", ("log_resp", _P), ("evidence", _P), ("mass", _P), ("gradient", _P))
Scratch = _struct("Scratch", ("evidence_parts", _P), ("mass_parts", _P), ("gradient_parts", _P), ("chunk_sums", _P), ("chunk_gradients", _P), ("split_resp", _P), ("split_evidence", _P))  # fmt: skip


def _pointers(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


class Emulator:
    """What ``torch.ops.maxmin_native`` offers of the CUDA pass; ``variant`` is a number of emulated/em_pass.cpp."""

    def __init__(
        self,
        variant: int,
        seed: int = 1,
        clusters: int = 2,
        chunk_rows: int | None = None,
        carry: bool | None = None,
        compiled: ctypes.CDLL | None = None,
    ) -> None:
        self.variant, self.seed, self.clusters = variant, seed, clusters
        self.chunk_rows, self.carry = chunk_rows, carry
        self.compiled = compiled or library()

    def em_pass_wants_carry(self, sizes: Tensor) -> bool:
        if self.carry is not None:
            return self.carry
        return bool(self.compiled.wants_carry(_P(sizes.data_ptr()), _L(sizes.shape[0])))

    def em_pass_clusters(self, features: Tensor, n_heads: int, carry: bool) -> int:
        return self.clusters

    def em_pass_tiles(
        self, sizes: Tensor, lengths: Tensor | None, carry: bool, n_clusters: int, chunk_rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        counts = (ctypes.c_int64 * 2)()
        most = self.chunk_rows or chunk_rows
        begin = torch.zeros(n_clusters + 1, dtype=torch.int32)
        length = _P(None if lengths is None else lengths.data_ptr())
        given = (_P(sizes.data_ptr()), _L(sizes.shape[0]), length, _I(carry), _L(n_clusters), _L(most), counts)  # fmt: skip
        self.compiled.cut_tiles(*given, None, None, None, None)
        tiles = torch.zeros(counts[0], 256, dtype=torch.uint8)
        split_begin = torch.zeros(counts[1] + 1, dtype=torch.int32)
        split_annotator = torch.zeros(counts[1], dtype=torch.int64)
        self.compiled.cut_tiles(*given, *map(_P, _pointers(tiles, begin, split_begin, split_annotator)))  # fmt: skip
        return tiles, begin, split_begin, split_annotator

    def em_pass_cuda(
        self,
        features: Tensor,
        tiles: Tensor,
        tile_begin: Tensor,
        carry: bool,
        split_begin: Tensor,
        split_annotator: Tensor,
        n_annotators: int,
        weight: Tensor,
        log_weights: Tensor,
        mixture_begin: Tensor,
        mixture_end: Tensor,
        scales: Tensor | None,
        sets: bool,
        label_noise: float,
        hard: bool,
        temperature: float,
        n_chunks: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (H, D), Q, S = weight.shape, tile_begin.shape[0] - 1, split_annotator.shape[0]
        float64 = {"dtype": torch.float64}
        # Poisoned: what is not written is found out.
        outputs = [torch.full((n_annotators, H), torch.nan), torch.full((H,), torch.nan, **float64), torch.full((H,), torch.nan, **float64), torch.full((H, D), torch.nan)]  # fmt: skip
        scratch = [torch.full((Q, H), torch.nan, **float64), torch.full((Q, H), torch.nan, **float64), torch.full((Q, H, D), torch.nan), torch.full((n_chunks, H, 2), torch.nan), torch.full((n_chunks, H, D), torch.nan), torch.full((S, H), torch.nan, **float64), torch.full((S, H), torch.nan, **float64)]  # fmt: skip
        plan = Plan(*_pointers(tiles, tile_begin), Q, carry, 5, n_chunks, S, *_pointers(split_begin, split_annotator))  # fmt: skip
        half = features.dtype == torch.float16
        assert (scales is not None) == half
        scale = _pointers(scales, scales[H:]) if scales is not None else [None, None]
        heads = Heads(H, D, *_pointers(weight, log_weights, mixture_begin, mixture_end), half, *scale)  # fmt: skip
        out, parts = Outputs(*_pointers(*outputs)), Scratch(*_pointers(*scratch))
        result = self.compiled.emulate(
            _I(self.variant),
            ctypes.c_uint(self.seed),
            ctypes.byref(plan),
            ctypes.byref(heads),
            ctypes.byref(Objective(sets, hard, label_noise, temperature)),
            _P(features.data_ptr()),
            _L(features.shape[0]),
            _L(features.stride(0)),
            ctypes.byref(out),
            ctypes.byref(parts),
        )
        if result:
            raise RuntimeError(f"emulated pass: {result} (1: no such variant, 2: stuck)")
        log_resp, evidence, mass, gradient = outputs
        return log_resp, evidence, mass, gradient

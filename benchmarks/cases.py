"""The one list of shapes that benchmarks take theirs from: `maxmin bench` has the same (maxmin_rlhf.commands._cases).

What only benchmarks need is here: the shapes at which kernels are compared round after round on a CPU, and on a GPU.
"""

from __future__ import annotations

from maxmin_rlhf.commands._cases import (
    OPERATIONS,
    SHAPES,
    SWEEP,
    Mixtures,
    Shape,
    plain_indexed,
    plain_rows,
)

# Text embeddings of 20 pairs an annotator; heads of one fit, of a few, of a sweep with restarts.
CPU_ROWS = {"rows": 400_000, "each": 20, "features": 384, "heads": (2, 8, 32)}
# Stored pairs of Jester, K = 1 ... 6 with four starts each: 84 heads.
CPU_INDEXED = Shape("pairs of jokes", 400_000, 100, tuple(range(1, 7)) * 4, items=100)
# (N, D, H)
GPU_ROWS = ((500_000, 4096, 8), (2_000_000, 1024, 8), (500_000, 4096, 64))
# (N, M, D, H)
GPU_INDEXED = (10_000_000, 100_000, 1024, 32)

__all__ = [
    "CPU_INDEXED",
    "CPU_ROWS",
    "GPU_INDEXED",
    "GPU_ROWS",
    "OPERATIONS",
    "SHAPES",
    "SWEEP",
    "Mixtures",
    "Shape",
    "plain_indexed",
    "plain_rows",
]

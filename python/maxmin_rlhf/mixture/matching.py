"""Which group of one mixture is which of another: groups have no names of their own."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

_EXHAUSTIVE = 7  # groups up to which every order is tried


def match_groups(agreement: NDArray[np.float64]) -> NDArray[np.int64]:
    """``(K,)`` the column that goes with each row of ``(K, K)``, so that their sum is largest.

    Beyond seven groups the best pairs are taken one after the other, which may miss a slightly better match.
    """
    size = len(agreement)
    if agreement.shape != (size, size):
        raise ValueError(f"agreement: expected shape (K, K), got {agreement.shape}")
    rows = np.arange(size)
    if size <= _EXHAUSTIVE:
        orders = np.array(list(itertools.permutations(range(size))))
        best: NDArray[np.int64] = orders[agreement[rows, orders].sum(1).argmax()]
        return best
    left = agreement.astype(np.float64)
    match = np.empty(size, np.int64)
    for _ in range(size):
        row, column = np.unravel_index(left.argmax(), left.shape)
        match[row] = column
        left[row], left[:, column] = -np.inf, -np.inf
    return match

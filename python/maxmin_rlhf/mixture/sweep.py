"""Every number of groups in one read of the data."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch

from maxmin_rlhf.mixture.arguments import Preferences, check_counts
from maxmin_rlhf.mixture.estimator import PreferenceMixture, fit_problems


def fit_sweep(
    data: Preferences,
    n_groups: Sequence[int],
    *,
    n_init: int = 16,
    l2: float = 1.0,
    tol: float = 1e-7,
    backend: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    process_group: Any = None,
    random_state: int | None = None,
    verbose: int = 0,
) -> dict[int, PreferenceMixture]:
    """Every K and every restart side by side: one read of the data serves all of them.

    Args:
        n_groups: the numbers of groups.
        (others): as of `PreferenceMixture` and its ``fit``.

    Returns:
        ``{K: PreferenceMixture}``, fitted.
    """
    sizes = check_counts("n_groups", n_groups)
    if not sizes:
        raise ValueError("n_groups: expected at least one number of groups, got none")
    mixtures = {
        k: PreferenceMixture(
            k,
            n_init=n_init,
            l2=l2,
            tol=tol,
            backend=backend,
            device=device,
            dtype=dtype,
            random_state=random_state,
            verbose=verbose,
        )
        for k in sizes
    }
    fit_problems(list(mixtures.values()), data, checkpoint, process_group)
    for mixture in mixtures.values():
        mixture._warn(2)
    return mixtures

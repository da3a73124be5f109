"""lcl-choice: latent-class conditional logit by EM in JAX. Its own starts and stopping rule; no covariances."""

from __future__ import annotations

from typing import Any

import lcl
import numpy as np
import polars as pl

table: Any = None
NAMES: list[str] = []


def prepare(problem: Any) -> None:
    global table
    n_choices, n_offers, n_features = problem.offers.shape
    NAMES[:] = [f"x{i}" for i in range(n_features)]
    rows = problem.offers.reshape(-1, n_features)
    taken = np.arange(n_offers) == problem.chosen[:, None]
    table = pl.DataFrame(
        {
            "panel": np.repeat(problem.household, n_offers),
            "case": np.repeat(np.arange(n_choices), n_offers),
            "alt": np.tile(np.arange(n_offers), n_choices),
            "choice": taken.ravel(),
            **{name: rows[:, i] for i, name in enumerate(NAMES)},
        }
    )


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    spec = lcl.LCLSpec(
        ids=lcl.ChoiceIds(alt="alt", case="case", panel="panel", choice="choice"),
        utility=NAMES,
        classes=n_groups,
    )
    options = lcl.Options(
        fit=lcl.FitOptions(seed=seed, starts=n_starts, num_devices=1),
        inference=lcl.InferenceOptions(skip=True),
        diagnostics=lcl.DiagnosticsOptions(check_separation=False, check_collinearity=False),
    )
    result = lcl.fit(table, spec, options=options)
    return {
        "heads": np.asarray(result.em_res.betas).T,
        "log_weights": np.log(np.asarray(result.em_res.shares)),
        "passes": None,  # it tells only those of the best start
        "starts": n_starts,
        "ends": [],
    }

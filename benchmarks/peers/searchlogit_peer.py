"""searchlogit: latent-class logit by EM with BFGS M-steps. From the given starts, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from searchlogit import LatentClassModel


def prepare(problem: Any) -> None:
    pass


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    n_choices, n_offers, n_features = problem.offers.shape
    names = [f"x{i}" for i in range(n_features)]
    rows = pd.DataFrame(problem.offers.reshape(-1, n_features), columns=names)
    taken = (np.arange(n_offers) == problem.chosen[:, None]).astype(int).ravel()
    ends, fits, passes = [], [], 0
    for start in problem.starts[n_groups][:n_starts]:
        model = LatentClassModel()
        model.setup(
            rows, taken, varnames=names, num_classes=n_groups,
            alts=np.tile(np.arange(n_offers), n_choices), ids=np.repeat(np.arange(n_choices), n_offers),
            panels=np.repeat(problem.household, n_offers),
            class_params_spec=np.array([names] * n_groups), class_params_spec_is=np.array([[]] * n_groups),
            member_params_spec=np.array([["_inter"]] * (n_groups - 1)),
            init_class_betas=[head.copy() for head in start],
        )  # fmt: skip
        result = model.expectation_maximisation_algorithm(model.X, model.y, model.avail)
        logits = np.concatenate([[0.0], result["class_x"]])
        fits.append((result["x"].reshape(n_groups, -1), logits - np.logaddexp.reduce(logits)))
        ends.append(-float(result["fun"]))
        passes += int(result["nit"])
    best = int(np.nanargmax(ends))
    return {
        "heads": fits[best][0],
        "log_weights": fits[best][1],
        "passes": passes,
        "starts": len(ends),
        "ends": ends,
    }

"""lccm: EM with BFGS M-steps. From the given starts, one after the other; standard errors, which follow EM, are left out."""

from __future__ import annotations

import collections
import collections.abc
import io
import os
from contextlib import redirect_stdout
from typing import Any

import numpy as np

collections.Iterable = collections.abc.Iterable  # what its dependency, pylogit, still imports
from lccm import lccm  # noqa: E402


class EMEndedError(Exception):
    """Where lccm goes on to standard errors."""


shares = lccm.calClassMemProb
logits: list[np.ndarray] = []  # of the classes, as they were last asked for


def watch(param: np.ndarray, *rest: Any) -> Any:
    logits[:] = [np.concatenate([[0.0], param])]
    return shares(param, *rest)


def stop(*_: Any) -> None:
    raise EMEndedError


def prepare(problem: Any) -> None:
    lccm.calClassMemProb, lccm.calStdErrClassMem = watch, stop


def fit(problem: Any, n_groups: int, seed: int, n_starts: int) -> dict[str, Any]:
    n_choices, n_offers, n_features = problem.offers.shape
    rows = problem.offers.reshape(-1, n_features).T.copy()
    taken = (np.arange(n_offers) == problem.chosen[:, None]).astype(int).reshape(-1, 1)
    panel = np.repeat(problem.household, n_offers)
    ends, fits, passes = [], [], 0
    for start in problem.starts[n_groups][:n_starts]:
        log, classes = io.StringIO(), [head.copy() for head in start]
        try:
            with redirect_stdout(log):
                lccm.emAlgo(
                    outputFilePath=os.devnull, outputFileName="", outputFile=log, nClasses=n_groups,
                    indID=panel, expVarsClassMem=np.ones((1, panel.size)), namesExpVarsClassMem=["1"],
                    availIndClasses=np.ones((n_groups, panel.size), dtype=int),
                    obsID=np.repeat(np.arange(n_choices), n_offers),
                    altID=np.tile(np.arange(n_offers), n_choices), choice=taken,
                    availAlts=[np.arange(n_offers)] * n_groups, expVarsClassSpec=[rows] * n_groups,
                    namesExpVarsClassSpec=[["x"] * n_features] * n_groups,
                    indWeights=np.ones(int(problem.household[-1]) + 1),
                    paramClassMem=np.zeros(n_groups - 1), paramClassSpec=classes,
                )  # fmt: skip
        except EMEndedError:
            pass
        said = [
            line.rsplit(":", 1)[1] for line in log.getvalue().splitlines() if "Iteration" in line
        ]
        passes += len(said) // 2  # on the screen and in the file
        ends.append(float(said[-1]))
        fits.append((np.stack(classes), logits[0] - np.logaddexp.reduce(logits[0])))
    best = int(np.nanargmax(ends))
    return {
        "heads": fits[best][0],
        "log_weights": fits[best][1],
        "passes": passes,
        "starts": len(ends),
        "ends": ends,
    }

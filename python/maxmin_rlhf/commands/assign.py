"""``maxmin assign``."""

from __future__ import annotations

import argparse

import numpy as np

from maxmin_rlhf.commands import _input, _output
from maxmin_rlhf.mixture import PreferenceMixture
from maxmin_rlhf.mixture.arguments import as_dtype


def run(args: argparse.Namespace) -> None:
    """Write the posterior of every annotator."""
    _output.check_kind(args.output)
    mixture = PreferenceMixture.load(args.mixture)
    mixture.backend, mixture.device = args.backend, args.device
    mixture.dtype = as_dtype(args.dtype)
    data = _input.preferences_of(args.mixture, args)
    posterior = mixture.predict_proba(data)
    group = posterior.argmax(1)
    columns = {"annotator": data.annotators_, "group": group}
    columns |= {f"p{k}": posterior[:, k] for k in range(mixture.n_groups)}
    if args.output is not None or not args.json:
        _output.write_columns(args.output, columns)
    if args.json:
        counts = np.bincount(group, minlength=mixture.n_groups)
        facts = {
            "annotators": len(group),
            "groups": mixture.n_groups,
            "counts": counts,
            "certainty": float(posterior.max(1).mean()),
        }
        if args.output is None:
            facts["rows"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]  # fmt: skip
        else:
            facts["file"] = args.output
        _output.print_json(facts)

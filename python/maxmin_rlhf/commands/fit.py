"""``maxmin fit``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from maxmin_rlhf.commands import _input, _output
from maxmin_rlhf.data import PreferenceData, PreferenceStore
from maxmin_rlhf.mixture import PreferenceMixture, fit_sweep, select_groups
from maxmin_rlhf.mixture.checkpoint import Kept


def run(args: argparse.Namespace) -> None:
    """Fit, say what came out, save."""
    several = len(args.groups) > 1
    if several and args.no_select and "{groups}" not in args.output:
        raise ValueError("--output: expected '{groups}' in the name, there are several mixtures to save")  # fmt: skip
    if args.restarts is not None and args.restarts < 1:
        raise ValueError(f"--restarts: expected at least 1, got {args.restarts}")
    _check_places(args)
    data = _input.preferences_to_fit(args)
    compute = {
        "backend": args.backend,
        "device": args.device,
        "dtype": args.dtype,
        "checkpoint": None if args.checkpoint is None else Kept(args.checkpoint),
        "random_state": args.seed,
        "verbose": int(args.verbose),
    }
    facts: dict[str, Any] = {
        "data": {
            "annotators": data.n_annotators,
            "comparisons": data.n_comparisons,
            "features": data.n_features,
        }
    }
    if several and not args.no_select:
        selection = select_groups(
            data, args.groups, n_init=args.restarts or 8, l2=args.l2, split=args.split,
            n_folds=args.folds, **compute,
        )  # fmt: skip
        mixtures = [selection.best_mixture_]
        facts |= {
            "best": selection.best_,
            "reason": selection.reason_,
            "split": selection.split_,
            "results": selection.results_,
        }
    else:
        l2 = 1.0 if args.l2 is None else args.l2
        sweep = fit_sweep(data, args.groups, n_init=args.restarts or 16, l2=l2, **compute)
        mixtures = list(sweep.values())
    facts["mixtures"] = [_describe(mixture, data) for mixture in mixtures]
    for mixture, fact in zip(mixtures, facts["mixtures"], strict=True):
        fact["file"] = _file(args, mixture.n_groups)
        mixture.save(fact["file"])
        _input.keep_ids(fact["file"], data, args)
        _input.keep_encoder(fact["file"], args)
        _output.keep_json(_input.selection_path(fact["file"]), {k: facts[k] for k in ("best", "reason", "split", "results")} if "results" in facts else None)  # fmt: skip
    # Not before everything that came of it is on disk.
    if args.checkpoint is not None and os.path.exists(args.checkpoint):
        os.unlink(args.checkpoint)
    if args.json:
        _output.print_json(facts)
    else:
        print(data)
        print(_selection(facts) if "results" in facts else _fits(facts["mixtures"]))
        for fact in facts["mixtures"]:
            shares = ", ".join(f"{share:.1%}" for share in fact["shares"])
            print(f"wrote {fact['file']}: groups of {shares}")


def _file(args: argparse.Namespace, n_groups: int) -> str:
    return str(args.output.replace("{groups}", str(n_groups)))


def _check_places(args: argparse.Namespace) -> None:
    """A fit may take hours: whether its files can be written is known before."""
    selects = len(args.groups) > 1 and not args.no_select  # among one group, too
    outputs = {_file(args, k) for k in ({1, *args.groups} if selects else args.groups)}
    for path in sorted(outputs):
        _output.check_place("--output", path)
    if args.checkpoint is not None:
        _output.check_place("--checkpoint", args.checkpoint)
        if os.path.realpath(args.checkpoint) in map(os.path.realpath, outputs):
            raise ValueError("--checkpoint: expected another file than --output, it is removed at the end")  # fmt: skip


def _describe(mixture: PreferenceMixture, data: PreferenceData | PreferenceStore) -> dict[str, Any]:
    return {
        "n_groups": mixture.n_groups,
        "l2": mixture.l2,
        "log_likelihood": mixture.log_likelihood_,
        "bic": mixture.bic(data),
        "icl": mixture.icl(data),
        "converged": mixture.converged_,
        "passes": mixture.n_iter_,
        "shares": mixture.weights_,
    }


def _selection(facts: dict[str, Any]) -> str:
    controls = list(facts["results"][0]["control_gain"])
    head = ["groups", "score", "s.e.", "gain", "95 % interval", *controls, "BIC", "ICL", "l2"]
    rows = [
        (
            ("* " if r["n_groups"] == facts["best"] else "") + str(r["n_groups"]),
            f"{r['score']:.4f}",
            f"{r['score_se']:.4f}",
            f"{r['gain']:.4f}",
            f"{r['gain_low']:.4f} to {r['gain_high']:.4f}",
            *(f"{r['control_gain'][name]:.4f}" for name in controls),
            f"{r['bic']:.1f}",
            f"{r['icl']:.1f}",
            f"{r['l2']:.3g}",
        )
        for r in facts["results"]
    ]
    held_out = (
        f"held-out score a comparison, by {facts['split']}; gain over one group; controls' gain"
    )
    return f"{held_out}\n{_output.as_text(head, rows)}\n{facts['reason']}"


def _fits(mixtures: Sequence[dict[str, Any]]) -> str:
    head = ["groups", "log-likelihood", "BIC", "ICL", "l2", "passes"]
    rows = [
        (
            m["n_groups"],
            f"{m['log_likelihood']:.2f}",
            f"{m['bic']:.1f}",
            f"{m['icl']:.1f}",
            f"{m['l2']:.3g}",
            m["passes"],
        )
        for m in mixtures
    ]
    return _output.as_text(head, rows)

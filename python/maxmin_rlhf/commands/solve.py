"""``maxmin solve``."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.commands import _input, _output
from maxmin_rlhf.mixture import PreferenceMixture
from maxmin_rlhf.welfare import solve_maxmin

Array = NDArray[np.float64]
_PARAMETERS = ("min_mass", "tau", "p", "alpha", "radius", "floor", "rank_weights")


def run(args: argparse.Namespace) -> None:
    """Solve, say what came out, write the policy."""
    _output.check_kind(args.output)
    rewards, shares, rows = _rewards(args)
    if args.shares is not None:
        shares = np.array(args.shares)
    solution = solve_maxmin(
        rewards,
        args.beta,
        objective=args.objective,
        group_weights=shares,
        calibrate=None if args.calibrate == "none" else args.calibrate,
        fresh=_fresh(args),
        tol=args.tol,
        **{name: getattr(args, name) for name in _PARAMETERS},
    )
    if args.output is not None:
        at, columns = rows
        _output.write_columns(args.output, {**columns, "probability": solution.policy[at]})
    facts = {
        "objective": args.objective,
        "beta": args.beta,
        "calibrate": args.calibrate,
        "prompts": rewards.shape[0],
        "samples": rewards.shape[1],
        "groups": rewards.shape[2],
        "weights": solution.weights,
        "utilities": solution.utilities,
        "worst_group": solution.worst_group,
        "value": solution.value,
        "gap": solution.gap,
        "relative_gap": solution.relative_gap,
        "fresh_gap": solution.fresh_gap,
        "left_out": solution.left_out,
        "ess": {"least": solution.ess.min(), "median": np.median(solution.ess)},
    }
    if args.json:
        _output.print_json(facts)
        return
    table = [(k, f"{w:.4f}", f"{u:.4f}") for k, (w, u) in enumerate(zip(solution.weights, solution.utilities, strict=True))]  # fmt: skip
    print(_output.as_text(["group", "weight", "utility"], table))
    print(f"worst-off: group {solution.worst_group}; value {solution.value:.6g} (KL term included)")
    if args.objective == "maxmin":
        print(f"certificate: no policy gives the worst-off group more than {solution.gap:.2g} above that, at this KL")  # fmt: skip
    elif np.isfinite(solution.gap):
        print(
            f"certificate: no policy is worth more than {solution.gap:.2g} above that, at this KL"
        )
    if solution.fresh_gap is not None:
        print(f"on the second sample: {solution.fresh_gap:.2g}")
    print(f"effective samples a prompt: median {np.median(solution.ess):.1f}, least {solution.ess.min():.1f} of {rewards.shape[1]}")  # fmt: skip
    if args.output is not None:
        print(f"wrote {args.output}")


def _fresh(args: argparse.Namespace) -> Array | None:
    if args.fresh is None:
        return None
    if args.mixture is not None:
        raise ValueError("--fresh: expected a file of rewards beside it, got --mixture")
    return _rewards(argparse.Namespace(**{**vars(args), "rewards_file": args.fresh}))[0]


def _rewards(args: argparse.Namespace) -> tuple[Array, Array | None, tuple[Any, dict[str, Any]]]:
    """Rewards (P, S, K), shares (K,), and the rows to write: where they are in (P, S), and their columns."""
    if (args.rewards_file is None) == (args.mixture is None):
        raise ValueError("expected either a file of rewards, or --mixture")
    if args.mixture is None and args.items is not None:
        raise ValueError("--items: expected --mixture beside it")
    if args.mixture is not None and (args.rewards or args.prompt):
        raise ValueError("--rewards, --prompt: expected a file of rewards beside them, got --mixture")  # fmt: skip
    if args.mixture is not None:
        mixture = PreferenceMixture.load(args.mixture)
        features, ids = _input.menu(args, args.mixture)
        if np.ndim(features) != 2 or np.shape(features)[1] != mixture.heads_.shape[1]:
            raise ValueError(
                f"--items: expected {mixture.heads_.shape[1]} features as fitted, got shape {np.shape(features)}"
            )
        at = (np.zeros(len(ids), np.int64), np.arange(len(ids)))
        return mixture.reward(features)[None], mixture.weights_, (at, {"item": ids})
    if args.rewards_file.lower().endswith(".npy"):
        if args.rewards or args.prompt:
            raise ValueError("--rewards, --prompt: expected a table beside them, got a .npy")
        from maxmin_rlhf.data.reader import load_array

        rewards: Any = load_array(args.rewards_file)
        if rewards.ndim != 3:
            raise ValueError(f"{args.rewards_file}: expected shape (prompts, samples, groups), got {rewards.shape}")  # fmt: skip
        at = tuple(axis.ravel() for axis in np.indices(rewards.shape[:2]))
        return rewards, None, (at, {"prompt": at[0], "sample": at[1]})
    return _table(args)


def _table(args: argparse.Namespace) -> tuple[Array, None, tuple[Any, dict[str, Any]]]:
    from maxmin_rlhf.data._arrays import factorize
    from maxmin_rlhf.data.reader import Table

    table = Table(args.rewards_file, {"--rewards": args.rewards or [], "--prompt": args.prompt} if args.rewards else {})  # fmt: skip
    if args.prompt is not None and args.prompt not in table.columns:
        raise ValueError(f"--prompt: no column {args.prompt!r} in {args.rewards_file}; it has {', '.join(table.columns)}")  # fmt: skip
    names = args.rewards or [
        name for name in table.columns if name not in (args.prompt, *table.row_index)
    ]
    values = table.numbers(names).astype(np.float64)
    prompt = np.zeros(len(values), np.int64) if args.prompt is None else table.ids(args.prompt)
    code, _ = factorize("--prompt", prompt)
    order = np.argsort(code, kind="stable")
    sizes = np.bincount(code)
    sample = np.empty_like(code)
    sample[order] = np.arange(len(code)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rewards = np.full((sizes.size, int(sizes.max()), values.shape[1]), np.nan)
    rewards[code, sample] = values
    return rewards, None, ((code, sample), {"prompt": prompt, "sample": sample})

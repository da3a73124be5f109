"""``maxmin``: encode texts, fit groups, assign annotators, report on them, solve for the fair policy, see the demo, ask what serves here, and how fast.

Exit codes: 0 done; 2 wrong usage or bad input, with one line on stderr; 1 anything else; 130 interrupted. What a
command does is imported when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from maxmin_rlhf.commands._parser import build_parser, one_line

_BAD_PATH = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    if "torch" not in sys.modules:
        # Threads that wait for each other by spinning are ten times slower where the cores are busy with other work.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        try:
            import_module(f"maxmin_rlhf.commands.{args.module}").run(args)
            sys.stdout.flush()
        except KeyboardInterrupt:
            print("maxmin: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            if args.traceback:
                raise
            return _report(error)
    return 0


def _report(error: Exception) -> int:
    """One line on stderr, and the exit code."""
    expected = isinstance(error, (ValueError, TypeError, ImportError, OSError)) or (
        type(error).__name__ == "DownloadError"
    )
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if not expected:
        text = f"{type(error).__name__}: {text} (maxmin --traceback ... shows where)"
    print(f"maxmin: error: {one_line(text)}", file=sys.stderr)
    return 2 if isinstance(error, (ValueError, TypeError, *_BAD_PATH)) else 1


def _show_warning(message: Warning | str, *_rest: Any, **_more: Any) -> None:
    print(f"maxmin: warning: {one_line(str(message))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

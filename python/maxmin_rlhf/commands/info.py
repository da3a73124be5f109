"""``maxmin info``."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import numpy as np
import torch

import maxmin_kernels
from maxmin_kernels import _native
from maxmin_kernels.ops import _registry
from maxmin_rlhf.commands import _output

_EXTRAS = ("pyarrow", "matplotlib", "transformers", "triton")


def run(args: argparse.Namespace) -> None:
    """Print what is here."""
    facts = gather()
    if args.json:
        _output.print_json(facts)
    else:
        print(_text(facts))


def gather() -> dict[str, Any]:
    """Versions, libraries, devices, and who serves what."""
    reasons = {name: _why_not(name) for name in _registry.BACKENDS}
    serves: dict[str, dict[str, dict[str, str | None]]] = {}
    for operation in _registry.operations():
        forced = {
            name: "serves where it is forced"
            for name in _registry.BACKENDS
            if _registry.opt_in(operation, name)
        }
        serves[operation] = {
            direction: {
                name: reasons[name] or forced.get(name) if name in having else "not implemented"
                for name in _registry.BACKENDS
            }
            for direction, having in _registry.backends_of(operation).items()
        }
    return {
        "versions": {
            "maxmin_kernels": maxmin_kernels.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **{name: _version(name) for name in _EXTRAS},
        },
        "machine": {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            if torch.cuda.is_available()
            else [],
        },
        "build": _build(),
        "forced": os.environ.get("MAXMIN_BACKEND") or None,
        "backends": {
            name: {"available": reason is None, "reason": reason}
            for name, reason in reasons.items()
        },
        "operations": serves,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _build() -> dict[str, Any]:
    """What ``_core`` says of the build, or why it cannot."""
    try:
        core = importlib.import_module("maxmin_kernels._core")
    except ImportError as error:
        return {"reason": f"maxmin_kernels._core is not available ({error})"}
    return dict(core.build_info())


def _why_not(backend: str) -> str | None:
    """Why a backend serves nothing here; None: it serves what it has."""
    if backend == "reference":
        return None
    if backend == "cpu":
        return _native.load()
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
    if backend == "cuda" and not _build().get("cuda_archs"):
        return "compiled without CUDA (MAXMIN_CUDA=1 asks for it)"
    return None


def _text(facts: dict[str, Any]) -> str:
    lines = [
        ", ".join(f"{name} {version or '(not installed)'}" for name, version in facts["versions"].items()),
        f"{facts['machine']['platform']}, {facts['machine']['threads']} threads, GPUs: "
        + (", ".join(facts["machine"]["cuda"]) or "none"),
    ]  # fmt: skip
    build = facts["build"]
    if "reason" in build:
        lines.append(f"build: {build['reason']}")
    else:
        sets = ", ".join(build["instruction_sets"])
        archs = ", ".join(build["cuda_archs"]) or "none"
        lines.append(
            f"build: {build['compiler']}; instruction sets {sets}, in use {build['instruction_set']}; CUDA archs {archs}"
        )
    if facts["forced"]:
        lines.append(f"MAXMIN_BACKEND={facts['forced']} forces a backend")
    names = list(facts["backends"])
    rows = [
        (
            f"{operation} {'' if direction == 'fwd' else 'backward'}".strip(),
            *(_word(facts, by, name) for name in names),
        )
        for operation, directions in facts["operations"].items()
        for direction, by in directions.items()
    ]
    lines += ["", _table(["", *names], rows), ""]
    lines.append("yes: serves it here; off: has it, but not here; -: has no such implementation")
    lines += [
        f"{name}: {fact['reason']}" for name, fact in facts["backends"].items() if fact["reason"]
    ]
    return "\n".join(lines)


def _word(facts: dict[str, Any], by: dict[str, str | None], name: str) -> str:
    if by[name] is None:
        return "yes"
    return "-" if by[name] == "not implemented" else "off"


def _table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    width = max(len(row[0]) for row in rows)
    return _output.as_text([head[0].ljust(width), *head[1:]], [(row[0].ljust(width), *row[1:]) for row in rows])  # fmt: skip

"""Compile Triton's kernels for devices that are not there, through the launchers that users reach.

    with compile_for("sm_90") as compiled, mk.backend("triton"):
        mk.choice_shares(margins)
    print(usage(compiled[0]))

Arguments are tensors on the CPU, so what is compiled is what their dtypes, strides and alignment ask for. Nothing runs:
outputs hold what their memory held. Triton is imported by the functions, so that without it these tests fail, each for
itself, and no others do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

# name: Triton's backend, architecture, threads of a warp, bytes of shared memory a program may use, multiprocessors.
DEVICES: dict[str, tuple[str, int | str, int, int, int]] = {
    "sm_80": ("cuda", 80, 32, 166_912, 108),
    "sm_90": ("cuda", 90, 32, 232_448, 132),
    "sm_100": ("cuda", 100, 32, 232_448, 148),
    "gfx942": ("hip", "gfx942", 64, 65_536, 304),
}


class _Driver:
    """What Triton and its launchers ask of a driver, answered for a device that is not there."""

    def __init__(self, name: str) -> None:
        from triton.backends.compiler import GPUTarget

        backend, arch, warp_size, shared, n_multiprocessors = DEVICES[name]
        self._target = GPUTarget(backend, arch, warp_size)
        # Triton keeps what it compiled by the number of the device: each architecture is a device of its own.
        self._device = 1000 + list(DEVICES).index(name)
        properties = {
            "max_shared_mem": shared,
            "multiprocessor_count": n_multiprocessors,
            "warpSize": warp_size,
        }
        self.utils = SimpleNamespace(get_device_properties=lambda device: properties)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compile_for(name: str) -> Iterator[list[Any]]:
    """Launches within the block compile for the device ``name`` of ``DEVICES``; yields their kernels, in order."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError(
            "compile_for: expected TRITON_INTERPRET unset, got 1: nothing would be compiled"
        )
    compiled: list[Any] = []
    run, active = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(kernel)
        return kernel

    driver.set_active(_Driver(name))
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = run
        driver.set_active(active)


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes. Spills are bytes of the instructions in its text, as ptxas -v counts them."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def usage(kernel: Any) -> Usage:
    """Registers and spills a thread, shared memory a program."""
    shared = int(kernel.metadata.shared)
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        facts = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\n", text)}
        spills = 4 * (facts["vgpr_spill_count"] + facts["sgpr_spill_count"])
        stack = facts["private_segment_fixed_size"]
        return Usage(facts["vgpr_count"], stack, spills, spills, shared)
    text = _tool("cuobjdump", "-res-usage", kernel.asm["cubin"])
    facts = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    moved: Counter[str] = Counter()
    for opcode in opcodes(kernel):
        name, *suffixes = opcode.split(".")
        if name in ("STL", "LDL"):
            moved[name] += next((int(s) // 8 for s in suffixes if s.isdigit()), 4)
    return Usage(facts["REG"], facts["STACK"], moved["STL"], moved["LDL"], shared)


def opcodes(kernel: Any) -> list[str]:
    """Instructions of the machine code in order, without operands: ``LDG.E.128``, ``HMMA.16816.F32.BF16``."""
    return re.findall(r"^\s*(?:/\*\w+\*/)?\s*(?:@!?\w+\s+)?([A-Z][\w.]+)", sass(kernel), re.M)


def sass(kernel: Any) -> str:
    """The machine code of an NVIDIA kernel as text."""
    return _tool("nvdisasm", "-c", kernel.asm["cubin"])


def count(kernel: Any, pattern: str) -> int:
    r"""How many instructions' names match the regular expression: ``count(kernel, r"LDG\.E.*\.128")``."""
    return sum(re.match(pattern, opcode) is not None for opcode in opcodes(kernel))


@functools.cache
def _tool(program: str, option: str, cubin: bytes) -> str:
    import triton.backends.nvidia as nvidia

    path = Path(nvidia.__file__).parent / "bin" / program
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(path), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

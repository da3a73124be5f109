"""What nvcc makes of the CUDA EM pass for sm_90a: no spills, registers within the budget, the instructions that are meant."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.kernels.cuda.emulator import KERNEL, ROOT

NVCC = shutil.which("nvcc")
# Not ``codegen``, where a skip is a failure: nvcc is no part of the development environment.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None or not KERNEL.is_dir(), reason="needs nvcc and csrc/cuda"),
]

# Registers a thread, at most, of bfloat16; float16, with fewer parts of a weight, takes no more: heads, CTAs, warps ->
# whole annotators in a tile, annotators that cross tiles.
BUDGET = {
    (8, 2, 8): (128, 144),
    (8, 2, 16): (128, 128),
    (8, 4, 16): (128, 128),
    (8, 8, 16): (128, 128),
    (16, 2, 8): (184, 224),
    (16, 4, 8): (184, 224),
    (16, 8, 8): (184, 224),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(cubin, what ptxas said)"""
    cubin = tmp_path_factory.mktemp("cubin") / "em_pass.cubin"
    options = ["-std=c++17", "-O3", "-arch=sm_90a", "-Xptxas=-v", "-cubin"]
    command = [NVCC, *options, f"-I{ROOT / 'csrc' / 'include'}", str(KERNEL / "em_pass_sm90.cu"), "-o", str(cubin)]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 180
    return cubin, done.stderr


def test_nothing_spills_and_registers_are_within_the_budget(compiled):
    _, said = compiled
    entries = re.split(r"Compiling entry function", said)[1:]
    spills = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
    found = {}
    for entry in entries:
        assert spills.search(entry).groups() == ("0", "0"), entry
        sizes = re.search(r"ConfigILi(\d+)ELi(\d+)ELi(\d+)ELi\d+ELb(\d)ELb(\d)ELb1ELi5E", entry)
        if sizes:
            heads, ctas, warps, half, carry = map(int, sizes.groups())
            registers = int(re.search(r"Used (\d+) registers", entry).group(1))
            assert registers <= BUDGET[heads, ctas, warps][carry], (sizes.groups(), registers)
            found[heads, ctas, warps, half, carry] = registers
    assert set(found) == {(*key, *kind) for key in BUDGET for kind in itertools.product((0, 1), repeat=2)}  # fmt: skip


def test_the_instructions_that_are_meant(compiled):
    spec = importlib.util.find_spec("triton")
    tools = Path(spec.origin).parent / "backends/nvidia/bin" if spec and spec.origin else None
    cuobjdump = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=tools)
    if cuobjdump is None:
        pytest.skip("needs cuobjdump")
    listing = subprocess.run(
        [cuobjdump, "-sass", str(compiled[0])], check=True, capture_output=True, text=True
    )
    passes = [
        f
        for f in listing.stdout.split("Function :")[1:]
        if "em_pass_kernel" in f and "ELb1ELi5E" in f
    ]
    assert len(passes) == 4 * len(BUDGET)
    for function in passes:
        # Tensor cores in the features' type, matrices from shared memory as they are and transposed, boxes and descriptors by
        # the copy engine, pushes to peers, waits on barriers.
        half = re.search(r"ELi\d+ELb(\d)ELb\dELb1ELi5E", function).group(1) == "1"
        product = "HMMA.16816.F32 " if half else "HMMA.16816.F32.BF16 "
        for name in (product, "LDSM.16.M88.4", "LDSM.16.MT88.4", "UTMALDG.2D", "UBLKCP", "STAS.128", "SYNCS"):  # fmt: skip
            assert name in function, (name, function[:200])
        # Shared memory is known to be shared: no access looks its address up.
        assert "LDS.64" in function and not re.search(r"\b(LD|ST)\.E", function)

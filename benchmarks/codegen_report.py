"""What Triton's kernels compile to, for devices that are not there: benchmarks/codegen_report.md.

    python -m benchmarks.codegen_report

Registers a thread, spilled bytes, shared memory a program and instructions that tell: products on tensor cores, loads of 16
bytes, tensor copies. Figures of a compiler, none of a device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import maxmin_kernels as mk
from benchmarks.harness import environment
from tests.kernels.triton.codegen import compile_for, count, usage
from tests.kernels.triton.test_triton_codegen import FAMILIES

PAGE = Path(__file__).parent / "codegen_report.md"
ARCHS = ("sm_80", "sm_90")


def rows() -> list[str]:
    lines = []
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            for arch in ARCHS:
                with compile_for(arch) as compiled, mk.backend("triton"):
                    FAMILIES[family](dtype)
                seen = set()
                for kernel in compiled:
                    used = usage(kernel)
                    line = (
                        f"| `{kernel.metadata.name.strip('_')}` | {family} | {str(dtype)[6:]} | {arch} | {kernel.metadata.num_warps} "
                        f"| {used.registers} | {used.spill_stores + used.spill_loads} | {used.shared / 1024:.0f} "
                        f"| {count(kernel, 'HMMA|HGMMA|DMMA')} | {count(kernel, r'LDG[.]E[.]128|LDGSTS.*[.]128')} | {count(kernel, 'UTMALDG')} |"
                    )
                    if line not in seen:
                        seen.add(line)
                        lines.append(line)
                print(family, dtype, arch, file=sys.stderr, flush=True)
    return lines


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    head = [
        "<!-- Written by python -m benchmarks.codegen_report. -->",
        "",
        f"What Triton {environment()['triton']} makes of the kernels, without a device. The shapes are those of",
        "`tests/kernels/triton/test_triton_codegen.py`, whose tests hold the limits.",
        "",
        "| kernel | family | dtype | for | warps | registers | spilled bytes | shared KiB | tensor-core products | 16-byte loads | tensor copies |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    PAGE.write_text("\n".join([*head, *rows()]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

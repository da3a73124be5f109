"""Wrong versions of the CUDA kernel are noticed by the tests of the emulated pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.kernels.cuda.emulator import KERNEL, ROOT, compile_library, needs_sources

pytestmark = [pytest.mark.slow, needs_sources]

# {fault: (file, right, wrong)}
KERNEL_FILE, ROW_FILE = "em_pass_kernel.cuh", "em_pass_row.cuh"
MUTANTS = {
    "none": (KERNEL_FILE, "if (n > 0) margins(0);", "if (n > 0) margins(0);"),
    "one inbox for two": (KERNEL_FILE, "(e * C + me) * (F::kInbox / 4)", "me * (F::kInbox / 4)"),
    "no barrier after the posterior": (
        KERNEL_FILE,
        "    named_barrier<1, F::kThreads>();\n  };\n\n  auto gradient",
        "  };\n\n  auto gradient",
    ),
    "an inbox not armed": (
        KERNEL_FILE,
        "if (tid == 0) mbar_expect(got + e, C * F::kInbox);",
        "",
    ),
    "a slot refilled before its last read": (
        KERNEL_FILE,
        "const uint32_t x0 = own_box + ((2 * i + r)",
        "if (r == 0) release(i, 0);\n        const uint32_t x0 = own_box + ((2 * i + r)",
    ),
    "a descriptor brought too early": (
        KERNEL_FILE,
        "i + kDescriptors - 1 < n) describe(i + kDescriptors - 1);",
        "i + kDescriptors < n) describe(i + kDescriptors);",
    ),
    "the carried sum forgotten": (KERNEL_FILE, "if (began_before) {", "if (false) {"),
    "sums across annotators": (
        KERNEL_FILE,
        "if (lane - o >= first) x += y;",
        "if (lane >= o) x += y;",
    ),
    "the carried gradient not cleared": (
        KERNEL_FILE,
        "acc[0][k][b][j] += g * acc[kCarry][k][b][j];\n              acc[kCarry][k][b][j] = 0.f;",
        "acc[0][k][b][j] += g * acc[kCarry][k][b][j];",
    ),
    "two parts of a weight for three": (
        KERNEL_FILE,
        "for (int i = 0; i < 4; ++i) v[i] = rest<kHalf>(v[i]);",
        "for (int i = 0; i < 4; ++i) v[i] = p == 0 ? rest<kHalf>(v[i]) : 0.f;",
    ),
    "one part of a float16 weight for two": (
        KERNEL_FILE,
        "for (int i = 0; i < 4; ++i) v[i] = rest<kHalf>(v[i]);",
        "for (int i = 0; i < 4; ++i) v[i] = kHalf ? 0.f : rest<kHalf>(v[i]);",
    ),
    "coefficients of float16 not scaled": (KERNEL_FILE, "? *a.coef_scale : 1.f;", "? 1.f : 1.f;"),
    "margins of float16 left scaled": (KERNEL_FILE, "m *= __int_as_float(table[h].w);", ";"),
    "a choice counted once a row": (
        KERNEL_FILE,
        "lane == comparison.first ? v * term.log_prob : 0.f;",
        "v * term.log_prob;",
    ),
    "choices that know nothing of each other": (
        ROW_FILE,
        "if (lane - o >= c.first) total += y;",
        "if (lane >= o) total += y;",
    ),
    "noise among two, whatever is offered": (ROW_FILE, "logf(noise / offered)", "logf(noise / 2)"),
    "noise in the likelihood alone": (ROW_FILE, "t.share * __expf(kept - log_prob)", "t.share"),
    "the last of equals": (KERNEL_FILE, "earlier |= k < h &&", "earlier |= k > h &&"),
    "a comparison cut by a tile": (
        "em_pass_tiles.h",
        "if (!lengths_) return room;",
        "return room;",
    ),
    "a chunk left out": (
        "em_pass_join.cuh",
        "for (int64_t c = split.begin[n]; c < split.begin[n + 1]; ++c) whole",
        "for (int64_t c = split.begin[n] + 1; c < split.begin[n + 1]; ++c) whole",
    ),
}


def compile_mutant(name, folder):
    file, right, wrong = MUTANTS[name]
    sources = folder / name.replace(" ", "-")
    shutil.copytree(KERNEL, sources)
    source = (sources / file).read_text()
    assert source.count(right) == 1, right
    (sources / file).write_text(source.replace(right, wrong))
    return compile_library(sources / "mutant.so", "-DMAXMIN_QUICK", kernel=sources)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """{mutant: "noticed", "missed" or "crashed"}"""
    folder = tmp_path_factory.mktemp("mutants")
    libraries = [str(compile_mutant(name, folder)) for name in MUTANTS]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, "-m", "tests.kernels.cuda.mutated", *libraries]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line in ("noticed", "missed", "crashed")]
    return dict(zip(MUTANTS, said, strict=True))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_noticed(verdicts, name):
    assert verdicts[name] in (["missed"] if name == "none" else ["noticed", "crashed"])

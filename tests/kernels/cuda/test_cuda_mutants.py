"""Wrong versions of the CUDA kernel are noticed by the tests of the emulated pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.kernels.cuda.emulator import KERNEL, ROOT, compile_library, needs_sources

pytestmark = [pytest.mark.slow, needs_sources]

REST = "for (int i = 0; i < 4; ++i) v[i] = rest<kHalf>(v[i]);"
TAKEN_IN = "acc[0][k][b][j] += g * acc[kCarry][k][b][j];\n"
# {file: {fault: (right, wrong)}}
MUTANTS = {
    "em_pass_kernel.cuh": {
        "none": ("if (cta.n > 0) margins(0);", "if (cta.n > 0) margins(0);"),
        "evidence and mass never written": ("posterior.write();", ""),
    },
    "em_pass_cta.cuh": {
        "a descriptor brought too early": (
            "i + kDescriptors - 1 < cta.n) describe(i + kDescriptors - 1);",
            "i + kDescriptors < cta.n) describe(i + kDescriptors);",
        ),
        "coefficients of float16 not scaled": ("? *a.coef_scale : 1.f;", "? 1.f : 1.f;"),
        "blocks of heads for two, however many": ("cluster / n_blocks,", "cluster / 2,"),
        "mixtures counted from the first block on": (
            "a.mixture_begin[h] - head0, a.mixture_end[h] - head0",
            "a.mixture_begin[h], a.mixture_end[h]",
        ),
        "every block the first": ("cluster % n_blocks * H", "cluster % 1 * H"),
    },
    "em_pass_margins.cuh": {
        "one inbox for two": ("(e * C + cta.me) * (F::kInbox / 4)", "cta.me * (F::kInbox / 4)"),
        "two parts of a weight for three": (REST, REST[:-1] + " * (p == 0);"),
        "one part of a float16 weight for two": (REST, REST[:-1] + " * !kHalf;"),
        "the first block's weights": ("(cta.head0 + b * 8", "(b * 8"),
    },
    "em_pass_posterior.cuh": {
        "no barrier after the posterior": ("named_barrier<1, F::kThreads>();", ""),
        "an inbox not armed": ("if (cta.tid == 0) mbar_expect(cta.got + e, C * F::kInbox);", ""),
        "the carried sum forgotten": ("if (row.began_before) {", "if (false) {"),
        "sums across annotators": ("if (lane - o >= row.first) x += y;", "if (lane >= o) x += y;"),
        "margins of float16 left scaled": ("m *= __int_as_float(cta.table[h].w);", ";"),
        "a choice counted once a row": (
            "lane == comparison.first ? row.v * term.log_prob : 0.f;",
            "row.v * term.log_prob;",
        ),
        "the last of equals": ("earlier |= k < h &&", "earlier |= k > h &&"),
        "chunks of the first block only": (
            "int64_t(tile.chunk) * cta.n_heads + cta.head0 + h",
            "int64_t(tile.chunk) * cta.n_heads + h",
        ),
    },
    "em_pass_gradient.cuh": {
        "a slot refilled before its last read": (
            "const uint32_t x0 = cta.own_box + ((2 * i + r)",
            "if (r == 0) ring.release(i, 0);\nconst uint32_t x0 = cta.own_box + ((2 * i + r)",
        ),
        "the carried gradient not cleared": (
            TAKEN_IN + "          acc[kCarry][k][b][j] = 0.f;",
            TAKEN_IN,
        ),
        "one block's gradient on another's": (
            "int64_t(cta.cluster) * H);",
            "int64_t(cta.share * cta.n_blocks) * H);",
        ),
    },
    "em_pass_row.cuh": {
        "choices that know nothing of each other": (
            "if (lane - o >= c.first) total += y;",
            "if (lane >= o) total += y;",
        ),
        "noise among two, whatever is offered": ("logf(noise / offered)", "logf(noise / 2)"),
        "noise in the likelihood alone": ("t.share * __expf(kept - log_prob)", "t.share"),
    },
    "em_pass_tiles.h": {
        "a comparison cut by a tile": ("if (!lengths_) return room;", "return room;"),
    },
    "em_pass_join.cuh": {
        "a chunk left out": (
            "for (int64_t c = split.begin[n]; c < split.begin[n + 1]; ++c) whole",
            "for (int64_t c = split.begin[n] + 1; c < split.begin[n + 1]; ++c) whole",
        ),
    },
}
NAMES = [name for faults in MUTANTS.values() for name in faults]


def compile_mutant(folder, file, name):
    right, wrong = MUTANTS[file][name]
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
    libraries = [str(compile_mutant(folder, file, name)) for file in MUTANTS for name in MUTANTS[file]]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, "-m", "tests.kernels.cuda.mutated", *libraries]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line in ("noticed", "missed", "crashed")]
    return dict(zip(NAMES, said, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_is_noticed(verdicts, name):
    assert verdicts[name] in (["missed"] if name == "none" else ["noticed", "crashed"])

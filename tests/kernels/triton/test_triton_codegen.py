"""What the launchers of each family ask Triton to compile: no spills, within a budget, for devices that are not there."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from tests.kernels.test_welfare_native import VARIANTS, options_for
from tests.kernels.triton.codegen import compile_for, count, usage

pytestmark = pytest.mark.codegen

# A single program each, where a few bytes are nothing: compilers differ by them.
ALONE = {"_reduce_kernel": 32, "_advance_kernel": 32}

# Registers a thread, at most, on sm_90.
BUDGET = {
    "_annotators_kernel": 168,
    "_choices_kernel": 128,
    "_margins_kernel": 152,
    "_gradient_kernel": 168,
    "_one_read_kernel": 255,
    "_items_kernel": 96,
    "_welfare_kernel": 192,
    "_reduce_kernel": 255,  # a single program
    "_sums_kernel": 128,
    "_heads_kernel": 128,
    "_heads_bwd_kernel": 168,
    "_push_kernel": 168,
    "_last_token_kernel": 128,
    "_advantages_kernel": 128,
    "_batch_scale_kernel": 128,
    "_evaluate_kernel": 255,
    "_advance_kernel": 255,  # a single program
}


def mixture(dtype: torch.dtype) -> None:
    """32 pairs an annotator, eight heads, forward and backward; sets of four; several mixtures."""
    margins = torch.zeros(4096, 8, dtype=dtype, requires_grad=True)
    log_weights = torch.zeros(8)
    z, _ = mk.mixture_log_likelihood(margins, torch.arange(0, 4097, 32), log_weights)
    z.sum().backward()
    mk.mixture_log_likelihood(
        margins,
        torch.arange(0, 1025, 8),
        log_weights,
        choice_indptr=torch.arange(0, 4097, 4),
        mixture_indptr=torch.tensor([0, 3, 8]),
        label_noise=0.1,
        hard=True,
    )
    mk.choice_shares(torch.zeros(100, 84, dtype=dtype))


def em_pass(dtype: torch.dtype) -> None:
    """32 pairs an annotator: eight heads of 4096 and of 1024 features, 64 heads; items."""
    indptr = torch.arange(0, 2049, 32)
    half = dtype == torch.bfloat16
    shapes = [(4096, 8), (4096, 64), (1024, 8), *([(512, 16), (512, 8)] if half else [])]
    for n_features, n_heads in shapes:
        once = n_features < 4096 and half  # those are read once
        for weighted in (False, True)[: 1 + once]:
            mk.em_pass(
                torch.zeros(2048, n_features, dtype=dtype),
                indptr,
                torch.zeros(n_heads, n_features),
                torch.zeros(n_heads),
                mixture_indptr=torch.tensor([0, 1, 3, n_heads]) if weighted else None,
                comparison_weight=torch.ones(2048) if weighted else None,
            )
    chosen = torch.arange(2048) % 100
    mk.em_pass(
        torch.zeros(100, 1024, dtype=dtype),
        indptr,
        torch.zeros(32, 1024),
        torch.zeros(32),
        chosen=chosen,
        rejected=(chosen + 1) % 100,
    )


def welfare(dtype: torch.dtype) -> None:
    """Every kind for 512 x 16 rows of eight groups, and for a batch."""
    utilities = torch.ones(512, 16, 8, dtype=dtype)
    for variant in ("min", "softmin tau=1", "nash", "power p=0.5", "cvar alpha=0.4", "owa", "kl radius=0.2", "chi2 radius=0.2", "tv radius=0.1", "floor radius=0.1"):  # fmt: skip
        kind, scalars = VARIANTS[variant]
        options = {**scalars, **options_for(kind, 8, "given")}
        mk.welfare(utilities, kind, **options)
        mk.maxmin_reduce(utilities[:, 0], kind, **options)
    mk.maxmin_reduce(torch.ones(100_000, 8, dtype=dtype), "min")


def heads(dtype: torch.dtype) -> None:
    """Eight heads on one token of 64 sequences, on pairs of rows; the last token."""
    hidden = torch.zeros(64, 8, 4096, dtype=dtype, requires_grad=True)
    weight = torch.zeros(8, 4096, requires_grad=True)
    token = mk.last_token_index(torch.ones(64, 2048, dtype=torch.int64)).clamp(0, 7)
    mk.reward_heads(hidden, weight, torch.zeros(8), token).sum().backward()
    chosen, rejected = (torch.zeros(4096, 1024, dtype=dtype, requires_grad=True) for _ in range(2))
    weight = torch.zeros(8, 1024, requires_grad=True)
    mk.preference_margins(chosen, rejected, weight).sum().backward()


def prompts(dtype: torch.dtype) -> None:
    """Advantages of 512 prompts of 16 samples for eight groups."""
    rewards = torch.ones(512, 16, 8, dtype=dtype)
    for scale in ("none", "group", "prompt", "batch"):
        mk.maxmin_advantages(rewards, torch.ones(8), scale=scale)


def dual(dtype: torch.dtype) -> None:
    """MaxMin over 512 prompts of 16 samples for eight groups."""
    mk.maxmin_dual(torch.ones(512, 16, 8, dtype=dtype), 0.5, max_iter=1)


FAMILIES = {
    "prompts": prompts,
    "dual": dual,
    "mixture": mixture,
    "em_pass": em_pass,
    "welfare": welfare,
    "heads": heads,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_nothing_spills(arch, family, dtype):
    with compile_for(arch) as compiled, mk.backend("triton"):
        FAMILIES[family](dtype)
    assert compiled
    for kernel in compiled:
        used = usage(kernel)
        spilled = max(used.spill_stores, used.spill_loads)
        assert spilled <= ALONE.get(kernel.metadata.name, 0), (kernel.metadata.name, used)
        if arch == "sm_90":
            assert used.registers <= BUDGET[kernel.metadata.name], (kernel.metadata.name, used)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arch", ["sm_100", "gfx942"])
def test_compiles(arch, family):
    with compile_for(arch) as compiled, mk.backend("triton"):
        if (arch, family) == ("gfx942", "dual"):
            with pytest.raises(ValueError, match="do not compile for 'hip'"):
                dual(torch.float32)
            return
        FAMILIES[family](torch.float32)
    assert compiled


def test_features_are_read_once_by_tma_into_several_buffers():
    with compile_for("sm_90") as compiled, mk.backend("triton"):
        em_pass(torch.bfloat16)
    once = [k for k in compiled if k.metadata.name == "_one_read_kernel"]
    assert len(once) == 6
    for kernel in once:
        # One tensor copy a buffer before the loop and one in it: the tile of 16 rows is never asked for a second time.
        assert count(kernel, "UTMALDG") == 4 and count(kernel, "HMMA") > 0
        assert usage(kernel).shared >= 4 * 16 * 512 * 2


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_features_in_half_precision_meet_tensor_cores_by_wide_loads(arch):
    with compile_for(arch) as compiled, mk.backend("triton"):
        em_pass(torch.bfloat16)
    kernels = [k for k in compiled if k.metadata.name in ("_margins_kernel", "_gradient_kernel")]
    assert len(kernels) >= 6
    for kernel in kernels:
        assert count(kernel, r"HGMMA|HMMA") > 0
        assert count(kernel, r"LDG\.E\.128|LDGSTS\.E\.BYPASS.*\.128|UTMALDG") > 0
        # A pipeline: two tiles of features at least are on their way.
        assert usage(kernel).shared >= 2 * 64 * 32 * 2

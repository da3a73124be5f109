"""The CUDA backend serves only where it is forced to, and says in words what it cannot."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import _cuda
from maxmin_kernels.ops import _registry


def arguments(n_rows=8, n_features=64, n_heads=3, dtype=torch.bfloat16, **options):
    x = torch.ones(n_rows, n_features, dtype=dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        (x, torch.tensor([0, n_rows]), torch.ones(n_heads, n_features, dtype=real), torch.zeros(n_heads, dtype=real)),
        options,
    )  # fmt: skip


def sliced():
    (x, *rest), options = arguments(n_features=61)
    return (x, *rest), options


def shifted():
    (_, *rest), options = arguments()
    return (torch.ones(8, 72, dtype=torch.bfloat16)[:, 1:65], *rest), options


def transposed():
    (_, *rest), options = arguments()
    return (torch.ones(64, 8, dtype=torch.bfloat16).T, *rest), options


ITEMS = {"chosen": torch.zeros(8, dtype=torch.int64), "rejected": torch.ones(8, dtype=torch.int64)}
REASONS = {
    "items": (arguments(**ITEMS), "it serves rows, got an item table"),
    "hard on a CPU": (arguments(hard=True), "an NVIDIA GPU, got one on cpu"),
    "noise on a CPU": (arguments(label_noise=0.1), "an NVIDIA GPU, got one on cpu"),
    "float32": (arguments(dtype=torch.float32), "bfloat16 and float16 features, got torch.float32"),
    "float64": (arguments(dtype=torch.float64), "bfloat16 and float16 features, got torch.float64"),
    "float16 on a CPU": (arguments(dtype=torch.float16), "an NVIDIA GPU, got one on cpu"),
    "no heads": (arguments(n_heads=0), "1 head or more, got 0"),
    "one mixture of 17 heads": (
        arguments(n_heads=17),
        "mixtures of at most 16 heads each, got 1 of 17 to 17",
    ),
    "one of three mixtures of 17 heads": (
        arguments(n_heads=40, mixture_indptr=torch.tensor([0, 3, 20, 40])),
        "mixtures of at most 16 heads each, got 3 of 3 to 20",
    ),
    "72 heads on a CPU": (
        arguments(n_heads=72, mixture_indptr=torch.arange(9) * 9),
        "an NVIDIA GPU, got one on cpu",
    ),
    "32 heads on a CPU": (
        arguments(n_heads=32, mixture_indptr=torch.tensor([0, 16, 32])),
        "an NVIDIA GPU, got one on cpu",
    ),
    "wide": (arguments(n_features=8200), "it serves 1 to 8192 features, got 8200"),
    "wide, one mixture of 9 heads": (
        arguments(n_features=4104, n_heads=9),
        "with 4104 features it serves mixtures of at most 8 heads each, got 1 of 9 to 9",
    ),
    "wide, 40 heads on a CPU": (
        arguments(n_features=8192, n_heads=40, mixture_indptr=torch.arange(6) * 8),
        "an NVIDIA GPU, got one on cpu",
    ),
    "freezing": (arguments(temperature=1e-40), "temperatures from 1e-30 to 1e30, got 1e-40"),
    "no rows": (arguments(n_rows=0), "rows, got 0"),
    "odd pitch": (sliced(), r"multiples of 16 bytes, got strides \(61, 1\)"),
    "odd base": (shifted(), "at an address that leaves 2"),
    "columns": (transposed(), r"got strides \(1, 8\)"),
    "on a CPU": (arguments(), "an NVIDIA GPU, got one on cpu"),
}


@pytest.mark.parametrize("name", REASONS)
def test_forced_it_says_why_not(name):
    (given, options), message = REASONS[name]
    with mk.backend("em_pass:cuda"), pytest.raises(ValueError, match=f"'cuda' cannot serve .*{message}"):  # fmt: skip
        mk.em_pass(*given, **options)


def test_a_comparison_longer_than_a_tile_is_not_served():
    (x, _, *rest), _ = arguments(n_rows=40)
    for longest, message in ((33, "at most 32 rows, got one of 33"), (32, "GPU, got one on cpu")):
        choices = torch.tensor([0, 2, 2 + longest, 40])
        with mk.backend("em_pass:cuda"), pytest.raises(ValueError, match=message):
            mk.em_pass(x, torch.tensor([0, 3]), *rest, choice_indptr=choices)


def test_another_architecture_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert "9.0 (Hopper), got 10.0" in _cuda._device_refusal(torch.device("cuda"))


def test_without_the_kernels_it_says_so(monkeypatch):
    monkeypatch.setattr(_cuda._native, "load", lambda: None)
    monkeypatch.setattr(_cuda, "native", lambda: object())
    assert "built without CUDA" in _cuda.load()


def test_it_serves_only_where_it_is_forced(monkeypatch):
    given, _ = arguments()
    every = (*given, *[None] * 5, 0.0, False, 1.0, [])
    opted = _registry._implementations["em_pass_fwd"]["cuda"]
    assert opted.opt_in
    able = _registry._Implementation(opted.function, lambda *args: None, opt_in=True)
    monkeypatch.setitem(_registry._implementations["em_pass_fwd"], "cuda", able)
    monkeypatch.setitem(_registry._ORDER, "cpu", ("cuda", "cpu", "reference"))
    assert _registry.choose("em_pass_fwd", every) is not able
    with mk.backend("em_pass:cuda"):
        assert _registry.choose("em_pass_fwd", every) is able


def test_a_pointer_that_leads_astray_is_refused():
    x = torch.ones(8, 64, dtype=torch.bfloat16)
    for indptr in ([0, 9], [0, 5, 3, 8], [1, 8]):
        with pytest.raises(ValueError, match="indptr: expected 0 to 8 without a step down"):
            _cuda._cut_tiles(x, torch.tensor(indptr), 8, None)
    for choices in ([0, 9], [0, 5, 3, 8], [1, 8]):
        indptr = torch.tensor([0, len(choices) - 1])
        with pytest.raises(ValueError, match="choice_indptr: expected 0 to 8 without a step down"):
            _cuda._cut_tiles(x, indptr, 8, torch.tensor(choices))

"""em_pass by Triton, rows and items: criterion, gradients, plans, a long annotator, repeats."""

from __future__ import annotations

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import assert_close_enough, cases, upstream
from tests.kernels.test_em_pass import in_dtype, make
from tests.kernels.triton.where import DEVICE, on_triton

pytestmark = on_triton

MODES = {
    "soft": {},
    "tempered": {"temperature": 2.5},
    "noise": {"label_noise": 0.1},
    "hard": {"hard": True},
}


def there(values):
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in values.items()}


@cases(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    layout=["contiguous", "transposed", "sliced", "expanded"],
    form=["rows", "indexed"],
    sets=[False, True],
    n_features=[1, 3, 17, 130, 257],
    sizes=[(1,), (2,), (1, 3, 4), (33,), (70, 10)],
    n_rows=[3, 17, 130, 300],
    mode=list(MODES),
    weighted=[False, True],
)
def test_criterion(case):
    torch.manual_seed(case["n_rows"] + case["n_features"])
    # All items one: every margin would be 0 but for rounding.
    layout = "sliced" if case["layout"] == "expanded" and case["form"] == "indexed" else case["layout"]  # fmt: skip
    arguments, options = make(
        case["n_rows"],
        case["n_features"],
        case["sizes"],
        sets=case["sets"],
        indexed=case["form"] == "indexed",
        dtype=case["dtype"],
        weighted=case["weighted"],
        layout=layout,
    )
    options |= MODES[case["mode"]]
    out = mk.em_pass(**there(arguments), **there(options))
    truth = in_dtype(arguments, options, torch.float64)
    peer = in_dtype(arguments, options, torch.promote_types(case["dtype"], torch.float32))
    for name in out._fields:
        value, exact, plain = (getattr(x, name).cpu() for x in (out, truth, peer))
        if name == "log_resp":
            value, exact, plain = value.exp(), exact.exp(), plain.exp()
        floor = 1e-12 if case["dtype"] == torch.float64 else 2e-6
        assert_close_enough(value, exact, plain, floor=floor, name=name)


@pytest.mark.parametrize("indexed", [False, True])
def test_log_likelihood_is_differentiable(indexed):
    arguments, options = make(9, 3, (1, 2), indexed=indexed, dtype=torch.float64, sets=True)
    arguments, options = there(arguments), there(options)
    leaves = [arguments[name].requires_grad_() for name in ("weight", "log_weights")]

    def run(weight, log_weights):
        new = {**arguments, "weight": weight, "log_weights": log_weights}
        return mk.em_pass(**new, **options).log_likelihood

    assert torch.autograd.gradcheck(run, leaves)
    out = run(*leaves)
    for kind in ("sum", "sliced"):
        gradient = upstream(kind, out)
        got = torch.autograd.grad(out, leaves, gradient, retain_graph=True)
        want = torch.autograd.grad((out * gradient.contiguous()).sum(), leaves, retain_graph=True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_plan_changes_nothing_and_passes_repeat_bit_for_bit(indexed):
    arguments, options = (there(x) for x in make(130, 33, (2, 5), indexed=indexed))
    ids = {"chosen": options["chosen"], "rejected": options["rejected"]} if indexed else {}
    plan = mk.em_plan(arguments["indptr"], n_items=9 if indexed else None, **ids)
    first = mk.em_pass(**arguments, **options)
    for again in (
        mk.em_pass(**arguments, **options),
        mk.em_pass(**arguments, **options, plan=plan),
    ):
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)


def test_a_popular_item_is_shared_by_several_programs():
    # Two items, thousands of rows: their lists are cut.
    n = 4000
    chosen = torch.randint(0, 2, (n,), device=DEVICE)
    arguments = {
        "features": torch.randn(2, 3, device=DEVICE),
        "indptr": torch.arange(0, n + 1, 500, device=DEVICE),
        "weight": torch.randn(4, 3, device=DEVICE),
        "log_weights": torch.zeros(4, device=DEVICE),
    }
    options = {"chosen": chosen, "rejected": 1 - chosen}
    out = mk.em_pass(**arguments, **options)
    double = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}
    truth = reference.em_pass(**double, **options)
    torch.testing.assert_close(out.grad_weight.double(), truth.grad_weight, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(out.log_likelihood, truth.log_likelihood, rtol=1e-6, atol=0)


def test_dead_heads_and_saturated_margins():
    arguments, options = (there(x) for x in make(60, 5, (2, 3)))
    arguments["weight"][1] *= 1e4
    arguments["log_weights"][3] = -torch.inf
    out = mk.em_pass(**arguments, **options)
    truth = in_dtype(arguments, options, torch.float64)
    assert (out.log_resp[:, 3].exp() == 0).all() and out.mass[3] == 0
    for name in ("log_likelihood", "mass", "grad_weight"):
        torch.testing.assert_close(
            getattr(out, name).double(), getattr(truth, name), rtol=1e-4, atol=1e-4
        )


def test_empties():
    for n_rows, n_annotators in ((0, 3), (0, 0)):
        out = mk.em_pass(
            torch.zeros(n_rows, 4, dtype=torch.bfloat16, device=DEVICE),
            torch.zeros(n_annotators + 1, dtype=torch.int64, device=DEVICE),
            torch.ones(2, 4, device=DEVICE),
            torch.zeros(2, device=DEVICE),
        )
        assert (out.grad_weight == 0).all() and out.log_resp.shape == (n_annotators, 2)
        assert out.mass.sum() == n_annotators


@pytest.mark.parametrize(
    ("n_features", "sizes", "weighted"),
    [(512, (3,), False), (512, (2, 1, 4), True), (512, (5, 6), False), (1024, (8,), True)],
)
def test_features_read_once(n_features, sizes, weighted, monkeypatch):
    """Annotators within a tile, over two, over many, and without a row; programs with none."""
    from maxmin_kernels.triton import one_read

    calls = []
    kernel = one_read.em_pass
    monkeypatch.setattr(one_read, "em_pass", lambda *args: calls.append(1) or kernel(*args))
    torch.manual_seed(n_features)
    n_heads = sum(sizes)
    lengths = torch.tensor([1, 0, 31, 32, 33, 2, 100, 0, 5, 27, 3, 0])
    n_rows = int(lengths.sum())
    dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16
    arguments = {
        "features": torch.randn(n_rows, n_features).to(dtype),
        "indptr": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        "weight": torch.randn(n_heads, n_features) * 3 / n_features**0.5,
        "log_weights": torch.randn(n_heads),
    }
    options = {
        "mixture_indptr": torch.tensor([0, *sizes]).cumsum(0),
        "comparison_weight": torch.rand(n_rows) if weighted else None,
    }
    out = mk.em_pass(**there(arguments), **there(options))
    assert calls
    again = mk.em_pass(**there(arguments), **there(options))
    assert all(torch.equal(a, b) for a, b in zip(out, again, strict=True))
    truth = in_dtype(arguments, options, torch.float64)
    peer = in_dtype(arguments, options, torch.float32)
    for name in out._fields:
        value, exact, plain = (getattr(x, name).cpu() for x in (out, truth, peer))
        if name == "log_resp":
            value, exact, plain = value.exp(), exact.exp(), plain.exp()
        assert_close_enough(value, exact, plain, floor=5e-6, name=name)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("mode", ["noise", "sets", "weighted"])
def test_chunks_of_a_plan_change_nothing(indexed, mode, monkeypatch):
    from maxmin_kernels import plan as plans

    monkeypatch.setattr(plans, "CHUNK", 5)
    torch.manual_seed(0)
    arguments, options = make(
        130, 5, (2, 3), sets=mode == "sets", indexed=indexed, weighted=mode == "weighted", dtype=torch.float64
    )  # fmt: skip
    options |= {"label_noise": 0.1} if mode == "noise" else {}
    arguments, options = there(arguments), there(options)
    given = {name: options[name] for name in ("chosen", "rejected", "choice_indptr") if name in options}  # fmt: skip
    n_items = arguments["features"].shape[0] if indexed else None
    plan = mk.em_plan(arguments["indptr"], n_items=n_items, **given)
    assert plan.chunk_indptr is not None and plan.chunk_indptr.numel() > arguments["indptr"].numel()
    out = mk.em_pass(**arguments, **options, plan=plan)
    for value, plain in zip(out, mk.em_pass(**arguments, **options), strict=True):
        torch.testing.assert_close(value, plain)

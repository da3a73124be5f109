"""weighted_gram on every backend: criterion, the curvature it claims to be, compile, extremes, bad input."""

from __future__ import annotations

import math

import pytest
import torch

import maxmin_kernels as mk
from maxmin_kernels import reference
from tests.kernels.criterion import assert_close_enough, cases, with_layout
from tests.kernels.harness import both_backends, fake_outputs, native, run_python


def make(n_rows, n_features, n_heads, *, items=0, sets=False, weighted=False, dtype=torch.float64,
         one_chosen=True, layout="contiguous"):  # fmt: skip
    """Arguments of weighted_gram: annotators of uneven length, the first empty; sets of 0 to a few rows."""
    n_choices = max(1, n_rows // 3) if sets else n_rows
    cut = torch.randint(0, n_choices + 1, (5,)).sort().values
    indptr = torch.cat([torch.tensor([0, 0]), cut, torch.tensor([n_choices])])
    ends = torch.randint(0, n_rows + 1, (n_choices - 1,)).sort().values
    choice_indptr = torch.cat([torch.tensor([0]), ends, torch.tensor([n_rows])]) if sets else None
    acc = torch.promote_types(dtype, torch.float32)
    margins = torch.randn(n_rows, n_heads, dtype=torch.float64).to(acc)
    arguments = {
        "features": with_layout(layout, torch.randn(items or n_rows, n_features).to(dtype)),
        "resp": torch.rand(7, n_heads, dtype=torch.float64).to(acc),
        "share": reference.choice_shares(margins, choice_indptr)[1],
        "indptr": indptr,
        "choice_indptr": choice_indptr,
        "comparison_weight": torch.rand(n_choices).to(acc) if weighted else None,
    }
    if items:
        chosen = torch.randint(0, items, (n_rows,))
        if sets and one_chosen:
            owner = reference.owner_of(choice_indptr, n_rows)
            chosen = torch.randint(0, items, (n_choices,))[owner]
        arguments |= {"chosen": chosen, "rejected": torch.randint(0, items, (n_rows,))}
    return arguments


def in_dtype(arguments, dtype):
    arguments = {
        n: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for n, t in arguments.items()
    }
    return reference.weighted_gram(**arguments)


@both_backends
@cases(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    layout=["contiguous", "transposed", "sliced", "expanded"],
    n_rows=[1, 17, 130, 1501],
    n_features=[1, 3, 6, 8, 17, 130],
    n_heads=[1, 2, 8, 33],
    items=[0, 5, 300],
    sets=[False, True],
    weighted=[False, True],
)
def test_criterion(backend, case):
    torch.manual_seed(case["n_rows"] + case["n_features"])
    if case["items"] and case["layout"] == "expanded":
        pytest.skip("all items are one: every difference is 0")
    arguments = make(**case)
    with mk.backend(backend):
        out = mk.weighted_gram(**arguments)
    acc = torch.promote_types(case["dtype"], torch.float32)
    assert out.dtype == acc
    floor = 1e-13 if acc == torch.float64 else 1e-6
    assert_close_enough(
        out, in_dtype(arguments, torch.float64), in_dtype(arguments, acc), floor=floor
    )


@both_backends
@pytest.mark.parametrize("items", [0, 6])
@pytest.mark.parametrize("sets", [False, True])
def test_it_is_the_negative_hessian_of_the_weighted_log_likelihood(backend, items, sets):
    arguments = make(40, 3, 2, items=items, sets=sets, weighted=True)
    rows = reference.differences(
        arguments["features"], arguments.get("chosen"), arguments.get("rejected")
    ).double()
    weight = torch.randn(2, 3, dtype=torch.float64)
    choice_indptr = arguments["choice_indptr"]
    owner = reference.owner_of(arguments["indptr"], int(arguments["indptr"][-1]))
    scale = arguments["resp"][owner] * arguments["comparison_weight"][:, None]
    arguments["share"] = reference.choice_shares(rows @ weight.T, choice_indptr)[1]
    with mk.backend(backend):
        out = mk.weighted_gram(**arguments)
    for h in range(2):

        def objective(w, h=h):
            log_prob, _ = reference.choice_shares((rows @ w)[:, None], choice_indptr)
            return -(scale[:, h] * log_prob[:, 0]).sum()

        hessian = torch.autograd.functional.hessian(objective, weight[h])
        torch.testing.assert_close(out[h], hessian)


@both_backends
@pytest.mark.parametrize("one_chosen", [False, True])
@pytest.mark.parametrize("items", [3, 2000])
def test_indexed_is_rows_of_differences(backend, one_chosen, items):
    arguments = make(600, 5, 3, items=items, sets=True, one_chosen=one_chosen)
    with mk.backend(backend):
        indexed = mk.weighted_gram(**arguments)
        chosen, rejected = arguments.pop("chosen"), arguments.pop("rejected")
        arguments["features"] = arguments["features"][chosen] - arguments["features"][rejected]
        torch.testing.assert_close(indexed, mk.weighted_gram(**arguments))


@native
@pytest.mark.parametrize("n_features", [5, 40])
@pytest.mark.parametrize("items", [0, 4])
def test_positive_semidefinite_where_choices_are_certain(n_features, items):
    """Shares that sum to nearly 1, in float32: no difference of large numbers may turn the curvature negative."""
    arguments = make(300, n_features, 2, items=items, sets=True, dtype=torch.float32)
    margins = -20 * torch.rand(300, 2)
    arguments["share"] = reference.choice_shares(margins, arguments["choice_indptr"])[1]
    with mk.backend("cpu"):
        out = mk.weighted_gram(**arguments)
    symmetric = (out + out.mT) / 2
    values = torch.linalg.eigvalsh(symmetric.double())
    assert bool((values[:, 0] > -1e-6 * values[:, -1]).all())


@both_backends
def test_nan_nothing_and_one_long_set(backend):
    with mk.backend(backend):
        for n_features in (3, 20):
            out = mk.weighted_gram(
                torch.zeros(0, n_features),
                torch.rand(2, 3),
                torch.zeros(0, 3),
                torch.tensor([0, 0, 0]),
            )
            assert torch.equal(out, torch.zeros(3, n_features, n_features))
            arguments = make(30, n_features, 2)
            arguments["resp"][arguments["indptr"].diff().argmax(), 1] = math.nan
            out = mk.weighted_gram(**arguments)
            assert bool(out[1].isnan().all()) and bool(out[0].isfinite().all())
            long = torch.randn(5000, n_features, dtype=torch.float64)
            share = reference.choice_shares(torch.randn(5000, 1).double(), torch.tensor([0, 5000]))[
                1
            ]
            one = (long, torch.ones(1, 1), share, torch.tensor([0, 1]))
            sets = torch.tensor([0, 5000])
            exact = reference.weighted_gram(*one, choice_indptr=sets)
            torch.testing.assert_close(mk.weighted_gram(*one, choice_indptr=sets), exact)


@both_backends
@pytest.mark.parametrize("items", [0, 5])
def test_opcheck_compile_and_fakes(backend, items):
    arguments = make(30, 4, 3, items=items, sets=True, weighted=True, dtype=torch.float32)
    order = (
        "features",
        "resp",
        "share",
        "indptr",
        "chosen",
        "rejected",
        "choice_indptr",
        "comparison_weight",
    )
    inputs = tuple(arguments.get(name) for name in order)
    with mk.backend(backend):
        torch.library.opcheck(torch.ops.maxmin.weighted_gram_fwd.default, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(mk.weighted_gram, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(**arguments), mk.weighted_gram(**arguments))
    rows = torch.zeros(30, 4, dtype=torch.float16)
    fake = fake_outputs(mk.weighted_gram, (rows, *inputs[1:4]))
    assert (fake.shape, fake.dtype) == ((3, 4, 4), torch.float32)


@native
def test_bits_do_not_depend_on_the_number_of_threads():
    run_python(
        """
import torch, maxmin_kernels as mk
torch.manual_seed(0)
ends = torch.randint(0, 20_001, (500,)).sort().values
indptr = torch.cat([torch.tensor([0]), ends, torch.tensor([20_000])])
resp, share = torch.rand(501, 3), torch.rand(20_000, 3)
chosen, rejected = torch.randint(0, 9, (2, 20_000))
for features, items in ((torch.randn(20_000, 6), {}), (torch.randn(20_000, 33), {}),
                        (torch.randn(9, 12), {"chosen": chosen, "rejected": rejected})):
    outs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with mk.backend("cpu"):
            outs.append(mk.weighted_gram(features, resp, share, indptr, **items))
    # What is multiplied at the end is torch's own product, whose bits are its business.
    same = torch.equal if not items else torch.allclose
    assert all(same(outs[0], out) for out in outs)
"""
    )


@native
def test_indices_are_never_followed_out_of_bounds():
    with mk.backend("cpu"):
        for items in (3, 4000):
            arguments = make(200, 4, 2, items=items)
            for name, value in (("chosen", items), ("rejected", -1)):
                bad = {**arguments, name: arguments[name].clone()}
                bad[name][7] = value
                with pytest.raises(
                    RuntimeError, match=r"an index \(chosen, rejected\) out of range"
                ):
                    mk.weighted_gram(**bad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(5)}, ValueError, r"features: expected shape \(N, D\)"),
        ({"resp": torch.zeros(2, 3)}, ValueError, r"resp: expected shape \(1, 3\), got \(2, 3\)"),
        ({"share": torch.zeros(4, 3)}, ValueError, r"share: expected shape \(5, H\), got \(4, 3\)"),
        ({"chosen": torch.zeros(5).long()}, ValueError, "rejected: expected item rows beside chosen, got None"),
        ({"comparison_weight": torch.zeros(4)}, ValueError, r"comparison_weight: expected shape \(5,\)"),
        (
            {"chosen": torch.full((5,), 9), "rejected": torch.zeros(5).long(), "validate": True},
            ValueError,
            r"chosen: expected indices in \[0, 5\), got 9 to 9",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, message):
    arguments = {
        "features": torch.zeros(5, 2), "resp": torch.zeros(1, 3), "share": torch.zeros(5, 3),
        "indptr": torch.tensor([0, 5]),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        mk.weighted_gram(**(arguments | change))

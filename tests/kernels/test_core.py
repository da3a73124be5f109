"""The NumPy entry points of ``maxmin_kernels._core`` against the reference; no torch is needed to call them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

import maxmin_kernels as mk

core = pytest.importorskip("maxmin_kernels._core")

TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-5}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def tensor(x: Any) -> Any:
    """To torch, in float64 if floating."""
    if isinstance(x, np.ndarray):
        t = torch.from_numpy(np.ascontiguousarray(x))
        return t.double() if t.is_floating_point() else t
    return x


def close(got: np.ndarray, expected: torch.Tensor, tolerance: float) -> None:
    expected_array = expected.numpy()
    assert got.shape == expected_array.shape
    scale = max(1.0, float(np.abs(expected_array[np.isfinite(expected_array)]).max(initial=0)))
    np.testing.assert_allclose(got, expected_array, rtol=tolerance, atol=tolerance * scale)


@dtypes
@pytest.mark.parametrize("form", ["rows", "indexed"])
@pytest.mark.parametrize("sets", [False, True], ids=["pairs", "sets"])
def test_em_pass(dtype: str, form: str, sets: bool) -> None:
    rng = np.random.default_rng(0)
    n, d, heads, items = 120, 7, 5, 9
    options: dict[str, Any] = {"label_noise": 0.0 if sets else 0.1, "temperature": 1.5}
    comparisons = n
    if sets:
        options["choice_indptr"] = np.arange(0, n + 1, 3)
        comparisons = n // 3
    if form == "indexed":
        options["chosen"], options["rejected"] = rng.integers(0, items, (2, n))
    options["mixture_indptr"] = np.array([0, 2, heads])
    options["comparison_weight"] = rng.uniform(0.5, 2.0, comparisons)
    indptr = np.array([0, 3, 3, comparisons // 2, comparisons])
    rows = n if form == "rows" else items
    features = rng.normal(size=(2 * rows, d)).astype(dtype)[::2]  # strided
    weight = rng.normal(size=(heads, d))
    log_weights = np.log(rng.dirichlet(np.ones(heads)))
    got = core.em_pass(features, indptr, weight, log_weights, **options)
    with mk.backend("reference"):
        expected = mk.em_pass(
            *(tensor(x) for x in (features, indptr, weight, log_weights)),
            **{name: tensor(x) for name, x in options.items()},
        )
    assert got[0].dtype == got[2].dtype == np.float64
    assert got[1].dtype == got[3].dtype == ("float64" if dtype == "float64" else "float32")
    for a, b in zip(got, expected, strict=True):
        close(a, b, TOLERANCE[dtype])


@dtypes
def test_reward_heads(dtype: str) -> None:
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(11, 5, 17)).astype(dtype)
    weight, bias = rng.normal(size=(3, 17)), rng.normal(size=3)
    last = rng.integers(-1, 5, 11)
    got = core.reward_heads(hidden, weight, bias, last)
    expected = tensor(hidden)[torch.arange(11), tensor(last)] @ tensor(weight).T + tensor(bias)
    expected[tensor(last) < 0] = torch.nan
    close(got, expected, TOLERANCE[dtype])
    plain = core.reward_heads(hidden[:, 2], weight)
    close(plain, tensor(hidden[:, 2]) @ tensor(weight).T, TOLERANCE[dtype])


@dtypes
def test_preference_margins(dtype: str) -> None:
    rng = np.random.default_rng(2)
    chosen, rejected = rng.normal(size=(2, 13, 40)).astype(dtype)
    weight = rng.normal(size=(4, 20))
    got = core.preference_margins(chosen[:, ::2], rejected[:, ::2], weight)
    expected = (tensor(chosen[:, ::2]) - tensor(rejected[:, ::2])) @ tensor(weight).T
    close(got, expected, TOLERANCE[dtype])


@dtypes
def test_welfare(dtype: str) -> None:
    utilities = np.random.default_rng(3).normal(size=(6, 4)).astype(dtype)
    value, weights = core.welfare(utilities, "softmin", param=0.5)
    expected = mk.welfare(tensor(utilities), "softmin", tau=0.5)
    close(value, expected[0], TOLERANCE[dtype])
    close(weights, expected[1], TOLERANCE[dtype])


@dtypes
def test_maxmin_reduce(dtype: str) -> None:
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=(30, 3)).astype(dtype)
    rewards[::4, 1] = np.nan
    mask = rng.random((30, 3)) < 0.8
    value, weights, utilities = core.maxmin_reduce(rewards, mask=mask)
    means = np.nanmean(np.where(mask, rewards.astype(float), np.nan), axis=0)
    np.testing.assert_allclose(utilities, means, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert value == pytest.approx(means.min(), abs=TOLERANCE[dtype])
    assert weights.tolist() == np.eye(3)[means.argmin()].tolist()


def test_threads_change_nothing() -> None:
    code = """
import sys, numpy as np
from maxmin_kernels import _core
rng = np.random.default_rng(0)
x, w = rng.normal(size=(20000, 30)), rng.normal(size=(4, 30))
out = _core.em_pass(x, np.arange(0, 20001, 20), w, np.log(np.full(4, .25)))
print(_core.build_info()["threads"], *(a.tobytes().hex() for a in (out[0], out[3])))
"""
    outputs = []
    for threads in ("1", "3"):
        environment = {
            **os.environ,
            "MAXMIN_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        used, *out = done.stdout.split()
        assert used == threads
        outputs.append(out)
    assert outputs[0] == outputs[1]


def test_calls_at_the_same_time() -> None:
    rng = np.random.default_rng(5)
    hidden, weight = rng.normal(size=(20000, 30)), rng.normal(size=(4, 30))
    expected = core.reward_heads(hidden, weight)
    failures: list[int] = []

    def call(number: int) -> None:
        for _ in range(20):
            if not np.array_equal(core.reward_heads(hidden, weight), expected):
                failures.append(number)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_child_of_a_fork() -> None:
    rng = np.random.default_rng(6)
    hidden, weight = rng.normal(size=(20000, 30)), rng.normal(size=(4, 30))
    expected = core.reward_heads(hidden, weight)  # the pool is there now
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(core.reward_heads(hidden, weight), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: core.reward_heads(np.zeros((2, 3), int), np.zeros((1, 3))),
            TypeError,
            "hidden: expected dtype float64, float32, bfloat16 or float16, got int64",
        ),
        (
            lambda: core.reward_heads(np.zeros((2, 3)), np.zeros((1, 4))),
            ValueError,
            "weight: expected size 3 of dimension 1, got 4",
        ),
        (
            lambda: core.reward_heads(np.zeros((2, 3)), np.zeros((1, 3)), np.zeros(2)),
            ValueError,
            "bias: expected size 1 of dimension 0, got 2",
        ),
        (
            lambda: core.preference_margins(np.zeros((2, 3)), np.zeros((2, 3), "f4"), np.eye(3)),
            TypeError,
            "rejected: expected the dtype of chosen",
        ),
        (
            lambda: core.em_pass(np.zeros((2, 3)), np.array([0.0, 2.0]), np.eye(3), np.zeros(3)),
            TypeError,
            "indptr: expected dtype int64, got float64",
        ),
        (
            lambda: core.em_pass(np.zeros((2, 3)), np.array([0, 5]), np.eye(3), np.zeros(3)),
            ValueError,
            "does not run from 0 to the end",
        ),
        (
            lambda: core.em_pass(
                np.zeros((2, 3)), np.array([0, 1]), np.eye(3), np.zeros(3), chosen=np.array([7]),
                rejected=np.array([0]),
            ),
            ValueError,
            "out of range",
        ),
        (lambda: core.welfare(np.zeros((2, 3)), "leximin"), ValueError, "kind: no welfare"),
        (
            lambda: core.maxmin_reduce(np.zeros((2, 3)), mask=np.ones((2, 3))),
            TypeError,
            "mask: expected dtype bool",
        ),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

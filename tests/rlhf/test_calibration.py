"""calibrate: rewards in units that groups have in common."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from maxmin_rlhf import calibrate
from maxmin_rlhf.reward import dominance

METHODS = ["center", "scale", "win_rate", "regret"]


def make_rewards(prompts: int = 4, samples: int = 9, groups: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = np.array([1.0, 5.0, 0.2, 2.0])[:groups]
    offsets = 10 * rng.standard_normal((prompts, 1, groups))
    return spread * rng.standard_normal((prompts, samples, groups)) + offsets


def by_hand(r: np.ndarray, method: str, ref: np.ndarray) -> np.ndarray:
    out = np.full_like(r, np.nan)
    for k in range(r.shape[2]):
        centred = [ref[p, :, k] - np.nanmean(ref[p, :, k]) for p in range(len(r))]
        spread = np.sqrt(np.nanmean(np.concatenate(centred) ** 2))
        for p in range(len(r)):
            for s in range(r.shape[1]):
                if np.isnan(r[p, s, k]):
                    continue
                better = r[p, s, k] - ref[p, :, k]
                out[p, s, k] = {
                    "center": r[p, s, k] - np.nanmean(ref[p, :, k]),
                    "scale": (r[p, s, k] - np.nanmean(ref[p, :, k])) / spread,
                    "win_rate": np.nanmean(special.expit(better)),
                    "regret": np.nanmin(better),
                }[method]
    return out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("own_reference", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_agrees_with_loops(method: str, own_reference: bool, missing: bool) -> None:
    r = make_rewards()
    ref = make_rewards(samples=5, seed=1) if own_reference else r.copy()
    if missing:
        r[0, 2, 1] = ref[1, 0, 0] = ref[3, 1, 2] = np.nan
        if not own_reference:
            r = ref
    out = calibrate(r, method, ref if own_reference else None)
    np.testing.assert_allclose(out, by_hand(r, method, ref), rtol=1e-10, atol=1e-12)
    assert (np.isnan(out) == np.isnan(r)).all()


@given(seed=st.integers(0, 99))
@pytest.mark.parametrize("method", METHODS)
def test_offsets_of_a_prompt_do_not_matter(method: str, seed: int) -> None:
    r = make_rewards(seed=seed)
    offsets = 100 * np.random.default_rng(seed).standard_normal((4, 1, 3))
    np.testing.assert_allclose(calibrate(r + offsets, method), calibrate(r, method), atol=1e-9)


def test_scale_forgets_how_decided_a_group_is() -> None:
    r = make_rewards()
    scaled = calibrate(r, "scale")
    np.testing.assert_allclose(calibrate(r * [1.0, 30.0, 0.01], "scale"), scaled, atol=1e-9)
    np.testing.assert_allclose((scaled**2).mean((0, 1)), 1)
    # One number a group: its prompts keep their proportions.
    ratio = calibrate(r, "center") / scaled
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1, :1], ratio.shape))


def test_win_rate_is_a_probability() -> None:
    r = 1e4 * make_rewards()
    out = calibrate(r, "win_rate")
    assert (out >= 0).all() and (out <= 1).all()
    np.testing.assert_allclose(out.mean(1), 0.5)  # against themselves
    best = r.argmax(1)
    # The best of nine, always certain: all others lose to it, and it ties with itself.
    np.testing.assert_allclose(np.take_along_axis(out, best[:, None], 1), 8.5 / 9, atol=1e-6)


def test_regret_is_what_the_best_reference_sample_would_have_given() -> None:
    r = make_rewards()
    out = calibrate(r, "regret")
    assert (out <= 0).all() and (out.max(1) == 0).all()
    # Responses may be better than all of the reference's.
    assert (calibrate(r, "regret", r - 1) <= 1).all() and calibrate(r, "regret", r - 1).max() == 1
    # In the group's own units: twice as decided, twice the regret; scaled first, they are the same.
    np.testing.assert_allclose(calibrate(2 * r, "regret"), 2 * out)
    both = [calibrate(calibrate(x, "scale"), "regret") for x in (r, r * [1.0, 30.0, 0.01])]
    np.testing.assert_allclose(both[0], both[1], atol=1e-9)


def test_a_group_without_a_reference_sample_has_no_regret() -> None:
    r = make_rewards()
    ref = r.copy()
    ref[1, :, 2] = np.nan
    out = calibrate(r, "regret", ref)
    assert np.isnan(out[1, :, 2]).all() and np.isfinite(out[1, :, :2]).all()
    assert np.isnan(calibrate(r, "regret", ref[:, :0])).all()


def test_dominance() -> None:
    r = make_rewards(20, 50)
    r[0, 0] = np.nan
    r[1, 1, 2] = np.nan
    for rewards in (r, torch.from_numpy(r)):
        shares = dominance(rewards)
        assert isinstance(shares, np.ndarray) and shares.sum() == pytest.approx(1)
        usable = r[~np.isnan(r).any(-1)]
        np.testing.assert_allclose(shares, np.bincount(usable.argmin(1), minlength=3) / len(usable))
    # Offsets make a dictator of a group, calibration takes that away.
    r -= [0, 0, 100]
    assert dominance(r)[2] > 0.99 and dominance(calibrate(r, "scale")).max() < 0.5
    # Where several are equally badly off, nobody alone is.
    assert (dominance(np.zeros((2, 3, 2))) == 0).all()
    assert (dominance(np.full((2, 3, 2), np.nan)) == 0).all()


def test_win_rate_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from maxmin_rlhf.reward import calibration

    r = make_rewards(7)
    whole = calibrate(r, "win_rate")
    monkeypatch.setattr(calibration, "_BLOCK", 2 * 9 * 9 * 3)
    np.testing.assert_allclose(calibrate(r, "win_rate"), whole)


def test_none_changes_nothing_and_shares_nothing() -> None:
    r = make_rewards()
    out = calibrate(r, None)
    np.testing.assert_array_equal(out, r)
    out[:] = 0
    assert r.any()


@pytest.mark.parametrize("method", [*METHODS, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tensors_stay_tensors(method: str | None, dtype: torch.dtype) -> None:
    r = make_rewards()
    out = calibrate(torch.from_numpy(r).to(dtype), method)
    assert isinstance(out, torch.Tensor) and out.dtype == dtype
    np.testing.assert_allclose(out.numpy(), calibrate(r, method), rtol=1e-3, atol=1e-4)
    assert calibrate(r, method).dtype == np.float64


def test_integers_become_float64() -> None:
    r = np.arange(12).reshape(2, 3, 2)
    assert calibrate(r).dtype == np.float64
    assert calibrate(torch.from_numpy(r)).dtype == torch.float64


def test_an_indifferent_group_is_named() -> None:
    r = make_rewards()
    r[..., 1] = 3.0
    with pytest.warns(UserWarning, match=r"groups \[1\] are indifferent"):
        out = calibrate(r, "scale")
    assert (out[..., 1] == 0).all() and np.isfinite(out).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(r, "center")


@pytest.mark.parametrize("method", METHODS)
def test_no_prompts(method: str) -> None:
    assert calibrate(np.empty((0, 4, 2)), method).shape == (0, 4, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((2, 3)),), ValueError, r"rewards: expected shape \(P, S, K\), got \(2, 3\)"),
        ((np.ones((2, 3, 0)),), ValueError, r"rewards: expected shape \(P, S, K\), got"),
        ((np.array([[["a"]]]),), TypeError, "rewards: expected numbers, got dtype <U1"),
        (
            (np.ones((2, 3, 1)), "zscore"),
            ValueError,
            "calibrate: expected one of 'center', 'scale', 'win_rate', 'regret', None, got 'zscore'",
        ),
        (
            (np.ones((2, 3, 1)), "center", np.ones((1, 3, 1))),
            ValueError,
            r"reference: expected shape \(2, R, 1\), got \(1, 3, 1\)",
        ),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        calibrate(*arguments)

"""A whole fit, and the choice of K, with every pass by Triton."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import maxmin_kernels as mk
from maxmin_rlhf import PreferenceData, PreferenceMixture, select_groups
from tests.kernels.triton.where import DEVICE, on_triton


def preferences(indexed):
    """Twenty annotators of two opposed tastes, a dozen choices each."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(20), 12)
    items = rng.standard_normal((15, 3))
    chosen = rng.integers(0, 15, who.size)
    rejected = (chosen + rng.integers(1, 15, who.size)) % 15
    sign = np.where(who % 2 == 0, 1.0, -1.0)
    margin = sign * 3 * (items[chosen, 0] - items[rejected, 0])
    flip = rng.random(who.size) > 1 / (1 + np.exp(-margin))
    chosen, rejected = np.where(flip, rejected, chosen), np.where(flip, chosen, rejected)
    if indexed:
        return PreferenceData.from_items(torch.tensor(items), chosen, rejected, who)
    return PreferenceData.from_pairs(items[chosen], items[rejected], who)


@on_triton
@pytest.mark.parametrize("indexed", [False, True])
def test_a_fit_is_that_of_the_reference(indexed):
    data = preferences(indexed)
    options = {"n_init": 2, "l2": 1.0, "random_state": 0, "tol": 1e-4}
    by_triton = PreferenceMixture(2, **options, device=DEVICE).fit(data)
    with mk.backend("reference"):
        plain = PreferenceMixture(2, **options).fit(data)
    assert by_triton.lower_bound_ == pytest.approx(plain.lower_bound_, rel=1e-5)
    np.testing.assert_allclose(by_triton.weights_, plain.weights_, atol=1e-3)
    assert (by_triton.predict(data) == np.arange(20) % 2).mean() in (0.0, 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU; the interpreter would take a minute")
def test_the_number_of_groups():
    chosen = select_groups(
        preferences(True), [1, 2], n_init=1, n_folds=2, random_state=0, l2=1.0, device=DEVICE
    )
    assert chosen.best_ == 2

"""New annotators: the posterior is the mixture's own, questions tell what they are expected to tell, and asking well helps."""

from __future__ import annotations

import numpy as np
import pytest

from maxmin_rlhf import PreferenceData, PreferenceMixture
from maxmin_rlhf.mixture.newcomers import Newcomer, assign, expected_information
from tests.rlhf.panels import planted


@pytest.fixture(scope="module")
def mixture():
    """Two groups that disagree about one of four features alone."""
    heads = np.array([[3.0, 1.0, 0.0, 0.5], [-3.0, 1.0, 0.0, 0.5]])
    panel = planted(0, heads=heads, n_features=4, n_annotators=80, per_annotator=25, shares=[0.7, 0.3])  # fmt: skip
    return PreferenceMixture(2, n_init=4, random_state=0).fit(panel.data)


@pytest.mark.parametrize("label_noise", [0.0, 0.2])
def test_the_posterior_is_the_mixtures(mixture, label_noise):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 12, 4))
    data = PreferenceData.from_pairs(a, b, np.zeros(12))
    noisy = PreferenceMixture(2, label_noise=label_noise)
    noisy.heads_, noisy.weights_ = mixture.heads_, mixture.weights_
    one_by_one = Newcomer(noisy)
    assert one_by_one.posterior == pytest.approx(mixture.weights_)
    for chosen, rejected in zip(a, b, strict=True):
        one_by_one.answer(chosen, rejected)
    assert one_by_one.n_answers == 12
    assert one_by_one.posterior == pytest.approx(noisy.predict_proba(data)[0], rel=1e-9)
    assert Newcomer(noisy).answer(a, b).posterior == pytest.approx(one_by_one.posterior)
    items = rng.standard_normal((3, 4))
    assert one_by_one.reward(items) == pytest.approx(noisy.reward(items) @ one_by_one.posterior)


def test_abstains_until_it_knows(mixture):
    somebody = Newcomer(mixture, certainty=0.95)
    assert somebody.group is None  # the larger group is only 70 %
    minority = int(mixture.heads_[:, 0].argmin())
    like, dislike = np.array([-1.0, 0, 0, 0]), np.array([1.0, 0, 0, 0])
    somebody.answer(np.tile(like, (4, 1)), np.tile(dislike, (4, 1)))
    assert somebody.group == minority
    assert assign([[0.6, 0.4], [0.05, 0.95]], 0.9).tolist() == [-1, 1]


def test_information_by_enumeration():
    rng = np.random.default_rng(0)
    posterior, margins = rng.dirichlet(np.ones(3), 4), 3 * rng.standard_normal((7, 3))
    told = expected_information(posterior, margins, label_noise=0.1)
    for a, gamma in enumerate(posterior):
        for n, m in enumerate(margins):
            yes = 0.9 / (1 + np.exp(-m)) + 0.05
            by_hand = 0.0  # expected fall of the group's entropy
            for p in (yes, 1 - yes):
                after = gamma * p / (gamma @ p)
                by_hand += gamma @ p * (after @ np.log(after) - gamma @ np.log(gamma))
            assert told[a, n] == pytest.approx(by_hand, abs=1e-12)


def test_what_is_known_or_agreed_tells_nothing():
    assert expected_information([1.0, 0.0], [[5.0, -5.0]]) == pytest.approx(0, abs=1e-12)
    assert expected_information([0.5, 0.5], [[2.0, 2.0]]) == pytest.approx(0, abs=1e-12)
    sure = expected_information([0.5, 0.5], [[900.0, -900.0]])
    assert sure == pytest.approx(np.log(2))


def test_asking_well_needs_fewer_answers(mixture):
    """Simulated people: how surely the right group is known after two answers."""
    rng = np.random.default_rng(1)
    known = {"active": 0.0, "random": 0.0}
    for person in range(150):
        head = mixture.heads_[person % 2]
        a, b = rng.standard_normal((2, 30, 4))
        prefers = rng.random(30) < 1 / (1 + np.exp(-(a - b) @ head))
        for how in known:
            somebody, left = Newcomer(mixture), np.arange(30)
            for _ in range(2):
                at = somebody.ask(a[left], b[left])[0] if how == "active" else rng.integers(left.size)  # fmt: skip
                q = left[at]
                left = np.delete(left, at)
                x, y = (a[q], b[q]) if prefers[q] else (b[q], a[q])
                somebody.answer(x, y)
            known[how] += somebody.posterior[person % 2] / 150
    assert known["active"] > known["random"] + 0.03
    assert known["active"] > 0.95


def test_bad_input(mixture):
    somebody = Newcomer(mixture)
    with pytest.raises(ValueError, match="first: expected features"):
        somebody.answer(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="second: expected features"):
        somebody.answer(np.zeros((2, 4)), np.zeros(4))
    with pytest.raises(ValueError, match="first: expected finite"):
        somebody.answer(np.full(4, np.nan), np.zeros(4))
    with pytest.raises(ValueError, match="at least one pair"):
        somebody.ask(np.zeros((0, 4)), np.zeros((0, 4)))
    with pytest.raises(ValueError, match="certainty: expected"):
        Newcomer(mixture, certainty=1.5)
    with pytest.raises(ValueError, match=r"margins: expected shape \(N, 2\)"):
        expected_information([0.5, 0.5], np.zeros((3, 3)))
    with pytest.raises(ValueError, match="not fitted"):
        Newcomer(PreferenceMixture(2))

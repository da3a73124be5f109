"""The language demo: its data, one setting from judgments to policies, and the page."""

from __future__ import annotations

import numpy as np
import pytest

from maxmin_rlhf.demo.language import page
from maxmin_rlhf.demo.language.experiment import BALANCE, CONTROLS
from maxmin_rlhf.demo.language.responses import read_responses
from maxmin_rlhf.demo.language.study import study


@pytest.fixture(scope="module")
def responses():
    return read_responses()


def test_the_data_are_what_their_readme_says(responses):
    n_prompts, n_samples = responses.texts.shape
    assert (n_prompts, n_samples) == (96, 16) and len(responses.prompts) == 96
    assert all(text.strip() for text in responses.texts.ravel())
    for taste in (responses.positive, responses.concise):
        np.testing.assert_allclose(taste.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(responses.features, axis=2), 1, atol=1e-3)
    # Length is not among the features, so it has to be read off the meaning.
    words = np.vectorize(lambda text: len(text.split()))(responses.texts)
    assert np.corrcoef(responses.concise.ravel(), -words.ravel())[0, 1] > 0.5


@pytest.mark.slow
def test_the_minority_is_lost_under_one_reward_and_kept_under_maxmin(responses):
    one_population = next(s for s in CONTROLS if len(s.tastes) == 1)
    found = study(
        responses, n_seeds=1, balance=(BALANCE[0], BALANCE[-1]), third=(), controls=(one_population,)
    )  # fmt: skip
    even, uneven = found["balance"]
    for setting in (even, uneven):
        assert setting["recovery"]["least"] >= 0.95
        assert [s["best"] for s in setting["selections"]] == [2]
        assert 0 <= setting["largest_gap"] < 1e-6
        np.testing.assert_allclose(setting["divergence"], 1, atol=1e-3)
    pooled = next(p for p in uneven["policies"] if p["policy"] == "pooled")
    assert pooled["maxmin_gains"]["worst"]["value"] >= 0.3
    assert pooled["maxmin_gains"]["worst"]["low"] > 0.1
    lost = found["falls"]
    assert lost["pooled"]["value"] >= 0.5
    assert lost["MaxMin"]["value"] <= lost["pooled"]["value"] / 4
    # The negative control: where all want the same, one reward is the answer.
    assert [s["best"] for s in found["controls"][0]["selections"]] == [1]
    assert len(page.sentences(found)) == 4

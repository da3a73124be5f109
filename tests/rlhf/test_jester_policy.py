"""Jokes told by MaxMin or by the mean, judged by people who were not fitted: the stored study in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import study_jester


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_worst_off_group_of_real_people_gains_and_the_average_pays(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_jester, "KLS", (1.0,))
    monkeypatch.setattr(study_jester, "RESAMPLES", 20)
    r = study_jester.ratings(data_dir)
    rows = [row for seed in (0, 1, 2) for row in study_jester.study(r, 3, 0.5, seed)]

    def differences(name: str, shuffled: bool) -> np.ndarray:
        some = [w for w in rows if w["shuffled"] == shuffled and w["calibrate"] is None]
        return np.array([w[name]["difference"] for w in some])

    # Not in every split of raters and jokes: groups overlap.
    assert differences("worst_group", False).mean() > 0.05
    assert differences("overall", False).mean() < -0.03
    # Groups that are no groups: nothing to gain, nothing to pay.
    assert np.abs(differences("worst_group", True)).max() < 0.06
    assert np.abs(differences("overall", True)).max() < 0.06

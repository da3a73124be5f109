"""A fit that was stopped anywhere goes on to the very same result; damaged or foreign checkpoints are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from maxmin_rlhf import PreferenceData, PreferenceMixture, fit_sweep
from maxmin_rlhf.mixture import FitWarning, checkpoint, estimator, progress
from tests.rlhf.panels import planted

OPTIONS = {"n_init": 2, "l2": 0.5, "random_state": 3}


class Stopped(Exception):  # noqa: N818
    """Raised in the middle of a fit."""


@pytest.fixture(scope="module")
def data():
    return planted(2, 4, n_annotators=40, per_annotator=10, sharpness=1.5).data


@pytest.fixture(scope="module")
def whole(data):
    return PreferenceMixture(4, **OPTIONS).fit(data)


@pytest.fixture
def every_round(monkeypatch):
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)


def stop_at(monkeypatch, phase, repeat, n):
    """Raises after the ``n``-th round of a phase; with ``n`` None only counts them."""
    call, rounds = progress.Watch.__call__, []

    def watch(self, fit, whole):
        call(self, fit, whole)
        rounds.append((fit.progress.phase, fit.progress.repeat))
        if rounds.count((phase, repeat)) == n:
            raise Stopped

    monkeypatch.setattr(progress.Watch, "__call__", watch)
    return rounds


def same(a, b):
    """Bit for bit."""
    for name in ("heads_", "weights_", "responsibilities_", "lower_bounds_"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for name in ("log_likelihood_", "lower_bound_", "converged_", "n_iter_"):
        assert getattr(a, name) == getattr(b, name), name


def test_the_panel_visits_every_phase(data, monkeypatch):
    rounds = stop_at(monkeypatch, "", 0, None)
    PreferenceMixture(4, **OPTIONS).fit(data)
    assert list(dict.fromkeys(rounds))[:5] == [
        ("pooled", 0), ("screen", 0), ("climb", 0), ("moves", 0), ("climb moves", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("phase", ["pooled", "screen", "climb", "moves", "climb moves"])
def test_goes_on_to_the_very_same_result(data, whole, tmp_path, monkeypatch, every_round, phase, n):
    path = tmp_path / "fit"
    with monkeypatch.context() as patch:
        stop_at(patch, phase, 0, n)
        with pytest.raises(Stopped):
            PreferenceMixture(4, **OPTIONS).fit(data, path)
    assert [p.name for p in tmp_path.iterdir()] == ["fit"]
    rounds = stop_at(monkeypatch, "", 0, None)
    same(PreferenceMixture(4, **OPTIONS).fit(data, path), whole)
    assert rounds[0][0] in (phase, "climb", "moves", "climb moves")  # nothing before is done again
    assert not list(tmp_path.iterdir())


def test_stopped_again_and_again(data, whole, tmp_path, monkeypatch, every_round):
    path, stops = tmp_path / "fit", 0
    call, count = progress.Watch.__call__, [0]

    def watch(self, fit, whole):
        call(self, fit, whole)
        count[0] += 1
        if count[0] % 5 == 0:
            raise Stopped

    monkeypatch.setattr(progress.Watch, "__call__", watch)
    while True:
        try:
            again = PreferenceMixture(4, **OPTIONS).fit(data, path)
            break
        except Stopped:
            stops += 1
    assert stops > 5
    same(again, whole)


def test_a_sweep_goes_on_too(data, tmp_path, monkeypatch, every_round):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        expected = fit_sweep(data, [1, 2, 3], **OPTIONS)
        with monkeypatch.context() as patch:
            stop_at(patch, "climb", 0, 6)
            with pytest.raises(Stopped):
                fit_sweep(data, [1, 2, 3], checkpoint=tmp_path / "fit", **OPTIONS)
        found = fit_sweep(data, [1, 2, 3], checkpoint=tmp_path / "fit", **OPTIONS)
    for k in expected:
        same(found[k], expected[k])


@pytest.mark.parametrize(
    "options", [{"hard": True}, {"temperature": 3.0}, {"alpha": 2.0, "label_noise": 0.1}]
)
def test_other_objectives_go_on_too(data, tmp_path, monkeypatch, every_round, options):
    options = {**OPTIONS, **options}
    expected = PreferenceMixture(2, **options).fit(data)
    with monkeypatch.context() as patch:
        stop_at(patch, "screen", 0, 3)
        with pytest.raises(Stopped):
            PreferenceMixture(2, **options).fit(data, tmp_path / "fit")
    same(PreferenceMixture(2, **options).fit(data, tmp_path / "fit"), expected)


def test_without_a_seed_it_goes_on_with_the_seed_that_it_began_with(
    data, tmp_path, monkeypatch, every_round
):
    """Random numbers of later phases must be those that the stopped fit would have drawn."""
    options = {**OPTIONS, "random_state": None}
    with monkeypatch.context() as patch:
        patch.setattr(estimator, "fresh_seed", lambda: OPTIONS["random_state"])
        stop_at(patch, "pooled", 0, 2)
        with pytest.raises(Stopped):
            PreferenceMixture(4, **options).fit(data, tmp_path / "fit")
    again = PreferenceMixture(4, **options).fit(data, tmp_path / "fit")
    same(again, PreferenceMixture(4, **OPTIONS).fit(data))


SCRIPT = """
import os, signal, sys
from maxmin_rlhf import PreferenceMixture
from maxmin_rlhf.mixture import progress
from tests.rlhf.panels import planted
progress.CHECKPOINT_SECONDS = 0.0
call, rounds = progress.Watch.__call__, []
def watch(self, fit, whole):
    call(self, fit, whole)
    rounds.append(fit.progress.phase)
    if rounds.count("climb") == 4:
        os.kill(os.getpid(), signal.SIGKILL)
progress.Watch.__call__ = watch
data = planted(2, 4, n_annotators=40, per_annotator=10, sharpness=1.5).data
PreferenceMixture(4, n_init=2, l2=0.5, random_state=3).fit(data, sys.argv[1])
"""


def test_a_killed_process_goes_on_in_another(data, whole, tmp_path):
    import torch

    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    paths = [str(Path(__file__).parents[2]), *sys.path]
    died = subprocess.run(
        [sys.executable, "-c", threads + SCRIPT, str(tmp_path / "fit")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL
    same(PreferenceMixture(4, **OPTIONS).fit(data, tmp_path / "fit"), whole)


def test_a_finished_fit_leaves_no_file(data, tmp_path, every_round):
    PreferenceMixture(1, **OPTIONS).fit(data, tmp_path / "fit")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_that_the_user_wants(tmp_path, umask):
    before = os.umask(umask)
    try:
        checkpoint.write(tmp_path / "m", "mixture", {"x": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "m").st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_checkpoint_is_not_written_at_every_round(data, tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(progress, "save_progress", lambda *a: writes.append(a))
    PreferenceMixture(1, **OPTIONS).fit(data, tmp_path / "fit")
    assert not writes


# ---- checkpoints that do not fit


@pytest.fixture
def stopped(data, tmp_path, monkeypatch, every_round):
    """The checkpoint of a stopped fit of two groups."""
    with monkeypatch.context() as patch:
        stop_at(patch, "screen", 0, 2)
        with pytest.raises(Stopped):
            PreferenceMixture(2, **OPTIONS).fit(data, tmp_path / "fit")
    return tmp_path / "fit"


def test_of_other_data(data, stopped):
    features = data.features.clone()
    features[5, 2] += 1e-12
    other = PreferenceData.from_arrays(features, data.comparison_annotator)
    with pytest.raises(
        ValueError, match="fit: expected a checkpoint with data = .* remove it to start anew"
    ):
        PreferenceMixture(2, **OPTIONS).fit(other, stopped)


def test_of_the_same_data_made_anew(data, stopped):
    again = PreferenceData.from_arrays(data.features.clone(), data.comparison_annotator)
    PreferenceMixture(2, **OPTIONS).fit(again, stopped)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n_groups": 3}, "problems"),
        ({"l2": 0.25}, "problems"),
        ({"n_init": 3}, "options"),
        ({"alpha": 2.0}, "options"),
        ({"hard": True}, "options"),
        ({"temperature": 2.0}, "options"),
        ({"label_noise": 0.1}, "options"),
        ({"tol": 1e-5}, "options"),
        ({"max_iter": 100}, "options"),
        ({"init": "random"}, "init"),
        ({"random_state": 4}, "random_state"),
        ({"dtype": "float32"}, "data"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_of_other_options(data, stopped, options, name):
    before = stopped.read_bytes()
    with pytest.raises(ValueError, match=f"fit: expected a checkpoint with {name} = "):
        PreferenceMixture(**{"n_groups": 2, **OPTIONS, **options}).fit(data, stopped)
    assert stopped.read_bytes() == before


def test_of_other_starting_heads(data, tmp_path, monkeypatch, every_round):
    with monkeypatch.context() as patch:
        stop_at(patch, "climb", 0, 2)
        with pytest.raises(Stopped):
            PreferenceMixture(2, init=np.eye(2, 5)).fit(data, tmp_path / "fit")
    with pytest.raises(ValueError, match="fit: expected a checkpoint with init = "):
        PreferenceMixture(2, init=-np.eye(2, 5)).fit(data, tmp_path / "fit")
    PreferenceMixture(2, init=np.eye(2, 5)).fit(data, tmp_path / "fit")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_truncated(data, stopped, share):
    whole = stopped.read_bytes()
    stopped.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match="expected a whole file of maxmin, got a truncated or foreign one"
    ):
        PreferenceMixture(2, **OPTIONS).fit(data, stopped)


def test_of_another_version(data, stopped, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(ValueError, match="fit: expected format 2, got 1 of another version"):
        PreferenceMixture(2, **OPTIONS).fit(data, stopped)


def test_that_is_a_mixture(data, whole, tmp_path):
    whole.save(tmp_path / "fit")
    with pytest.raises(ValueError, match="fit: expected a checkpoint of a fit, got a mixture"):
        PreferenceMixture(4, **OPTIONS).fit(data, tmp_path / "fit")


def test_no_pickle(stopped):
    from safetensors import safe_open

    with safe_open(stopped, framework="pt") as file:
        assert list(file.metadata()) == ["maxmin"]


def test_a_write_that_fails_leaves_the_last_checkpoint(data, stopped, monkeypatch):
    before = stopped.read_bytes()
    monkeypatch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        PreferenceMixture(2, **OPTIONS).fit(data, stopped)
    assert stopped.read_bytes() == before
    assert [p.name for p in stopped.parent.iterdir()] == ["fit"]

"""PreferenceMixture and fit_sweep: what they offer, that they repeat bit for bit, and what they refuse."""

from __future__ import annotations

import math
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from maxmin_rlhf import PreferenceData, PreferenceMixture, PreferenceStore, fit_sweep, select_groups
from maxmin_rlhf.mixture import FitWarning, checkpoint, progress
from maxmin_rlhf.mixture.heldout import held_out_score
from tests.rlhf.panels import joint, log_sum, penalised, planted

QUICK = {"n_init": 3, "random_state": 0}


@pytest.fixture(scope="module")
def panel():
    return planted(1, 2, n_annotators=40, shares=[0.7, 0.3])


@pytest.fixture(scope="module")
def mix(panel):
    return PreferenceMixture(2, **QUICK).fit(panel.data)


# ---- what is fitted


def test_attributes_are_numpy_arrays_and_python_numbers(panel, mix):
    for name, shape in (
        ("heads_", (2, 5)),
        ("weights_", (2,)),
        ("responsibilities_", (40, 2)),
        ("lower_bounds_", (mix.n_iter_,)),
    ):
        value = getattr(mix, name)
        assert type(value) is np.ndarray and value.dtype == np.float64 and value.shape == shape
    assert type(mix.log_likelihood_) is float and type(mix.lower_bound_) is float
    assert mix.converged_ is True and type(mix.n_iter_) is int
    assert list(mix.annotators_) == list(panel.data.annotators_)
    assert mix.weights_.sum() == pytest.approx(1) and (np.diff(mix.weights_) <= 0).all()
    np.testing.assert_allclose(mix.responsibilities_.sum(1), 1)
    np.testing.assert_allclose(mix.responsibilities_.mean(0), mix.weights_, atol=1e-3)
    assert mix.lower_bounds_[-1] == mix.lower_bound_ == mix.lower_bounds_.max()


@pytest.mark.parametrize(
    "options", [{}, {"l2": 0.1, "alpha": 3.0}, {"label_noise": 0.1}, {"temperature": 4.0}, {"hard": True}]
)  # fmt: skip
def test_bounds_and_likelihood_are_the_formulas(panel, options):
    mix = PreferenceMixture(2, **QUICK, **options).fit(panel.data)
    log_weights = np.log(mix.weights_)
    bound = penalised(panel.data, mix.heads_, log_weights, **{"l2": 1.0, **options})
    assert mix.lower_bound_ == pytest.approx(bound, rel=1e-12)
    L = joint(panel.data, mix.heads_, log_weights, options.get("label_noise", 0.0))
    assert mix.log_likelihood_ == pytest.approx(log_sum(L).sum(), rel=1e-12)
    posterior = np.exp(L - log_sum(L)[:, None])
    np.testing.assert_allclose(mix.predict_proba(panel.data), posterior, rtol=1e-9)
    if not ({"hard", "temperature"} & set(options)):
        np.testing.assert_allclose(mix.responsibilities_, posterior, rtol=1e-9)


def test_predict_is_the_likeliest_group(panel, mix):
    groups = mix.predict(panel.data)
    assert groups.dtype == np.int64 and (groups == mix.predict_proba(panel.data).argmax(1)).all()
    assert (groups == panel.groups).mean() > 0.9  # group 0 is the larger one


def test_annotators_never_seen_are_assigned(panel, mix):
    fresh = planted(2, 2, n_annotators=30, heads=panel.heads)
    assert (mix.predict(fresh.data) == fresh.groups).mean() > 0.9
    nobody = fresh.data.select_comparisons(np.zeros(fresh.data.n_comparisons, bool))
    np.testing.assert_allclose(mix.predict_proba(nobody), np.tile(mix.weights_, (30, 1)))


def test_reward_is_linear_in_the_items(mix):
    items = np.random.default_rng(0).standard_normal((7, 5))
    np.testing.assert_allclose(mix.reward(items), items @ mix.heads_.T, rtol=1e-12)
    whole = mix.reward([[1, 0, 0, 0, 0], [0, 2, 0, 0, 0]])
    np.testing.assert_allclose(whole, np.array([mix.heads_[:, 0], 2 * mix.heads_[:, 1]]))
    single = mix.reward(items.astype(np.float32))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, items @ mix.heads_.T, atol=1e-5)
    half = torch.from_numpy(items).bfloat16()
    np.testing.assert_allclose(mix.reward(half), half.double().numpy() @ mix.heads_.T, atol=1e-5)


def test_information_criteria(panel, mix):
    d, proba = 2 * 5 + 1, mix.predict_proba(panel.data)
    bic = -2 * mix.log_likelihood_ + d * math.log(40)
    assert mix.n_parameters == d and mix.bic(panel.data) == pytest.approx(bic)
    entropy = -(proba * np.log(np.maximum(proba, 1e-300))).sum()
    assert mix.icl(panel.data) == pytest.approx(bic + 2 * entropy)


def test_score_is_the_posterior_predictive_of_what_did_not_assign():
    """(11) by plain loops over the masks of the split."""
    from maxmin_rlhf.data import held_out_masks

    panel = planted(3, 2, form="items", n_annotators=20, n_items=12)
    mix = PreferenceMixture(2, **QUICK).fit(panel.data)
    for split in ("item", "comparison"):
        visible, scored, _ = held_out_masks(panel.data, split, 5)
        L = joint(panel.data.select_comparisons(visible), mix.heads_, np.log(mix.weights_))
        gamma = np.exp(L - log_sum(L)[:, None])
        rest, total = panel.data.select_comparisons(scored), 0.0
        for c in range(rest.n_comparisons):
            delta = (rest.features[rest.chosen[c]] - rest.features[rest.rejected[c]]).numpy()
            chance = 1 / (1 + np.exp(-mix.heads_ @ delta))
            total += math.log(gamma[rest.comparison_annotator[c]] @ chance)
        expected = total / rest.n_comparisons
        assert mix.score(panel.data, split, random_state=5) == pytest.approx(expected, rel=1e-10)
    by_item = mix.score(panel.data, "item", random_state=1)
    assert mix.score(panel.data, random_state=1) == by_item  # "auto"


def test_score_weighs_comparisons(panel, mix):
    weight = np.arange(panel.data.n_comparisons) % 3 / 2.0
    data = PreferenceData.from_arrays(
        panel.data.features, panel.data.comparison_annotator, weight=weight
    )
    held = held_out_score(data, mix._bank(torch.device("cpu")), "comparison", 0)
    assert mix.score(data, random_state=0) == held.total.sum() / held.weight.sum()
    assert held.weight.sum() < weight.sum()
    twice = PreferenceData.from_arrays(
        panel.data.features, panel.data.comparison_annotator, weight=np.full(len(weight), 1.0)
    )
    assert mix.score(twice, random_state=0) == mix.score(panel.data, random_state=0)


def test_more_groups_score_better_where_there_are_more(panel):
    fresh = planted(5, 2, n_annotators=60, heads=panel.heads).data
    sweep = fit_sweep(panel.data, [1, 2], **QUICK)
    assert sweep[2].score(fresh, random_state=0) > sweep[1].score(fresh, random_state=0) + 0.05


def test_nothing_to_score(mix):
    nobody = planted(0, 2, n_annotators=2).data
    nobody = nobody.select_comparisons(np.zeros(nobody.n_comparisons, bool))
    with pytest.raises(ValueError, match="data: expected comparisons to score, got none"):
        mix.score(nobody)


# ---- order and repetition


def same(a, b):
    """Bit for bit."""
    for name in ("heads_", "weights_", "responsibilities_", "lower_bounds_"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for name in ("log_likelihood_", "lower_bound_", "converged_", "n_iter_"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("form", ["pairs", "sets", "items"])
def test_a_seed_repeats_bit_for_bit(form):
    data = planted(4, 3, form=form, n_annotators=40, dtype=np.float32).data
    same(PreferenceMixture(3, **QUICK).fit(data), PreferenceMixture(3, **QUICK).fit(data))


def test_another_seed_is_another_search():
    data = planted(4, 3, n_annotators=40, sharpness=0.7).data
    first, second = (
        PreferenceMixture(3, n_init=1, max_iter=12, random_state=s) for s in (0, 1)
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        assert not np.array_equal(first.fit(data).heads_, second.fit(data).heads_)


SCRIPT = """
from tests.rlhf.panels import planted
from maxmin_rlhf import PreferenceMixture
import sys
mix = PreferenceMixture(2, n_init=3, random_state=0).fit(planted(1, 2, n_annotators=40, shares=[0.7, 0.3]).data)
mix.save(sys.argv[1])
"""


def test_another_process_finds_the_same(mix, tmp_path):
    run(SCRIPT, tmp_path / "m")
    same(mix, PreferenceMixture.load(tmp_path / "m"))


def run(script, *arguments, **options):
    """A script in a Python of its own, on as many threads."""
    paths = [str(Path(__file__).parents[2]), *sys.path]
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    return subprocess.run(
        [sys.executable, "-c", threads + script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True,
        timeout=120,
        **options,
    )


def test_the_number_of_threads_does_not_matter(mix, panel):
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        other = PreferenceMixture(2, **QUICK).fit(panel.data)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(other.heads_, mix.heads_, rtol=1e-9)
    assert other.n_iter_ == mix.n_iter_


def test_the_order_of_rows_within_and_between_annotators_does_not_matter(panel, mix):
    rows, owner = panel.data.features.numpy(), panel.data.comparison_annotator
    order = np.random.default_rng(0).permutation(len(rows))
    names = np.array([f"rater {a}" for a in owner])
    mixed = PreferenceMixture(2, **QUICK).fit(PreferenceData.from_arrays(rows[order], names[order]))
    assert mixed.lower_bound_ == pytest.approx(mix.lower_bound_, rel=1e-7)
    np.testing.assert_allclose(mixed.heads_, mix.heads_, atol=5e-3)
    found = dict(zip(mixed.annotators_, mixed.responsibilities_, strict=True))
    for a, resp in zip(mix.annotators_, mix.responsibilities_, strict=True):
        np.testing.assert_allclose(found[f"rater {a}"], resp, atol=5e-3)


def test_both_forms_of_the_same_comparisons_fit_the_same():
    items = planted(6, 2, form="items", n_annotators=40).data
    rows = PreferenceData.from_arrays(
        items.features[items.chosen] - items.features[items.rejected], items.comparison_annotator
    )
    a, b = (PreferenceMixture(2, **QUICK).fit(d) for d in (items, rows))
    assert a.lower_bound_ == pytest.approx(b.lower_bound_, rel=1e-10)
    np.testing.assert_allclose(a.heads_, b.heads_, atol=1e-5)


# ---- fit_sweep


def test_warnings_point_at_the_callers_line(panel):
    with pytest.warns(FitWarning) as caught:
        PreferenceMixture(2, max_iter=2, **QUICK).fit(panel.data)
    assert {w.filename for w in caught} == {__file__}
    with pytest.warns(FitWarning) as caught:
        fit_sweep(panel.data, [9], **QUICK)
    assert {w.filename for w in caught} == {__file__}


def test_sweep_gives_a_mixture_for_each_number_in_the_order_asked(panel):
    sweep = fit_sweep(panel.data, [3, 1, 2, 1], l2=0.5, **QUICK)
    assert list(sweep) == [3, 1, 2]
    for k, mixture in sweep.items():
        assert mixture.n_groups == k and mixture.heads_.shape == (k, 5) and mixture.l2 == 0.5
        assert mixture.converged_
    bounds = [sweep[k].log_likelihood_ for k in (1, 2, 3)]
    assert bounds == sorted(bounds)


def test_sweep_finds_what_single_fits_find(panel, mix):
    sweep = fit_sweep(panel.data, [1, 2], **QUICK)
    assert sweep[2].lower_bound_ == pytest.approx(mix.lower_bound_, rel=1e-7)
    np.testing.assert_allclose(sweep[2].heads_, mix.heads_, atol=5e-3)


def test_sweep_repeats_bit_for_bit(panel):
    first, second = (fit_sweep(panel.data, [1, 2, 3], **QUICK) for _ in range(2))
    for k in first:
        same(first[k], second[k])


@pytest.mark.parametrize(
    ("n_groups", "message"),
    [
        ([], "n_groups: expected at least one number of groups, got none"),
        ([1, 0], "n_groups: expected at least 1, got 0"),
        ([1, 41], "n_groups: expected at most 40, the number of annotators, got 41"),
    ],
)
def test_sweep_refuses(panel, n_groups, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        fit_sweep(panel.data, n_groups)


# ---- arguments

BAD = [
    ({"n_groups": 0}, ValueError, "n_groups: expected at least 1, got 0"),
    ({"n_groups": 2.0}, TypeError, "n_groups: expected a whole number, got float"),
    ({"n_groups": True}, TypeError, "n_groups: expected a whole number, got bool"),
    ({"n_init": 0}, ValueError, "n_init: expected at least 1, got 0"),
    ({"l2": -1}, ValueError, "l2: expected a finite number >= 0, got -1"),
    ({"l2": math.nan}, ValueError, "l2: expected a finite number >= 0, got nan"),
    ({"l2": math.inf}, ValueError, "l2: expected a finite number >= 0, got inf"),
    ({"l2": "1"}, TypeError, "l2: expected a number, got str"),
    ({"alpha": 0.5}, ValueError, "alpha: expected a finite number >= 1, got 0.5"),
    ({"temperature": 0}, ValueError, "temperature: expected a finite number > 0, got 0"),
    ({"label_noise": -0.1}, ValueError, "label_noise: expected a finite number >= 0, got -0.1"),
    ({"label_noise": 1.0}, ValueError, "label_noise: expected a number in [0, 1), got 1.0"),
    ({"init": "kmeans"}, ValueError,
     "init: expected 'auto', 'random', 'annotators' or heads (K, D), got 'kmeans'"),
    ({"solver": "em"}, ValueError, "solver: expected 'auto', got 'em'"),
    ({"max_iter": 0}, ValueError, "max_iter: expected at least 1, got 0"),
    ({"max_iter": None}, TypeError, "max_iter: expected a whole number, got NoneType"),
    ({"tol": -1e-9}, ValueError, "tol: expected a finite number >= 0, got -1e-09"),
    ({"dtype": torch.int64}, ValueError,
     "dtype: expected float64, float32, bfloat16 or float16, got torch.int64"),
    ({"dtype": "double precision"}, ValueError,
     "dtype: expected float64, float32, bfloat16 or float16, got 'double precision'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_constructor_refuses(options, error, message):
    with pytest.raises(error) as caught:
        PreferenceMixture(**{"n_groups": 2, **options})
    assert str(caught.value) == message


def test_numpy_numbers_are_numbers(panel):
    mix = PreferenceMixture(np.int64(2), l2=np.float32(0.5), n_init=np.int32(1), random_state=0)
    assert mix.fit(panel.data).heads_.shape == (2, 5)


@pytest.mark.parametrize("init", ["random", "annotators"])
def test_each_kind_of_start_finds_the_groups(panel, mix, init):
    other = PreferenceMixture(2, init=init, **QUICK).fit(panel.data)
    assert other.lower_bound_ == pytest.approx(mix.lower_bound_, rel=1e-6)


def test_starting_from_heads_climbs_from_there(panel, mix):
    again = PreferenceMixture(2, init=mix.heads_, random_state=5).fit(panel.data)
    assert again.lower_bound_ == pytest.approx(mix.lower_bound_, rel=1e-7)
    assert again.n_iter_ <= mix.n_iter_ + 5
    same(again, PreferenceMixture(2, init=torch.tensor(mix.heads_), random_state=6).fit(panel.data))


def test_heads_of_another_shape_are_refused(panel):
    with pytest.raises(ValueError, match=r"init: expected heads of shape \(2, 5\), got \(3, 5\)"):
        PreferenceMixture(2, init=np.zeros((3, 5))).fit(panel.data)


def test_an_unknown_backend_is_refused(panel):
    with pytest.raises(ValueError, match="abacus"):
        PreferenceMixture(2, backend="abacus").fit(panel.data)


def test_more_groups_than_annotators(panel):
    message = "^n_groups: expected at most 40, the number of annotators, got 41$"
    with pytest.raises(ValueError, match=message):
        PreferenceMixture(41).fit(panel.data)


@pytest.mark.parametrize(
    "use",
    [
        lambda m, d: m.predict(d),
        lambda m, d: m.predict_proba(d),
        lambda m, d: m.score(d),
        lambda m, d: m.bic(d),
        lambda m, d: m.icl(d),
        lambda m, d: m.reward([[0.0] * 5]),
        lambda m, d: m.save("nowhere"),
    ],
    ids=["predict", "predict_proba", "score", "bic", "icl", "reward", "save"],
)
def test_not_fitted(panel, use):
    with pytest.raises(
        ValueError, match=r"^this mixture is not fitted yet: call fit\(data\) first$"
    ):
        use(PreferenceMixture(2), panel.data)


@pytest.mark.parametrize("name", ["predict", "predict_proba", "score", "bic", "icl"])
def test_another_number_of_features(mix, name):
    other = planted(0, 2, n_features=4, n_annotators=5).data
    with pytest.raises(ValueError, match=r"^data: expected 5 features as fitted, got 4$"):
        getattr(mix, name)(other)


@pytest.mark.parametrize(
    "use",
    [
        lambda mix, x, _: PreferenceMixture(1).fit(x),
        lambda mix, x, _: fit_sweep(x, [1]),
        lambda mix, x, _: select_groups(x, [1, 2]),
        lambda mix, x, _: mix.predict(x),
        lambda mix, x, _: mix.score(x),
        lambda mix, x, folder: PreferenceStore.append(folder / "store", x),
    ],
    ids=["fit", "sweep", "select", "predict", "score", "append"],
)
def test_numbers_alone_are_no_preferences(mix, tmp_path, use):
    with pytest.raises(TypeError, match="data: expected PreferenceData.*, got ndarray"):
        use(mix, np.ones((3, 2)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_here(mix, panel, device):
    absent = PreferenceMixture(1, device=device)
    with pytest.raises(ValueError, match="device: expected one that is here, like 'cpu' or 'cuda'"):
        absent.fit(panel.data)
    absent.heads_ = mix.heads_
    with pytest.raises(ValueError, match="device: expected one that is here"):
        absent.reward(np.ones((2, mix.heads_.shape[1])))


def test_items_of_another_width(mix):
    with pytest.raises(ValueError, match="5"):
        mix.reward(np.zeros((3, 4)))


def test_a_split_by_item_needs_items(panel, mix):
    with pytest.raises(ValueError, match='split: "item" needs items with ids'):
        mix.score(panel.data, "item")
    with pytest.raises(ValueError, match='split: expected "auto", "item" or "comparison"'):
        mix.score(panel.data, "pairs")


def test_repr(mix):
    assert repr(mix) == "PreferenceMixture(n_groups=2, l2=1, fitted)"
    assert repr(PreferenceMixture(3, l2=0.25)) == "PreferenceMixture(n_groups=3, l2=0.25)"


# ---- keeping


def test_saved_and_loaded(mix, panel, tmp_path):
    mix.save(tmp_path / "mixture")
    back = PreferenceMixture.load(tmp_path / "mixture")
    same(mix, back)
    assert list(back.annotators_) == list(mix.annotators_)
    for name in ("n_groups", "n_init", "l2", "alpha", "hard", "temperature", "label_noise", "tol"):
        assert getattr(back, name) == getattr(mix, name)
    assert np.array_equal(back.predict_proba(panel.data), mix.predict_proba(panel.data))
    assert back.bic(panel.data) == mix.bic(panel.data)
    assert [p.name for p in tmp_path.iterdir()] == ["mixture"]


def test_ids_are_kept_as_json_or_as_text(panel, tmp_path):
    ids = ["a", 3, 2.5, ("b", 1), "ünï"]
    owner = [ids[i] for i in np.arange(100) % 5]
    data = PreferenceData.from_arrays(panel.data.features[:100], owner)
    PreferenceMixture(1, **QUICK).fit(data).save(tmp_path / "m")
    back = PreferenceMixture.load(tmp_path / "m")
    assert list(back.annotators_) == ["a", 3, 2.5, "('b', 1)", "ünï"]


def test_a_mixture_from_heads_is_saved_too(panel, mix, tmp_path):
    PreferenceMixture(2, init=mix.heads_).fit(panel.data).save(tmp_path / "m")
    assert PreferenceMixture.load(tmp_path / "m").heads_.shape == (2, 5)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(mix, tmp_path, monkeypatch):
    mix.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    monkeypatch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        mix.save(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        PreferenceMixture.load(tmp_path / "m")


def test_loading_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        PreferenceMixture.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file(mix, tmp_path, keep):
    mix.save(tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(
        ValueError, match="expected a whole file of maxmin, got a truncated or foreign"
    ):
        PreferenceMixture.load(tmp_path / "m")


def test_a_file_that_is_no_safetensors(tmp_path):
    (tmp_path / "m").write_text("annotator,chosen,rejected\n" * 50)
    with pytest.raises(
        ValueError, match="expected a whole file of maxmin, got a truncated or foreign"
    ):
        PreferenceMixture.load(tmp_path / "m")


def test_another_programs_safetensors(tmp_path):
    from safetensors.torch import save_file

    save_file({"heads": torch.zeros(2, 3)}, tmp_path / "m")
    with pytest.raises(
        ValueError, match="expected a file of maxmin, got another program's safetensors"
    ):
        PreferenceMixture.load(tmp_path / "m")


def test_another_versions_file(mix, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    mix.save(tmp_path / "m")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="expected format 1, got 99 of another version"):
        PreferenceMixture.load(tmp_path / "m")


def test_a_file_of_another_kind(tmp_path):
    checkpoint.write(tmp_path / "m", "checkpoint of a fit", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="expected a mixture, got a checkpoint of a fit"):
        PreferenceMixture.load(tmp_path / "m")


# ---- progress

LONG = """
import sys
from maxmin_rlhf.mixture import progress
progress._PATIENCE = 0.0
from tests.rlhf.panels import planted
from maxmin_rlhf import PreferenceMixture
PreferenceMixture(2, n_init=2, random_state=0, verbose=int(sys.argv[1])).fit(planted(1, 2, n_annotators=20).data)
"""


def on_terminal(script, *arguments):
    """What a script writes to a terminal."""
    here, there = pty.openpty()
    try:
        run(script, *arguments, stderr=there)
        os.close(there)
        seen = b""
        while True:
            try:
                block = os.read(here, 4096)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            seen += block
    finally:
        os.close(here)
    return seen.decode()


def test_a_terminal_sees_one_line_that_is_wiped():
    seen = on_terminal(LONG, 0)
    assert "mixtures climbing" in seen and "\n" not in seen.strip("\r\n")
    assert seen.rsplit("\r", 2)[-2].strip() == "" and seen.endswith("\r")


def test_nothing_is_written_when_piped():
    result = run(LONG, 0, capture_output=True)
    assert result.stderr == result.stdout == b""


def test_verbose_writes_lines_wherever_it_goes():
    result = run(LONG, 1, capture_output=True, text=True)
    lines = result.stderr.splitlines()
    assert lines and all("mixtures climbing" in line and "\r" not in line for line in lines)
    assert result.stdout == ""


def test_a_short_fit_is_silent_on_a_terminal():
    assert (
        on_terminal(LONG.replace("progress._PATIENCE = 0.0", "progress._PATIENCE = 60.0"), 0) == ""
    )


def test_patience_is_what_the_tests_above_turn_off():
    assert progress._PATIENCE > 0 and progress.CHECKPOINT_SECONDS > 0


def test_what_cannot_be_a_start_a_list_or_items_is_named():
    data = planted(1, 2, n_annotators=20).data
    with pytest.raises(ValueError, match="init: expected finite heads"):
        PreferenceMixture(2, init=np.full((2, data.n_features), np.nan)).fit(data)
    with pytest.raises(TypeError, match="n_groups: expected several whole numbers, got int"):
        fit_sweep(data, 3)
    mix = PreferenceMixture(2, n_init=2, random_state=0).fit(data)
    with pytest.raises(ValueError, match=r"items: expected shape \(M, "):
        mix.reward(np.zeros(data.n_features))
    items = torch.randn(4, data.n_features, dtype=torch.float64, requires_grad=True)
    np.testing.assert_allclose(mix.reward(items), items.detach().numpy() @ mix.heads_.T)

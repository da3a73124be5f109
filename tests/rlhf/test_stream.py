"""A fit of preferences on disk is the fit of those in memory; it needs two blocks of them in memory, and no more."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

import maxmin_kernels as mk
from maxmin_rlhf import (
    FeatureStore,
    PreferenceData,
    PreferenceStore,
    TextPreferences,
    fit_sweep,
    select_groups,
)
from maxmin_rlhf.data import row_files
from maxmin_rlhf.data.controls import Place, redraw_choices, swap_judgments
from maxmin_rlhf.data.feature_store import key_of
from maxmin_rlhf.data.preference_writer import ShardWriter
from maxmin_rlhf.data.splits import held_out_masks
from maxmin_rlhf.data.store_writer import StoreWriter
from maxmin_rlhf.mixture.bank import Bank
from maxmin_rlhf.mixture.heldout import held_out_score
from maxmin_rlhf.mixture.objective import Objective
from tests.rlhf.panels import planted

ONE = 40  # bytes of a row of five float64 features
BLOCKS = {"one row": 1, "seven rows": 7 * ONE, "many": 90 * ONE, "everything": None}


def stored(folder, data, block_bytes=None, shards=2):
    """``data`` in a store, its annotators in so many shards."""
    for part in np.array_split(np.arange(data.n_annotators), shards):
        PreferenceStore.append(folder, data.select_annotators(part))
    return PreferenceStore(folder, block_bytes=block_bytes)


def weighted(form, dtype=np.float64, n_annotators=40):
    """Annotators of ten comparisons, but one who has none and one who has many."""
    data = planted(2, 3, form=form, n_annotators=n_annotators, per_annotator=10, sharpness=1.5, dtype=dtype).data  # fmt: skip
    counts = data.indptr.diff()
    counts[3], counts[4], counts[5], counts[6] = 0, 37, 2, 1
    weight = torch.from_numpy(np.random.default_rng(0).random(data.n_comparisons) + 0.5)
    return PreferenceData(
        features=data.features,
        indptr=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        annotators_=np.array([f"a{i}" for i in range(n_annotators)]),
        order=data.order,
        choice_indptr=data.choice_indptr,
        weight=weight,
    )


def some_bank(n_features=5):
    rng = np.random.default_rng(1)
    heads = [torch.from_numpy(rng.standard_normal((k, n_features))) for k in (1, 3, 2)]
    return Bank.of(heads, [torch.randn(len(h)).double() for h in heads], torch.ones(3), 3)


OPTIONS = {
    "soft": {},
    "hard": {"hard": True},
    "tempered": {"temperature": 3.0},
    "noise and prior": {"label_noise": 0.1, "alpha": 2.0},
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_what_is_put_in_comes_out(tmp_path, form, block):
    data = weighted(form)
    found = stored(tmp_path, data, BLOCKS[block])
    loaded = found.load()
    for name in ("features", "indptr", "choice_indptr", "weight"):
        expected = getattr(data, name)
        assert expected is None or torch.equal(getattr(loaded, name), expected), name
    assert loaded.annotators_.tolist() == data.annotators_.tolist()
    assert (found.n_rows, found.n_comparisons) == (data.n_rows, data.n_comparisons)
    some = np.random.default_rng(0).random(data.n_annotators) < 0.6
    part, expected = found.select_annotators(some), data.select_annotators(some)
    assert torch.equal(part.load().features, expected.features)
    assert part.select_annotators([]).load().features.shape == (0, 5)
    assert part.select_annotators([1, 5]).annotators_.tolist() == expected.annotators_[[1, 5]].tolist()  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_a_pass_is_the_sum_over_blocks(tmp_path, form, block, option):
    data, bank = weighted(form), some_bank()
    store = stored(tmp_path, data, BLOCKS[block])
    expected = Objective.of(data, **OPTIONS[option])(bank)
    found = Objective.of(store, **OPTIONS[option])(bank, with_resp=True)
    for name in ("value", "gradient", "mass", "log_likelihood", "log_resp"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-11)  # fmt: skip
    assert Objective.of(store)(bank).log_resp is None or block == "everything"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_pass_in_less_precision(tmp_path, dtype):
    data = planted(2, 3, n_annotators=300, per_annotator=20, n_features=64).data
    data = PreferenceData.from_arrays(data.features.to(dtype), data.comparison_annotator)
    store, bank = stored(tmp_path, data, 64 * 700), some_bank(64)
    found, expected = Objective.of(store)(bank), Objective.of(data)(bank)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_starts_and_curvature_too(tmp_path, form, block, monkeypatch):
    monkeypatch.setattr("maxmin_rlhf.mixture.objective._SAMPLE", 100)  # every third comparison
    data = weighted(form)
    expected, found = (Objective.of(d) for d in (data, stored(tmp_path, data, BLOCKS[block])))
    head = torch.linspace(-1, 1, 5, dtype=torch.float64)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found.pooled_curvature(head), expected.pooled_curvature(head), **close)  # fmt: skip
    some = torch.tensor([0, 3, 4, 17, 38])
    torch.testing.assert_close(found.annotator_pulls(head, some), expected.annotator_pulls(head, some), **close)  # fmt: skip
    monkeypatch.setattr("maxmin_rlhf.mixture.objective._DENSE", 4)
    torch.testing.assert_close(found.pooled_curvature(head), expected.pooled_curvature(head), **close)  # fmt: skip


@pytest.mark.parametrize("block", ["seven rows", "many"])
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_held_out_scores_and_controls_too(tmp_path, form, block):
    data, bank = weighted(form), some_bank()
    store = stored(tmp_path, data, BLOCKS[block])
    for a, b in zip(held_out_masks(store, rng=3), held_out_masks(data, rng=3), strict=True):
        assert np.array_equal(a, b)
    found, expected = (held_out_score(d, bank, "comparison", 3, 0.1) for d in (store, data))
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.weight, expected.weight)
    head = np.linspace(-1, 1, 5)
    found, expected = (redraw_choices(d, head, 7) for d in (store, data))
    assert torch.equal(found.load().features, expected.features)
    where, some = Place(30, 50, 900), [2, 4, 5, 9]
    a, b = (redraw_choices(d.select_annotators(some), head, 7, where) for d in (store, data))
    assert torch.equal(a.load().features, b.features)
    part = found.select_annotators([2, 4, 5, 9])
    assert torch.equal(part.load().features, expected.select_annotators([2, 4, 5, 9]).features)
    assert found.fingerprint() != store.fingerprint() != part.fingerprint()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_fit_is_that_of_memory_step_by_step(tmp_path, dtype):
    data = weighted("pairs", dtype)
    options = {"n_init": 2, "random_state": 0}
    expected = fit_sweep(data, [1, 3], **options)
    for name, size in (("a", 7 * ONE), ("b", None)):
        found = fit_sweep(stored(tmp_path / name, data, size), [1, 3], **options)
        for k, fit in expected.items():
            if dtype == np.float64:
                assert found[k].lower_bound_ == pytest.approx(fit.lower_bound_, rel=1e-12)
                np.testing.assert_allclose(found[k].lower_bounds_, fit.lower_bounds_, rtol=1e-9)
            else:  # the last steps, of less than `tol` = 1e-7, are of rounding
                assert found[k].lower_bound_ == pytest.approx(fit.lower_bound_, rel=1e-8)
                n = 2 * min(found[k].n_iter_, fit.n_iter_) // 3
                np.testing.assert_allclose(found[k].lower_bounds_[:n], fit.lower_bounds_[:n], rtol=1e-6)  # fmt: skip
            np.testing.assert_allclose(found[k].responsibilities_, fit.responsibilities_, atol=1e-3)
            assert found[k].annotators_.tolist() == fit.annotators_.tolist()
            assert found[k].bic(data) == pytest.approx(fit.bic(data), rel=1e-6)
    store = PreferenceStore(tmp_path / "a", block_bytes=300)
    np.testing.assert_allclose(found[3].predict_proba(store), found[3].predict_proba(data), atol=1e-6)  # fmt: skip
    assert found[3].score(store, random_state=0) == pytest.approx(found[3].score(data, random_state=0))  # fmt: skip


# ---- the choice of K


def assert_same_selection(found, expected):
    assert (found.best_, found.reason_, found.split_) == (expected.best_, expected.reason_, expected.split_)  # fmt: skip
    for a, b in zip(found.results_, expected.results_, strict=True):
        controls = a.pop("control_gain"), b.pop("control_gain")
        assert controls[0] == pytest.approx(controls[1], rel=1e-6, abs=1e-9)
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


def test_groups_are_chosen_as_in_memory(tmp_path):
    data = weighted("pairs", n_annotators=30)
    options = {"n_init": 1, "n_folds": 2, "random_state": 0, "l2": 1.0}
    found = select_groups(stored(tmp_path, data, 30 * ONE), [1, 2], **options)
    assert_same_selection(found, select_groups(data, [1, 2], **options))


@pytest.fixture
def texts(tmp_path):
    """Forty people of two tastes on pairs of twelve texts, and the store of their features, in two shards."""
    rng = np.random.default_rng(0)
    names = [f"text {i}" for i in range(12)]
    features = (16 * torch.randn(12, 20)).round() / 16  # whose differences are exact
    pairs = np.array([rng.choice(12, 2, replace=False) for _ in range(480)])
    who = np.arange(480) % 40
    margin = (features[pairs[:, 0], 0] - features[pairs[:, 1], 0]).numpy()
    prefers = 3 * np.where(who % 3 == 0, -1, 1) * margin > rng.logistic(size=480)
    pairs[~prefers] = pairs[~prefers][:, ::-1]
    with StoreWriter(tmp_path, {}, 20, "float32") as writer:
        for part in (slice(0, 7), slice(7, 12)):
            writer.append([key_of(t) for t in names[part]], features[part], {})
    chosen, rejected = ([names[i] for i in side] for side in pairs.T)
    prefs = TextPreferences.from_columns(chosen, rejected, who, weight=rng.random(480) + 0.5)
    return prefs, FeatureStore(tmp_path)


def test_texts_are_streamed(texts, tmp_path):
    prefs, store = texts
    before = sorted(p.name for p in tmp_path.iterdir())
    found, data = prefs.stream(store, block_bytes=50 * 80), prefs.over(store)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert torch.equal(found.load().features, data.features[data.chosen] - data.features[data.rejected])  # fmt: skip
    assert prefs.stream(store).fingerprint() == found.fingerprint()
    for split in ("item", "comparison"):
        some = np.arange(40) % 3 > 0
        a, b = (held_out_masks(d.select_annotators(some), split, 5) for d in (found, data))
        assert np.array_equal(a[0], b[0]) and a[2] == split
    (a, share), (b, expected) = (swap_judgments(d, 1) for d in (found, data))
    assert share == expected > 0.25
    assert torch.equal(a.load().features, b.features[b.chosen] - b.features[b.rejected])
    assert torch.equal(a.load().weight, b.weight)
    (a, _), (b, _) = (swap_judgments(d.select_annotators(np.arange(20)), 1) for d in (found, data))
    assert torch.equal(a.load().features, b.features[b.chosen] - b.features[b.rejected])
    assert torch.equal(a.load().weight, b.weight)
    options = {"n_init": 1, "n_folds": 2, "random_state": 0, "l2": 1.0, "dtype": "float64"}
    a, b = (select_groups(d, [1, 2], **options) for d in (found, data))
    assert a.split_ == b.split_ == "item" and a.best_ == b.best_ == 2
    assert sorted(a.results_[1]["control_gain"]) == ["redrawn", "swapped"]
    assert_same_selection(a, b)


# ---- over processes, and on after a stop

WORKER = """
import json, os, signal, sys
import numpy as np
import torch.distributed as dist
from maxmin_rlhf import PreferenceStore, fit_sweep, select_groups
from maxmin_rlhf.data import row_files
from maxmin_rlhf.mixture import fit, progress

fit._REPEATS = 0  # no moves
task, folder, rank, size, dies = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
group = None
if size:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{task}-{size}-{dies}", rank=rank, world_size=size)
    group = dist.group.WORLD
store = PreferenceStore(f"{folder}/store", block_bytes=1000)
mine = np.array_split(np.arange(store.n_annotators), max(1, size))[rank]
data = store.select_annotators(mine)
progress.CHECKPOINT_SECONDS = 0.0
if dies >= 0:
    call, rounds = progress.Watch.__call__, []
    def watch(self, fit, whole):
        call(self, fit, whole)
        rounds.append(fit.progress.phase)
    read = row_files.RowFiles.read
    def killed(self, first, *args):
        if first and rounds.count("climb") == 4 and rank == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        read(self, first, *args)
    progress.Watch.__call__, row_files.RowFiles.read = watch, killed
out = {}
if task == "fit":
    fits = fit_sweep(data, [1, 3], n_init=2, random_state=0, checkpoint=f"{folder}/checkpoint", process_group=group)
    for k, f in fits.items():
        out[k] = [f.heads_.tolist(), f.lower_bounds_.tolist(), f.responsibilities_.tolist()]
else:
    found = select_groups(data, [1, 2], n_init=1, n_folds=2, random_state=0, l2=1.0, process_group=group)
    out = {"best": found.best_, "reason": found.reason_, "results": found.results_}
open(f"{folder}/found-{rank}.json", "w").write(json.dumps(out))
"""


def work(task, folder, size, dies=-1):
    """So many processes (0: one without a group); return codes, errors, and what they found."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, task, str(folder), str(rank), str(size), str(dies)],
                         env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(max(1, size))
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in started]
    found = [folder / f"found-{rank}.json" for rank in range(max(1, size))]
    kept = [json.loads(p.read_text()) if p.exists() else None for p in found]
    for path in found:
        path.unlink(missing_ok=True)
    return [process.returncode for process in started], errors, kept


@pytest.fixture
def no_moves(monkeypatch):
    monkeypatch.setattr("maxmin_rlhf.mixture.fit._REPEATS", 0)


@pytest.mark.usefixtures("no_moves")
def test_killed_in_a_pass_and_gone_on_with_to_the_bit(tmp_path):
    stored(tmp_path / "store", weighted("pairs"))
    store = PreferenceStore(tmp_path / "store", block_bytes=1000)
    options = {"n_init": 2, "random_state": 0}
    expected = fit_sweep(store, [1, 3], **options)
    assert work("fit", tmp_path, 0, dies=0)[0] == [-signal.SIGKILL]
    checkpoint = tmp_path / "checkpoint"
    assert checkpoint.exists()
    with pytest.raises(ValueError, match="checkpoint: expected a checkpoint with data = "):
        fit_sweep(store.select_annotators(range(30)), [1, 3], checkpoint=checkpoint, **options)
    found = fit_sweep(store, [1, 3], checkpoint=checkpoint, **options)
    assert not checkpoint.exists()
    for k, fit in expected.items():
        for name in ("heads_", "weights_", "responsibilities_", "lower_bounds_"):
            assert np.array_equal(getattr(found[k], name), getattr(fit, name)), name


@pytest.mark.usefixtures("no_moves")
def test_two_processes_one_that_dies_and_one_that_goes_on(tmp_path):
    data = weighted("pairs")
    store = stored(tmp_path / "store", data, 1000)
    options = {"n_init": 2, "random_state": 0}
    codes, errors, _ = work("fit", tmp_path, 2, dies=1)
    assert codes == [1, -signal.SIGKILL]
    assert "another process of the group is gone" in errors[0]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:  # what two began, one ends
        one = fit_sweep(store, [1, 3], checkpoint=tmp_path / "checkpoint", process_group=dist.group.WORLD, **options)  # fmt: skip
    finally:
        dist.destroy_process_group()
    assert not (tmp_path / "checkpoint").exists()
    codes, errors, two = work("fit", tmp_path, 2)
    assert codes == [0, 0], errors
    expected = fit_sweep(data, [1, 3], **options)
    for k, fit in expected.items():
        heads, bounds, first = two[0][str(k)]
        assert two[1][str(k)][:2] == [heads, bounds]  # to the bit
        np.testing.assert_allclose(heads, fit.heads_, atol=1e-5)
        np.testing.assert_allclose(one[k].heads_, fit.heads_, atol=1e-5)
        assert bounds[-1] == pytest.approx(fit.lower_bound_, rel=1e-11)
        assert one[k].lower_bound_ == pytest.approx(fit.lower_bound_, rel=1e-11)
        np.testing.assert_allclose(first + two[1][str(k)][2], fit.responsibilities_, atol=1e-5)


@pytest.mark.usefixtures("no_moves")
def test_two_processes_choose_what_one_chooses(tmp_path):
    data = weighted("sets")
    stored(tmp_path / "store", data)
    codes, errors, found = work("select", tmp_path, 2)
    assert codes == [0, 0], errors
    assert found[0] == found[1]
    one = select_groups(data, [1, 2], n_init=1, n_folds=2, random_state=0, l2=1.0)
    assert (found[0]["best"], found[0]["reason"]) == (one.best_, one.reason_)
    for a, b in zip(found[0]["results"], one.results_, strict=True):
        assert a.pop("control_gain") == pytest.approx(b.pop("control_gain"), rel=1e-6, abs=1e-9)
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


# ---- memory

# Not getrusage's ru_maxrss: a process inherits that of the one that started it.
MEASURE = """
import re, sys
from maxmin_rlhf import PreferenceMixture, PreferenceStore
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
options = {"n_init": 1, "random_state": 0, "max_iter": 3}
PreferenceMixture(2, **options).fit(PreferenceStore(sys.argv[1]))  # code, threads, the allocator's own
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew: imports may have had a higher one
before = peak()
store = PreferenceStore(sys.argv[2], block_bytes=int(sys.argv[3]))
PreferenceMixture(2, **options).fit(store)
print(peak() - before)
"""


def test_two_blocks_are_in_memory(tmp_path):
    rng, n, block = np.random.default_rng(0), 40_000, 4 << 20
    for i in range(4):  # 4 x 20 MB
        rows = torch.from_numpy(rng.standard_normal((n, 128), dtype=np.float32))
        data = PreferenceData.from_arrays(rows, i * n + np.arange(n) // 20 * 20)
        PreferenceStore.append(tmp_path / "large", data)
        if i == 0:
            PreferenceStore.append(tmp_path / "small", data.select_annotators(np.arange(50)))
    # An allocator that keeps what it has: else memory comes back between the two fits, and counts again.
    keeps = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, **keeps, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}  # fmt: skip
    argv = [sys.executable, "-W", "ignore", "-c", MEASURE, tmp_path / "small", tmp_path / "large", str(block)]  # fmt: skip
    grown = int(subprocess.run(argv, env=environment, check=True, capture_output=True).stdout)
    n_annotators, n_heads = 4 * n // 20, 8
    other = 8 * n_annotators * (n_heads + 8) + 8 * n_heads * 128 * 64
    assert block < grown < 2 * block + other + (4 << 20)  # of 82 MB


# ---- reading


def test_ahead_of_the_work_and_out_of_the_cache(tmp_path, monkeypatch):
    """Each byte is read once a pass, in order, and what is beyond the cache's share is given back."""
    data = planted(0, 2, n_annotators=50).data
    advised, read = [], []
    monkeypatch.setattr(row_files, "CACHE_SHARE", 0.0)
    advise, fill = row_files._advise, row_files.RowFiles._fill
    monkeypatch.setattr(row_files, "_advise", lambda *a: (advised.append(a), advise(*a)))
    monkeypatch.setattr(row_files.RowFiles, "_fill", lambda self, part, offset, target: (read.append((part, offset, len(target))), fill(self, part, offset, target))[1])  # fmt: skip
    store = stored(tmp_path, data, 100 * ONE)
    for block in store.blocks():
        assert block.data.n_rows <= 100
    assert read == sorted(read) and sum(size for _, _, size in read) == 1000 * ONE
    dropped = [size for _, _, size, advice in advised if advice == "POSIX_FADV_DONTNEED"]
    assert dropped == [size for _, _, size in read]


def test_passes_that_overlap_have_buffers_of_their_own(tmp_path):
    store = stored(tmp_path, planted(0, 2, n_annotators=50).data, 100 * ONE)
    whole = store.load().features
    for a, b in zip(store.blocks(), store.blocks(), strict=True):
        assert a.data.features.data_ptr() != b.data.features.data_ptr()
        assert torch.equal(a.data.features, b.data.features)
    next(store.blocks())  # and that is all
    assert torch.equal(store.load().features, whole)


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    store = stored(tmp_path, planted(0, 2, n_annotators=50).data, 100 * ONE)
    path = tmp_path / "shard-00001.safetensors"
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(OSError, match=r"shard-00001.safetensors: expected .* more bytes at .*, the file ends"):  # fmt: skip
        Objective.of(store)(some_bank())


# ---- what is refused


def items(folder, data):
    PreferenceStore.append(folder, planted(0, form="items").data)


def ids(folder, data):
    PreferenceStore.append(folder, PreferenceData.from_arrays(data.features, [(i,) for i in range(data.n_rows)]))  # fmt: skip


def narrower(folder, data):
    PreferenceStore.append(folder, data)
    PreferenceStore.append(folder, PreferenceData.from_arrays(np.ones((1, 2)), [99]))


def again(folder, data):
    PreferenceStore.append(folder, data)
    PreferenceStore.append(folder, data)


def unchecked(folder, data):
    with ShardWriter(folder, {}, 5, "float64") as writer:
        writer._check_annotators = lambda annotators: None
        writer.add(data)
        writer.add(data.select_annotators(np.arange(2)))
    PreferenceStore(folder)


def nothing(folder, data):
    PreferenceStore(folder)


def empty(folder, data):
    with StoreWriter(folder, {}, 5, "float32"):
        pass
    PreferenceStore(folder)


def small_block(folder, data):
    PreferenceStore.append(folder, data)
    PreferenceStore(folder, block_bytes=0)


def odd_block(folder, data):
    PreferenceStore.append(folder, data)
    PreferenceStore(folder, block_bytes=1e6)


def short(folder, data):
    PreferenceStore.append(folder, data)
    path = folder / "shard-00000.safetensors"
    os.truncate(path, path.stat().st_size - 3)
    PreferenceStore(folder)


def strange(folder, data):
    PreferenceStore.append(folder, data)
    PreferenceStore(folder).select_annotators([2, 10])


def short_mask(folder, data):
    PreferenceStore.append(folder, data)
    PreferenceStore(folder).select_comparisons(np.ones(3, bool))


def part_of_them(folder, data):
    PreferenceStore.append(folder, data)
    PreferenceStore(folder).select_comparisons(np.arange(data.n_comparisons) > 3).load()


def as_if_in_memory(folder, data):
    PreferenceStore.append(folder, data)
    _ = PreferenceStore(folder).features


def without_items(folder, data):
    PreferenceStore.append(folder, data)
    swap_judgments(PreferenceStore(folder))


def backwards(folder, data):
    PreferenceStore.append(folder, data)
    PreferenceStore(folder).select_annotators([2, 1])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (items, ValueError, "data: expected rows of differences .* got a table of items"),
        (ids, TypeError, r"annotators: expected strings or whole numbers, got tuple \(\(0,\)\)"),
        (narrower, ValueError, "n_features: 5 in the store, 2 now"),
        (again, ValueError, "annotators: expected new ones, got 0, who is in .*store already"),
        (unchecked, ValueError, "expected every annotator in one place, got 0 in several"),
        (
            nothing,
            FileNotFoundError,
            "no preference store there .* PreferenceStore.append makes one",
        ),
        (empty, ValueError, "expected the index of a preference store"),
        (small_block, ValueError, "block_bytes: expected at least 1, got 0"),
        (odd_block, TypeError, "block_bytes: expected a whole number, got float"),
        (short, ValueError, "expected .* bytes, got .* truncated or changed"),
        (strange, ValueError, r"which: expected indices in \[0, 10\), got 10"),
        (short_mask, ValueError, r"mask: expected \(200,\) booleans, got \(3,\) of dtype bool"),
        (part_of_them, ValueError, "load: expected all comparisons of the annotators"),
        (as_if_in_memory, AttributeError, r"on disk; load\(\) brings a part of it into memory"),
        (without_items, ValueError, "data: expected a store with items"),
        (backwards, ValueError, "which: expected ascending positions"),
    ],
)
def test_refused(tmp_path, change, error, says):
    data = planted(0, 2, n_annotators=10).data
    with pytest.raises(error, match=says):
        change(tmp_path / "store", data)


def test_an_annotator_added_in_parts_is_one(tmp_path):
    data = planted(0, 2, n_annotators=3).data
    for rows, who in ((slice(0, 30), [0] * 20 + [1] * 10), (slice(30, 50), [1] * 10 + [2] * 10)):
        PreferenceStore.append(tmp_path, PreferenceData.from_arrays(data.features[rows], who))
    store = PreferenceStore(tmp_path)
    assert store.annotators_.tolist() == [0, 1, 2] and store.load().indptr.tolist() == [0, 20, 40, 50]  # fmt: skip
    assert torch.equal(store.load().features, data.features[:50])


def those(data, rows, who):
    return PreferenceData.from_arrays(data.features[: len(who)][rows], np.array(who)[rows])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_nobody_is_added_twice(tmp_path, elsewhere):
    data, who = planted(0, 2, n_annotators=3).data, [f"a{i // 10}" for i in range(50)]
    store, other = tmp_path / "store", tmp_path / "other"
    parts = [those(data, slice(0, 25), who), those(data, slice(25, 30), who), those(data, slice(30, 50), who)]  # fmt: skip

    strangers = itertools.count()

    def refused(added, says):
        if elsewhere:  # what this process knows is of another store
            PreferenceStore.append(other, PreferenceData.from_arrays(data.features[:1], [next(strangers)]))  # fmt: skip
        files = {path: path.read_bytes() for path in store.iterdir()}
        with pytest.raises(ValueError, match=says):
            PreferenceStore.append(store, added)
        assert files == {path: path.read_bytes() for path in store.iterdir()}

    for n, added in enumerate(parts):
        PreferenceStore.append(store, added)
        # The loop is run again, or from somewhere in its middle.
        refused(parts[0], "annotators: expected new ones, got 'a0'")
        if n == 1:  # the last annotator may go on, but not with the same
            refused(parts[1], "got those of shard-00001.safetensors again")
        if n == 2:
            refused(parts[1], "annotators: expected new ones, got 'a2'")
    # The last one goes on after a new one: he would be in two places.
    mixed = PreferenceData.from_arrays(data.features[:2], ["new", "a4"])
    refused(mixed, "annotators: expected new ones, got 'a4'")
    assert PreferenceStore(store).load().indptr.tolist() == [0, 10, 20, 30, 40, 50]


def test_a_store_made_anew_knows_nobody(tmp_path):
    data = planted(0, 2, n_annotators=3).data
    PreferenceStore.append(tmp_path / "store", data)
    (tmp_path / "store").rename(tmp_path / "old")
    PreferenceStore.append(tmp_path / "store", data)
    with pytest.raises(ValueError, match="annotators: expected new ones"):
        PreferenceStore.append(tmp_path / "old", data)


def test_what_a_fit_reads(tmp_path, monkeypatch):
    """A pass a round, two for the curvatures, one for the starts (of 512 annotators at most: here all)."""
    data = planted(0, 2, n_annotators=30).data
    store, read, calls = stored(tmp_path, data, 100 * ONE), [0], [0]
    rows, call = row_files.RowFiles.read, Objective.__call__

    def counted(self, first, count, into):
        read[0] += count
        rows(self, first, count, into)

    def passes(self, *args, **kwargs):
        calls[0] += 1
        return call(self, *args, **kwargs)

    monkeypatch.setattr(row_files.RowFiles, "read", counted)
    monkeypatch.setattr(Objective, "__call__", passes)
    found = fit_sweep(store, [1, 2], n_init=2, random_state=0)
    assert calls[0] > found[2].n_iter_ and read[0] == data.n_rows * (calls[0] + 3)
    read[0] = calls[0] = 0
    fit_sweep(data, [1, 2], n_init=2, random_state=0)
    assert read[0] == 0 and calls[0] > 0


@pytest.mark.interp
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_blocks_on_the_devices_kernels(tmp_path, form):
    """In Triton's interpreter; parts of an annotator and one without comparisons, too."""
    data, bank = weighted(form, np.float32, 12), some_bank()
    store = stored(tmp_path, data, 300)
    with mk.backend("triton"):
        found = Objective.of(store)(bank, with_resp=True)
    expected = Objective.of(data)(bank)
    for name in ("value", "gradient", "mass", "log_resp"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)  # fmt: skip

"""Two buffers and a thread: each part comes out as it was read, also where a device copies and works as late as it may."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch

from maxmin_rlhf.data import read_ahead
from maxmin_rlhf.data.read_ahead import ReadAhead

SIZE, PARTS = 64, list(range(9))
CPU = torch.device("cpu")


def read(part, into):
    size = SIZE - part
    into[:size] = part + 1
    return size


class LateStream:
    """Work in order, done when somebody waits for it and not before."""

    def __init__(self, device=None):
        self.work, self.done = [], 0

    def run(self, end):
        while self.done < end:
            work, self.done = self.work[self.done], self.done + 1
            work()

    def wait_event(self, event):
        at = event.at  # as it was recorded now, not later
        if at is not None:
            self.work.append(lambda: at[0].run(at[1]))


class LateEvent:
    at = None

    def record(self, stream):
        self.at = (stream, len(stream.work))

    def synchronize(self):
        if self.at is not None:
            self.at[0].run(self.at[1])


class LateCuda:
    """What `ReadAhead` uses of ``torch.cuda``, on a device that puts everything off."""

    Stream, Event = LateStream, LateEvent

    def __init__(self):
        self.main, self.local = LateStream(), threading.local()

    def current_stream(self, device=None):
        return getattr(self.local, "stream", self.main)

    @contextmanager
    def stream(self, stream):
        self.local.stream = stream
        yield
        del self.local.stream


class LateBuffer:
    """A buffer of that device."""

    def __init__(self, cuda, data):
        self.cuda, self.data = cuda, data

    def __getitem__(self, where):
        return LateBuffer(self.cuda, self.data[where])

    def copy_(self, other, non_blocking):
        assert non_blocking
        self.cuda.current_stream().work.append(lambda: self.data.copy_(other))


class LateAcross(read_ahead._Across):
    def __init__(self, size, device, cuda):
        super().__init__(size, device, cuda)
        self.there = LateBuffer(cuda, self.there)


def on_the_late_device():
    """What its work sees of each part."""
    cuda, seen = LateCuda(), []
    ahead = ReadAhead(SIZE, CPU, cuda)
    for _, here in ahead(PARTS, read):
        cuda.main.work.append(lambda data=here.data: seen.append(data.clone()))
    cuda.main.run(len(cuda.main.work))
    return [(len(data), set(data.tolist())) for data in seen]


EXPECTED = [(SIZE - part, {part + 1}) for part in PARTS]


def test_on_the_cpu():
    found = [(len(data), set(data.tolist())) for _, data in ReadAhead(SIZE, CPU)(PARTS, read)]
    assert found == EXPECTED


def test_on_a_device_that_is_late(monkeypatch):
    monkeypatch.setattr(read_ahead, "_Across", LateAcross)
    assert on_the_late_device() == EXPECTED


def without_waiting_for_the_copy(self):
    return self.there[: self.used]


def without_a_note_of_the_work(self):
    pass


def without_waiting_for_the_host(self, how, part):
    self.used = how(part, self.host)
    with self.cuda.stream(self.stream):
        self.stream.wait_event(self.worked)
        self.there[: self.used].copy_(self.host[: self.used], non_blocking=True)
        self.copied.record(self.stream)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("here", without_waiting_for_the_copy),
        ("done", without_a_note_of_the_work),
        ("fill", without_waiting_for_the_host),
    ],
)
def test_each_of_the_three_orders_is_needed(monkeypatch, name, wrong):
    monkeypatch.setattr(LateAcross, name, wrong)
    monkeypatch.setattr(read_ahead, "_Across", LateAcross)
    assert on_the_late_device() != EXPECTED


def test_the_next_part_is_read_while_one_is_worked_on():
    reading = threading.Event()

    def slow(part, into):
        if part == 1:
            reading.set()
        return read(part, into)

    parts = ReadAhead(SIZE, CPU)(PARTS, slow)
    next(parts)
    assert reading.wait(10)


def test_what_reading_raises_is_raised():
    def broken(part, into):
        if part == 3:
            raise OSError("the disk is gone")
        return read(part, into)

    ahead, seen = ReadAhead(SIZE, CPU), []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(part for part, _ in ahead(PARTS, broken))
    assert [(len(data), set(data.tolist())) for _, data in ahead(PARTS, read)] == EXPECTED


def test_nothing_to_read():
    assert list(ReadAhead(SIZE, CPU)([], read)) == []


@pytest.mark.gpu
def test_on_a_gpu():
    ahead = ReadAhead(1 << 20, torch.device("cuda"))

    def fill(part, into):
        into[:] = part
        return len(into)

    for _ in range(3):
        sums = []
        for _, data in ahead(range(40), fill):
            assert data.is_cuda
            sums.append(data.long().sum())
        assert [int(s) >> 20 for s in sums] == list(range(40))


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["pairs", "sets"])
def test_a_fit_of_a_store_on_a_gpu(tmp_path, form):
    from maxmin_rlhf import PreferenceMixture, PreferenceStore
    from tests.rlhf.panels import planted

    data = planted(2, 3, form=form, n_annotators=60, per_annotator=12, sharpness=1.5).data
    PreferenceStore.append(tmp_path, data)
    store = PreferenceStore(tmp_path, block_bytes=4000)
    options = {"n_init": 2, "random_state": 0}
    found = PreferenceMixture(3, device="cuda", **options).fit(store)
    expected = PreferenceMixture(3, **options).fit(data)
    assert found.lower_bound_ == pytest.approx(expected.lower_bound_, rel=1e-9)

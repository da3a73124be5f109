"""A model of every barrier and buffer of the CUDA EM pass, under random interleaving.

Agents are the warps of each CTA of a cluster. Boxes of features, descriptors and pushes land in any order after any delay.
An mbarrier has a phase, pending arrivals and a byte count that may go below zero; who waits sees the parity only. Checked:
nobody waits for ever; no buffer is overwritten, not even by a write merely issued, before its last reader; each read sees the
tile it means; each arrival and each byte counts in the phase it was meant for; each wait passes in exactly its phase.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


class ProtocolError(Exception):
    """What the kernel's protocol must exclude."""


def check(ok: bool, what: str) -> None:
    if not ok:
        raise ProtocolError(what)


Wait = Iterator[Callable[[], bool] | None]


class Barrier:
    """An mbarrier."""

    def __init__(self, count: int, name: str) -> None:
        self.count = self.pending = count
        self.bytes = self.phase = 0
        self.name = name

    def _turn(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.count

    def arrive(self, phase: int, n_bytes: int = 0) -> None:
        check(self.phase == phase, f"arrival for phase {phase} of {self.name} in {self.phase}")
        self.bytes += n_bytes
        self.pending -= 1
        check(self.pending >= 0, f"{self.name}: too many arrivals")
        self._turn()

    def landed(self, phase: int, n_bytes: int) -> None:
        check(self.phase == phase, f"bytes for phase {phase} of {self.name} in {self.phase}")
        self.bytes -= n_bytes
        self._turn()

    def passes(self, phase: int) -> bool:
        return bool((self.phase ^ phase) & 1)

    def wait(self, phase: int) -> Wait:
        yield lambda: self.passes(phase)
        check(self.phase == phase + 1, f"wait for phase {phase} of {self.name}: {self.phase}")


class Meeting:
    """A named barrier of some warps."""

    def __init__(self, n: int) -> None:
        self.n, self.arrived, self.generation = n, 0, 0

    def sync(self) -> Wait:
        generation = self.generation
        self.arrived += 1
        if self.arrived == self.n:
            self.arrived = 0
            self.generation += 1
        yield lambda: self.generation != generation


class Buffer:
    """Memory that is written once and then read a known number of times."""

    def __init__(self, name: str) -> None:
        self.name, self.what, self.reads, self.in_flight = name, -1, 0, False

    def issue(self) -> None:
        clean = self.reads == 0 and not self.in_flight
        check(clean, f"{self.name} ({self.what}) overwritten with {self.reads} reads to come")
        self.in_flight = True

    def land(self, what: int, reads: int) -> None:
        check(self.reads == 0, f"{self.name} overwritten")
        self.in_flight, self.what, self.reads = False, what, reads

    def write(self, what: int, reads: int) -> None:
        self.issue()
        self.land(what, reads)

    def read(self, what: int) -> None:
        seen = self.what == what and not self.in_flight
        check(seen, f"{self.name}: {what} expected, {self.what} found")
        self.reads -= 1


@dataclass
class Sizes:
    """CTAs, warps, warps of the posterior, slots, descriptors, inboxes, tiles."""

    ctas: int = 3
    warps: int = 3
    head_warps: int = 2
    slots: int = 6
    descriptors: int = 4
    inboxes: int = 2
    tiles: int = 9


class Cta:
    def __init__(self, c: int, s: Sizes) -> None:
        warps, ctas, boxes = range(s.warps), range(s.ctas), range(s.inboxes)
        self.full = [[Barrier(1, f"full {k} {w} of CTA {c}") for w in warps] for k in range(s.slots)]  # fmt: skip
        self.described = [Barrier(1, f"described {m} of CTA {c}") for m in range(s.descriptors)]
        self.got = [Barrier(1, f"got {e} of CTA {c}") for e in boxes]
        self.everybody, self.heads = Meeting(s.warps), Meeting(s.head_warps)
        self.box = [[Buffer(f"box {c} {k} {w}") for w in warps] for k in range(s.slots)]
        self.tile = [Buffer(f"descriptor {c} {m}") for m in range(s.descriptors)]
        self.partial = [Buffer(f"partial margins {c} {w}") for w in warps]
        self.inbox = [[[Buffer(f"inbox {c} {e} from {p}.{w}") for w in warps] for p in ctas] for e in boxes]  # fmt: skip
        self.coef = [[Buffer(f"coefficients {c} {e} {w}") for w in range(s.head_warps)] for e in (0, 1)]  # fmt: skip
        for got in self.got:
            got.arrive(0, s.ctas * s.warps)


class Cluster:
    """One cluster's run; ``fault`` plants an error."""

    def __init__(self, seed: int, sizes: Sizes, overlap: bool, fault: str) -> None:
        self.random, self.s, self.overlap, self.fault = random.Random(seed), sizes, overlap, fault
        self.in_flight: list[Callable[[], None]] = []
        self.ctas = [Cta(c, sizes) for c in range(sizes.ctas)]

    def fly(self, buffer: Buffer, what: int, reads: int, barrier: Barrier, phase: int) -> None:
        def land() -> None:
            buffer.land(what, reads)
            barrier.landed(phase, 1)

        buffer.issue()
        self.in_flight.append(land)

    def fill(self, c: int, unit: int, w: int) -> None:
        k, phase = unit % self.s.slots, unit // self.s.slots
        barrier = self.ctas[c].full[k][w]
        barrier.arrive(phase, 1)
        self.fly(self.ctas[c].box[k][w], unit, 2, barrier, phase)

    def describe(self, c: int, i: int) -> None:
        m, phase = i % self.s.descriptors, i // self.s.descriptors
        barrier = self.ctas[c].described[m]
        barrier.arrive(phase, 1)
        self.fly(self.ctas[c].tile[m], i, 2 * self.s.warps, barrier, phase)

    def margins(self, c: int, w: int, i: int) -> Wait:
        s, cta = self.s, self.ctas[c]
        for unit in (2 * i, 2 * i + 1):
            yield from cta.full[unit % s.slots][w].wait(unit // s.slots)
            cta.box[unit % s.slots][w].read(unit)
            yield None
        cta.partial[w].write(i, s.warps)
        yield from cta.everybody.sync()
        for partial in cta.partial:
            partial.read(i)
            yield None
        e, phase = i % s.inboxes, i // s.inboxes
        for peer in self.ctas:
            self.fly(peer.inbox[e][c][w], i, s.head_warps, peer.got[e], phase)
            yield None

    def posterior(self, c: int, w: int, i: int) -> Wait:
        s, cta = self.s, self.ctas[c]
        yield from cta.described[i % s.descriptors].wait(i // s.descriptors)
        cta.tile[i % s.descriptors].read(i)
        if w < s.head_warps:
            e, phase = i % s.inboxes, i // s.inboxes
            yield from cta.got[e].wait(phase)
            if w == 0 and self.fault != "no arming":
                cta.got[e].arrive(phase + 1, s.ctas * s.warps - (self.fault == "bytes"))
            for row in cta.inbox[e]:
                for inbox in row:
                    inbox.read(i)
                    yield None
            # The annotators' sums are laid on the partial margins.
            dead = self.fault == "push first" or not any(p.reads for p in cta.partial)
            check(dead, "sums laid on partial margins that are still read")
            yield from cta.heads.sync()
            cta.coef[i % 2][w].write(i, s.warps)
            yield None
        if self.fault != "no barrier":
            yield from cta.everybody.sync()

    def gradient(self, c: int, w: int, i: int) -> Wait:
        s, cta = self.s, self.ctas[c]
        for coef in cta.coef[i % 2]:
            coef.read(i)
            yield None
        for unit in (2 * i, 2 * i + 1):
            early = self.fault == "early refill" and unit + s.slots < 2 * s.tiles
            if early:
                self.fill(c, unit + s.slots, w)
            yield None
            cta.box[unit % s.slots][w].read(unit)
            if unit % 2:
                cta.tile[i % s.descriptors].read(i)
            if unit + s.slots < 2 * s.tiles and not early:
                self.fill(c, unit + s.slots, w)
            yield None
        ahead = i + s.descriptors - (self.fault != "descriptor early")
        if w == s.warps - 1 and ahead < s.tiles:
            self.describe(c, ahead)

    def warp(self, c: int, w: int) -> Wait:
        s, cta = self.s, self.ctas[c]
        for unit in range(min(s.slots, 2 * s.tiles)):
            self.fill(c, unit, w)
            yield None
        if w == s.warps - 1:
            for i in range(min(s.descriptors - (self.fault != "descriptor early"), s.tiles)):
                self.describe(c, i)
                yield None
        yield from self.margins(c, w, 0)
        for i in range(s.tiles):
            more, unit = i + 1 < s.tiles, 2 * i + 3
            if (
                self.fault == "push first"
            ):  # the tempting overlap: the next margins before this posterior
                yield from cta.everybody.sync()
                if more:
                    yield from self.margins(c, w, i + 1)
                yield from self.posterior(c, w, i)
                yield from self.gradient(c, w, i)
                continue
            yield from self.posterior(c, w, i)
            next_box, phase = cta.full[unit % s.slots][w], unit // s.slots
            if self.overlap and more and next_box.passes(phase):
                check(next_box.phase == phase + 1, "a test of the next box was lapped")
                yield from self.margins(c, w, i + 1)
                yield from self.gradient(c, w, i)
                continue
            yield from self.gradient(c, w, i)
            if more:
                yield from self.margins(c, w, i + 1)

    def run(self) -> None:
        rnd, s = self.random, self.s
        agents = [self.warp(c, w) for c in range(s.ctas) for w in range(s.warps)]
        waits: list[Callable[[], bool] | None] = [None] * len(agents)
        speed = [rnd.random() ** 3 + 0.01 for _ in agents]  # some are far slower than others
        eager = rnd.choice([0.02, 0.3, 3])
        alive = list(range(len(agents)))
        while alive:
            ready = [a for a in alive if (wait := waits[a]) is None or wait()]
            flying = eager * len(self.in_flight)
            if self.in_flight and (not ready or rnd.random() * (flying + len(ready)) < flying):
                self.in_flight.pop(rnd.randrange(len(self.in_flight)))()
                continue
            check(bool(ready), "deadlock")
            agent = rnd.choices(ready, [speed[a] for a in ready])[0]
            try:
                waits[agent] = next(agents[agent])
            except StopIteration:
                alive.remove(agent)
        check(not self.in_flight, "writes in flight at exit")


def run(seed: int, sizes: Sizes | None = None, overlap: bool = True, fault: str = "") -> None:
    """Raises :class:`ProtocolError` when the protocol is broken."""
    Cluster(seed, sizes or Sizes(), overlap, fault).run()

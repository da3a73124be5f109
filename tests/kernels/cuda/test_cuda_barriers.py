"""The protocol of the CUDA EM pass holds under random interleaving, and planted faults are found."""

from __future__ import annotations

import pytest

from tests.kernels.cuda.barrier_model import ProtocolError, Sizes, run

HOLDS = {
    "plain": {"overlap": False},
    "overlapped": {},
    "odd ring": {"sizes": Sizes(slots=5)},
    "smallest ring": {"sizes": Sizes(slots=4)},
    "ten slots": {"sizes": Sizes(slots=10, tiles=16)},
    "two descriptors": {"sizes": Sizes(descriptors=2)},
    "two CTAs": {"sizes": Sizes(ctas=2, warps=2)},
    "every warp a head": {"sizes": Sizes(ctas=4, warps=2, tiles=6)},
    "one tile": {"sizes": Sizes(tiles=1)},
    "a push first, with four inboxes": {"fault": "push first", "sizes": Sizes(inboxes=4)},
}
BREAKS = {
    "one inbox": {"sizes": Sizes(inboxes=1)},
    "a push first": {"fault": "push first"},
    "a push first, with three inboxes": {"fault": "push first", "sizes": Sizes(inboxes=3)},
    "no barrier after the posterior": {"fault": "no barrier"},
    "a box refilled before it is read": {"fault": "early refill"},
    "fewer bytes expected than come": {"fault": "bytes"},
    "an inbox not armed": {"fault": "no arming"},
    "a descriptor too early": {"fault": "descriptor early"},
}


@pytest.mark.parametrize("name", HOLDS)
def test_holds(name):
    for seed in range(25):
        run(seed, **HOLDS[name])


@pytest.mark.parametrize("name", BREAKS)
def test_a_planted_fault_is_found(name):
    def found(seed):
        try:
            run(seed, **BREAKS[name])
        except ProtocolError:
            return True
        return False

    assert any(found(seed) for seed in range(100))

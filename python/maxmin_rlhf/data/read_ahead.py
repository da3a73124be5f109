"""One block is worked on while the next one is read: two buffers, one thread that reads, and on a device a stream that copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_Part = TypeVar("_Part")


class ReadAhead(Generic[_Part]):
    """Hands out the bytes of one part after the other; two buffers, whatever the number of parts and passes.

    Args:
        size: bytes of the longest part.
        device: where the bytes are wanted. On a CPU the buffers themselves are handed out. For CUDA they are pinned, and
            copied to two of the device's own on a stream beside the one that works.
        cuda: ``torch.cuda``, or what stands for it.
    """

    def __init__(self, size: int, device: torch.device, cuda: Any = None) -> None:
        self.size, self.device = size, device
        self._free: list[list[_Here]] = []
        self._cuda = cuda if cuda is not None or device.type != "cuda" else torch.cuda

    def __call__(
        self, parts: Sequence[_Part], read: Callable[[_Part, Tensor], int]
    ) -> Iterator[tuple[_Part, Tensor]]:
        """Each part with its bytes, uint8; they last until the next part is asked for.

        ``read(part, buffer)`` runs in the thread and returns how many bytes it read; what it raises is raised here.
        """
        slots = self._free.pop() if self._free else [self._slot(), self._slot()]
        pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        try:
            fills = [pool.submit(slots[0].fill, read, parts[0])] if parts else []
            for i, part in enumerate(parts):
                # The part before was worked on, or this one would not be asked for: its buffer is free. The thread goes on
                # with it without a word from here.
                if i + 1 < len(parts):
                    fills.append(pool.submit(slots[(i + 1) % 2].fill, read, parts[i + 1]))
                fills.pop(0).result()
                slot = slots[i % 2]
                try:
                    yield part, slot.here()
                finally:
                    slot.done()
        finally:  # a read under way ends first: nobody writes into a buffer of the free list
            pool.shutdown(wait=True, cancel_futures=True)
            self._free.append(slots)

    def _slot(self) -> _Here:
        if self._cuda is None:
            return _Here(self.size)
        return _Across(self.size, self.device, self._cuda)


class _Here:
    """A buffer of the CPU."""

    def __init__(self, size: int, pinned: bool = False) -> None:
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.used = 0

    def fill(self, read: Callable[[Any, Tensor], int], part: Any) -> None:
        self.used = read(part, self.host)

    def here(self) -> Tensor:
        """The bytes, to work on."""
        return self.host[: self.used]

    def done(self) -> None:
        """All work on them is under way."""


class _Across(_Here):
    """A pinned buffer and one of the device.

    Three orders must hold: a read waits for the copy of what was in the host's buffer before; a copy waits for the work on
    what was in the device's; work waits for the copy.
    """

    def __init__(self, size: int, device: torch.device, cuda: Any) -> None:
        super().__init__(size, pinned=device.type == "cuda")
        self.there = torch.empty(size, dtype=torch.uint8, device=device)
        self.device, self.cuda = device, cuda
        self.stream = cuda.Stream(device)
        self.copied, self.worked = cuda.Event(), cuda.Event()

    def fill(self, read: Callable[[Any, Tensor], int], part: Any) -> None:
        self.copied.synchronize()
        super().fill(read, part)
        with self.cuda.stream(self.stream):
            self.stream.wait_event(self.worked)
            self.there[: self.used].copy_(self.host[: self.used], non_blocking=True)
            self.copied.record(self.stream)

    def here(self) -> Tensor:
        self.cuda.current_stream(self.device).wait_event(self.copied)
        return self.there[: self.used]

    def done(self) -> None:
        self.worked.record(self.cuda.current_stream(self.device))

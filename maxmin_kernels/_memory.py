"""What was made of a tensor once, kept beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Memory:
    """What was made of a tensor, while it lives and is not written to."""

    def __init__(self) -> None:
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor, make: Callable[[], Any]) -> Any:
        version = 0 if tensor.is_inference() else tensor._version
        known = self._known.get(tensor)
        if known is None or known[0] != version:
            known = self._known[tensor] = (version, make())
        return known[1]

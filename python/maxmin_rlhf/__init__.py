"""Who disagrees with whom, and what is fair to all of them: preferences by annotator, mixtures of rewards, MaxMin.

Names are imported when first used, so ``import maxmin_rlhf`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxmin_rlhf.data import PreferenceData

__all__ = ["PreferenceData"]

_HOME = {"PreferenceData": "maxmin_rlhf.data"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

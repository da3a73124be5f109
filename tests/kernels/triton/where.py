"""Where the tests of the Triton backend run: interpreted on a CPU, or on a device."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
# ``pytestmark = on_triton`` at the head of a file: the same tests run in the interpreter and on a device.
on_triton = pytest.mark.gpu if DEVICE == "cuda" else pytest.mark.interp

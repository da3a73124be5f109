"""Autograd on the marginal likelihood, by L-BFGS with a strong-Wolfe line search."""

from __future__ import annotations

import torch_gradient
from torch_gradient import fit, prepare  # noqa: F401

torch_gradient.METHOD = "lbfgs"

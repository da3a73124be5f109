"""Kernels for mixtures of reward models and MaxMin welfare: the backend that trainers import."""

from maxmin_kernels.functional import *  # noqa: F403
from maxmin_kernels.functional import __all__ as _functional
from maxmin_kernels.ops import backend
from maxmin_kernels.plan import EMPlan, em_plan

__version__ = "0.1.0"
__all__ = [*_functional, "EMPlan", "backend", "em_plan"]

"""Kernels for mixtures of reward models and MaxMin welfare: the backend that trainers import."""

from maxmin_kernels.functional import (
    EMPass,
    em_pass,
    last_token_index,
    preference_margins,
    reward_heads,
)
from maxmin_kernels.ops import backend
from maxmin_kernels.plan import EMPlan, em_plan

__version__ = "0.1.0"
__all__ = [
    "EMPass",
    "EMPlan",
    "backend",
    "em_pass",
    "em_plan",
    "last_token_index",
    "preference_margins",
    "reward_heads",
]

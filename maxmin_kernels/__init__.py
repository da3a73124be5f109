"""Kernels for mixtures of reward models and MaxMin welfare: the backend that trainers import."""

from maxmin_kernels.functional import (
    DualSolution,
    EMPass,
    MaxMinReduction,
    Welfare,
    choice_shares,
    em_pass,
    last_token_index,
    maxmin_advantages,
    maxmin_dual,
    maxmin_reduce,
    mixture_log_likelihood,
    preference_margins,
    reward_heads,
    weighted_gram,
    welfare,
)
from maxmin_kernels.ops import backend
from maxmin_kernels.plan import EMPlan, em_plan

__version__ = "0.1.0"
__all__ = [
    "DualSolution",
    "EMPass",
    "EMPlan",
    "MaxMinReduction",
    "Welfare",
    "backend",
    "choice_shares",
    "em_pass",
    "em_plan",
    "last_token_index",
    "maxmin_advantages",
    "maxmin_dual",
    "maxmin_reduce",
    "mixture_log_likelihood",
    "preference_margins",
    "reward_heads",
    "weighted_gram",
    "welfare",
]

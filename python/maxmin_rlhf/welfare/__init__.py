"""Choices that are fair to all groups."""

from maxmin_rlhf.welfare.dual import evaluate_maxmin, solve_maxmin
from maxmin_rlhf.welfare.solution import Solution

__all__ = ["Solution", "evaluate_maxmin", "solve_maxmin"]

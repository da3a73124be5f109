"""Choices that are fair to all groups."""

from maxmin_rlhf.welfare.dual import Solution, evaluate_maxmin, solve_maxmin

__all__ = ["Solution", "evaluate_maxmin", "solve_maxmin"]

"""Choices that are fair to all groups."""

from maxmin_rlhf.welfare.dual import evaluate_maxmin, solve_maxmin
from maxmin_rlhf.welfare.solution import Solution
from maxmin_rlhf.welfare.weights import MaxMinWeights

__all__ = ["MaxMinWeights", "Solution", "evaluate_maxmin", "solve_maxmin"]

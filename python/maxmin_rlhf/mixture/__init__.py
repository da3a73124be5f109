"""Mixtures of reward heads over annotators: fitting, held-out scores, the choice of K."""

from maxmin_rlhf.mixture.estimator import FitWarning, PreferenceMixture, fit_sweep
from maxmin_rlhf.mixture.selection import Selection, select_groups

__all__ = ["FitWarning", "PreferenceMixture", "Selection", "fit_sweep", "select_groups"]

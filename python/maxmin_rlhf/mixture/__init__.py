"""Mixtures of reward heads over annotators: fitting, held-out scores, the choice of K."""

from maxmin_rlhf.mixture.estimator import FitWarning, PreferenceMixture
from maxmin_rlhf.mixture.selection import Selection, select_groups
from maxmin_rlhf.mixture.sweep import fit_sweep

__all__ = ["FitWarning", "PreferenceMixture", "Selection", "fit_sweep", "select_groups"]

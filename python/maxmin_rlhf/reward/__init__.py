"""Rewards of the groups: what makes them comparable."""

from maxmin_rlhf.reward.calibration import calibrate, dominance

__all__ = ["calibrate", "dominance"]

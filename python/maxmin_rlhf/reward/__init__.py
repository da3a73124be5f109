"""Rewards of the groups: what makes them comparable, and the model that has them."""

from maxmin_rlhf.reward.bank import RewardBank
from maxmin_rlhf.reward.calibration import calibrate, dominance
from maxmin_rlhf.reward.model import reward_model, save_reward_model

__all__ = ["RewardBank", "calibrate", "dominance", "reward_model", "save_reward_model"]

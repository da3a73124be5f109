"""MaxMin in TRL's trainers (``trl>=1.0,<2``): the groups' weights adapt while the policy is trained.

    trainer = MaxMinRLOOTrainer(model, bank, args=RLOOConfig(beta=0.5, ...), train_dataset=prompts)
    trainer.train()

RLOO puts the summed KL of a sequence into its reward, so its objective is (12) of docs/math.md and the certificates hold
for it. GRPO's KL is another term (and off by default): a policy of its own, not (14).
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maxmin_kernels import functional
from maxmin_rlhf.integrations import _sidecar
from maxmin_rlhf.integrations.reward_function import MaxMinReward
from maxmin_rlhf.welfare import MaxMinWeights

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        f"maxmin_rlhf.integrations.trl needs TRL: pip install 'maxmin-kernels[trl]' ({error})"
    ) from error

# What the mixin is mixed into, for the type checker.
_Trainer: Any = object

__all__ = [
    "GroupDPOTrainer",  # noqa: F822
    "MaxMinCallback",
    "MaxMinGRPOTrainer",  # noqa: F822
    "MaxMinMixin",
    "MaxMinRLOOTrainer",  # noqa: F822
    "MaxMinReward",
    "MaxMinWeights",
]

# TRL's names of what advantages are divided by, in ours. Its "group" is the samples of one prompt; its "batch" is the
# spread about the batch's mean, ours about the prompts' means, so that their offsets do not matter.
_SCALES = {"group": "prompt", "batch": "batch", "none": "none"}


class MaxMinCallback(TrainerCallback):
    """Puts the groups' weights into every checkpoint, as ``maxmin_weights.json``."""

    def __init__(self, weights: MaxMinWeights) -> None:
        self.weights = weights

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            _sidecar.write(folder, self.weights.state_dict())


class KeptWeights(_Trainer):
    """A trainer whose ``maxmin_weights`` go on from a checkpoint."""

    maxmin_weights: MaxMinWeights

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; with a checkpoint the weights go on from it too.

        Raises:
            FileNotFoundError, ValueError: the checkpoint has no weights, or those of another method or number of groups.
        """
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            self.maxmin_weights.load_state_dict(_sidecar.read(folder))
        return super().train(resume_from_checkpoint, *args, **kwargs)


class MaxMinMixin(KeptWeights):
    """What MaxMin changes in a trainer of TRL's that has ``reward_funcs`` and ``reward_weights``.

    Each reward function is a group. After generation the weights take in the rewards of all processes, which are the
    same on each, so the weights are too. Advantages are `maxmin_kernels.maxmin_advantages`: a group's rewards are
    centred at the prompt before they are weighted, and a reward that is missing (None) says nothing about its sample.

    Args:
        model: as TRL's.
        reward_funcs: K reward functions, or a `maxmin_rlhf.RewardBank`; calibrated, since a minimum over them is
            taken.
        weights: None: ``MaxMinWeights(K)``.
        args, train_dataset, ...: as TRL's. ``reward_weights`` has to be None. GRPO's ``scale_rewards`` ("batch" in our sense: the
            spread about the prompts' means) and ``multi_objective_aggregation="normalize_then_sum"`` (each group by its
            spread) are heeded.

    Attributes:
        maxmin_weights: the `MaxMinWeights`; kept in each checkpoint, and back from it with
            ``train(resume_from_checkpoint=...)``.

    Raises:
        ValueError: as many weights as reward functions are not given; a model with K labels as one reward function (TRL
            would read its first label alone); an option under which weights lose their meaning.

    Note:
        Logged beside TRL's: ``maxmin/weight/<name>``, ``maxmin/utility/<name>`` (running means), ``maxmin/worst`` and
        ``maxmin/gap``, (15) on those. ``frac_reward_zero_std`` counts prompts at which every group's rewards tie: where only the
        weighted sum does, other weights would still learn.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        *args: Any,
        weights: MaxMinWeights | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, _functions(reward_funcs), *args, **kwargs)
        n_groups = len(self.reward_funcs)
        if weights is not None and weights.n_groups != n_groups:
            raise ValueError(
                f"weights: expected {n_groups} groups, one for each reward function, got {weights.n_groups}"
            )
        names: Counter[str] = Counter(self.reward_func_names)
        name, times = names.most_common(1)[0]
        if times > 1:
            raise ValueError(
                f"reward_funcs: expected distinct names, since TRL logs by them, got {name!r} {times} times"
            )
        for option in ("reward_weights", "reward_clip_range", "normalize_advantages"):
            given = getattr(self.args, option, None)
            if given:
                raise ValueError(
                    f"args.{option}: expected none, since MaxMin's weights are of unclipped, unscaled rewards; got {given}"
                )
        if self.args.beta < 0:
            raise ValueError(f"args.beta: expected a number >= 0, got {self.args.beta}")
        self.maxmin_weights = MaxMinWeights(n_groups) if weights is None else weights
        self.reward_weights = self.maxmin_weights.weights.float()
        if hasattr(reward_funcs, "reward_functions"):
            reward_funcs.to(self.accelerator.device)
        self.add_callback(MaxMinCallback(self.maxmin_weights))
        self._group_rewards: Tensor | None = None
        self._tie_told = False

    # ---- TRL's two steps

    def _calculate_rewards(self, *args: Any) -> Tensor:
        """(B, K) rewards of all processes, as TRL's; the weights take them in."""
        rewards: Tensor = super()._calculate_rewards(*args)
        if self.model.training:
            self.maxmin_weights.update(rewards, gathered=True)
        self._group_rewards = rewards
        # What is left for TRL to compute is the advantage of the KL term alone, where it is part of the reward.
        self.reward_weights = torch.zeros(rewards.shape[1])
        return rewards

    def _generate_and_score_completions(self, *args: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(*args)
        rewards = self._group_rewards
        assert rewards is not None
        weights = self.maxmin_weights.weights.to(rewards)
        self.reward_weights, self._group_rewards = weights.cpu(), None
        training = self.model.training
        samples = self.num_generations
        if not training:
            samples = getattr(self, "num_generations_eval", samples)
        grouped = rewards.view(-1, samples, rewards.shape[1])  # [P, S, K]
        advantages = self._advantages(grouped, weights).flatten()
        kl_part = output["advantages"]
        first = self.accelerator.process_index * len(kl_part)
        mine = slice(first, first + len(kl_part))
        # A sample that nobody judged moves nothing, not even by its KL.
        judged = ~rewards[mine].isnan().all(1)
        output["advantages"] = torch.where(judged, advantages[mine] + kl_part, 0.0)
        self._log_maxmin(grouped, weights, self.accelerator.gather(output["advantages"]), training)
        return output

    def _advantages(self, grouped: Tensor, weights: Tensor) -> Tensor:
        """(P, S, K) rewards to (P, S) advantages without the KL term."""
        scaling = getattr(self.args, "scale_rewards", None)
        if scaling is None:  # RLOO
            return functional.maxmin_advantages(grouped, weights, leave_one_out=True)
        if getattr(self.args, "multi_objective_aggregation", "") == "normalize_then_sum":
            return functional.maxmin_advantages(grouped, weights, scale="group")
        return functional.maxmin_advantages(grouped, weights, scale=_SCALES[scaling])

    def _log_maxmin(
        self, grouped: Tensor, weights: Tensor, advantages: Tensor, training: bool
    ) -> None:
        """Our metrics, and those of TRL's that it computed with weights of zero."""
        metrics = self._metrics["train" if training else "eval"]
        missing = grouped.isnan()
        total = torch.where(missing, 0.0, grouped * weights).sum(-1)[~missing.all(-1)]
        metrics["reward"][-1] = float(total.mean())
        metrics["reward_std"][-1] = float(total.std()) if total.numel() > 1 else 0.0
        tied = _tied(grouped)
        metrics["frac_reward_zero_std"][-1] = float(tied.float().mean())
        if training and not self._tie_told and bool(tied.all()):
            self._tie_told = True
            warnings.warn(
                "every group gave the samples of each prompt equal rewards: nothing to learn from this batch",
                UserWarning,
                stacklevel=2,
            )
        log = self._logs["advantages"]
        for _ in range(min(len(log), len(advantages))):
            log.pop()
        log.extend(advantages.tolist())
        state = self.maxmin_weights
        worst = float(state.utilities.min())
        for name, weight, utility in zip(
            self.reward_func_names, state.weights.tolist(), state.utilities.tolist(), strict=True
        ):
            metrics[f"maxmin/weight/{name}"].append(weight)
            metrics[f"maxmin/utility/{name}"].append(utility)
        metrics["maxmin/worst"].append(worst)
        metrics["maxmin/gap"].append(float(state.weights @ state.utilities) - worst)


def _tied(grouped: Tensor) -> Tensor:
    """(P,) whether all of a prompt's samples have one reward vector, as far as there are rewards; (P, S, K)."""
    missing = grouped.isnan()
    high = torch.where(missing, -torch.inf, grouped).amax(1)
    low = torch.where(missing, torch.inf, grouped).amin(1)
    return (high - low <= 1e-8).all(-1)


def _functions(reward_funcs: Any) -> list[Callable[..., Any]] | None:
    """One callable a group; None where TRL is to take them from elsewhere."""
    if reward_funcs is None:
        return None
    if hasattr(reward_funcs, "reward_functions"):
        return list(reward_funcs.reward_functions)
    functions = list(reward_funcs) if isinstance(reward_funcs, Sequence) else [reward_funcs]
    if isinstance(reward_funcs, str):
        functions = [reward_funcs]
    for function in functions:
        labels = _labels(function)
        if labels > 1:
            raise ValueError(
                f"reward_funcs: expected models with one label, got one with {labels}, of which TRL would read the first "
                "alone; wrap it in maxmin_rlhf.RewardBank"
            )
    return functions


def _labels(function: Any) -> int:
    if isinstance(function, nn.Module):
        return int(getattr(getattr(function, "config", None), "num_labels", 1))
    path = os.path.join(function, "config.json") if isinstance(function, str) else ""
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return len(json.load(file).get("id2label", [0]))
    return 1


def __getattr__(name: str) -> Any:
    """The trainers: TRL imports slowly, and each only what belongs to it."""
    if name == "GroupDPOTrainer":
        from maxmin_rlhf.integrations import trl_dpo

        return trl_dpo.GroupDPOTrainer
    if name not in ("MaxMinGRPOTrainer", "MaxMinRLOOTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import trl

    base = getattr(trl, name.removeprefix("MaxMin"))
    doc = f"``trl.{base.__name__}`` with weights of the groups that adapt: `MaxMinMixin`."
    trainer = type(name, (MaxMinMixin, base), {"__doc__": doc, "__module__": __name__})
    globals()[name] = trainer
    return trainer

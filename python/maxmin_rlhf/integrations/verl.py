"""MaxMin in verl (0.9, its default trainers): K groups' scores become one before advantages are computed.

    VERL_USE_EXTERNAL_MODULES=maxmin_rlhf.integrations.verl python -m verl.trainer.main_ppo \\
        trainer.v1.trainer_mode=maxmin_sync '+algorithm.maxmin.groups=[happy,calm]' \\
        reward.custom_reward_function.path=my_rewards.py reward.custom_reward_function.name=compute_score ...

with, in ``my_rewards.py``, ``compute_score = GroupScores([happy, calm])``. The import registers a trainer ``maxmin_<mode>``
beside each of verl's own. What else stands under ``algorithm.maxmin`` are options of :class:`maxmin_rlhf.MaxMinWeights`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxmin_rlhf.integrations import _sidecar
from maxmin_rlhf.integrations._groups import (
    distinct,
    group_rewards,
    measures,
    named_functions,
    number,
)
from maxmin_rlhf.welfare import MaxMinWeights

try:
    v1 = importlib.import_module("verl.trainer.ppo.v1")
except ImportError as error:
    raise ImportError(
        f"maxmin_rlhf.integrations.verl needs verl 0.9 with its trainers: pip install verl ({error})"
    ) from error

__all__ = ["GroupScores", "MaxMinVerlMixin", "register"]

# What the mixin is mixed into, for the type checker.
_Trainer: Any = object
_PREFIX = "maxmin_"


class GroupScores:
    """verl's ``compute_score``: a score of each group beside ``score``, which is their mean and only for verl's own logs.

    Args:
        reward_funcs: K functions ``(prompts, completions) -> numbers or None``, or a :class:`maxmin_rlhf.RewardBank`.
        prompt: where in a row's ``extra_info`` its prompt stands, which verl does not give; None: rewards need none.

    Raises:
        ValueError: no prompt there; a reward that is neither None nor finite.
    """

    def __init__(self, reward_funcs: Any, *, prompt: str | None = None) -> None:
        self.functions, self.prompt = named_functions(reward_funcs), prompt

    def __call__(
        self,
        data_source: Any,
        solution_str: Any,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, float | None]:
        """``{"score": mean, name of each group: its reward or None}``."""
        said: Any = ""
        if self.prompt is not None:
            if self.prompt not in (extra_info or {}):
                raise ValueError(
                    f"extra_info: expected {self.prompt!r} with the prompt, got {', '.join(extra_info or {}) or 'nothing'}"
                )
            said = (extra_info or {})[self.prompt]
        rewards = group_rewards(self.functions, [said], [solution_str], ground_truth=[ground_truth])
        row: list[float] = rewards[0].tolist()
        there = [r for r in row if not math.isnan(r)]
        out: dict[str, float | None] = {"score": sum(there) / max(len(there), 1)}
        return out | {
            n: None if math.isnan(r) else r for n, r in zip(self.functions, row, strict=True)
        }


class MaxMinVerlMixin(_Trainer):
    """What MaxMin changes in a trainer of ``verl.trainer.ppo.v1``.

    The weights take in the groups' scores of a batch, once a sample, and a sample's score becomes ``Σ_k w_k r_k``. Any of verl's
    estimators follows; RLOO with ``use_kl_in_reward`` has (12) of docs/math.md as its objective. A group that did not judge
    a sample counts there as its mean at the prompt, which centring takes away.

    Attributes:
        maxmin_weights: the ``MaxMinWeights``, kept in each checkpoint as ``maxmin_weights.json``. maxmin_groups: names.

    Raises:
        ValueError: no or equal names under ``algorithm.maxmin.groups``; an option that ``MaxMinWeights`` does not have; a
            group whose score is not there, or neither None nor finite; a batch without samples; a checkpoint without
            weights, or with those of other groups.
    """

    _mode = "sync"

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        options = _plain(config.algorithm.get("maxmin", None) or {})
        argument = "algorithm.maxmin.groups"
        self.maxmin_groups = distinct(options.pop("groups", []), argument)
        try:
            self.maxmin_weights = MaxMinWeights(len(self.maxmin_groups), **options)
        except TypeError as error:
            raise ValueError(f"algorithm.maxmin: expected options of MaxMinWeights ({error})") from None  # fmt: skip
        # verl asks its configuration for the mode by name in many places.
        config.trainer.v1.trainer_mode = self._mode
        super().__init__(config, *args, **kwargs)

    # ---- verl's steps

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        queue = importlib.import_module("transfer_queue")
        which = {"keys": batch.keys, "partition_id": batch.partition_id}
        # Rewards from the rollout's workers lie in extra_fields; from a reward model between the steps, in columns.
        apart = self.reward_loop_manager.reward_loop_worker_handles is None
        names = self.maxmin_groups if apart else ["extra_fields"]
        data = queue.kv_batch_get(select_fields=["rm_scores", *names], **which)
        total = self._combined(batch, _rows(data, self.maxmin_groups, apart))
        scores = _last_token(data["rm_scores"], total)
        fields = type(data)({"rm_scores": scores}, batch_size=len(batch.keys))
        queue.kv_batch_put(fields=fields, **which)
        metrics.update(measures(self.maxmin_weights, self.maxmin_groups))
        return super()._compute_advantage(batch, metrics)

    def _combined(self, batch: Any, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """(B,) ``Σ_k w_k r_k`` of each row, 0 for padding; the weights have taken the batch in."""
        # A sample may lie in several rows, of which the last counts: keys are prompt_sample_row.
        last: dict[str, tuple[int, int]] = {}
        for at, (key, tag) in enumerate(zip(batch.keys, batch.tags, strict=True)):
            sample, index = key.rsplit("_", 1)
            if not tag.get("is_padding", False):
                last[sample] = max(last.get(sample, (-1, -1)), (int(index), at))
        if not last:
            raise ValueError("batch: expected at least one sample that is no padding, got none")
        rewards = torch.empty(len(last), len(self.maxmin_groups), dtype=torch.float64)
        for i, (sample, (_, at)) in enumerate(last.items()):
            for k, name in enumerate(self.maxmin_groups):
                if name not in rows[at]:
                    raise ValueError(
                        f"reward_extra_info: expected a score of group {name!r}, which compute_score has to return, got "
                        f"{', '.join(map(str, rows[at])) or 'nothing'}"
                    )
                rewards[i, k] = number(rows[at][name], name, f"sample {sample}")
        weights = self.maxmin_weights.update(rewards, gathered=True)
        total = filled(rewards, [sample.rsplit("_", 1)[0] for sample in last]) @ weights
        value = dict(zip(last, total.tolist(), strict=True))
        return torch.tensor([value.get(key.rsplit("_", 1)[0], 0.0) for key in batch.keys])

    # ---- checkpoints

    def _save_checkpoint(self) -> None:
        # First: verl's last act is to call the checkpoint whole.
        _sidecar.write(self._folder(), self._state())
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps:
            state = _sidecar.read(self._folder())
            if state.get("groups") != self.maxmin_groups:
                raise ValueError(
                    f"{self._folder()}: expected weights of {self.maxmin_groups}, got {state.get('groups')}"
                )
            self.maxmin_weights.load_state_dict(state)

    def _state(self) -> dict[str, Any]:
        return self.maxmin_weights.state_dict() | {"groups": self.maxmin_groups}

    def _folder(self) -> Path:
        settings = self.config.trainer
        loading = settings.get("resume_mode", None) == "resume_path"
        named = settings.get("resume_from_path", None) if loading else None
        if named and Path(named).name == f"global_step_{self.global_steps}":
            return Path(named)
        return Path(settings.default_local_dir, f"global_step_{self.global_steps}")


def filled(rewards: Tensor, prompts: Sequence[Any]) -> Tensor:
    """Rewards ``(S, K)`` with the mean of a group at the prompt where it gave none (NaN), 0 where it gave none at all."""
    number_of: dict[Any, int] = {}
    at = torch.tensor([number_of.setdefault(p, len(number_of)) for p in prompts])
    there = ~rewards.isnan()
    shape = len(number_of), rewards.shape[1]
    sums = rewards.new_zeros(shape).index_add_(0, at, rewards.nan_to_num(0.0))
    counts = rewards.new_zeros(shape).index_add_(0, at, there.to(rewards.dtype))
    return torch.where(there, rewards, (sums / counts.clamp_min(1))[at])


def _rows(data: Any, names: Sequence[str], apart: bool) -> list[dict[str, Any]]:
    """What is known of each row's groups."""
    if apart:
        known = set(data.keys())  # a TensorDict itself iterates over its rows
        there = [n for n in names if n in known]
        columns = [list(data[n]) for n in there]
        return [dict(zip(there, row, strict=True)) for row in zip(*columns, strict=True)]
    rows = list(data["extra_fields"].tolist())
    return [r.get("reward_extra_info") or {} if isinstance(r, Mapping) else {} for r in rows]


def _last_token(scores: Any, total: Tensor) -> Tensor:
    """Token-level scores, alike in shape, that are ``total (B,)`` at each row's last token."""
    if not scores.is_nested:
        out = torch.zeros_like(scores)
        out[:, -1] = total.to(out)
        return out
    offsets = scores.offsets()
    values = torch.zeros_like(scores.values())
    values[offsets[1:] - 1] = total.to(values)
    return torch.nested.nested_tensor_from_jagged(values, offsets)


def _plain(options: Any) -> Any:
    """Dicts and lists of a configuration."""
    if hasattr(options, "items"):
        return {str(key): _plain(value) for key, value in options.items()}
    if hasattr(options, "__iter__") and not isinstance(options, str):
        return [_plain(value) for value in options]
    return options


def register() -> list[str]:
    """A trainer ``maxmin_<mode>`` for each that verl knows; the import has done it.

    Returns:
        The modes' names.
    """
    known: dict[str, Any] = importlib.import_module("verl.trainer.ppo.v1.trainer_base").TRAINER_REGISTRY  # fmt: skip
    out = []
    for mode, base in list(known.items()):
        if mode.startswith(_PREFIX):
            continue
        name = _PREFIX + mode
        if name not in known:
            trainer = type(
                f"MaxMin{base.__name__}",
                (MaxMinVerlMixin, base),
                {"_mode": mode, "__module__": __name__},
            )
            v1.register_trainer(name)(trainer)
        out.append(name)
    return out


register()

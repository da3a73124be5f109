"""K groups' rewards as one reward function, for trainers that know only one: ``trl grpo --config run.yaml``.

In a module beside the configuration

    reward = MaxMinReward([happy, calm], MaxMinWeights(2), state_file="out/weights.jsonl")

and in the configuration ``reward_funcs: [my_rewards.reward]``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from maxmin_rlhf.welfare import MaxMinWeights


class MaxMinReward:
    """``Σ_k w_k r_k``, whose weights take each batch in, over all processes.

    Args:
        reward_funcs: K functions ``(prompts, completions, **columns) -> list of numbers or None``, or a
            `maxmin_rlhf.RewardBank`; centred at the prompt, since a group that gives None adds 0.
        weights: None: ``MaxMinWeights(K)``.
        state_file: a line of JSON is added after each batch, from which a resumed run goes on; None: it starts anew.
        name: under which a trainer logs it.

    Note:
        A reward function cannot tell training from evaluation: batches of either move the weights.
        `maxmin_rlhf.integrations.trl.MaxMinMixin` can, and centres by itself.

    Raises:
        ValueError: another number of weights than of functions; a function that gives another number of rewards.
    """

    def __init__(
        self,
        reward_funcs: Any,
        weights: MaxMinWeights | None = None,
        *,
        state_file: str | os.PathLike[str] | None = None,
        name: str = "maxmin",
    ) -> None:
        bank = getattr(reward_funcs, "reward_functions", reward_funcs)
        self.functions: list[Callable[..., Any]] = list(bank)
        self.weights = MaxMinWeights(len(self.functions)) if weights is None else weights
        if self.weights.n_groups != len(self.functions):
            raise ValueError(
                f"weights: expected {len(self.functions)} groups, one for each reward function, got "
                f"{self.weights.n_groups}"
            )
        self.state_file = None if state_file is None else Path(state_file)
        self.__name__ = name

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Rewards ``(B,)``; None for a completion that no group judged."""
        step = getattr(columns.get("trainer_state"), "global_step", None)
        if step and not self.weights.steps:
            self._go_on(step)
        matrix = torch.full((len(completions), len(self.functions)), math.nan, dtype=torch.float64)
        for k, function in enumerate(self.functions):
            rewards = function(prompts=prompts, completions=completions, **columns)
            if len(rewards) != len(completions):
                raise ValueError(
                    f"reward_funcs[{k}]: expected {len(completions)} rewards, got {len(rewards)}"
                )
            numbers = [math.nan if r is None else float(r) for r in rewards]
            matrix[:, k] = torch.tensor(numbers, dtype=torch.float64)
        weights = self.weights.update(self._on_device(matrix))
        self._keep(step)
        if "log_metric" in columns:
            for k, weight in enumerate(weights.tolist()):
                columns["log_metric"](f"maxmin/weight/group_{k}", weight)
        total = (matrix * weights).nansum(1).tolist()
        nobody = matrix.isnan().all(1).tolist()
        return [None if none else x for none, x in zip(nobody, total, strict=True)]

    def _on_device(self, matrix: torch.Tensor) -> torch.Tensor:
        """Where the processes can add it up: NCCL knows no CPU."""
        if dist.is_available() and dist.is_initialized() and "nccl" in dist.get_backend():
            return matrix.cuda()
        return matrix

    def _keep(self, step: int | None) -> None:
        first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        if self.state_file is None or not first:
            return
        line = json.dumps({"step": step or 0, **self.weights.state_dict()})
        if not step:  # a new run
            self.state_file.parent.mkdir(parents=True, exist_ok=True)
            self.state_file.write_text(line, encoding="utf-8")
            return
        # The line break comes first: an interruption may have cut the last line off.
        with open(self.state_file, "a", encoding="utf-8") as file:
            file.write("\n" + line)

    def _go_on(self, step: int) -> None:
        """The trainer resumed at ``step``: the weights as they were then."""
        if self.state_file is None:
            return
        kept = None
        if self.state_file.is_file():
            for line in self.state_file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line cut off
                    state = json.loads(line)
                    kept = state if state["step"] < step else kept
        if kept is None:
            raise FileNotFoundError(
                f"{self.state_file}: expected the weights of the steps before {step}, got none"
            )
        self.weights.load_state_dict(kept)

"""MaxMin in OpenRLHF (0.11): a reward function that holds the groups' weights.

In the file that ``--reward.remote_url`` names

    reward_func = MaxMinRewardFunction(bank, MaxMinWeights(2), state_file="out/weights.json", update_every=128)

with ``update_every`` the number of samples of a rollout batch. OpenRLHF calls it one sample at a time, from many threads of many
processes, each of which has loaded the file: what they share is the state file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxmin_rlhf.integrations._groups import fitting, group_rewards, measures, named_functions
from maxmin_rlhf.welfare import MaxMinWeights

__all__ = ["MaxMinRewardFunction"]

_FORMAT = 1
# Fewer characters (blanks aside) of a prompt's end could stand at a query's beginning by chance.
_LEAST_PROMPT = 16


class MaxMinRewardFunction:
    """``reward_func(queries, prompts, labels) -> {"rewards", "scores", "extra_logs"}`` with ``Σ_k w_k r_k``.

    Scores add up over all callers; after ``update_every`` samples the weights take their means in, and start the next
    sum. The state file is replaced whole, under a lock on a file beside it.

    Args:
        reward_funcs: K functions ``(prompts, completions) -> numbers or None``, or a :class:`maxmin_rlhf.RewardBank`;
            centred at the prompt, since a group that gives None adds 0.
        weights: None: ``MaxMinWeights(K)``. Theirs is the state of a run that begins; one whose state file is there goes
            on from that.
        state_file: on a file system that all processes share.
        update_every: samples between two updates.
        end_marks: cut off a completion's end before it is judged: queries come with special tokens.

    Raises:
        ValueError, TypeError: another number of weights than of functions; queries and prompts of different lengths, or
            none; a reward that is neither None nor finite; a state file that is damaged or of other groups.

    Note:
        OpenRLHF logs an error of a reward function and goes on without the reward: look for "Failed to fetch reward". It tells
        neither step nor evaluation: rollouts of either move the weights, and a run resumed from a checkpoint goes on
        with the newest weights, not those of the checkpoint's step.
    """

    def __init__(
        self,
        reward_funcs: Any,
        weights: MaxMinWeights | None = None,
        *,
        state_file: str | os.PathLike[str],
        update_every: int = 128,
        end_marks: Sequence[str] = (),
    ) -> None:
        if update_every < 1:
            raise ValueError(f"update_every: expected at least 1, got {update_every}")
        self.functions = named_functions(reward_funcs)
        self.names = list(self.functions)
        self.weights = fitting(weights, self.names)
        self.state_file, self.update_every = Path(state_file), update_every
        self.end_marks = [end_marks] if isinstance(end_marks, str) else list(end_marks)
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():  # a file of other groups is found out at once
            self._read()

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]
    ) -> dict[str, Any]:
        """Rewards of B samples; ``queries`` are prompts with completions.

        Returns:
            ``rewards`` and ``scores (B,)`` float32, ``extra_logs`` a dict of ``(B,)`` tensors: NaN for a group's None.
        """
        for name, given in (("prompts", prompts), ("labels", labels)):
            if len(given) != len(queries):
                raise ValueError(f"{name}: expected {len(queries)}, one a query, got {len(given)}")
        said = [self._completion(q, p) for q, p in zip(queries, prompts, strict=True)]
        rewards = group_rewards(self.functions, list(prompts), said, labels=list(labels))
        with self._locked():
            weights, logs = self._take_in(rewards)
        total = (rewards.nan_to_num(0.0) @ weights).float()
        columns = zip(self.names, rewards.T.float(), strict=True)
        extra = {f"maxmin/reward/{name}": column for name, column in columns}
        extra |= {name: torch.full_like(total, value) for name, value in logs.items()}
        return {"rewards": total, "scores": total.clone(), "extra_logs": extra}

    def _completion(self, query: str, prompt: str) -> str:
        said = query.removeprefix(prompt)
        if said == query and prompt:
            start = _after(query, prompt)
            if start is None:
                raise ValueError(
                    f"queries: expected one that begins with its prompt, got {query[:60]!r}"
                )
            said = query[start:]
        while marks := [mark for mark in self.end_marks if mark and said.endswith(mark)]:
            said = said.removesuffix(marks[0])
        return said

    # ---- what the processes share

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        # Opened anew each time: threads then shut each other out, too.
        with open(f"{self.state_file}.lock", "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _take_in(self, rewards: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The weights that hold for these rewards (B, K), and what to log of them."""
        sums, counts, samples = self._read()
        weights, logs = self.weights.weights.clone(), measures(self.weights, self.names)
        sums = sums + rewards.nan_to_num(0.0).sum(0)
        counts = counts + (~rewards.isnan()).sum(0)
        samples += len(rewards)
        if samples >= self.update_every:
            means = torch.where(counts > 0, sums / counts.clamp_min(1), math.nan)
            self.weights.update(means[None], gathered=True)
            sums, counts, samples = torch.zeros_like(sums), torch.zeros_like(counts), 0
        state = {
            "format": _FORMAT,
            "groups": self.names,
            "weights": self.weights.state_dict(),
            "sums": sums.tolist(),
            "counts": counts.tolist(),
            "samples": samples,
        }
        temporary = self.state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        temporary.replace(self.state_file)
        return weights, logs

    def _read(self) -> tuple[Tensor, Tensor, int]:
        """Sums and counts ``(K,)`` since the last update, samples; the weights are those of the file."""
        if not self.state_file.exists():
            zeros = torch.zeros(len(self.names), dtype=torch.float64)
            return zeros, zeros.clone(), 0
        try:
            state = json.loads(self.state_file.read_text(encoding="utf-8"))
            groups, version = state["groups"], state["format"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.state_file}: expected weights, got a damaged file ({error!r})") from None  # fmt: skip
        if version != _FORMAT or groups != self.names:
            raise ValueError(
                f"{self.state_file}: expected format {_FORMAT} of groups {self.names}, got {version} of {groups}"
            )
        self.weights.load_state_dict(state["weights"])
        sums, counts = (torch.tensor(state[n], dtype=torch.float64) for n in ("sums", "counts"))
        return sums, counts, int(state["samples"])


def _after(query: str, prompt: str) -> int | None:
    """Where in a query its prompt ends, None if it is not there.

    OpenRLHF decodes what it has encoded: tokenizers make and drop blanks on that way, and too long a prompt is cut from
    the left.
    """
    at = [i for i, c in enumerate(query) if not c.isspace()]
    written, wanted = "".join(query.split()), "".join(prompt.split())
    for cut in range(len(wanted) - min(len(wanted), _LEAST_PROMPT) + 1):
        if written.startswith(wanted[cut : cut + _LEAST_PROMPT]) and written.startswith(wanted[cut:]):  # fmt: skip
            end = at[len(wanted) - cut - 1] + 1 if wanted else 0
            blanks = prompt[len(prompt.rstrip()) :]
            return end + len(blanks) if query.startswith(blanks, end) else end
    return None

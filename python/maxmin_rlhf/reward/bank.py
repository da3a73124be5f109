"""RewardBank: texts in, K groups' rewards out, from one forward pass."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxmin_rlhf.pooling import padded
from maxmin_rlhf.reward import scoring
from maxmin_rlhf.reward.calibration import calibrate
from maxmin_rlhf.reward.model import export_heads, head_of, save_reward_model, settings

_ZEROS = "maxmin_zeros.json"


class RewardBank:
    """K named rewards of a completion, read by K heads from one pass through their trunk.

    Args:
        model: from `maxmin_rlhf.reward.reward_model`, or the like loaded by transformers.
        tokenizer: its own.
        batch_size: texts a pass.
        device: None: where the model is.

    Attributes:
        names: of the groups. n_groups: K.
        reward_functions: K functions for TRL's ``reward_funcs``, named as the groups. However many are called with one
            list of completions, the model runs once; after a training step, or for texts that changed, again.
        zeros: ``{prompt: (K,) list}`` of `calibrate`.

    Raises:
        ValueError: a model without the entry ``maxmin`` in its configuration, or without a linear head.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 32,
        device: str | torch.device | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.settings, self.head = settings(model), head_of(model)
        self.model = (model if device is None else model.to(device)).eval()
        self.tokenizer, self.batch_size = copy.deepcopy(tokenizer), batch_size
        # A long prompt loses its beginning, never the completion.
        self.tokenizer.truncation_side = "left"
        self.n_groups = int(self.head.out_features)
        self.names = [str(model.config.id2label[k]) for k in range(self.n_groups)]
        self.zeros: dict[str, list[float]] = {}
        self._last: tuple[Any, Tensor] | None = None  # what was asked, and the answer
        self.reward_functions = [self._function(k) for k in range(self.n_groups)]

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **options: Any) -> RewardBank:
        """What `save` or `maxmin_rlhf.reward.save_reward_model` wrote; options as of the class."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = AutoModelForSequenceClassification.from_pretrained(folder)
        bank = cls(model, AutoTokenizer.from_pretrained(folder), **options)
        path = Path(folder, _ZEROS)
        if path.is_file():
            bank.zeros = json.loads(path.read_text("utf-8"))
        return bank

    def to(self, device: str | torch.device) -> RewardBank:
        """Move the model; a trainer of `maxmin_rlhf.integrations.trl` does so by itself."""
        self.model.to(device)
        return self

    # ---- rewards

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> Tensor:
        """Calibrated rewards ``(B, K)``, float32 on the CPU.

        Args:
            prompts, completions: B strings each, or B lists of messages each.

        Raises:
            ValueError: as many prompts as completions are not given; a text without tokens; a reward that is not finite,
                naming its group and completion.
        """
        asked = self._asked(prompts, completions)
        last = self._last  # looked up once: another thread may be at its own completions
        if last is not None and last[0] == asked:
            return last[1].clone()
        if len(prompts) != len(completions):
            raise ValueError(
                f"prompts: expected {len(completions)}, one a completion, got {len(prompts)}"
            )
        rewards = self._raw(prompts, completions)
        scales = torch.tensor(self.settings["scales"])
        everywhere = self.settings["centers"]
        zeros = torch.tensor([self.zeros.get(_key(p), everywhere) for p in prompts])
        rewards = (rewards - zeros.view(-1, self.n_groups)) / scales
        self._last = (asked, rewards)
        return rewards.clone()  # what the caller does to his is not remembered

    def _asked(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Any:
        """What rewards follow from: the texts as they are now, and how often each parameter was written to."""
        parameters = self.model.parameters()
        state = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        return [_key(p) for p in prompts], [_key(c) for c in completions], state

    @torch.inference_mode()
    def _raw(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Tensor:
        ids = scoring.tokenize(self.tokenizer, prompts, completions, self.settings["max_length"])
        device, pad = self.model.device, self.model.config.pad_token_id or 0
        weight, bias = self.head.weight.float(), self.head.bias
        parts = [torch.empty(0, self.n_groups)]
        for first in range(0, len(ids), self.batch_size):
            tokens, mask = padded(ids[first : first + self.batch_size], device, pad)
            rewards = scoring.rewards(
                self.model.base_model,
                tokens,
                mask,
                weight,
                bias,
                pooling=self.settings["pooling"],
                normalize=self.settings["normalize"],
            )
            parts.append(rewards.float().cpu())
        whole = torch.cat(parts)
        bad = (~whole.isfinite()).nonzero()
        if len(bad):
            row, group = bad[0].tolist()
            raise ValueError(
                f"rewards: expected finite numbers, got {float(whole[row, group])} from {self.names[group]!r} for "
                f"completion {row}: {str(completions[row])[:60]!r}"
            )
        return whole

    def _function(self, k: int) -> Callable[..., list[float]]:
        def reward(
            prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
        ) -> list[float]:
            return self(prompts, completions)[:, k].tolist()

        reward.__name__ = self.names[k]
        return reward

    # ---- zero and unit

    def calibrate(self, prompts: Sequence[Any], completions: Sequence[Any]) -> RewardBank:
        """Set each reward's zero, prompt by prompt, and its unit by samples of the reference policy.

        0 is from now on what the policy gets at the prompt on average (at prompts that are not here: over all), 1 the
        group's spread about that.

        Args:
            prompts, completions: B each; the samples of one prompt need not be side by side, but as many for each.

        Returns:
            The bank itself.

        Raises:
            ValueError: a prompt with another number of samples than the first one has, or one sample only.
        """
        rows: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            rows.setdefault(_key(prompt), []).append(i)
        counts = {len(some) for some in rows.values()}
        if len(counts) != 1 or min(counts) < 2:
            raise ValueError(
                f"prompts: expected two samples or more of each, as many of each, got {sorted(counts)}"
            )
        raw = self._raw(prompts, completions).double()[torch.tensor(list(rows.values()))]
        unit = calibrate(raw).square().mean((0, 1)).sqrt()
        means = raw.mean(1)
        self.zeros = {key: mean.tolist() for key, mean in zip(rows, means, strict=True)}
        # A group that is indifferent between all samples has no unit to divide by.
        self.settings["scales"] = torch.where(unit == 0, 1.0, unit).tolist()
        self.settings["centers"] = means.mean(0).tolist()
        self._last = None
        return self

    # ---- files

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Model, tokenizer, card and zeros, for `from_pretrained`."""
        save_reward_model(self.model, self.tokenizer, folder)
        Path(folder, _ZEROS).write_text(json.dumps(self.zeros), "utf-8")

    def export_groups(self, folder: str | os.PathLike[str]) -> list[Path]:
        """K plain one-label checkpoints, ``folder/<name>``, in this bank's units.

        Raises:
            ValueError: the rewards are not read from the last token alone.
        """
        mixes = {name: torch.eye(self.n_groups)[k] for k, name in enumerate(self.names)}
        return export_heads(self.model, self.tokenizer, folder, mixes)

    def export_scalar(self, folder: str | os.PathLike[str], weights: Any) -> Path:
        """``Σ_k w_k r_k`` as a plain one-label checkpoint at ``folder``, for any trainer that knows one reward.

        Args:
            weights: ``(K,)``, those of `maxmin_rlhf.solve_maxmin` for instance, whose policy is then the optimum.
        """
        folder = Path(folder)
        mixes: Mapping[str, Any] = {folder.name: weights}
        return export_heads(self.model, self.tokenizer, folder.parent, dict(mixes))[0]


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)

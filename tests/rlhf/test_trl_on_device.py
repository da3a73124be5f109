"""A short GRPO run with model, bank and kernels on a GPU: nothing but the device is different."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import maxmin_kernels as mk
from maxmin_rlhf import MaxMinWeights, RewardBank, reward_model
from tests.rlhf.language_models import save_language_model, tokenizer
from tests.rlhf.test_trl import record, trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
ON_CPU = not torch.cuda.is_available()


def test_grpo_on_the_device(tmp_path: Path) -> None:
    policy = save_language_model(tmp_path / "policy")
    heads = np.random.default_rng(0).standard_normal((3, 16))
    bank = RewardBank(reward_model(heads, policy), tokenizer())
    made = trainer("GRPO", policy, tmp_path, bank, use_cpu=ON_CPU)
    assert bank.model.device == made.accelerator.device
    steps, seen = record(made), []
    score = bank._raw
    bank._raw = lambda *texts: seen.append(texts) or score(*texts)  # type: ignore[method-assign]
    made.train()
    assert len(steps) == len(seen) == 3
    same, alone = RewardBank(reward_model(heads, policy), tokenizer()), MaxMinWeights(3)
    for step, (prompts, completions) in zip(steps, seen, strict=True):
        assert step["rewards"].device == made.accelerator.device
        rewards = step["rewards"].cpu()
        np.testing.assert_allclose(rewards, same(prompts, completions), atol=1e-4)
        np.testing.assert_allclose(step["kept"], alone.update(rewards), rtol=1e-9)
        expected = mk.maxmin_advantages(
            rewards.view(-1, 4, 3), step["weights"].cpu(), scale="prompt"
        )
        np.testing.assert_allclose(step["advantages"].cpu(), expected.flatten(), atol=1e-4)

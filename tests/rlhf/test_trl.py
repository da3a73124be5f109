"""MaxMin in TRL's trainers: weights, advantages, resumed and parallel runs, errors. Small real models, real training."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maxmin_kernels as mk
from maxmin_rlhf import MaxMinWeights, RewardBank, reward_model
from tests.rlhf.language_models import (
    PROMPTS,
    save_language_model,
    tokenizer,
    two_groups,
    words_of,
)

pytest.importorskip("trl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Their deprecations are theirs.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_language_model(tmp_path_factory.mktemp("model"))


def trainer(
    kind: str,
    model: str,
    folder: Path,
    reward_funcs: Any = None,
    weights: MaxMinWeights | None = None,
    **options: Any,
) -> Any:
    import trl
    from datasets import Dataset

    from maxmin_rlhf.integrations import trl as ours

    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "beta": 0.1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": 3,
        "disable_tqdm": True,
    }
    made: Any = getattr(ours, f"MaxMin{kind}Trainer")
    return made(
        model,
        two_groups() if reward_funcs is None else reward_funcs,
        args=getattr(trl, f"{kind}Config")(**{**settings, **options}),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 3}),
        weights=weights,
    )


def record(made: Any) -> list[dict[str, Any]]:
    """What each generation came to: the rewards, the weights, the advantages of the whole batch."""
    steps: list[dict[str, Any]] = []
    rewards_of, generate = made._calculate_rewards, made._generate_and_score_completions

    def calculate(*args: Any) -> torch.Tensor:
        rewards = rewards_of(*args)
        steps.append({"rewards": rewards.clone()})
        return rewards

    def score(*args: Any) -> dict[str, Any]:
        output = generate(*args)
        steps[-1]["advantages"] = output["advantages"].clone()
        steps[-1]["weights"] = made.reward_weights.clone()
        steps[-1]["kept"] = made.maxmin_weights.weights.clone()
        return output

    made._calculate_rewards, made._generate_and_score_completions = calculate, score
    return steps


def parameters(made: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


# ---- what a step does


def test_rloo_trains_and_logs(model: str, tmp_path: Path) -> None:
    made = trainer("RLOO", model, tmp_path, weights=MaxMinWeights(2, tau=0.3))
    steps, before = record(made), parameters(made)
    made.train()
    assert len(steps) == 3 and not torch.equal(before, parameters(made))
    alone = MaxMinWeights(2, tau=0.3)
    for step in steps:
        expected = alone.update(step["rewards"])
        np.testing.assert_array_equal(step["kept"], expected)
        np.testing.assert_allclose(step["weights"], expected, rtol=1e-6)
    logged = [row for row in made.state.log_history if "maxmin/worst" in row]
    assert len(logged) == 3
    last = logged[-1]
    assert last["maxmin/weight/merry"] + last["maxmin/weight/grave"] == pytest.approx(1)
    utilities = [last["maxmin/utility/merry"], last["maxmin/utility/grave"]]
    assert last["maxmin/worst"] == pytest.approx(min(utilities))
    gap = last["maxmin/weight/merry"] * utilities[0] + last["maxmin/weight/grave"] * utilities[1]
    assert last["maxmin/gap"] == pytest.approx(gap - min(utilities), abs=1e-9)
    total = steps[-1]["rewards"].double() @ steps[-1]["kept"]
    assert last["reward"] == pytest.approx(float(total.mean()), rel=1e-5)
    assert last["reward_std"] == pytest.approx(float(total.std()), rel=1e-5)


@pytest.mark.parametrize("kind", ["RLOO", "GRPO"])
def test_fixed_weights_are_the_plain_trainer(kind: str, model: str, tmp_path: Path) -> None:
    """With nothing missing the advantages are TRL's own, to rounding, and so is what is learned."""
    import trl
    from datasets import Dataset

    weights = MaxMinWeights(2, "fixed", initial=[0.25, 0.75])
    made = trainer(kind, model, tmp_path, weights=weights, max_steps=2)
    made.train()
    options = {k: getattr(made.args, k) for k in ("output_dir", "num_generations", "beta", "seed")}
    config = getattr(trl, f"{kind}Config")(
        **options,
        per_device_train_batch_size=8,
        max_completion_length=6,
        max_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        reward_weights=[0.25, 0.75],
    )
    plain = getattr(trl, f"{kind}Trainer")(
        model,
        two_groups(),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 3}),
    )
    plain.train()
    np.testing.assert_allclose(parameters(made), parameters(plain), atol=2e-5)
    ours, theirs = (t.state.log_history for t in (made, plain))
    for name in ("loss", "reward", "reward_std", "rewards/merry/mean", "frac_reward_zero_std"):
        assert [r.get(name) for r in ours] == pytest.approx(
            [r.get(name) for r in theirs], abs=1e-4, nan_ok=True
        )


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"scale_rewards": "group"}, "prompt"),
        ({"scale_rewards": "none"}, "none"),
        ({"scale_rewards": "batch"}, "batch"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "group"),
    ],
)
def test_grpo_advantages(options: dict[str, Any], scale: str, model: str, tmp_path: Path) -> None:
    import dataclasses

    import trl

    known = {f.name for f in dataclasses.fields(trl.GRPOConfig)}
    if not set(options) <= known:
        pytest.skip(f"this TRL has no {next(iter(options))}")
    # One generation serves two optimiser steps: the batch is shuffled and split after we have seen it.
    made = trainer("GRPO", model, tmp_path, max_steps=2, steps_per_generation=2, **options)
    steps = record(made)
    made.train()
    assert len(steps) == 1
    for step in steps:
        expected = mk.maxmin_advantages(
            step["rewards"].view(-1, 4, 2), step["weights"], scale=scale
        )
        np.testing.assert_allclose(step["advantages"], expected.flatten(), rtol=1e-6, atol=1e-7)


def half_missing(completions: list[str], **_: Any) -> list[float | None]:
    """A group far above zero that judges every other completion."""
    return [None if i % 2 else 100.0 + len(c) for i, c in enumerate(completions)]


def test_a_missing_reward_says_nothing(model: str, tmp_path: Path) -> None:
    """TRL's sum would count it as a reward of 0, a hundred below those that are there."""
    made = trainer("RLOO", model, tmp_path, [two_groups()[0], half_missing], beta=0.0)
    steps = record(made)
    made.train()
    for step in steps:
        grouped = step["rewards"].view(-1, 4, 2)
        expected = mk.maxmin_advantages(grouped, step["weights"], leave_one_out=True)
        np.testing.assert_allclose(step["advantages"], expected.flatten(), rtol=1e-5, atol=1e-6)
        assert float(step["advantages"].abs().max()) < 20


def test_rloo_keeps_its_kl(model: str, tmp_path: Path) -> None:
    """Rewards that all tie leave the advantages of the KL term, which sum to 0 at a prompt, and give a warning."""
    ties = [words_of(set(), "one"), words_of(set(), "two")]
    made = trainer("RLOO", model, tmp_path, ties, beta=1.0)
    with torch.no_grad():
        made.model.lm_head.weight += 0.5 * torch.randn_like(made.model.lm_head.weight)
    steps = record(made)
    with pytest.warns(UserWarning, match="nothing to learn from this batch"):
        made.train()
    for step in steps:
        kl_part = step["advantages"].view(-1, 4)
        assert float(kl_part.abs().max()) > 0.1
        np.testing.assert_allclose(kl_part.sum(1), 0, atol=1e-4)
    assert all(r["frac_reward_zero_std"] == 1 for r in made.state.log_history if "reward" in r)


def opposed(sign: float, name: str) -> Any:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [sign * (i % 4) for i in range(len(completions))]

    reward.__name__ = name
    return reward


def test_ties_are_of_vectors(model: str, tmp_path: Path) -> None:
    """Opposed groups of equal weight: every sum is 0, yet no prompt ties, since other weights would tell them apart."""
    weights = MaxMinWeights(2, "fixed", initial=[1.0, 1.0])
    made = trainer(
        "GRPO", model, tmp_path, [opposed(1, "up"), opposed(-1, "down")], weights, max_steps=1
    )
    steps = record(made)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="every group gave")
        made.train()
    np.testing.assert_allclose(steps[0]["advantages"], 0, atol=1e-6)
    assert made.state.log_history[0]["frac_reward_zero_std"] == 0


# ---- interrupted, in parallel


@pytest.mark.parametrize("kind", ["RLOO", "GRPO"])
def test_a_resumed_run_is_the_same_run(kind: str, model: str, tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> Any:
        weights = MaxMinWeights(2, "optimistic", lr=0.5)
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, **options}
        return trainer(kind, model, folder, weights=weights, **options)

    whole = run(tmp_path / "whole")
    whole_steps = record(whole)
    whole.train()
    sidecar = tmp_path / "whole" / "checkpoint-2" / "maxmin_weights.json"
    assert json.loads(sidecar.read_text())["steps"] == 2
    again = run(tmp_path / "again")
    steps = record(again)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert len(steps) == 3
    for one, other in zip(steps, whole_steps[2:], strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name
    assert torch.equal(parameters(again), parameters(whole))
    assert again.maxmin_weights.state_dict() == whole.maxmin_weights.state_dict()


def test_no_going_on_without_the_weights(model: str, tmp_path: Path) -> None:
    made = trainer("RLOO", model, tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    made.train()
    (tmp_path / "checkpoint-2" / "maxmin_weights.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected the groups' weights beside"):
        trainer("RLOO", model, tmp_path).train(resume_from_checkpoint=True)


PARALLEL = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from tests.rlhf.test_trl import record, trainer
kind, model, folder = sys.argv[1:]
made = trainer(kind, model, Path(folder), per_device_train_batch_size=4, max_steps=3)
steps = record(made)
made.train()
rank = made.accelerator.process_index
assert made.accelerator.num_processes == 2
Path(folder, f"{rank}.json").write_text(json.dumps([{k: v.tolist() for k, v in s.items()} for s in steps]))
"""


def test_two_processes(model: str, tmp_path: Path) -> None:
    """A prompt's samples lie on one process or the other: rewards and weights are the same on both at every step."""
    script = tmp_path / "run.py"
    script.write_text(PARALLEL)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*launch, str(script), "RLOO", model, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        for name in ("rewards", "weights", "kept"):
            assert one[name] == other[name]
        assert len(one["rewards"]) == 8
    # At the first step the policy is the reference, so the advantages are ours alone: each process has its half.
    rewards, weights = torch.tensor(first[0]["rewards"]), torch.tensor(first[0]["weights"])
    expected = mk.maxmin_advantages(rewards.view(-1, 4, 2), weights, leave_one_out=True)
    found = first[0]["advantages"] + second[0]["advantages"]
    np.testing.assert_allclose(found, expected.flatten(), atol=1e-4)
    assert first[-1]["weights"] != first[0]["weights"]


# ---- errors


def test_clear_errors(model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights: expected 2 groups, one for each .*, got 3"):
        trainer("RLOO", model, tmp_path, weights=MaxMinWeights(3))
    with pytest.raises(ValueError, match="expected distinct names, .* got 'merry' 2 times"):
        trainer("RLOO", model, tmp_path, [two_groups()[0]] * 2)
    with pytest.raises(ValueError, match=r"args\.reward_weights: expected none"):
        trainer("GRPO", model, tmp_path, reward_weights=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"args\.normalize_advantages: expected none"):
        trainer("RLOO", model, tmp_path, normalize_advantages=True)
    with pytest.raises(ValueError, match=r"args\.beta: expected a number >= 0, got -0\.1"):
        trainer("RLOO", model, tmp_path, beta=-0.1)


def test_a_model_of_several_labels_is_refused(model: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    heads = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
    with pytest.raises(ValueError, match="expected models with one label, got one with 3"):
        trainer("RLOO", model, tmp_path, heads)
    heads.save_pretrained(tmp_path / "heads")
    with pytest.raises(ValueError, match="expected models with one label, got one with 3"):
        trainer("RLOO", model, tmp_path, str(tmp_path / "heads"))


def test_a_bank_of_other_groups(model: str, tmp_path: Path) -> None:
    bank = RewardBank(reward_model(np.eye(3, 16), model), tokenizer())
    with pytest.raises(ValueError, match="weights: expected 3 groups, one for each .*, got 2"):
        trainer("RLOO", model, tmp_path, bank, MaxMinWeights(2))
    made = trainer("RLOO", model, tmp_path, bank)
    assert made.reward_func_names == ["group_0", "group_1", "group_2"]
    with torch.no_grad():
        bank.head.weight[2] = math.nan
    with pytest.raises(ValueError, match="expected finite numbers, got nan from 'group_2'"):
        made.train()
    assert made.maxmin_weights.steps == 0


def infinite(completions: list[str], **_: Any) -> list[float]:
    return [math.inf] * len(completions)


def test_an_infinite_reward_stops_the_run(model: str, tmp_path: Path) -> None:
    made = trainer("RLOO", model, tmp_path, [two_groups()[0], infinite])
    with pytest.raises(ValueError, match="expected finite numbers, got inf for group 1"):
        made.train()
    assert made.maxmin_weights.steps == 0

"""MaxMinReward: several groups behind one function, for trainers that know one reward, and TRL's command line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from maxmin_rlhf import MaxMinWeights
from maxmin_rlhf.integrations.reward_function import MaxMinReward
from tests.rlhf.language_models import PROMPTS, save_language_model

COMPLETIONS = ["happy sun", "sad cat", "the mat"]


def merry(completions: list[str], **_: Any) -> list[float]:
    return [float("happy" in c) - 0.5 for c in completions]


def grave(completions: list[str], **_: Any) -> list[float | None]:
    return [None if "mat" in c else float("sad" in c) - 0.2 for c in completions]


def at(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step)


def test_the_weighted_sum() -> None:
    reward, alone = MaxMinReward([merry, grave]), MaxMinWeights(2)
    found = reward(prompts=["p"] * 3, completions=COMPLETIONS)
    w = alone.update([[0.5, -0.2], [-0.5, 0.8], [-0.5, math.nan]])
    np.testing.assert_allclose(
        found, [w @ torch.tensor(r).double() for r in ([0.5, -0.2], [-0.5, 0.8], [-0.5, 0.0])]
    )
    assert reward.__name__ == "maxmin"


def test_nobody_judged() -> None:
    assert MaxMinReward([grave, grave])(["p"] * 3, COMPLETIONS)[2] is None


def test_weights_are_logged() -> None:
    logged: dict[str, float] = {}
    MaxMinReward([merry, grave])(["p"] * 3, COMPLETIONS, log_metric=logged.__setitem__)
    assert sum(logged.values()) == pytest.approx(1)
    assert list(logged) == ["maxmin/weight/group_0", "maxmin/weight/group_1"]


def test_resumed_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.jsonl"
    texts = [COMPLETIONS, COMPLETIONS[:2], COMPLETIONS[:1], COMPLETIONS]
    whole = MaxMinReward([merry, grave], state_file=path)
    for step, completions in enumerate(texts):
        whole([], completions, trainer_state=at(step))
    with open(path, "a") as file:
        file.write('{"step": 2, "wei')  # cut off by the interruption
    again = MaxMinReward([merry, grave], state_file=path)
    for step in (2, 3):
        again([], texts[step], trainer_state=at(step))
    assert again.weights.state_dict() == whole.weights.state_dict()
    later = MaxMinReward([merry, grave], state_file=path)  # the file of a run that was resumed
    later([], texts[3], trainer_state=at(3))
    assert later.weights.state_dict() == whole.weights.state_dict()


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights: expected 2 groups, one for each .*, got 3"):
        MaxMinReward([merry, grave], MaxMinWeights(3))
    with pytest.raises(ValueError, match=r"reward_funcs\[1\]: expected 3 rewards, got 1"):
        MaxMinReward([merry, lambda **_: [0.0]])([], COMPLETIONS)
    missing = MaxMinReward([merry, grave], state_file=tmp_path / "weights.jsonl")
    with pytest.raises(FileNotFoundError, match="expected the weights of the steps before 4"):
        missing([], COMPLETIONS, trainer_state=at(4))


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reward = MaxMinReward([merry, grave], state_file=f"{folder}/weights.jsonl")
    steps = []
    for step in range(3):
        mine = COMPLETIONS[:1] if rank == 0 else COMPLETIONS[1:]
        reward([], mine, trainer_state=at(step))
        steps.append(reward.weights.weights.tolist())
    Path(folder, f"{rank}.json").write_text(json.dumps(steps))
    dist.destroy_process_group()


def test_two_processes_have_one_set_of_weights(tmp_path: Path) -> None:
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = MaxMinReward([merry, grave])
    alone([], COMPLETIONS)
    assert first == second
    np.testing.assert_allclose(first[0], alone.weights.weights, rtol=1e-12)
    assert len((tmp_path / "weights.jsonl").read_text().splitlines()) == 3  # one process writes


MODULE = """
from maxmin_rlhf.integrations.reward_function import MaxMinReward
from tests.rlhf.test_reward_function import grave, merry

reward = MaxMinReward([merry, grave], state_file="weights.jsonl")
"""
CONFIG = """
model_name_or_path: {model}
dataset_name: prompts
output_dir: out
reward_funcs: [my_rewards.reward]
max_steps: 2
num_generations: 4
per_device_train_batch_size: 8
max_completion_length: 6
use_cpu: true
bf16: false
gradient_checkpointing: false
save_strategy: "no"
report_to: none
"""


def test_trl_grpo_by_a_configuration_file(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    model = save_language_model(tmp_path / "model")
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=model))
    (tmp_path / "prompts").mkdir()
    lines = [json.dumps({"prompt": p}) for p in PROMPTS * 3]
    (tmp_path / "prompts" / "train.jsonl").write_text("\n".join(lines))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "trl.scripts.grpo", "--config", "run.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states = [json.loads(s) for s in (tmp_path / "weights.jsonl").read_text().splitlines()]
    assert [s["step"] for s in states] == [0, 1]
    assert sum(states[1]["weights"]) == pytest.approx(1)

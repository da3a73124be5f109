"""A whole run of ``verl.trainer.main_ppo`` with the plugin, on the CPU: stories260K for three steps, interrupted after the second.

Real: all of verl 0.9 and Ray, its queue, agent loop, reward workers, weight transfer, checkpoints. Stood in for: vLLM's server by
one of transformers (``verl_on_cpu.py``). Minutes, nearly all of them imports of a dozen processes: ``make test-verl-whole``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rlhf.language_models import STORY_PROMPTS, save_stories
from tests.rlhf.test_verl_step import NAMES, OVERRIDES, PLUGINS, REWARDS

pytestmark = pytest.mark.frameworks

MORE = (
    "trainer.n_gpus_per_node=1", "trainer.logger=[console]", "trainer.val_before_train=False", "trainer.total_epochs=3",
    "trainer.save_freq=1", "reward.num_workers=1", "data.dataloader_num_workers=0", "actor_rollout_ref.rollout.agent.num_workers=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1", "transfer_queue.enable=True",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1", "ray_kwargs.ray_init.num_cpus=32",
    "+ray_kwargs.ray_init.num_gpus=1", "+ray_kwargs.ray_init.include_dashboard=False",
)  # fmt: skip


def test_a_whole_run(data_dir: Path, tmp_path: Path) -> None:
    import pandas as pd
    from transformers import AutoTokenizer

    folder = save_stories(data_dir, tmp_path / "model")
    words = AutoTokenizer.from_pretrained(folder)
    words.chat_template = "<s>{{ messages[0]['content'] }}"
    words.save_pretrained(folder)
    rows = [
        {"prompt": [{"role": "user", "content": p}], "data_source": "stories", "reward_model": {"ground_truth": ""},
         "extra_info": {"index": i, "question": p}} for i, p in enumerate(STORY_PROMPTS)
    ]  # fmt: skip
    data = tmp_path / "prompts.parquet"
    pd.DataFrame(rows).to_parquet(data)
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    options = [
        *OVERRIDES, *MORE, f"data.train_files={data}", f"data.val_files={data}", f"actor_rollout_ref.model.path={folder}",
        f"trainer.default_local_dir={tmp_path / 'run'}", f"reward.custom_reward_function.path={tmp_path / 'my_rewards.py'}",
    ]  # fmt: skip
    environment = {
        **os.environ, "VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": PLUGINS, "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip

    def run(steps: int) -> list[dict[str, float]]:
        """What verl logged of each step."""
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *options, f"trainer.total_training_steps={steps}"]  # fmt: skip
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-5000:]
        lines = re.findall(r"step:\d+ - (.*maxmin/worst.*)", done.stdout)
        return [
            {k: float(re.sub(r"^np\.\w+\((.*)\)$", r"\1", v)) for k, v in (item.rsplit(":", 1) for item in line.split(" - "))}
            for line in lines
        ]  # fmt: skip

    logged = run(2)
    assert len(logged) == 2
    kept = [json.loads((tmp_path / "run" / f"global_step_{i}" / "maxmin_weights.json").read_text()) for i in (1, 2)]  # fmt: skip
    for step, (row, state) in enumerate(zip(logged, kept, strict=True)):
        assert state["steps"] == step + 1
        assert state["weights"] == pytest.approx([row[f"maxmin/weight/{n}"] for n in NAMES])
        assert 0 < row["actor/grad_norm"] < 100
        # The stories of the second step are those of the policy that the first has changed.
        assert row["training/rollout_probs_diff_max"] < 1e-4
    again = run(3)
    assert len(again) == 1 and json.loads((tmp_path / "run" / "global_step_3" / "maxmin_weights.json").read_text())["steps"] == 3  # fmt: skip

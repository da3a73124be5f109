"""MaxMin in verl: its registry, queue and trainer's steps are written down here as verl 0.9 calls them; its own: test_verl_step.py.

A test's trainer computes advantages from ``rm_scores`` and ``uid`` as verl's RLOO does, so that what comes out is compared with
this package's own advantages.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from maxmin_kernels import functional
from maxmin_rlhf import MaxMinWeights

NAMES = ["happy", "calm"]


class Config(dict[str, Any]):
    """Of OmegaConf's DictConfig what is used: attributes, and ``get``."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


class Fields(dict[str, Any]):
    """Of a TensorDict: columns, of which those without tensors have ``tolist``."""

    def __init__(self, columns: dict[str, Any], batch_size: int) -> None:
        super().__init__(columns)
        assert all(len(x) == batch_size for x in columns.values())


class Column(list[Any]):
    def tolist(self) -> list[Any]:
        return list(self)


class Queue(ModuleType):
    """``transfer_queue``: rows of fields by key."""

    def __init__(self) -> None:
        super().__init__("transfer_queue")
        self.rows: dict[str, dict[str, Any]] = {}

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> Fields:
        columns: dict[str, Any] = {}
        for field in select_fields:
            column = [self.rows[key][field] for key in keys if field in self.rows[key]]
            if column and isinstance(column[0], torch.Tensor):
                columns[field] = torch.nested.as_nested_tensor(column, layout=torch.jagged)
            elif column:
                columns[field] = Column(column)
        return Fields(columns, len(keys))

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: Fields) -> Any:
        for name, column in fields.items():
            for key, value in zip(keys, column.unbind(), strict=True):
                self.rows[key][name] = value
        return SimpleNamespace(keys=keys, partition_id=partition_id, tags=self.tags)


class Trainer:
    """``verl.trainer.ppo.v1.PPOTrainer``: the steps around advantages and checkpoints."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.trainer_mode = config.trainer.v1.trainer_mode
        self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[object()])
        self.global_steps = 0

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        queue = sys.modules["transfer_queue"]
        data = queue.kv_batch_get(batch.keys, batch.partition_id, ["rm_scores", "uid"])
        scores = data["rm_scores"].to_padded_tensor(0.0).sum(1)
        uid = np.array(data["uid"].tolist())
        self.advantages = torch.zeros(len(scores))
        for prompt in set(uid):
            at = torch.from_numpy(np.flatnonzero(uid == prompt))
            n, some = len(at), scores[at]
            self.advantages[at] = (some - (some.sum() - some) / max(n - 1, 1)) if n > 1 else some
        return batch

    def _save_checkpoint(self) -> None:
        folder = Path(self.config.trainer.default_local_dir)
        assert (folder / f"global_step_{self.global_steps}" / "maxmin_weights.json").is_file()
        (folder / "latest_checkpointed_iteration.txt").write_text(str(self.global_steps))

    def _load_checkpoint(self) -> None:
        tracker = Path(self.config.trainer.default_local_dir, "latest_checkpointed_iteration.txt")
        self.global_steps = int(tracker.read_text()) if tracker.is_file() else 0


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported while verl's names stand for what is above."""
    registry: dict[str, Any] = {"sync": Trainer}

    def register_trainer(name: str) -> Any:
        def put(cls: Any) -> Any:
            assert issubclass(cls, Trainer) and name not in registry
            registry[name] = cls
            return cls

        return put

    modules = {name: ModuleType(name) for name in ("verl", "verl.trainer", "verl.trainer.ppo")}
    v1 = modules["verl.trainer.ppo.v1"] = ModuleType("verl.trainer.ppo.v1")
    base = modules["verl.trainer.ppo.v1.trainer_base"] = ModuleType("trainer_base")
    modules["verl.trainer.ppo"].v1 = v1  # type: ignore[attr-defined]
    v1.register_trainer = register_trainer  # type: ignore[attr-defined]
    base.TRAINER_REGISTRY = registry  # type: ignore[attr-defined]
    for name, module in {**modules, "transfer_queue": Queue()}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "maxmin_rlhf.integrations.verl", raising=False)
    yield importlib.import_module("maxmin_rlhf.integrations.verl")
    sys.modules.pop("maxmin_rlhf.integrations.verl", None)


def trainer(folder: Path, **options: Any) -> Any:
    options = {"groups": NAMES, "method": "exponentiated_gradient", "lr": 0.5, **options}
    settings = Config(v1=Config(trainer_mode="maxmin_sync"), default_local_dir=str(folder), resume_mode="auto")  # fmt: skip
    config = Config(algorithm=Config(maxmin=Config(options)), trainer=settings)
    registry = sys.modules["verl.trainer.ppo.v1.trainer_base"].TRAINER_REGISTRY
    return registry["maxmin_sync"](config)


def rollout(rewards: np.ndarray, seed: int = 0, padding: int = 1) -> Any:
    """(P, S, K) scores as rows of the queue, in no order, the last of them padding; NaN is None."""
    queue: Any = sys.modules["transfer_queue"]
    queue.rows, tags = {}, []
    n_prompts, n_samples, _ = rewards.shape
    for place in np.random.default_rng(seed).permutation(n_prompts * n_samples):
        p, s = divmod(int(place), n_samples)
        length = 2 + (p + s) % 3
        scores = torch.zeros(length)
        scores[-1] = 9.0
        said = {n: None if math.isnan(r) else float(r) for n, r in zip(NAMES, rewards[p, s], strict=True)}  # fmt: skip
        extra = {"reward_extra_info": {"score": 9.0, **said}}
        queue.rows[f"u{p}_{s}_0"] = {"uid": f"u{p}", "rm_scores": scores, "extra_fields": extra}
        tags.append({"status": "success"})
    for i in range(padding):
        row = {"uid": "pad", "rm_scores": torch.zeros(1), "extra_fields": {"reward_extra_info": {"happy": 1e6, "calm": 1e6}}}  # fmt: skip
        queue.rows[f"pad_{i}_0"] = row
        tags.append({"is_padding": True})
    queue.tags = tags
    return SimpleNamespace(keys=list(queue.rows), partition_id="train", tags=tags)


def panel(seed: int = 0) -> np.ndarray:
    rewards = np.random.default_rng(seed).normal(size=(3, 4, 2))
    rewards[0, 1, 0] = rewards[1, :, 1] = np.nan  # a sample unjudged by a group, and a prompt
    return rewards


def test_advantages_are_ours(plugin: Any, tmp_path: Path) -> None:
    """Scores combined before verl's RLOO are the group-weighted advantages, None and padding included."""
    made, rewards, metrics = trainer(tmp_path), panel(), {}
    assert made.trainer_mode == "sync"
    batch = rollout(rewards)
    made._compute_advantage(batch, metrics)
    alone = MaxMinWeights(2, "exponentiated_gradient", lr=0.5)
    weights = alone.update(rewards.reshape(-1, 2))
    torch.testing.assert_close(made.maxmin_weights.weights, weights)
    full = torch.from_numpy(rewards)
    mean = full.nanmean(1, keepdim=True).nan_to_num(0.0).expand_as(full)
    expected = functional.maxmin_advantages(torch.where(full.isnan(), mean, full), weights, leave_one_out=True)  # fmt: skip
    for key, advantage in zip(batch.keys, made.advantages, strict=True):
        if not key.startswith("pad"):
            p, s, _ = key[1:].split("_")
            np.testing.assert_allclose(advantage, expected[int(p), int(s)], rtol=1e-5, atol=1e-6)
    assert metrics["maxmin/weight/happy"] == pytest.approx(float(weights[0]))
    assert metrics["maxmin/worst"] == pytest.approx(float(alone.utilities.min()))
    queue: Any = sys.modules["transfer_queue"]
    row = queue.rows["u2_1_0"]["rm_scores"]  # one number, at the last token
    assert row[:-1].eq(0).all() and float(row[-1]) == pytest.approx(float(full[2, 1] @ weights))


def test_a_sample_of_several_rows_counts_once(plugin: Any, tmp_path: Path) -> None:
    made, rewards = trainer(tmp_path), np.random.default_rng(1).normal(size=(2, 2, 2))
    batch = rollout(rewards, padding=0)
    queue: Any = sys.modules["transfer_queue"]
    first = queue.rows["u0_1_0"]
    queue.rows["u0_1_1"] = {**first, "extra_fields": {"reward_extra_info": {"happy": 5.0, "calm": 4.0}}}  # fmt: skip
    batch.keys.append("u0_1_1"), batch.tags.append({})
    made._compute_advantage(batch, {})
    rewards[0, 1] = 5.0, 4.0
    expected = MaxMinWeights(2, "exponentiated_gradient", lr=0.5).update(rewards.reshape(-1, 2))
    torch.testing.assert_close(made.maxmin_weights.weights, expected)
    scores = [float(queue.rows[k]["rm_scores"].sum()) for k in ("u0_1_0", "u0_1_1")]
    np.testing.assert_allclose(scores, float(torch.tensor([5.0, 4.0]).double() @ expected), rtol=1e-6)  # fmt: skip


def test_a_reward_model_between_the_steps(plugin: Any, tmp_path: Path) -> None:
    """verl then writes the groups' scores into fields of their own."""
    made, rewards = trainer(tmp_path), np.random.default_rng(1).normal(size=(2, 2, 2))
    made.reward_loop_manager.reward_loop_worker_handles = None
    batch = rollout(rewards, padding=0)
    queue: Any = sys.modules["transfer_queue"]
    for row in queue.rows.values():
        row |= row.pop("extra_fields")["reward_extra_info"]
    made._compute_advantage(batch, {})
    expected = MaxMinWeights(2, "exponentiated_gradient", lr=0.5).update(rewards.reshape(-1, 2))
    torch.testing.assert_close(made.maxmin_weights.weights, expected)


def test_checkpoints(plugin: Any, tmp_path: Path) -> None:
    """Weights are there before verl calls a checkpoint whole, and go on exactly."""
    whole = trainer(tmp_path)
    whole._load_checkpoint()  # there is none yet
    whole._compute_advantage(rollout(panel(0)), {})
    whole.global_steps = 1
    whole._save_checkpoint()
    again = trainer(tmp_path)
    again._load_checkpoint()
    for made in (whole, again):
        made._compute_advantage(rollout(panel(1)), {})
    assert torch.equal(whole.maxmin_weights.weights, again.maxmin_weights.weights)
    assert torch.equal(whole.maxmin_weights.utilities, again.maxmin_weights.utilities)
    with pytest.raises(ValueError, match=r"expected weights of \['calm', 'happy'\], got \['happy', 'calm'\]"):  # fmt: skip
        trainer(tmp_path, groups=["calm", "happy"])._load_checkpoint()
    (tmp_path / "global_step_1" / "maxmin_weights.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected the groups' weights beside the checkpoint"):  # fmt: skip
        trainer(tmp_path)._load_checkpoint()


def test_resumes_from_a_named_checkpoint(plugin: Any, tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made._compute_advantage(rollout(panel(0)), {})
    made.global_steps = 1
    made._save_checkpoint()
    again = trainer(tmp_path / "new")
    again.config.trainer.resume_mode = "resume_path"
    again.config.trainer["resume_from_path"] = str(tmp_path / "global_step_1")
    again.config.trainer.default_local_dir = str(tmp_path)
    again._load_checkpoint()
    assert torch.equal(made.maxmin_weights.weights, again.maxmin_weights.weights)
    again.config.trainer.default_local_dir = str(tmp_path / "new")
    again.global_steps = 2
    assert again._folder() == tmp_path / "new" / "global_step_2"  # where it saves


def test_compute_score(plugin: Any) -> None:
    def happy(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [c.count("happy") + 10.0 * p.count("!") for p, c in zip(prompts, completions, strict=True)]  # fmt: skip

    def calm(prompts: Any, completions: Any, **_: Any) -> list[None]:
        return [None]

    score = plugin.GroupScores([happy, calm], prompt="question")
    out = score(data_source="d", solution_str="so happy", ground_truth="", extra_info={"question": "Now!"}, reward_router_address="x")  # fmt: skip
    assert out == {"score": 11.0, "happy": 11.0, "calm": None}
    assert json.loads(json.dumps(out)) == out  # plain numbers
    with pytest.raises(ValueError, match="extra_info: expected 'question' with the prompt, got index"):  # fmt: skip
        score("d", "so happy", "", {"index": 3})


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": []}, r"algorithm\.maxmin\.groups: expected names of groups, got \[\]"),
        ({"groups": ["a", "a"]}, "expected distinct names, got 'a' 2 times"),
        ({"speed": 1}, r"algorithm\.maxmin: expected options of MaxMinWeights \(.*speed"),
        ({"method": "fast"}, "method: expected one of"),
    ],
)
def test_bad_options(plugin: Any, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options)


def test_bad_batches(plugin: Any, tmp_path: Path) -> None:
    made = trainer(tmp_path)
    queue: Any = sys.modules["transfer_queue"]
    batch = rollout(panel())
    del queue.rows[batch.keys[3]]["extra_fields"]["reward_extra_info"]["calm"]
    with pytest.raises(ValueError, match="expected a score of group 'calm', which compute_score has to return, got score, happy"):  # fmt: skip
        made._compute_advantage(batch, {})
    batch = rollout(panel())
    queue.rows["u1_2_0"]["extra_fields"]["reward_extra_info"]["happy"] = math.nan
    with pytest.raises(ValueError, match="group 'happy': expected a finite number or None for sample u1_2, got nan"):  # fmt: skip
        made._compute_advantage(batch, {})
    with pytest.raises(ValueError, match="batch: expected at least one sample that is no padding, got none"):  # fmt: skip
        made._compute_advantage(rollout(np.zeros((0, 4, 2))), {})
    assert made.maxmin_weights.steps == 0


def test_without_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl", None)
    monkeypatch.delitem(sys.modules, "maxmin_rlhf.integrations.verl", raising=False)
    with pytest.raises(ImportError, match=r"maxmin_rlhf\.integrations\.verl needs verl 0\.9"):
        importlib.import_module("maxmin_rlhf.integrations.verl")

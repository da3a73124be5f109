"""The MaxMin trainer of verl 0.9 with a real model: rewards, advantages, a step of the actor and a checkpoint, by verl's own code.

Real: stories260K, verl's configuration, registries, reward worker (which loads ``GroupScores`` from a file), trainer, padding,
actor (FSDP2 on the CPU), policy loss, optimiser and checkpoints. Stood in for: vLLM by transformers, the queue's store by this
process's memory, Ray's calls between processes by calls. Runs where verl is: ``make test-frameworks``. A whole run of
``main_ppo``, with Ray and its queue: ``test_verl_whole.py``.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from maxmin_kernels import functional
from maxmin_rlhf import MaxMinWeights
from tests.rlhf.language_models import STORY_PROMPTS, save_stories

pytestmark = pytest.mark.frameworks

NAMES, SAMPLES, TOKENS = ("round", "sharp"), 8, 16
REWARDS = """
from maxmin_rlhf.integrations.verl import GroupScores
from tests.rlhf.language_models import letters
compute_score = GroupScores([letters("aeo", "round"), letters("stl", "sharp")])
"""
PLUGINS = "tests.rlhf.verl_on_cpu,maxmin_rlhf.integrations.verl"
OVERRIDES = (
    "trainer.v1.trainer_mode=maxmin_sync", "+algorithm.maxmin.groups=[round,sharp]", "algorithm.adv_estimator=rloo",
    "+algorithm.maxmin.method=exponentiated_gradient", "+algorithm.maxmin.lr=0.5", "trainer.device=cpu",
    "reward.custom_reward_function.name=compute_score", "data.max_prompt_length=32", f"data.max_response_length={TOKENS}",
    f"data.train_batch_size={len(STORY_PROMPTS)}", f"actor_rollout_ref.rollout.n={SAMPLES}",
    "actor_rollout_ref.rollout.name=transformers", "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32", "actor_rollout_ref.model.use_remove_padding=False",
    "actor_rollout_ref.model.enable_gradient_checkpointing=False", "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
    "actor_rollout_ref.actor.strategy=fsdp2", "actor_rollout_ref.actor.use_torch_compile=False",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={len(STORY_PROMPTS)}", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.actor.optim.lr=3e-4", "actor_rollout_ref.actor.optim.total_training_steps=10",
    "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32", "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}",
)  # fmt: skip


@pytest.fixture(scope="module")
def verl() -> Iterator[Any]:
    """Its modules by name, on the CPU, with this process as the only one."""
    patch = pytest.MonkeyPatch()
    where = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in {**where, "VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": PLUGINS}.items():  # fmt: skip
        patch.setenv(name, value)
    importlib.import_module("verl")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # fmt: skip
    yield lambda name: importlib.import_module(f"verl.{name}")
    torch.distributed.destroy_process_group()
    patch.undo()


@pytest.fixture
def queue(verl: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows by key, of what verl puts into its queue."""
    rows: dict[str, dict[str, Any]] = {}
    module, tensors = importlib.import_module("transfer_queue"), verl("utils.tensordict_utils")

    def put(keys: Any, partition_id: str, fields: Any, tags: Any = None) -> Any:
        for i, key in enumerate(keys):
            rows.setdefault(key, {}).update({name: fields[i][name] for name in fields.keys()})  # noqa: SIM118
        known = [rows[key].setdefault("tag", tag) for key, tag in zip(keys, tags or [{}] * len(keys), strict=True)]  # fmt: skip
        return module.KVBatchMeta(keys=list(keys), partition_id=partition_id, tags=known)

    def get(keys: Any, partition_id: str, select_fields: Any = None) -> Any:
        wanted = [n for n in select_fields or rows[keys[0]] if n != "tag" and n in rows[keys[0]]]
        out = tensors.list_of_dict_to_tensordict([{n: rows[k][n] for n in wanted} for k in keys])
        for name in wanted:  # lengths that happen to be equal are no other case to the queue
            if isinstance(rows[keys[0]][name], torch.Tensor):
                out[name] = torch.nested.as_nested_tensor(
                    [rows[k][name] for k in keys], layout=torch.jagged
                )
        return out

    monkeypatch.setattr(module, "kv_batch_put", put)
    monkeypatch.setattr(module, "kv_batch_get", get)
    return rows


class Calls:
    """A worker asked as its group of processes would be: rows of the queue go in, what comes out goes back."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.worker, name)

        def call(*given: Any, **options: Any) -> Any:
            if not given or not hasattr(given[0], "keys"):
                return method(*given, **options)
            queue, tensors = importlib.import_module("transfer_queue"), importlib.import_module("verl.utils.tensordict_utils")  # fmt: skip
            (batch,) = given
            data = queue.kv_batch_get(batch.keys, batch.partition_id)
            tensors.assign_non_tensor(data, **batch.extra_info)
            out = method(data)
            if not out.batch_size:
                return out
            tensors_out = out.select(*(n for n in ("log_probs", "entropy") if n in out))
            return queue.kv_batch_put(batch.keys, batch.partition_id, tensors_out)

        return call


def compose(verl: Any, folder: Path, *more: str) -> Any:
    hydra = importlib.import_module("hydra")
    config_folder = Path(verl("trainer").__file__).parent / "config"
    with hydra.initialize_config_dir(str(config_folder), version_base=None):
        overrides = [*OVERRIDES, f"trainer.default_local_dir={folder}", *more]
        return hydra.compose("ppo_trainer", overrides=overrides)


def rows_of(prompt: Any, said: list[Any], uid: str, scores: list[dict[str, Any]]) -> Any:
    """As an agent loop of verl's puts them into the queue: keys, fields and tags."""
    keys, fields, tags = [], [], []
    for s, (response, score) in enumerate(zip(said, scores, strict=True)):
        ids, ones = torch.cat([prompt, response]), torch.ones_like(response)
        token_scores = torch.zeros(len(response))
        token_scores[-1] = score["reward_score"]
        keys.append(f"{uid}_{s}_0")
        tags.append({"status": "success", "seq_len": len(ids), "prompt_len": len(prompt), "response_len": len(response)})  # fmt: skip
        fields.append({
            "uid": uid, "prompts": prompt, "responses": response, "response_mask": ones, "loss_mask": ones, "input_ids": ids,
            "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(len(ids)), "num_turns": 2,
            "rm_scores": token_scores, "rollout_log_probs": torch.zeros(len(response)), "multi_modal_inputs": {},
            "extra_fields": {"reward_extra_info": score["reward_extra_info"]},
        })  # fmt: skip
    return keys, fields, tags


def expected_advantages(rewards: np.ndarray, weights: Any) -> torch.Tensor:
    """RLOO's of (P, S, K) rewards; a group without a judgment counts as its mean at the prompt."""
    full = torch.from_numpy(rewards)
    mean = full.nanmean(1, keepdim=True).nan_to_num(0.0).expand_as(full)
    return functional.maxmin_advantages(torch.where(full.isnan(), mean, full), weights, leave_one_out=True)  # fmt: skip


def test_advantages_with_padding_and_missing_judgments(
    verl: Any, queue: Any, tmp_path: Path
) -> None:
    tensors, padding = verl("utils.tensordict_utils"), verl("trainer.ppo.padding_utils")
    made = verl("trainer.ppo.v1").get_trainer_cls("maxmin_sync")(compose(verl, tmp_path))
    made.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[object()])
    assert made.trainer_mode == "sync"
    rewards = np.random.default_rng(0).normal(size=(3, 4, 2))
    rewards[0, 1, 0], rewards[1, :, 1] = math.nan, math.nan
    keys, tags = [], []
    module = importlib.import_module("transfer_queue")
    for p, of_prompt in enumerate(rewards):
        said = [torch.ones(2 + (p + s) % 3, dtype=torch.int64) for s in range(4)]
        scores = [{"reward_score": 9.0, "reward_extra_info": {n: None if math.isnan(r) else float(r) for n, r in zip(NAMES, row, strict=True)}} for row in of_prompt]  # fmt: skip
        some, fields, tag = rows_of(torch.ones(2, dtype=torch.int64), said, f"u{p}", scores)
        for field in fields:
            field["old_log_probs"] = field["rollout_log_probs"]
        module.kv_batch_put(some, "train", tensors.list_of_dict_to_tensordict(fields), tag)
        keys, tags = keys + some, tags + tag
    meta = module.KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    meta = padding.upsample_batch_to_divisible_size(meta, 8, 0)
    assert len(meta) == 16
    made._compute_advantage(meta, {})
    weights = MaxMinWeights(2, "exponentiated_gradient", lr=0.5).update(rewards.reshape(-1, 2))
    expected = expected_advantages(rewards, weights)
    for key in meta.keys[:12]:
        p, s, _ = key[1:].split("_")
        np.testing.assert_allclose(queue[key]["advantages"], float(expected[int(p), int(s)]), atol=1e-5)  # fmt: skip


def test_a_training_step(verl: Any, queue: Any, data_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_stories(data_dir, tmp_path / "model")
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    rewards_at = f"reward.custom_reward_function.path={tmp_path / 'my_rewards.py'}"
    config = compose(verl, tmp_path / "run", rewards_at, f"actor_rollout_ref.model.path={folder}")
    worker = verl("workers.engine_workers").ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")  # fmt: skip
    worker.init_model()
    made = verl("trainer.ppo.v1").get_trainer_cls("maxmin_sync")(config)
    made.actor_rollout_wg, made.global_steps = Calls(worker), 1
    made.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[object()])
    made.train_dataloader = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)

    # Rollout, and rewards by verl's worker
    tensors, protocol = verl("utils.tensordict_utils"), verl("protocol")
    judge = verl("experimental.reward_loop.reward_loop").RewardLoopWorker(config)
    policy = AutoModelForCausalLM.from_pretrained(folder).eval()
    keys, tags, rewards, texts = [], [], [], []
    module = importlib.import_module("transfer_queue")
    for p, text in enumerate(STORY_PROMPTS):
        prompt = judge.input_tokenizer(text, return_tensors="pt").input_ids
        said = policy.generate(
            input_ids=prompt.repeat(SAMPLES, 1), attention_mask=torch.ones(SAMPLES, prompt.shape[1], dtype=torch.int64),
            max_new_tokens=TOKENS, do_sample=True, top_k=0, top_p=1.0,
        )[:, prompt.shape[1] :]  # fmt: skip
        data = protocol.DataProto.from_dict(
            {"responses": said, "attention_mask": torch.ones(SAMPLES, prompt.shape[1] + said.shape[1], dtype=torch.int64)},
            {"data_source": ["stories"] * SAMPLES, "reward_model": [{"ground_truth": ""}] * SAMPLES,
             "extra_info": [{} for _ in range(SAMPLES)]},
        )  # fmt: skip
        scores = judge.loop.run_until_complete(judge.compute_score_batch(data))
        some, fields, tag = rows_of(prompt[0], list(said), f"u{p}", scores)
        module.kv_batch_put(some, "train", tensors.list_of_dict_to_tensordict(fields), tag)
        keys, tags = keys + some, tags + tag
        rewards.append([[score["reward_extra_info"][name] for name in NAMES] for score in scores])
        texts.append(judge.input_tokenizer.batch_decode(said, skip_special_tokens=True))
    judged = np.array(rewards)
    np.testing.assert_allclose(judged, [[[f([t])[0] for f in groups()] for t in row] for row in texts])  # fmt: skip

    # The trainer's steps
    metrics: dict[str, Any] = {}
    batch = module.KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    batch = made._compute_old_log_prob(batch, metrics)
    first = queue[keys[0]]
    logs = log_probs(policy, first["input_ids"], len(first["prompts"]))
    np.testing.assert_allclose(first["old_log_probs"], logs, atol=1e-4)
    batch = made._compute_advantage(batch, metrics)
    weights = MaxMinWeights(2, "exponentiated_gradient", lr=0.5).update(judged.reshape(-1, 2))
    np.testing.assert_allclose(made.maxmin_weights.weights, weights)
    assert made.maxmin_weights.weights[int(judged.mean((0, 1)).argmin())] > 0.5
    expected = expected_advantages(judged, weights).flatten()
    for key, advantage in zip(keys, expected.tolist(), strict=True):
        np.testing.assert_allclose(queue[key]["advantages"], advantage, rtol=1e-4, atol=1e-4)
    start = {
        n: p.full_tensor().detach().clone()
        for n, p in worker.actor.engine.module.named_parameters()
    }
    made._update_actor(batch, metrics)
    assert metrics["maxmin/worst"] == judged.mean((0, 1)).min() and 0 < metrics["actor/grad_norm"] < 100  # fmt: skip
    moved = [float((p.full_tensor().detach() - start[n]).abs().max()) for n, p in worker.actor.engine.module.named_parameters()]  # fmt: skip
    assert max(moved) < 1e-3 and min(moved) > 1e-5
    old = {key: queue[key]["old_log_probs"].clone() for key in keys}
    made._compute_old_log_prob(batch, {})
    gains = torch.stack([(queue[key]["old_log_probs"] - old[key]).sum() for key in keys]).double()
    assert float(gains @ expected) > 5

    # A checkpoint, and the run that goes on from it
    made._save_checkpoint()
    kept = json.loads((tmp_path / "run" / "global_step_1" / "maxmin_weights.json").read_text())
    assert kept["weights"] == made.maxmin_weights.weights.tolist()
    again = verl("trainer.ppo.v1").get_trainer_cls("maxmin_sync")(config)
    again.actor_rollout_wg, again.train_dataloader = Calls(worker), made.train_dataloader
    again._load_checkpoint()
    assert again.global_steps == 1
    assert again.maxmin_weights.state_dict() == made.maxmin_weights.state_dict()


def groups() -> list[Any]:
    from tests.rlhf.language_models import letters

    return [letters("aeo", "round"), letters("stl", "sharp")]


def log_probs(model: Any, ids: Any, start: int) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, start - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[start:, None])[:, 0]

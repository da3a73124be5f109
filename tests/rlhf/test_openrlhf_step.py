"""MaxMinRewardFunction in OpenRLHF 0.11 with a real model: rollout, advantages and a training step by OpenRLHF's own code.

Real: stories260K, OpenRLHF's executor (which loads the reward function from a file), experience, RLOO advantages, actor,
replay buffer, ``ppo_train`` and policy loss. Stood in for, since they need a GPU: vLLM by transformers, DeepSpeed by AdamW,
Ray's calls between processes by calls. Runs where OpenRLHF is: ``make test-frameworks``.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from maxmin_rlhf import MaxMinWeights
from tests.rlhf.language_models import STORY_PROMPTS, save_stories

pytestmark = pytest.mark.frameworks

SAMPLES, TOKENS, BETA = 8, 16, 0.05
REWARDS = """
from pathlib import Path
from maxmin_rlhf import MaxMinWeights
from maxmin_rlhf.integrations.openrlhf import MaxMinRewardFunction
from tests.rlhf.language_models import letters
reward_func = MaxMinRewardFunction(
    [letters("aeo", "round"), letters("stl", "sharp")], MaxMinWeights(2, "exponentiated_gradient", lr=0.5),
    state_file=Path({folder!r}) / "weights.json", update_every={every}, end_marks=["</s>"],
)
"""


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Packages that OpenRLHF imports and these tests do not reach: any name in them is a class of its own."""

    names = ("deepspeed", "vllm", "flash_attn", "ring_flash_attn")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        # Where it tries that package it does without, too.
        if name.split(".")[0] in self.names and not name.startswith("flash_attn.ops"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        module = ModuleType(spec.name)

        def anything(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return "0.0" if name == "version" else type(name, (SimpleNamespace,), {})

        module.__getattr__ = anything  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None: ...


@pytest.fixture
def openrlhf() -> Iterator[Any]:
    """Its modules by name."""
    before, finder = set(sys.modules), Absent()
    sys.meta_path.append(finder)
    yield lambda name: importlib.import_module(f"openrlhf.{name}")
    sys.meta_path.remove(finder)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("openrlhf", *Absent.names):
            del sys.modules[name]


class Engine:
    """What vLLM is asked for."""

    def __init__(self, model: Any) -> None:
        self.model = model

    async def generate(self, ids: list[int], params: Any, multi_modal_data: Any) -> Any:
        given = torch.tensor([ids])
        said = self.model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=params.max_tokens,
            do_sample=True, top_k=0, top_p=1.0, temperature=1.0, use_cache=True,
        )[0, len(ids) :].tolist()  # fmt: skip
        output = SimpleNamespace(token_ids=said, finish_reason="length", logprobs=None)
        return SimpleNamespace(outputs=[output])


class Strategy:
    """Of DeepspeedStrategy what a step asks for, on one process."""

    ring_attn_group, accumulated_gradient = None, 1

    def __init__(self, args: Any) -> None:
        self.args = args

    def is_rank_0(self) -> bool:
        return False

    def all_reduce(self, data: Any, op: str = "mean") -> Any:
        return data

    def backward(self, loss: Any, model: Any, optimizer: Any) -> None:
        loss.backward()

    def optimizer_step(self, optimizer: Any, model: Any, scheduler: Any, name: str) -> None:
        optimizer.step()
        optimizer.zero_grad()

    def get_grad_norm(self, model: Any) -> float:
        return 0.0


def settings() -> Any:
    """OpenRLHF's own defaults where a step reads them, with RLOO and the KL term in the reward."""
    n = SimpleNamespace
    return n(
        ds=n(packing_samples=False, ring_attn_size=1, tensor_parallel_size=1),
        train=n(dynamic_batch_enable=False, max_epochs=1, colocate_all=False, colocate_actor_ref=False,
                colocate_critic_reward=False, async_enable=False),
        actor=n(eps_clip_low_high=(0.2, 0.2), dual_clip=None, loss_agg_mode="token-mean", policy_loss_type="ppo",
                aux_loss_coef=0.0, entropy_coef=None),
        algo=n(kl=n(use_loss=False, estimator="k1", init_coef=BETA, unbiased_gradient=False),
               advantage=n(estimator="rloo", gamma=1.0, lambd=1.0, no_std_norm=False, is_correction_level="off",
                           is_correction_mode="mask", is_correction_gating="ratio", is_correction_threshold=(0.5, 5.0),
                           is_correction_enable=False, is_correction_type="tis")),
        reward=n(clip_range=None, overlong_buffer_len=None, stop_properly_penalty_coef=None),
        rollout=n(micro_batch_size=16, n_samples_per_prompt=SAMPLES, batch_size=len(STORY_PROMPTS)),
        vllm=n(sync_backend="gloo"),
    )  # fmt: skip


def test_a_training_step(
    openrlhf: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    folder, n = save_stories(data_dir, tmp_path / "model"), len(STORY_PROMPTS) * SAMPLES
    file = tmp_path / "my_rewards.py"
    file.write_text(REWARDS.format(folder=str(tmp_path), every=n))
    words = AutoTokenizer.from_pretrained(folder)
    modules = {name: openrlhf(f"trainer.ppo_utils.{name}") for name in ("samples_generator", "experience_maker")}  # fmt: skip
    trainers, models = openrlhf("trainer.ray.ppo_actor"), openrlhf("models")
    here = SimpleNamespace(put=lambda x: x, get=lambda x: x)
    monkeypatch.setattr(modules["experience_maker"], "ray", here)
    monkeypatch.setattr(trainers, "torch_dist_barrier_and_cuda_sync", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    options = {"attn_implementation": "eager", "param_dtype": "bf16"}  # it knows no other
    actor, reference = (models.Actor(folder, **options).float() for _ in range(2))

    # Rollout and rewards
    executor = openrlhf("utils.agent").SingleTurnAgentExecutor(str(file))
    params = SimpleNamespace(max_tokens=TOKENS, logprobs=None)

    async def rollout() -> list[Any]:
        runs = [executor.execute(p, "", params, 64, words, Engine(actor.model)) for p in STORY_PROMPTS for _ in range(SAMPLES)]  # fmt: skip
        return list(await asyncio.gather(*runs))

    said = asyncio.run(rollout())
    strategy = Strategy(settings())
    generator = modules["samples_generator"].SamplesGenerator(strategy, None, None, words, [])
    samples = [generator._process_response_into_experience(s, max_len=64) for s in said]
    texts = [words.decode(s["observation_tokens"][s["action_ranges"][0][0] :], skip_special_tokens=True) for s in said]  # fmt: skip
    names = ("round", "sharp")
    judged = np.array([[float(s.info[f"maxmin/reward/{k}"]) for k in names] for s in samples])
    reward_func = executor.reward_func
    expected = [[f(prompts=[""], completions=[t])[0] for f in reward_func.functions.values()] for t in texts]  # fmt: skip
    np.testing.assert_allclose(judged, expected, rtol=1e-6)
    weights = MaxMinWeights(2, "exponentiated_gradient", lr=0.5)
    total = [float(s.rewards) for s in samples]
    np.testing.assert_allclose(total, judged @ weights.weights.numpy(), rtol=1e-5)

    # The groups' weights after the batch: the worse-off group has gained, in the file that all processes read
    kept = json.loads((tmp_path / "weights.json").read_text())["weights"]["weights"]
    np.testing.assert_allclose(kept, weights.update(judged), rtol=1e-5)
    assert kept[int(judged.mean(0).argmin())] > 0.5

    # Log-probabilities, the KL term (0 before the first step) and RLOO's advantages
    class Group:
        def __init__(self, model: Any) -> None:
            self.model = model

        def async_run_method_batch(self, method_name: str, **columns: Any) -> Any:
            rows = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
            return [[self.model(**row) for row in rows]]

    maker = modules["experience_maker"].RemoteExperienceMaker(
        Group(actor), None, None, Group(reference), SimpleNamespace(value=BETA), strategy, words
    )
    experiences = maker.make_experience_batch(samples)
    r = np.array(total).reshape(-1, SAMPLES)
    rloo = (r - (r.sum(1, keepdims=True) - r) / (SAMPLES - 1)).ravel()
    for e, due in zip(experiences, np.split(rloo, len(experiences)), strict=True):
        expected = due[:, None] * e.action_mask.numpy()
        np.testing.assert_allclose(e.advantages * e.action_mask, expected, rtol=1e-4, atol=1e-4)

    # The step
    def objective() -> float:
        """Σ A log π over the batch's tokens, the slope of what is maximised."""
        with torch.no_grad():
            logs = [actor(e.sequences, e.action_mask, e.attention_mask) for e in experiences]
        parts = [(a * e.advantages * e.action_mask).sum() for a, e in zip(logs, experiences, strict=True)]  # fmt: skip
        return float(sum(parts))

    optimizer = torch.optim.AdamW(actor.parameters(), lr=3e-4)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    trainer = trainers.ActorPPOTrainer(
        strategy, actor, None, optimizer, scheduler, micro_train_batch_size=n, tokenizer=words, dataloader_pin_memory=False,
        buffer_cpu_offload=False,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    for experience in experiences:
        trainer.replay_buffer.append(experience)
    before, start = objective(), torch.nn.utils.parameters_to_vector(actor.parameters()).detach().clone()  # fmt: skip
    status = trainer.ppo_train(BETA)
    after = torch.nn.utils.parameters_to_vector(actor.parameters()).detach()
    assert 1e-4 < float((after - start).abs().max()) < 1e-3
    assert objective() > before + 5
    assert abs(status["policy_loss"]) < 10 and status["maxmin/weight/round"] == 0.5

"""MixtureRewardTrainer: its gradient, resumed and parallel runs, adapters, what comes out, errors. Small real models."""

from __future__ import annotations

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
from torch.nn.functional import logsigmoid

from maxmin_rlhf import RewardBank, reward_model
from tests.rlhf.language_models import WORDS, llama_config, tokenizer

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PEOPLE = [f"person {i}" for i in range(6)]


def pairs(n: int = 48, seed: int = 0) -> Any:
    """Even people like the word "happy", odd ones "sad"; six of them."""
    from datasets import Dataset

    rng = np.random.default_rng(seed)
    rows: list[dict[str, str]] = []
    for i in range(n):
        words = [str(w) for w in rng.choice(WORDS[4:], rng.integers(3, 6))]
        said = [" ".join([*words, mark, "."]) for mark in ("happy", "sad")]
        who = i % len(PEOPLE)
        prompt = " ".join(rng.choice(WORDS[4:], 2))
        rows.append({"prompt": prompt, "chosen": said[who % 2], "rejected": said[1 - who % 2],
                     "annotator": PEOPLE[who]})  # fmt: skip
    return Dataset.from_list(rows)


def small_trunk() -> Any:
    from transformers import LlamaModel

    torch.manual_seed(0)
    return LlamaModel(llama_config())


def heads(k: int = 2) -> torch.Tensor:
    return torch.randn(k, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4


def trainer(folder: Path, model: Any = None, data: Any = None, **options: Any) -> Any:
    from transformers import TrainingArguments

    from maxmin_rlhf.integrations.transformers import MixtureRewardTrainer

    ours = ("mixture", "peft_config", "pairs_per_annotator", "decay", "alpha", "eval_dataset")
    given = {name: options.pop(name) for name in ours if name in options}
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": 3,
        "disable_tqdm": True,
    }
    return MixtureRewardTrainer(
        reward_model(heads(), small_trunk()) if model is None else model,
        TrainingArguments(**{**settings, **options}),
        processing_class=tokenizer(),
        train_dataset=pairs() if data is None else data,
        **{"pairs_per_annotator": 4, **given},
    )


def parameters(made: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def losses(made: Any) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def groups_of(made: Any) -> np.ndarray:
    order = np.argsort(made.running.annotators)
    return np.asarray(made.running.responsibilities.argmax(1))[order]


# ---- what is learned


def test_finds_the_groups(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, max_steps=60, learning_rate=5e-3, eval_dataset=pairs(24, seed=9), alpha=2.0
    )
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    assert losses(made)[-1] < 0.5 * losses(made)[0]
    assert after["eval_loss"] < 0.5 * before["eval_loss"] and after["eval_accuracy"] > 0.9
    found = groups_of(made)
    assert (found[::2] == found[0]).all() and (found[1::2] == 1 - found[0]).all()
    last = [row for row in made.state.log_history if "em/weight/group_0" in row][-1]
    assert last["em/weight/group_0"] + last["em/weight/group_1"] == pytest.approx(1)


def test_the_gradient_is_autograds(tmp_path: Path) -> None:
    """Of the loss of a batch with earlier evidence, through the trunk, against the formula written out."""
    made = trainer(tmp_path)
    made.running.evidence[:, 0] = torch.linspace(-2, 1, 6, dtype=torch.float64)
    batch = next(iter(made.get_train_dataloader()))
    model = made.model.eval()
    evidence = made.running.evidence.clone()
    made.compute_loss(model, batch).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    assert torch.equal(evidence, made.running.evidence)  # in evaluation mode nothing is taken in
    model.zero_grad()
    margins = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        sides = [s[m.bool()] for s, m in zip(ids, mask, strict=True)]
        hidden = [model.base_model(input_ids=s[None]).last_hidden_state[0, -1] for s in sides]
        margins.append((hidden[0] - hidden[1]) @ model.score.weight.T)
    total = torch.zeros((), dtype=torch.float64)
    for a in batch["annotator"].unique().tolist():
        rows = torch.stack(margins).double()[batch["annotator"] == a]
        kept = evidence[a] * (1 - len(rows) / 8)
        prior = kept + made.running.shares.log()
        total = total - (prior + logsigmoid(rows).sum(0)).logsumexp(0) + prior.logsumexp(0)
    (total / len(batch["annotator"])).backward()
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-6)


def test_one_group_is_the_pooled_reward(tmp_path: Path) -> None:
    made = trainer(tmp_path, reward_model(heads(1), small_trunk()))
    batch = next(iter(made.get_train_dataloader()))
    loss, out = made.compute_loss(made.model.eval(), batch, return_outputs=True)
    expected = -logsigmoid(out["margins"]).mean()
    np.testing.assert_allclose(loss.detach(), expected.detach(), rtol=1e-6)


def test_the_model_that_comes_out(tmp_path: Path) -> None:
    """Saved, loaded and read by a bank it gives the margins that were trained."""
    made = trainer(tmp_path)
    made.train()
    batch = made.data_collator([made.train_dataset[i] for i in range(6)])
    _, out = made.compute_loss(made.model.eval(), batch, return_outputs=True)
    order = np.argsort(made.train_dataset[:6]["annotator"], kind="stable")
    made.save_model(str(tmp_path / "saved"))
    bank = RewardBank.from_pretrained(tmp_path / "saved")
    said = pairs()[:6]
    chosen = bank(said["prompt"], list(said["chosen"]))
    margins = (chosen - bank(said["prompt"], list(said["rejected"])))[order]
    torch.testing.assert_close(margins, out["margins"].detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bank.settings["shares"], made.running.shares, rtol=1e-6)
    same = RewardBank(made.reward_model(), tokenizer())
    torch.testing.assert_close(same(said["prompt"], list(said["chosen"])), chosen)


@pytest.mark.parametrize("head_rank", [None, 1])
def test_lora(head_rank: int | None, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from maxmin_rlhf.integrations.transformers import lora_config

    start = torch.cat([heads(), heads().flip(1)[:1]])
    made = trainer(
        tmp_path,
        reward_model(start, small_trunk()),
        peft_config=lora_config(4, head_rank=head_rank),
        max_steps=12,
    )
    learn = [name for name, p in made.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "score" in name for name in learn)
    made.train()
    assert losses(made)[-1] < losses(made)[0]
    batch = made.data_collator([made.train_dataset[i] for i in range(6)])
    _, out = made.compute_loss(made.model.eval(), batch, return_outputs=True)
    merged = made.reward_model()
    change = merged.score.weight.detach().double() - start
    values = torch.linalg.svdvals(change)
    assert float(values[0]) > 1e-3
    assert (float(values[1]) < 1e-5 * float(values[0])) == (head_rank == 1)
    bank = RewardBank(merged, tokenizer())
    said = pairs()[:6]
    order = np.argsort(made.train_dataset[:6]["annotator"], kind="stable")
    margins = bank(said["prompt"], list(said["chosen"])) - bank(
        said["prompt"], list(said["rejected"])
    )
    torch.testing.assert_close(margins[order], out["margins"].detach(), rtol=1e-3, atol=1e-4)


def test_an_encoder_with_mean_pooling(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    trunk = BertModel(BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=32, max_position_embeddings=32))  # fmt: skip
    model = reward_model(heads() * 8, trunk, pooling="mean", normalize=True)
    made = trainer(tmp_path, model, max_steps=20)
    made.train()
    assert np.mean(losses(made)[-3:]) < np.mean(losses(made)[:3])


def test_as_trainer_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16, checkpointed activations, accumulated gradients: it learns, and the margins are not in bfloat16."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # Trainer's bf16 would outlive the test
    made = trainer(
        tmp_path, bf16=True, gradient_checkpointing=True, gradient_accumulation_steps=2,
        per_device_train_batch_size=4, max_steps=12,
    )  # fmt: skip
    made.train()
    assert losses(made)[-1] < losses(made)[0]
    batch = next(iter(made.get_train_dataloader()))
    with made.compute_loss_context_manager():
        _, out = made.compute_loss(made.model.eval(), batch, return_outputs=True)
    assert not torch.equal(out["margins"], out["margins"].bfloat16().float())


def test_starts_from_a_fit(tmp_path: Path) -> None:
    fit = SimpleNamespace(
        heads_=heads().numpy(),
        weights_=np.array([0.25, 0.75]),
        annotators_=np.array(PEOPLE[:1], object),
        responsibilities_=np.array([[0.875, 0.125]]),
    )
    made = trainer(tmp_path, reward_model(fit, small_trunk()), mixture=fit)
    np.testing.assert_allclose(made.running.shares, fit.weights_)
    at = made.running.annotators.index(PEOPLE[0])
    np.testing.assert_allclose(made.running.responsibilities[at], [0.875, 0.125])


# ---- order of the pairs


def test_runs_of_an_annotator() -> None:
    from maxmin_rlhf.integrations.transformers import AnnotatorSampler

    who = [0] * 9 + [1] * 4 + [2] * 7
    sampler = AnnotatorSampler(who, 4, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(20)) and list(sampler) == order
    at, sizes = 0, []
    while at < 20:  # cut anew where the annotator changes or four are full
        n = next((j for j in range(1, 5) if at + j == 20 or who[order[at + j]] != who[order[at]]), 4)  # fmt: skip
        sizes.append(n)
        at += n
    assert len(sizes) <= 8 and max(sizes) == 4
    sampler.set_epoch(1)
    assert list(sampler) != order


# ---- interrupted, in parallel


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    """From the middle of the second epoch."""
    options = {"save_strategy": "steps", "save_steps": 8, "max_steps": 15}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    again = trainer(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert losses(again)[-7:] == losses(whole)[-7:]
    assert torch.equal(parameters(again), parameters(whole))
    for name in ("evidence", "responsibilities", "shares"):
        assert torch.equal(getattr(again.running, name), getattr(whole.running, name))
    (tmp_path / "whole" / "checkpoint-8" / "maxmin_responsibilities.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        trainer(tmp_path / "again").train(
            resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8")
        )


PARALLEL = """
import sys
from pathlib import Path
import torch
from tests.rlhf.test_mixture_trainer import losses, parameters, trainer
folder = Path(sys.argv[1])
made = trainer(folder, per_device_train_batch_size=4, pairs_per_annotator=3, optim="sgd", max_steps=6)
assert made.accelerator.num_processes == 2
made.train()
torch.save([parameters(made), made.running.evidence, made.running.shares, losses(made)], folder / f"{made.args.process_index}.pt")
"""


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Runs of three pairs in halves of four: an annotator's pairs lie on both."""
    script = tmp_path / "run.py"
    script.write_text(PARALLEL)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = trainer(tmp_path, pairs_per_annotator=3, optim="sgd", max_steps=6)
    one.train()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for ours, theirs in zip(first[:3], second[:3], strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(first[0], parameters(one), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first[1], one.running.evidence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first[2], one.running.shares, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first[3], losses(one), atol=2e-4)


# ---- errors


def test_bad_data(tmp_path: Path) -> None:
    data = pairs()
    with pytest.raises(ValueError, match="train_dataset: expected a column 'annotator', got"):
        trainer(tmp_path, data=data.remove_columns("annotator"))
    with pytest.raises(ValueError, match="eval_dataset: expected a column 'rejected', got"):
        trainer(tmp_path, eval_dataset=data.remove_columns("rejected"))
    with pytest.raises(TypeError, match="train_dataset: expected a datasets.Dataset, got list"):
        trainer(tmp_path, data=data.to_list())
    with pytest.raises(ValueError, match="train_dataset: expected at least one pair, got none"):
        trainer(tmp_path, data=data.select([]))
    rows = data.to_list()
    rows[5]["rejected"] = " "
    with pytest.raises(ValueError, match="train_dataset: rejected: row 5 is empty"):
        trainer(tmp_path, data=type(data).from_list(rows))
    rows[5]["rejected"], rows[7]["annotator"] = "a", None
    with pytest.raises(ValueError, match="train_dataset: expected an annotator in each row, got None"):  # fmt: skip
        trainer(tmp_path, data=type(data).from_list(rows))


def test_bad_models_and_options(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(ValueError, match="expected an entry 'maxmin'"):
        trainer(tmp_path, AutoModelForSequenceClassification.from_config(llama_config()))
    with pytest.raises(ValueError, match="pairs_per_annotator: expected at least 1, got 0"):
        trainer(tmp_path, pairs_per_annotator=0)
    with pytest.raises(ValueError, match="decay: expected a number in"):
        trainer(tmp_path, decay=math.inf)
    fit = SimpleNamespace(weights_=np.ones(3) / 3)
    with pytest.raises(ValueError, match="mixture: expected 2 groups as the model has, got 3"):
        trainer(tmp_path, mixture=fit)


# ---- what wraps the model, and what comes between


def test_a_trunk_in_half_precision(tmp_path: Path) -> None:
    """Its heads are not: rewards and steps of the heads are finer than bfloat16."""
    made = trainer(tmp_path, reward_model(heads(), small_trunk().bfloat16()), learning_rate=1e-4, max_steps=2)  # fmt: skip
    assert made.model.base_model.dtype == torch.bfloat16
    start = made.model.score.weight.detach().clone()
    made.train()
    batch = next(iter(made.get_train_dataloader()))
    _, out = made.compute_loss(made.model.eval(), batch, return_outputs=True)
    assert not torch.equal(out["margins"], out["margins"].bfloat16().float())
    moved = made.model.score.weight.detach() - start
    assert (moved != 0).all() and float(moved.abs().max()) < 1e-3


def test_accumulated_gradients_are_the_batchs(tmp_path: Path) -> None:
    """With one group, where nothing that a batch teaches changes the next one's loss."""
    options = {"optim": "sgd", "max_steps": 3, "pairs_per_annotator": 4, "max_grad_norm": 0.0}
    whole = trainer(tmp_path, reward_model(heads(1), small_trunk()), **options)
    parts = trainer(
        tmp_path,
        reward_model(heads(1), small_trunk()),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **options,
    )
    for made in (whole, parts):
        made.train()
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(losses(parts), losses(whole), atol=1e-4)


def test_adapters_learn_under_checkpointed_activations_and_resume(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from maxmin_rlhf.integrations.transformers import lora_config

    def one(folder: Path) -> Any:
        torch.manual_seed(5)
        return trainer(
            folder, peft_config=lora_config(4), gradient_checkpointing=True, max_steps=8, save_strategy="steps", save_steps=4
        )  # fmt: skip

    whole, again = one(tmp_path / "whole"), one(tmp_path / "again")
    whole.train()
    learned = [p for name, p in whole.model.named_parameters() if "lora_B" in name]
    assert learned and all(bool((p != 0).any()) for p in learned)  # they began at zero
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert torch.equal(parameters(again), parameters(whole))
    assert torch.equal(again.running.evidence, whole.running.evidence)


def test_the_best_model_with_its_responsibilities(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = trainer(
        tmp_path, eval_dataset=pairs(12, seed=9), learning_rate=0.3, max_steps=6, save_strategy="steps", save_steps=1,
        eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
    )  # fmt: skip
    made.train()
    best = Path(made.state.best_model_checkpoint)
    assert best.name != "checkpoint-6"
    kept = load_file(best / "maxmin_responsibilities.safetensors")
    assert torch.equal(made.running.responsibilities, kept["responsibilities"])
    assert torch.equal(made.running.shares, kept["shares"])


def test_trains_on_after_the_model_was_taken(tmp_path: Path) -> None:
    """The plain model pools by itself and pads otherwise; what trains and evaluates goes on as before."""
    data = pairs(12, seed=9)
    made = trainer(tmp_path, reward_model(heads(), small_trunk(), pooling="mean", normalize=True), eval_dataset=data)  # fmt: skip
    before = made.evaluate()
    made.reward_model()
    assert made.evaluate()["eval_loss"] == before["eval_loss"]
    assert made.evaluate(data)["eval_loss"] == before["eval_loss"]  # not tokenised yet
    assert made.predict(data).metrics["test_loss"] == before["eval_loss"]
    made.train()


def test_several_eval_datasets(tmp_path: Path) -> None:
    parts = {"one": pairs(12, seed=9), "other": pairs(12, seed=8)}
    made = trainer(tmp_path, eval_dataset=parts)
    found = made.evaluate()
    assert {"eval_one_loss", "eval_other_accuracy"} <= set(found)
    with pytest.raises(ValueError, match="other: expected a column 'annotator', got"):
        trainer(tmp_path, eval_dataset={"other": parts["one"].remove_columns("annotator")})


def test_parameters_without_a_gradient_are_frozen(tmp_path: Path) -> None:
    """As DistributedDataParallel wants it: an encoder's pooler, and a layer before the head that is passed by."""
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    trunk = DistilBertModel(DistilBertConfig(vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32))  # fmt: skip
    made = trainer(tmp_path, reward_model(heads(), trunk, pooling="mean"))
    batch = next(iter(made.get_train_dataloader()))
    made.compute_loss(made.model.train(), batch).backward()
    for name, parameter in made.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_an_annotator_larger_than_a_batch(tmp_path: Path) -> None:
    """All pairs of one person, in six batches: their evidence is of all of them, the older ones faded to two thirds."""
    alike = [row for i, row in enumerate(pairs(48).to_list()) if i % 2 == 0]
    data = type(pairs()).from_list([{**row, "annotator": "one"} for row in alike])
    made = trainer(tmp_path, data=data, per_device_train_batch_size=4, pairs_per_annotator=64, max_steps=6, learning_rate=1e-9)  # fmt: skip
    made.train()
    model, total = made.model.eval(), torch.zeros(2, dtype=torch.float64)
    for first in range(0, 24, 8):
        batch = made.data_collator([made.train_dataset[i] for i in range(first, first + 8)])
        with torch.no_grad():
            _, out = made.compute_loss(model, batch, return_outputs=True)
        total += logsigmoid(out["margins"].double()).sum(0)
    gap = float((made.running.evidence[0, 0] - made.running.evidence[0, 1]).abs())
    assert 0.5 < gap / float((total[0] - total[1]).abs()) < 0.85


def test_a_model_that_diverged_and_other_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    made = trainer(tmp_path)
    with torch.no_grad():
        made.model.score.weight[1] = math.nan
    with pytest.raises(ValueError, match="model: expected finite rewards, got others"):
        made.train()
    assert bool(made.running.evidence.isfinite().all())
    from transformers import TrainingArguments

    from maxmin_rlhf.integrations.transformers import MixtureRewardTrainer

    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    given = {"train_dataset": pairs(), "processing_class": None}
    with pytest.raises(TypeError, match="processing_class: expected a tokenizer, got NoneType"):
        MixtureRewardTrainer(reward_model(heads(), small_trunk()), args, **given)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"args: expected a process for each device .*, got one for 2"):  # fmt: skip
        trainer(tmp_path)
    monkeypatch.undo()
    stranger = SimpleNamespace(weights_=np.ones(2) / 2, annotators_=np.array([1, 2], object), responsibilities_=np.ones((2, 2)) / 2)  # fmt: skip
    with pytest.warns(UserWarning, match="mixture: none of the 6 annotators is one that it was fitted to"):  # fmt: skip
        trainer(tmp_path, mixture=stranger)

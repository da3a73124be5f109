"""GroupDPOTrainer: plain DPO with one group, the loss and its weights, resumed and parallel runs, errors."""

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

from maxmin_rlhf import MaxMinWeights
from tests.rlhf.language_models import (
    PROMPTS,
    STORY_PROMPTS,
    letters,
    save_language_model,
    save_stories,
)

pytest.importorskip("trl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# Three of four people are merry; the fourth is nearly surely grave.
RESPONSIBILITIES = {0: [1.0, 0.0], 1: [0.75, 0.25], 2: [1.0, 0.0], 3: [0.0625, 0.9375]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_language_model(tmp_path_factory.mktemp("model"))


def pairs(n: int = 24) -> Any:
    from datasets import Dataset

    said = [" happy and good", " sad and bad on the mat"]
    rows = [
        {
            "prompt": PROMPTS[(i // 4) % len(PROMPTS)],
            "chosen": said[i % 4 == 3],
            "rejected": said[i % 4 != 3],
            "annotator": i % 4,
        }
        for i in range(n)
    ]
    return Dataset.from_list(rows)


def options(folder: Path, **changes: Any) -> Any:
    import trl

    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "learning_rate": 5e-3,
        "beta": 0.5,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": 3,
        "disable_tqdm": True,
    }
    return trl.DPOConfig(**{**settings, **changes})


def trainer(
    model: Any,
    folder: Path,
    responsibilities: Any = RESPONSIBILITIES,
    weights: MaxMinWeights | None = None,
    data: Any = None,
    eval_dataset: Any = None,
    **changes: Any,
) -> Any:
    from maxmin_rlhf.integrations.trl import GroupDPOTrainer

    given = {"peft_config": changes.pop("peft_config")} if "peft_config" in changes else {}
    return GroupDPOTrainer(
        model,
        args=options(folder, **changes),
        train_dataset=pairs() if data is None else data,
        eval_dataset=eval_dataset,
        responsibilities=responsibilities,
        weights=weights,
        **given,
    )


def parameters(made: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def logged(made: Any, name: str) -> list[float]:
    return [row[name] for row in made.state.log_history if name in row]


# ---- what a step does


def test_one_group_is_plain_dpo(model: str, tmp_path: Path) -> None:
    import trl

    made = trainer(model, tmp_path, {a: [1.0] for a in range(4)})
    made.train()
    plain = trl.DPOTrainer(model, args=options(tmp_path), train_dataset=pairs())
    plain.train()
    assert logged(made, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-4)
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen", "rewards/rejected"):
        assert logged(made, name) == pytest.approx(logged(plain, name), rel=1e-3, abs=1e-5)
    torch.testing.assert_close(parameters(made), parameters(plain), rtol=1e-3, atol=2e-5)


def test_the_loss_and_its_weights(model: str, tmp_path: Path) -> None:
    """Against the formula written out, from log-probabilities token by token."""
    weights = MaxMinWeights(2, "exponentiated_gradient", lr=2.0)
    made = trainer(model, tmp_path, weights=weights)
    with torch.no_grad():
        made.model.lm_head.weight += 0.5 * torch.randn_like(made.model.lm_head.weight)
    batch = next(iter(made.get_train_dataloader()))
    resp = batch["responsibilities"]
    made.model.train()
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    gradient = made.model.lm_head.weight.grad.clone()
    made.model.zero_grad()

    def log_prob(network: Any, row: int) -> torch.Tensor:
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :length]
        logs = network(input_ids=ids[None]).logits[0].log_softmax(-1)
        said = [t for t in range(1, length) if batch["completion_mask"][row, t]]
        return sum(logs[t - 1, ids[t]] for t in said)

    n = len(resp)
    margins = []
    for i in range(n):
        both = [log_prob(made.model, j) - log_prob(made.ref_model, j).detach() for j in (i, i + n)]
        margins.append(both[0] - both[1])
    each = -logsigmoid(0.5 * torch.stack(margins)).double()
    means = (resp.T @ each) / resp.sum(0)
    w = torch.softmax(torch.full((2,), 0.5).log() + 2.0 * means.detach(), 0)
    np.testing.assert_allclose(made.maxmin_weights.weights, w, rtol=1e-5)
    shares = np.mean(list(RESPONSIBILITIES.values()), 0)
    expected = (each * (resp @ (w / torch.from_numpy(shares)))).mean()
    np.testing.assert_allclose(loss.detach(), expected.detach(), rtol=1e-5)
    expected.backward()
    torch.testing.assert_close(gradient, made.model.lm_head.weight.grad, rtol=1e-3, atol=1e-6)


def test_the_minority_is_heard(model: str, tmp_path: Path) -> None:
    """Groups that want opposite things: with the shares as weights the majority wins, with MaxMin neither does."""
    hard = {a: [1.0, 0.0] if a < 3 else [0.0, 1.0] for a in range(4)}
    found = {}
    for name, weights in (
        ("shares", MaxMinWeights(2, "fixed", initial=[0.75, 0.25])),
        ("maxmin", MaxMinWeights(2, "exponentiated_gradient", lr=0.5)),
    ):
        made = trainer(model, tmp_path, hard, weights, eval_dataset=pairs(), max_steps=25)
        made.train()
        found[name] = logged(made, "maxmin/utility/group_1")[-1]
        made.evaluate()
        assert logged(made, "eval_rewards/accuracies/group_0")[-1] in (0.0, 0.5, 1.0)
    assert found["maxmin"] > found["shares"] + 0.1
    assert logged(made, "maxmin/weight/group_1")[-1] > 0.5


def test_labels_in_the_data_and_from_a_fit(model: str, tmp_path: Path) -> None:
    data = pairs()
    column = data.add_column("responsibilities", [RESPONSIBILITIES[a] for a in data["annotator"]])
    fit = SimpleNamespace(
        annotators_=np.arange(4), responsibilities_=np.array(list(RESPONSIBILITIES.values()))
    )
    runs = [
        trainer(model, tmp_path),
        trainer(model, tmp_path, fit),
        trainer(model, tmp_path, None, data=column.remove_columns("annotator")),
    ]
    for made in runs:
        made.train()
        assert torch.equal(parameters(made), parameters(runs[0]))


def test_lora_and_reference_computed_before(model: str, tmp_path: Path) -> None:
    """Both ways to the reference: at each step, and once at the start."""
    peft = pytest.importorskip("peft")
    found = []
    for before in (False, True):
        torch.manual_seed(0)
        made = trainer(
            model, tmp_path, peft_config=peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
            precompute_ref_log_probs=before, max_steps=3,
        )  # fmt: skip
        made.train()
        found.append(logged(made, "loss"))
        assert logged(made, "rewards/margins")[-1] > 1e-3
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.fixture(scope="module")
def stories(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_stories(data_dir, tmp_path_factory.mktemp("stories"))


def judged_stories(folder: str, per_prompt: int = 8) -> Any:
    """Pairs of a real model's own stories; three people judge by round letters, a fourth by sharp ones."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words, rows = AutoTokenizer.from_pretrained(folder), []
    told, judges = AutoModelForCausalLM.from_pretrained(folder).eval(), [letters("aeo", "round")] * 3 + [letters("stl", "sharp")]  # fmt: skip
    torch.manual_seed(5)
    for prompt in STORY_PROMPTS:
        ids = words(prompt, return_tensors="pt").input_ids.repeat(2 * per_prompt, 1)
        drawn = told.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=True, top_k=0, top_p=1.0
        )  # fmt: skip
        texts = words.batch_decode(drawn[:, ids.shape[1] :], skip_special_tokens=True)
        for i, pair in enumerate(zip(texts[::2], texts[1::2], strict=True)):
            worse, better = sorted(pair, key=lambda text: judges[i % 4](completions=[text])[0])
            rows.append({"prompt": prompt, "chosen": better, "rejected": worse, "annotator": i % 4})
    return Dataset.from_list(rows)


def test_a_language_model_learns_for_both_groups(stories: str, tmp_path: Path) -> None:
    """stories260K: each batch's group losses, from the model's own log-probabilities in float64, and where they lead."""
    from transformers import AutoModelForCausalLM

    data = judged_stories(stories)
    weights = MaxMinWeights(2, "exponentiated_gradient", lr=0.5)
    made = trainer(
        stories, tmp_path, weights=weights, data=data, per_device_train_batch_size=16, max_steps=8, learning_rate=3e-4,
        warmup_steps=0, lr_scheduler_type="constant", beta=0.3,
    )  # fmt: skip
    reference = AutoModelForCausalLM.from_pretrained(stories).double().eval()
    policy = AutoModelForCausalLM.from_pretrained(stories).double().eval()
    shares, mirror = torch.tensor([0.703125, 0.296875], dtype=torch.float64), MaxMinWeights(2, "exponentiated_gradient", lr=0.5)  # fmt: skip
    seen: list[tuple[float, float]] = []

    def losses(batch: Any) -> torch.Tensor:
        """(B,) of the pairs, in float64."""
        margins = 0.0
        for network, sign in ((policy, 1), (reference, -1)):
            logs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)  # fmt: skip
            each = logs.gather(2, batch["input_ids"][:, 1:, None])[..., 0] * batch["completion_mask"][:, 1:]  # fmt: skip
            chosen, rejected = each.sum(1).chunk(2)
            margins = margins + sign * (chosen - rejected)
        return -logsigmoid(0.3 * margins)

    computed = made.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        policy.load_state_dict(model.state_dict())
        with torch.no_grad():
            each, resp = losses(inputs), inputs["responsibilities"]
        w = mirror.update(-(resp.T @ each)[None] / resp.sum(0))
        found = computed(model, inputs, *args, **options)
        seen.append((float(found.detach()), float((each * (resp @ (w / shares))).mean())))
        np.testing.assert_allclose(made.maxmin_weights.weights, w, rtol=1e-4)
        return found

    def groups() -> np.ndarray:
        """The groups' mean losses over all pairs."""
        policy.load_state_dict(made.model.state_dict())
        batch = made.data_collator([made.train_dataset[i] for i in range(len(data))])
        with torch.no_grad():
            resp, each = batch["responsibilities"], losses(batch)
        return ((resp.T @ each) / resp.sum(0)).numpy()

    start, made.compute_loss = parameters(made), compute_loss
    np.testing.assert_allclose(groups(), math.log(2), rtol=1e-6)
    made.train()
    ours, expected = zip(*seen, strict=True)
    assert len(ours) == 8
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert 1e-4 < float((parameters(made) - start).abs().max()) < 0.01
    after = groups()
    assert after.max() < math.log(2) - 0.1
    # Whoever's loss is larger now has gained weight since the start, or is about to.
    assert made.maxmin_weights.weights[int(np.argmin(made.maxmin_weights.utilities))] > 0.5


def test_a_model_that_has_diverged_is_no_absent_group(model: str, tmp_path: Path) -> None:
    made = trainer(model, tmp_path, max_steps=2)
    batch = next(iter(made.get_train_dataloader()))
    made.model.train()
    with torch.no_grad():
        made.model.lm_head.weight[5] = torch.nan
    with pytest.raises(ValueError, match="loss: expected finite numbers, got nan for a pair of group 0: has the model diverged"):  # fmt: skip
        made.compute_loss(made.model, batch)
    assert made.maxmin_weights.steps == 0


def test_evaluated_on_a_later_data_set(model: str, tmp_path: Path) -> None:
    import trl

    made = trainer(model, tmp_path, max_steps=1)
    made.train()
    if "evaluate" not in vars(trl.DPOTrainer):
        pytest.skip("this TRL does not prepare later data")
    assert made.evaluate(pairs(8))["eval_loss"] > 0
    with pytest.raises(ValueError, match="eval_dataset: expected a column 'annotator', got"):
        made.evaluate(pairs(8).remove_columns("annotator"))


# ---- interrupted, in parallel


def test_a_resumed_run_is_the_same_run(model: str, tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    whole = trainer(model, tmp_path / "whole", **changes)
    whole.train()
    again = trainer(model, tmp_path / "again", **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(parameters(again), parameters(whole))
    assert again.maxmin_weights.state_dict() == whole.maxmin_weights.state_dict()
    (tmp_path / "whole" / "checkpoint-2" / "maxmin_weights.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected the groups' weights beside"):
        trainer(model, tmp_path / "again").train(
            resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
        )


PARALLEL = """
import sys
from pathlib import Path
import torch
from tests.rlhf.test_group_dpo import parameters, trainer
model, folder = sys.argv[1], Path(sys.argv[2])
made = trainer(model, folder, per_device_train_batch_size=4, optim="sgd", learning_rate=0.1)
assert made.accelerator.num_processes == 2
made.train()
torch.save([parameters(made), made.maxmin_weights.weights], folder / f"{made.args.process_index}.pt")
"""


def test_two_processes_are_one(model: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(PARALLEL)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*launch, str(script), model, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = trainer(model, tmp_path, optim="sgd", learning_rate=0.1)
    start = parameters(one)
    one.train()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours, theirs)
    assert float((parameters(one) - start).abs().max()) > 1e-3
    torch.testing.assert_close(first[0], parameters(one), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first[1], one.maxmin_weights.weights, rtol=1e-5, atol=1e-7)


# ---- errors


def test_bad_input(model: str, tmp_path: Path) -> None:
    def refused(message: str, kind: type[Exception] = ValueError, **given: Any) -> None:
        with pytest.raises(kind, match=message):
            trainer(model, tmp_path, **given)

    refused("train_dataset: expected a column 'responsibilities', got", responsibilities=None)
    refused("train_dataset: expected a column 'annotator'", data=pairs().remove_columns("annotator"))  # fmt: skip
    refused("expected those of 3, train_dataset row 3, got none", responsibilities={0: [1.0], 1: [1.0], 2: [1.0]})  # fmt: skip
    refused("expected a fitted PreferenceMixture, a mapping", TypeError, responsibilities=[1.0])
    refused("expected a datasets.Dataset, got list", TypeError, data=pairs().to_list())
    refused("expected numbers >= 0 with a positive sum", responsibilities={**RESPONSIBILITIES, 2: [-1.0, 2.0]})  # fmt: skip
    refused("expected K numbers a row", responsibilities={**RESPONSIBILITIES, 2: [1.0]})
    refused("group 1 has no pairs in train_dataset", responsibilities={a: [1.0, 0.0] for a in range(4)})  # fmt: skip
    refused("weights: expected 2 groups as responsibilities have, got 3", weights=MaxMinWeights(3))
    refused("args.loss_type: expected .*sigmoid.*, got .*hinge", loss_type="hinge")
    refused("args.ld_alpha: expected None, got 0.5", ld_alpha=0.5)
    refused("args.loss_weights: expected None, got .0.5.", loss_weights=[0.5])

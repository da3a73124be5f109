"""The code of docs/training.md runs as it stands there, on small models."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maxmin_rlhf import reward_model, save_reward_model
from tests.rlhf.language_models import save_language_model, tokenizer
from tests.rlhf.test_mixture_trainer import PEOPLE, heads, pairs
from tests.rlhf.test_verl import plugin  # noqa: F401

pytest.importorskip("trl")
pytest.importorskip("peft")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def code(title: str) -> str:
    """The Python of a section."""
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    assert section is not None
    return "\n".join(re.findall(r"```python\n(.*?)```", section[1], re.S))


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page takes for granted."""
    import transformers
    import trl

    monkeypatch.chdir(tmp_path)
    short = {"use_cpu": True, "max_steps": 2, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}  # fmt: skip
    plain = {"bf16": False, "gradient_checkpointing": False}
    # TRL's is made from the other, when it is first asked for.
    monkeypatch.setattr(trl, "DPOConfig", functools.partial(trl.DPOConfig, **short, **plain))
    monkeypatch.setattr(transformers, "TrainingArguments", functools.partial(transformers.TrainingArguments, **short))  # fmt: skip
    save_language_model(tmp_path / "policy")
    save_language_model(tmp_path / "trunk")
    save_reward_model(reward_model(heads(), str(tmp_path / "policy")), tokenizer(), tmp_path / "rewards")  # fmt: skip
    people = np.array(PEOPLE, object)
    resp = np.random.default_rng(0).dirichlet([1, 1], len(people))
    fit = SimpleNamespace(heads_=heads().numpy(), weights_=resp.mean(0), annotators_=people, responsibilities_=resp)  # fmt: skip
    return {"fit": fit, "pairs": pairs(), "tokenizer": tokenizer()}


def test_a_live_trunk(names: dict[str, Any], tmp_path: Path) -> None:
    exec(code("A reward model on a trunk that learns"), names)
    assert names["trainer"].state.global_step == 2 and (tmp_path / "rewards").is_dir()


def test_dpo_for_groups(names: dict[str, Any]) -> None:
    exec(code("DPO for groups"), names)
    assert names["trainer"].maxmin_weights.steps == 2


def test_verl(names: dict[str, Any], plugin: Any) -> None:  # noqa: F811
    exec(code("verl"), names)
    out = names["compute_score"]("set", "the cat sat", None, {"question": "a dog"})
    assert set(out) == {"score", "group_0", "group_1"}


def test_openrlhf(names: dict[str, Any], tmp_path: Path) -> None:
    exec(code("OpenRLHF"), names)
    out = names["reward_func"](["a dog ran</s>"], ["a dog"], [None])
    assert out["rewards"].shape == (1,) and (tmp_path / "out" / "weights.json").is_file()

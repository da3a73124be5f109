"""K heads on one trunk: scores by hand, the padding trap, one pass, calibration, files, export. Small real models."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maxmin_rlhf import (
    PreferenceData,
    PreferenceMixture,
    RewardBank,
    reward_model,
    save_reward_model,
    solve_maxmin,
)
from tests.rlhf.language_models import PROMPTS, WORDS, llama_config, tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TEXTS = ["sat on the mat .", "ran and ran </s>", "good", "is big and happy and good </s>"]


def trunk(kind: str = "llama", pad: int = 0) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "pad_token_id": pad, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        return transformers.LlamaModel(llama_config(pad)).eval()
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **sizes)
        return transformers.GPT2Model(config).eval()
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        **sizes,
    )
    return transformers.BertModel(config).eval()


def heads(n_groups: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n_groups, 16))


def bank(kind: str = "llama", pad: str = "<pad>", n_groups: int = 3, **options: Any) -> RewardBank:
    model = reward_model(heads(n_groups), trunk(kind, WORDS.index(pad)), **options)
    return RewardBank(model, tokenizer(pad), batch_size=3)


@torch.no_grad()
def one_by_one(kind: str, pad: str, pooling: str, normalize: bool) -> np.ndarray:
    """Without padding, batches, or anything of ours."""
    words, model, rows = tokenizer(pad), trunk(kind, WORDS.index(pad)), []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        ids = torch.tensor([words(f"{prompt}\n{text}")["input_ids"]])
        hidden = model(input_ids=ids).last_hidden_state[0]
        vector = {"last": hidden[-1], "cls": hidden[0], "mean": hidden.mean(0)}[pooling]
        vector = vector / vector.norm() if normalize else vector
        rows.append(vector.double().numpy() @ heads().T)
    return np.array(rows)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_scores_by_hand(kind: str, pooling: str, normalize: bool, pad: str) -> None:
    """Padding to a batch's longest text changes nothing, also where the padding token is the end mark."""
    found = bank(kind, pad, pooling=pooling, normalize=normalize)(PROMPTS, TEXTS)
    np.testing.assert_allclose(found, one_by_one(kind, pad, pooling, normalize), atol=2e-5)


@torch.no_grad()
def test_the_padding_trap_is_there() -> None:
    """What the model's own forward pass makes of a text that ends with the end mark, when that is the padding too."""
    for pad, falls in (("<pad>", False), ("</s>", True)):
        ours, words = bank(pad=pad), tokenizer(pad)
        texts = [f"{p}\n{t}" for p, t in zip(PROMPTS, TEXTS, strict=True)]
        inputs = words(texts, return_tensors="pt", padding=True, padding_side="right")
        inputs.pop("token_type_ids", None)
        plain = ours.model(**inputs).logits
        wrong = (plain - ours(PROMPTS, TEXTS)).abs().amax(1) > 1e-3
        assert wrong.tolist() == [False, falls, False, falls]


def test_long_texts_lose_their_beginning() -> None:
    cut, words = bank(max_length=4), tokenizer()
    found = cut(["the cat and the dog and"], ["sat on the mat"])
    with torch.no_grad():
        ids = torch.tensor([[1, *(WORDS.index(w) for w in ("on", "the", "mat"))]])
        assert words.bos_token_id == 1
        hidden = trunk()(input_ids=ids).last_hidden_state[:, -1]
    np.testing.assert_allclose(found, hidden.numpy() @ heads().T, atol=1e-5)


def test_messages_go_through_the_template() -> None:
    ours = bank()
    prompt, completion = [{"role": "user", "content": "the cat"}], [{"role": "a", "content": "sat"}]
    with pytest.raises(ValueError, match="number 0 is a conversation, and the tokenizer has no"):
        ours([prompt], [completion])
    ours.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %} {{ m['content'] }}{% endfor %}"
    )
    np.testing.assert_allclose(ours([prompt], [completion]), bank()(["the cat"], ["sat"]))


# ---- as reward functions


def test_one_pass_for_all_groups() -> None:
    ours, passes = bank(), []
    ours.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    assert [f.__name__ for f in ours.reward_functions] == ["group_0", "group_1", "group_2"]
    completions = TEXTS[:3]  # one batch
    for _ in range(3):
        completions = list(completions)
        columns = [f(prompts=PROMPTS[:3], completions=completions) for f in ours.reward_functions]
    assert len(passes) == 1  # the same texts, in whatever list
    np.testing.assert_array_equal(np.array(columns).T, ours(PROMPTS[:3], completions))
    # The same list for other prompts is another batch.
    assert not np.allclose(ours(PROMPTS[1:], completions), np.array(columns).T)


def test_nothing_is_remembered_over_a_change() -> None:
    ours, prompts, completions = bank(), list(PROMPTS[:3]), list(TEXTS[:3])
    before = ours(prompts, completions)
    ours(prompts, completions).zero_()
    assert torch.equal(ours(prompts, completions), before)
    completions[0] = TEXTS[3]
    other = ours(prompts, completions)
    assert not torch.equal(other[0], before[0])
    torch.testing.assert_close(other[1:], before[1:])
    with torch.no_grad():  # as an optimiser's step does it
        ours.head.weight.mul_(3.0)
    torch.testing.assert_close(ours(prompts, completions), 3 * other, atol=1e-5, rtol=1e-4)


def test_a_group_that_gives_nan_is_named() -> None:
    ours = bank(names=["a", "b", "c"])
    with torch.no_grad():
        ours.head.weight[1] = math.nan
    with pytest.raises(ValueError, match="finite numbers, got nan from 'b' for completion 0: 'sat"):
        ours(PROMPTS, TEXTS)


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match="prompts: expected 4, one a completion, got 3"):
        bank()(PROMPTS[:3], TEXTS)
    with pytest.raises(ValueError, match="expected heads of width 16, the trunk's, got 5"):
        reward_model(np.zeros((2, 5)), trunk())
    with pytest.raises(ValueError, match=r"mixture: expected finite heads \(K, D\)"):
        reward_model(np.full((2, 16), np.nan), trunk())
    with pytest.raises(ValueError, match="pooling: expected one of mean, last, cls, got 'max'"):
        reward_model(heads(), trunk(), pooling="max")
    with pytest.raises(ValueError, match="names: expected 3 different ones"):
        reward_model(heads(), trunk(), names=["a", "a", "b"])
    model = transformers.LlamaForSequenceClassification(llama_config())
    with pytest.raises(ValueError, match="expected an entry 'maxmin' of format 1"):
        RewardBank(model, tokenizer())
    assert bank()([], []).shape == (0, 3)


# ---- from a fit


def test_from_a_fitted_mixture(tmp_path: Path) -> None:
    """Heads fitted to the trunk's features score the texts as the mixture scores the features."""
    words, model = tokenizer(), trunk()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[4:], 5)) for _ in range(40)]
    with torch.no_grad():
        ids = torch.tensor(words([f"the\n{t}" for t in texts])["input_ids"])
        features = model(input_ids=ids).last_hidden_state[:, -1].numpy()
    owner = np.repeat(np.arange(20), 15)
    chosen, rejected = np.array([rng.choice(40, 2, replace=False) for _ in owner]).T
    sign = np.where(owner % 4 == 0, -1, 1) * np.sign((features[chosen] - features[rejected])[:, 0])
    chosen, rejected = np.where(sign > 0, chosen, rejected), np.where(sign > 0, rejected, chosen)
    data = PreferenceData.from_items(features.astype(np.float64), chosen, rejected, owner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = PreferenceMixture(2, n_init=4, random_state=0, max_iter=50).fit(data)
    save_reward_model(reward_model(mixture, model), words, tmp_path)
    loaded = RewardBank.from_pretrained(tmp_path)
    np.testing.assert_allclose(
        loaded(["the"] * 40, texts), mixture.reward(features.astype(np.float64)), atol=1e-4
    )
    np.testing.assert_allclose(loaded.settings["shares"], mixture.weights_)
    card = (tmp_path / "README.md").read_text()
    assert "# 2 groups' rewards on one llama trunk" in card
    assert f"| group_0 | {mixture.weights_[0]:.1%} |" in card


def test_calibration() -> None:
    """On the reference's samples each group has mean 0 at every prompt and spread 1."""
    ours = bank()
    prompts = [p for p in PROMPTS for _ in range(4)]
    texts = [" ".join(np.random.default_rng(i).choice(WORDS[4:], 4)) for i in range(16)]
    raw = ours(prompts, texts).numpy().reshape(4, 4, 3)
    assert ours.calibrate(prompts, texts) is ours
    found = ours(prompts, texts).numpy().reshape(4, 4, 3)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(np.square(found).mean((0, 1)), 1, rtol=1e-5)
    # Offsets of a prompt are gone, proportions within a group stay.
    centred = raw - raw.mean(1, keepdims=True)
    np.testing.assert_allclose(found, centred / np.sqrt(np.square(centred).mean((0, 1))), atol=1e-5)
    elsewhere = ours(["a mat"], ["sat"])
    expected = bank()(["a mat"], ["sat"]).numpy() - raw.mean((0, 1))
    np.testing.assert_allclose(elsewhere, expected / ours.settings["scales"], atol=1e-5)
    with pytest.raises(ValueError, match="two samples or more of each, as many of each"):
        ours.calibrate(PROMPTS, TEXTS)


# ---- files


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_round_trip(kind: str, tmp_path: Path) -> None:
    ours = bank(kind, names=["merry", "calm", "grave"], pooling="mean", normalize=True)
    prompts, texts = [p for p in PROMPTS for _ in range(2)], [*TEXTS, *reversed(TEXTS)]
    expected = ours.calibrate(prompts, texts)(prompts, texts)
    ours.save(tmp_path)
    loaded = RewardBank.from_pretrained(tmp_path, batch_size=3)
    assert loaded.names == ["merry", "calm", "grave"]
    np.testing.assert_array_equal(loaded(prompts, texts), expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "merry", "1": "calm", "2": "grave"}
    assert config["maxmin"]["pooling"] == "mean"
    assert "reads the hidden states in another way" in (tmp_path / "README.md").read_text()


@torch.no_grad()
def plain_reward(folder: Path, texts: list[str]) -> np.ndarray:
    """As a program that knows nothing of groups loads and runs it."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    words = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = words(texts, return_tensors="pt", padding=True, padding_side="right")
    inputs.pop("token_type_ids", None)
    return model(**inputs).logits[:, 0].numpy()


def test_export(tmp_path: Path) -> None:
    """One-label checkpoints tell the responses to one prompt apart as the bank does, and so does Σ w* r."""
    ours = bank(names=["merry", "calm", "grave"])
    prompts = [PROMPTS[0]] * 16
    texts = [" ".join(np.random.default_rng(i).choice(WORDS[4:], 4)) for i in range(16)]
    rewards = ours.calibrate(prompts, texts)(prompts, texts).numpy()
    whole = [f"{p}\n{t}" for p, t in zip(prompts, texts, strict=True)]
    folders = ours.export_groups(tmp_path)
    assert [f.name for f in folders] == ["merry", "calm", "grave"]
    for k, folder in enumerate(folders):
        plain = plain_reward(folder, whole)
        np.testing.assert_allclose(plain - plain.mean(), rewards[:, k], atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = solve_maxmin(rewards[None], 0.5).weights
    plain = plain_reward(ours.export_scalar(tmp_path / "fair", weights), whole)
    np.testing.assert_allclose(plain - plain.mean(), rewards @ weights, atol=1e-5)
    with pytest.raises(ValueError, match="weights: expected 3 finite numbers"):
        ours.export_scalar(tmp_path / "other", [0.5, 0.5])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {"pooling": "mean"}), ("llama", {"normalize": True}), ("bert", {})],
)
def test_no_export_of_what_would_score_otherwise(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="expected one that reads the last token and nothing else"):
        bank(kind, **options).export_groups(tmp_path)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("normalize", [False, True])
def test_scores_are_those_of_encoded_features(
    pooling: str, normalize: bool, tmp_path: Path
) -> None:
    """Where heads were fitted to features of ``encode``, the bank reads the same features from the same texts."""
    encoder = pytest.importorskip("maxmin_rlhf.trunk")
    model, words = trunk(), tokenizer()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    options: dict[str, Any] = {"pooling": pooling, "normalize": normalize, "max_length": 8}
    made = encoder.Trunk.load(tmp_path, device="cpu", **options)
    prompts = ["a big dog and a cat", *PROMPTS[1:]]  # the first text is too long
    pairs = list(zip(prompts, TEXTS, strict=True))
    features = made(made.tokens(pairs, range(len(pairs))))
    found = RewardBank(reward_model(heads(), model, **options), words)(prompts, TEXTS)
    np.testing.assert_allclose(found, features.numpy() @ heads().T, atol=2e-5)


# ---- many threads, as reward servers have them


def test_a_call_between_two_looks() -> None:
    """Another thread's rewards, which came while the prompts were compared, are not these completions'."""
    shared, looks = bank(), []

    class Slow(str):
        def __eq__(self, other: object) -> bool:
            looks.append(other)
            if len(looks) == 1:
                shared(["b"], ["big and good"])
            return super().__eq__(other)

        __hash__ = str.__hash__

    said = ["sat on the mat ."]
    first = shared([Slow("a")], said)
    assert torch.equal(shared([Slow("a")], said), first)
    assert looks

"""A language policy for three groups, two alike and one opposed: MaxMin against the population's weights and equal ones.

    OMP_NUM_THREADS=1 python -m examples.maxmin_rloo_stories --model FOLDER      # stories260K.bin and tok512.bin: minutes
    python -m examples.maxmin_rloo_stories --model FOLDER --lora 16 --lr 8e-4    # or any causal model of transformers, or .gguf

Two groups of 40 % each like lively stories without full stops, one of 20 % likes stories of girls and mothers with many. TRL's
RLOO trains a model for each way of weighting them. How good the result is for the worst-off group is held against the best
that any policy as far from the reference could do, (18) of docs/math.md.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import RLOOConfig

from examples.stories260k import convert
from maxmin_rlhf import MaxMinWeights
from maxmin_rlhf.integrations.trl import MaxMinRLOOTrainer
from maxmin_rlhf.welfare.at_kl import fairest

GROUPS, SHARES = ("merry", "playful", "homely"), (0.4, 0.4, 0.2)
PROMPTS = (
    "Once upon a time, there was a",
    "One day, a little boy named Tim",
    "Lily and her mom went to the",
    "Tom was a big dog. He",
    "Sara saw a",
    "The sun was",
    "In the park, two friends",
    "A small cat",
)
BETA = 0.5
_MERRY = {
    *("happy", "happily", "smile", "smiled", "love", "loved", "loves", "fun", "play", "played"),
    *("playing", "friend", "friends", "good", "nice", "laughed", "hugged", "like", "liked"),
    *("pretty", "beautiful"),
}
_PLAYFUL = {
    *("play", "played", "playing", "fun", "friend", "friends", "game", "ball", "park"),
    *("toy", "toys", "run", "ran", "together"),
}
_HOMELY = {"she", "her", "girl", "mom", "lily", "sara"}


@dataclass(frozen=True)
class Setup:
    """What may be varied; as it stands, the experiment with stories260K."""

    tokens: int = 40  # of a story, at most
    samples: int = 512  # of the reference, a prompt
    fresh: int = 256  # of a trained policy, a prompt
    steps: int = 50
    lr: float = 1.5e-4
    generations: int = 16  # stories a prompt and step
    eta: float = 0.1  # step of the groups' weights
    lora: int = 0  # rank of an adapter on a bfloat16 model; 0 trains every weight in float32

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        for field in fields(Setup):
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Setup:
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


def raw_rewards(text: str) -> tuple[float, float, float]:
    """What each group thinks of a story, in its own units."""
    words, stops = re.findall(r"[a-z']+", text.lower()), len(re.findall(r"[.!?]", text))
    merry, playful, homely = (sum(w in s for w in words) for s in (_MERRY, _PLAYFUL, _HOMELY))
    return merry - 1.5 * stops, playful - 1.5 * stops, homely + 1.5 * stops


class Reference:
    """The policy before training, and what its stories are worth: where the rewards' zero and unit come from.

    Attributes:
        rewards: ``(P, S, K)`` of S stories a prompt, centred at the prompt, divided by the group's spread.
    """

    def __init__(self, folder: str | Path, setup: Setup | None = None, seed: int = 12345) -> None:
        self.folder, self.setup = str(folder), setup or Setup()
        self.dtype = "bfloat16" if self.setup.lora else "float32"
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype).eval()
        raw = stories(self, self.model, self.setup.samples, seed)[2]
        self.mean = raw.mean(1, keepdims=True)
        self.spread = np.sqrt(np.square(raw - self.mean).mean((0, 1)))
        self.rewards = self.calibrated(raw)

    def calibrated(self, raw: np.ndarray) -> np.ndarray:
        return (raw - self.mean) / self.spread

    def reward_functions(self) -> list[Callable[..., list[float]]]:
        """For TRL, one a group."""
        zero = dict(zip(PROMPTS, self.mean[:, 0], strict=True))

        def group(k: int) -> Callable[..., list[float]]:
            def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
                return [
                    float((raw_rewards(c)[k] - zero[p][k]) / self.spread[k])
                    for p, c in zip(prompts, completions, strict=True)
                ]

            reward.__name__ = GROUPS[k]
            return reward

        return [group(k) for k in range(len(GROUPS))]


@torch.no_grad()
def stories(
    reference: Reference, model: Any, per_prompt: int, seed: int
) -> tuple[list[Tensor], list[Tensor], np.ndarray, list[list[str]]]:
    """Fresh ones: tokens and mask ``(S, T)`` for each prompt, raw rewards ``(P, S, K)``, texts."""
    torch.manual_seed(seed)
    tokens, masks, texts = [], [], []
    end = reference.tokenizer.eos_token_id
    for prompt in PROMPTS:
        ids = reference.tokenizer(prompt, return_tensors="pt").input_ids.repeat(per_prompt, 1)
        drawn = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=reference.setup.tokens,
        )[:, ids.shape[1] :]
        tokens.append(drawn)
        # The end mark is part of a story, what follows it is not.
        masks.append(((drawn == end).cumsum(1) - (drawn == end).long()) == 0)
        texts.append(reference.tokenizer.batch_decode(drawn, skip_special_tokens=True))
    raw = np.array([[raw_rewards(text) for text in row] for row in texts])
    return tokens, masks, raw, texts


@torch.no_grad()
def log_likelihoods(
    reference: Reference, model: Any, tokens: list[Tensor], masks: list[Tensor]
) -> Tensor:
    """(P, S) of the stories given their prompts."""
    rows = []
    for prompt, drawn, mask in zip(PROMPTS, tokens, masks, strict=True):
        ids = reference.tokenizer(prompt, return_tensors="pt").input_ids.repeat(len(drawn), 1)
        whole, start = torch.cat([ids, drawn], 1), ids.shape[1]
        logp = torch.cat(
            [
                model(input_ids=part)
                .logits[:, start - 1 : -1]
                .float()
                .log_softmax(-1)
                .gather(-1, part[:, start:, None])[..., 0]
                for part in whole.split(64)
            ]
        )
        rows.append((logp * mask).sum(1))
    return torch.stack(rows).double()


def train(reference: Reference, weights: MaxMinWeights, seed: int) -> tuple[Any, list[list[float]]]:
    """The trained policy, and the groups' weights at each logged step."""
    setup = reference.setup
    adapter = None
    if setup.lora:
        from peft import LoraConfig

        adapter = LoraConfig(r=setup.lora, lora_alpha=2 * setup.lora, target_modules="all-linear")
    with tempfile.TemporaryDirectory() as scratch:
        config = RLOOConfig(
            output_dir=scratch,
            per_device_train_batch_size=len(PROMPTS) * setup.generations,
            num_generations=setup.generations,
            max_completion_length=setup.tokens,
            max_steps=setup.steps,
            learning_rate=setup.lr,
            warmup_steps=5,
            adam_beta2=0.99,
            beta=BETA,
            temperature=1.0,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            model_init_kwargs={"dtype": reference.dtype},
            gradient_checkpointing=False,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
        )
        trainer = MaxMinRLOOTrainer(
            reference.folder,
            reference.reward_functions(),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": list(PROMPTS) * 4}),
            processing_class=reference.tokenizer,
            weights=weights,
            peft_config=adapter,
        )
        # Given a slice with gaps, PyTorch copies a frozen head's weights once a story.
        head = trainer.model.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        trainer.train()
    rows = [row for row in trainer.state.log_history if "maxmin/worst" in row]
    history = [[round(row[f"maxmin/weight/{name}"], 4) for name in GROUPS] for row in rows]
    return trainer.model.eval().cpu(), history


def evaluate(reference: Reference, model: Any, seed: int = 777) -> dict[str, Any]:
    """Gains of the groups on fresh stories, and how far they are from the best possible at the policy's own KL."""
    tokens, masks, raw, texts = stories(reference, model, reference.setup.fresh, seed)
    gains = reference.calibrated(raw)
    own = log_likelihoods(reference, model, tokens, masks)
    base = log_likelihoods(reference, reference.model, tokens, masks)
    kappa = float((own - base).mean())
    best, ess = best_worst_gain(reference.rewards, kappa)
    halves = [best_worst_gain(half, kappa)[0] for half in np.array_split(reference.rewards, 2, 1)]
    utilities = gains.mean((0, 1))
    words = [re.findall(r"[a-z']+", text.lower()) for row in texts for text in row]
    n_tokens = sum(int(mask.sum()) for mask in masks)
    return {
        "gains": utilities.tolist(),
        "standard_error": float((gains.std((0, 1)) / math.sqrt(raw[..., 0].size)).max()),
        "worst": float(utilities.min()),
        "average": float(utilities @ np.array(SHARES)),
        "kappa": kappa,
        "kappa_standard_error": float((own - base).std()) / math.sqrt(own.numel()),
        "best_worst": best,
        "best_worst_halves": halves,
        "ess": ess,
        # With few samples behind the best policy it is no yardstick.
        "efficiency": float(utilities.min()) / best if ess >= 50 else None,
        "perplexity": math.exp(-float(base.sum()) / n_tokens),
        "distinct": [distinct(words, n) for n in (1, 2)],
        "samples": raw[..., 0].size,
        "text": [row[0] for row in texts[:3]],
    }


def best_worst_gain(rewards: np.ndarray, kappa: float) -> tuple[float, float]:
    """V*(κ) of (18) on reference samples, and how many of them stand behind it at a prompt on average."""
    policy = fairest(rewards, kappa).chances
    worst = float(np.einsum("ps,psk->k", policy, rewards).min() / len(rewards))
    return worst, float((1 / np.square(policy).sum(1)).mean())


def distinct(texts: Sequence[list[str]], n: int) -> float:
    """Share of different n-grams among all."""
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def maxmin_weights(setup: Setup | None = None) -> MaxMinWeights:
    """Those of the study: small steps of exponentiated gradient, which end at (13) itself and not at a softer problem."""
    return MaxMinWeights(len(GROUPS), "exponentiated_gradient", lr=(setup or Setup()).eta)


def fixed(weights: Sequence[float]) -> MaxMinWeights:
    return MaxMinWeights(len(GROUPS), "fixed", initial=weights)


def prepare(source: str | Path, folder: str | Path, setup: Setup | None = None) -> Reference:
    """The reference from ``source``: any model of transformers, or one converted into ``folder``, which may be there already
    (a ``.gguf`` file, stories260K's two files)."""
    source, folder = Path(source), Path(folder)
    if (source / "config.json").exists():
        return Reference(source, setup)
    if not (folder / "config.json").exists():
        (unpack if source.suffix == ".gguf" else convert)(source, folder)
    return Reference(folder, setup)


def unpack(source: Path, folder: Path) -> None:
    """A quantised model as plain float32 weights (needs the package gguf)."""
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # Loading has undone the quantisation; what is left of it would forbid to save.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder, see above")
    parser.add_argument("--seed", type=int, default=0)
    Setup.add_to(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reference = prepare(options.model, folder, Setup.of(options))
        for name, weights in (
            ("maxmin", maxmin_weights(reference.setup)),
            ("population", fixed(SHARES)),
            ("equal", fixed((1, 1, 1))),
        ):
            began = time.perf_counter()
            model, _ = train(reference, weights, options.seed)
            found = evaluate(reference, model)
            gains = ", ".join(f"{n} {g:+.2f}" for n, g in zip(GROUPS, found["gains"], strict=True))
            print(
                f"{name}: {gains}; worst {found['worst']:+.2f} of {found['best_worst']:.2f} possible at KL "
                f"{found['kappa']:.2f}; {time.perf_counter() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

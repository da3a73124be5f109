"""encode against a plain loop over the same model, batches sorted by length in both. Writes results/encode.json.

    python -m benchmarks.bench_encode [--texts 128] [--rounds 5]

The loop is what one would write by hand: texts sorted by length, the tokenizer and the model of transformers on a fixed
number of texts at a time, mean over the mask, unit length. It writes nothing; encode plans, hashes, writes and indexes a store.
Both have the model loaded. The texts are the questions and responses of the language demo. Beside the time on the clock stands
the processor's, which other programs on the machine disturb less: with one thread it is the one to compare by.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.harness import write_study
from maxmin_rlhf import encode
from maxmin_rlhf.demo.language.responses import read_responses
from maxmin_rlhf.pooling import joined
from maxmin_rlhf.trunk import Trunk, default_model

Times = dict[str, np.ndarray]
BATCHES = (16, 32, 64)  # texts at a time of the plain loop


def plain_loop(model: Any, tokenizer: Any, texts: list[str], size: int) -> torch.Tensor:
    """(n, D) in the order of the texts."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    out = torch.empty(len(texts), model.config.hidden_size)
    with torch.inference_mode():
        for first in range(0, len(order), size):
            which = order[first : first + size]
            batch = tokenizer([texts[i] for i in which], padding=True, truncation=True, max_length=256, return_tensors="pt")  # fmt: skip
            mask = batch["attention_mask"][..., None]
            hidden = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            out[which] = torch.nn.functional.normalize(hidden, dim=1)
    return out


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int) -> tuple[Times, Times]:
    """{variant: (rounds,) seconds} on the clock and of the processor, one call of each a round, after one to warm up."""
    wall = {name: np.empty(rounds) for name in variants}
    cpu = {name: np.empty(rounds) for name in variants}
    for i in range(-1, rounds):
        for name, run in variants.items():
            began, busy = time.perf_counter(), time.process_time()
            run()
            wall[name][i], cpu[name][i] = time.perf_counter() - began, time.process_time() - busy
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    responses = read_responses()
    pairs = [(p, t) for p, row in zip(responses.prompts, responses.texts, strict=True) for t in row]
    pick = np.random.default_rng(0).choice(len(pairs), args.texts, replace=False)
    pairs = [pairs[i] for i in pick]
    texts = [joined(*pair) for pair in pairs]
    trunk = Trunk.load()
    model = AutoModel.from_pretrained(default_model()).eval()
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    n_tokens = sum(map(len, trunk.tokens(texts, range(len(texts)))))
    with tempfile.TemporaryDirectory() as folder:
        stores = (Path(folder) / str(i) for i in range(10_000))
        variants = {"encode": lambda: encode(pairs, store=next(stores), model=trunk)}
        for size in BATCHES:
            variants[f"loop {size}"] = lambda size=size: plain_loop(model, tokenizer, texts, size)
        store = variants["encode"]()
        expected = plain_loop(model, tokenizer, texts, BATCHES[0])
        torch.testing.assert_close(store.gather(store.rows(pairs)), expected, atol=1e-5, rtol=0)
        wall, cpu = interleaved(variants, args.rounds)
    fastest = min((n for n in cpu if n != "encode"), key=lambda n: float(np.median(cpu[n])))
    findings = {
        "model": trunk.name,
        "texts": len(texts),
        "tokens": n_tokens,
        "rounds": args.rounds,
        "wall_seconds": {name: round(float(np.median(t)), 3) for name, t in wall.items()},
        "cpu_seconds": {name: round(float(np.median(t)), 3) for name, t in cpu.items()},
        "fastest_loop": fastest,
        # Paired by round, so that whatever else the machine did falls on both.
        "throughput_over_fastest_loop": {
            name: round(float(np.median(t[fastest] / t["encode"])), 3)
            for name, t in (("wall", wall), ("cpu", cpu))
        },
        "cpu_by_round": {name: t.round(3).tolist() for name, t in cpu.items()},
    }
    print(findings, flush=True)
    write_study("encode", findings)


if __name__ == "__main__":
    main()

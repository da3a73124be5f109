"""encode against a plain loop over the same model, batches sorted by length in both. Writes results/encode.json.

    python -m benchmarks.bench_encode [--texts 256] [--rounds 5]

The loop is what one would write by hand: texts sorted by length, the tokenizer and the model of transformers on a fixed
number of texts at a time, mean over the mask, unit length. It writes nothing; encode plans, hashes, writes and indexes a store.
Both have the model loaded. The texts are the questions and responses of the language demo.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.harness import interleaved, write_study
from maxmin_rlhf import encode
from maxmin_rlhf.demo.language.responses import read_responses
from maxmin_rlhf.trunk import Trunk, default_model, joined

BATCHES = (16, 32, 64, 128)  # texts at a time of the plain loop


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256)
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
        times = interleaved(variants, args.rounds, warmup=1)
    medians = {name: float(np.median(t)) for name, t in times.items()}
    fastest = min((n for n in medians if n != "encode"), key=medians.__getitem__)
    findings = {
        "model": trunk.name,
        "texts": len(texts),
        "tokens": n_tokens,
        "rounds": args.rounds,
        "median_ms": {name: round(ms, 1) for name, ms in medians.items()},
        "texts_per_second": {name: round(1e3 * len(texts) / ms, 1) for name, ms in medians.items()},
        "fastest_loop": fastest,
        # Paired by round, so that whatever else the machine did falls on both.
        "throughput_over_fastest_loop": round(float(np.median(times[fastest] / times["encode"])), 3),
        "by_round": {name: (times[name] / times["encode"]).round(3).tolist() for name in times if name != "encode"},
    }  # fmt: skip
    print(findings, flush=True)
    write_study("encode", findings)


if __name__ == "__main__":
    main()

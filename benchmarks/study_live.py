"""Two crowds, one trunk that learns: a mixture's rewards against one reward, by the same trainer in equally many steps.

    MAXMIN_DATA=... OMP_NUM_THREADS=1 python -m benchmarks.study_live [--store out/live_store]

Writes results/live_trunk.json after each run; what stands there is not run again. Annotators are held out in three folds, a
seed each. On the others a frozen MiniLM's features are fitted (ridges selected as `maxmin fit` does), then the trainer goes on
from that fit for one epoch, with adapters in the upper half of the trunk: once with one group, once with two. Of each held-out
annotator 30 % of the comparisons are predicted, by (11) from the other 70 %, over several such splits; one group has no use for
these. The step's size is chosen for each kind on the first fold's annotators that are not held out. Annotators of these data
are synthetic, 40 comparisons of one crowd each; the crowd is the truth to recover.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.harness import RESULTS, write_study
from benchmarks.panels import data_folder
from maxmin_rlhf import (
    PreferenceData,
    PreferenceMixture,
    RewardBank,
    TextPreferences,
    encode,
    reward_model,
    select_groups,
)
from maxmin_rlhf.data import annotator_folds, held_out_masks
from maxmin_rlhf.mixture import FitWarning
from maxmin_rlhf.trunk import default_model

Array = NDArray[np.float64]
NAME = "live_trunk"
FOLDS = 3
KINDS = {"pooled": 1, "mixture": 2}
RATES = (3e-4, 1e-3)
RESAMPLES = 10_000
TRAINING = {
    "max_length": 48,  # of the response, alone
    "batch_pairs": 16,
    "pairs_per_annotator": 8,
    "epochs": 1,
    "adapters": "LoRA of rank 8 in layers 4-6 of 6",
}


# ---- the score


def scores(margins: Array, shares: Array, data: PreferenceData, splits: int, seed: int) -> dict[str, list[float]]:  # fmt: skip
    """Of each annotator: comparisons predicted rightly, predicted, and their log-probability (11), over several splits.

    Args:
        margins: ``(C, K)`` of the data's comparisons. shares: ``(K,)``.
    """
    log_lik = -np.logaddexp(0, -margins)
    who, n = data.comparison_annotator, data.n_annotators
    out = {name: np.zeros(n) for name in ("right", "total", "log_probability")}
    for split in range(splits):
        visible, scored, _ = held_out_masks(data, "comparison", seed + split)
        known = np.stack([np.bincount(who[visible], x[visible], n) for x in log_lik.T], 1)
        known = known + np.log(shares)
        posterior = np.exp(known - np.logaddexp.reduce(known, 1, keepdims=True))
        probability = (posterior[who] * np.exp(log_lik)).sum(1)[scored]
        for name, x in (
            ("right", (probability > 0.5).astype(float)),
            ("total", np.ones(len(probability))),
            ("log_probability", np.log(probability)),
        ):
            out[name] += np.bincount(who[scored], x, n)
    return {name: [round(float(v), 4) for v in x] for name, x in out.items()}


# ---- a run


def run(known: PreferenceData, new: PreferenceData, texts: list[str], kind: str, rate: float, seed: int, splits: int) -> dict[str, Any]:  # fmt: skip
    """Fit, train on ``known``; score ``new`` before and after."""
    fitted = frozen_fit(known, KINDS[kind], seed)
    reward = np.asarray(fitted.reward(new.features), np.float64)
    chosen, rejected = places(new)
    before = scores(reward[chosen] - reward[rejected], fitted.weights_, new, splits, seed)
    began = time.process_time()
    bank, log, shares = train(known, texts, fitted, rate, seed)
    seconds = time.process_time() - began
    used = np.unique([chosen, rejected])
    used = used[np.argsort([len(texts[i]) for i in used])]  # less padding
    said = [texts[i] for i in used]
    reward = np.full((len(texts), KINDS[kind]), np.nan)
    reward[used] = bank([""] * len(said), said).numpy()
    after = scores(reward[chosen] - reward[rejected], shares, new, splits, seed)
    return {
        "kind": kind,
        "rate": rate,
        "annotators": [str(a) for a in new.annotators_],
        "l2": fitted.l2,
        "steps": log[-1]["step"],
        "pairs": known.n_comparisons,
        "cpu_seconds": round(seconds, 1),
        "loss": [round(x["loss"], 4) for x in log if "loss" in x],
        "shares": [round(float(s), 4) for s in shares],
        "frozen": before,
        "live": after,
    }


def frozen_fit(known: PreferenceData, n_groups: int, seed: int) -> PreferenceMixture:
    warnings.simplefilter("ignore", FitWarning)
    found = select_groups(known, (1, 2), split="comparison", random_state=seed)
    l2 = {r["n_groups"]: r["l2"] for r in found.results_}[n_groups]
    return PreferenceMixture(n_groups, l2=l2, random_state=seed).fit(known)


def train(known: PreferenceData, texts: list[str], fitted: PreferenceMixture, rate: float, seed: int) -> Any:  # fmt: skip
    """The trained rewards, the trainer's log and the groups' shares."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainingArguments

    from maxmin_rlhf.integrations.transformers import MixtureRewardTrainer, lora_config

    tokenizer = AutoTokenizer.from_pretrained(default_model())
    model = reward_model(
        fitted,
        default_model(),
        pooling="mean",
        normalize=True,
        max_length=TRAINING["max_length"],
    )
    chosen, rejected = places(known)
    pairs = Dataset.from_dict(
        {
            "chosen": [texts[i] for i in chosen],
            "rejected": [texts[i] for i in rejected],
            "annotator": [known.annotators_[a] for a in known.comparison_annotator],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=TRAINING["batch_pairs"],
            num_train_epochs=TRAINING["epochs"],
            learning_rate=rate,
            warmup_steps=10,
            weight_decay=0.0,
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=seed,
        )
        torch.manual_seed(seed)  # of the adapters
        trainer = MixtureRewardTrainer(
            model,
            args,
            processing_class=tokenizer,
            train_dataset=pairs,
            mixture=fitted,
            pairs_per_annotator=TRAINING["pairs_per_annotator"],
            peft_config=lora_config(
                8,
                target_modules=["query", "key", "value", "dense"],
                layers_to_transform=[3, 4, 5],
            ),
        )
        trainer.train()
    shares = trainer.running.shares.numpy()
    return RewardBank(trainer.reward_model(), tokenizer), trainer.state.log_history, shares


def places(data: PreferenceData) -> tuple[Any, Any]:
    assert data.chosen is not None and data.rejected is not None
    return data.chosen.numpy(), data.rejected.numpy()


# ---- all of them


def summary(runs: list[dict[str, Any]], crowd: dict[str, str]) -> dict[str, Any]:
    """Accuracy with intervals by bootstrap over annotators, paired: of all, and of each crowd."""
    by_kind: dict[str, dict[str, Array]] = {}
    for kind in KINDS:
        mine = sorted((r for r in runs if r["kind"] == kind), key=lambda r: r["fold"])
        for stage in ("frozen", "live"):
            by_kind[f"{kind}, {stage}"] = {
                name: np.concatenate([r[stage][name] for r in mine])
                for name in ("right", "total", "log_probability")
            }
        names = [a for r in mine for a in r["annotators"]]
    who = np.array([crowd[a] for a in names])
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {"annotators": len(who), "folds": len({r["fold"] for r in runs})}
    contrasts = {
        "mixture over pooled, live": ("mixture, live", "pooled, live"),
        "live over frozen, mixture": ("mixture, live", "mixture, frozen"),
        "live over frozen, pooled": ("pooled, live", "pooled, frozen"),
    }
    for part in ("all", *sorted(set(who))):
        rows = np.flatnonzero((who == part) | (part == "all"))
        drawn = rows[rng.integers(len(rows), size=(RESAMPLES, len(rows)))]
        total = by_kind["pooled, live"]["total"]
        found: dict[str, Any] = {}
        draws: dict[str, Any] = {}
        for kind, x in by_kind.items():
            draws[kind] = x["right"][drawn].sum(1) / total[drawn].sum(1)
            middle = x["right"][rows].sum() / total[rows].sum()
            log_probability = x["log_probability"][rows].sum() / total[rows].sum()
            found[kind] = entry(middle, draws[kind]) | {
                "log_probability": round(float(log_probability), 4)
            }
        for name, (one, other) in contrasts.items():
            middle = found[one]["accuracy"] - found[other]["accuracy"]
            found[name] = entry(middle, draws[one] - draws[other])
        out[part] = found
    return out


def entry(middle: float, draws: Array) -> dict[str, Any]:
    interval = [round(float(v), 4) for v in np.percentile(draws, (2.5, 97.5))]
    return {"accuracy": round(float(middle), 4), "interval": interval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("out/live_store"))
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the three to run")
    args = parser.parse_args()
    path = data_folder() / "hh_objectives/pairs_human.parquet"
    table = pd.read_parquet(path, columns=["annotator_id", "group"]).astype(str)
    crowd = dict(table.drop_duplicates("annotator_id").itertuples(index=False))
    prefs = TextPreferences.read(path, annotator="annotator_id", form="response")
    data = prefs.over(encode(prefs.texts, store=args.store, max_length=TRAINING["max_length"]))
    fold = annotator_folds(data.n_annotators, FOLDS, 0)
    kept = RESULTS / f"{NAME}.json"
    findings = json.loads(kept.read_text()) if kept.exists() else {}
    findings = {
        "training": TRAINING,
        "rates_tried": RATES,
        "splits": args.splits,
        "trials": findings.get("trials", []),
        "runs": findings.get("runs", []),
    }

    def once(where: str, key: dict[str, Any], known: Any, new: Any, rate: float) -> dict[str, Any]:
        for r in findings[where]:
            if key.items() <= r.items():
                return r
        found = key | run(known, new, prefs.texts, key["kind"], rate, key["fold"], args.splits)
        findings[where].append(found)
        right, total = (sum(found["live"][n]) for n in ("right", "total"))
        print(where, key, f"{right / total:.4f}, {found['cpu_seconds']} s", flush=True)
        write_study(NAME, findings)
        return found

    # The step's size: a third of the first fold's known annotators stand in for the held-out ones.
    known = data.select_annotators(fold != 0)
    inner = annotator_folds(known.n_annotators, FOLDS, 1)
    parts = known.select_annotators(inner != 0), known.select_annotators(inner == 0)
    rates: dict[str, float] = {}
    for kind in KINDS:
        tried = [
            once("trials", {"kind": kind, "fold": 0, "rate": rate}, *parts, rate) for rate in RATES
        ]
        rates[kind] = max(tried, key=lambda r: sum(r["live"]["log_probability"]))["rate"]
    for f in range(args.folds):
        for kind in KINDS:
            parts = data.select_annotators(fold != f), data.select_annotators(fold == f)
            once("runs", {"kind": kind, "fold": f}, *parts, rates[kind])
    done = [r for r in findings["runs"] if r["fold"] < args.folds]
    findings["summary"] = summary(done, crowd)
    write_study(NAME, findings)
    print(json.dumps(findings["summary"], indent=1))


if __name__ == "__main__":
    main()

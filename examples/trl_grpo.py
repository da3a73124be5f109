"""python examples/trl_grpo.py POLICY REWARD_MODEL PROMPTS.jsonl OUT [key=value ...], what follows for TRL's GRPOConfig"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from maxmin_rlhf import MaxMinWeights, RewardBank
from maxmin_rlhf.integrations.trl import MaxMinGRPOTrainer

policy, reward_model, file, out, *options = sys.argv[1:]
prompts = [json.loads(line)["prompt"] for line in Path(file).read_text().splitlines()]
args = GRPOConfig(out, **{k: json.loads(v) for k, v in (o.split("=") for o in options)})

# K groups' rewards from one forward pass; their zero and unit are what the policy gives before training.
bank = RewardBank.from_pretrained(reward_model)
tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
inputs = tokenizer(prompts, return_tensors="pt", padding=True)
start = AutoModelForCausalLM.from_pretrained(policy).generate(
    **inputs, do_sample=True, num_return_sequences=8, max_new_tokens=args.max_completion_length
)[:, inputs.input_ids.shape[1] :]
samples = tokenizer.batch_decode(start, skip_special_tokens=True)
bank.calibrate([p for p in prompts for _ in range(8)], samples)

trainer = MaxMinGRPOTrainer(
    policy,
    bank,
    args=args,
    train_dataset=Dataset.from_dict({"prompt": prompts}),
    weights=MaxMinWeights(bank.n_groups, tau=0.5),  # the worst-off group weighs most
)
trainer.train()
trainer.save_model(out)
print(trainer.maxmin_weights)

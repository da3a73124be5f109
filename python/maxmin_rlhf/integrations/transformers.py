"""K rewards on a trunk that learns: the mixture over annotators trained by ``transformers.Trainer``.

model = reward_model(fit, "path/of/the/trunk", pooling="mean", normalize=True)
trainer = MixtureRewardTrainer(model, args, processing_class=tokenizer, train_dataset=pairs, mixture=fit)
trainer.train()
bank = RewardBank(trainer.reward_model(), tokenizer)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Sampler

from maxmin_rlhf.integrations._pairs import AnnotatorSampler, PairCollator, column, tokenized
from maxmin_rlhf.mixture.online import RunningResponsibilities
from maxmin_rlhf.pooling import pool
from maxmin_rlhf.reward.model import head_of, settings

try:
    from transformers import Trainer, TrainerCallback
    from transformers.modeling_outputs import SequenceClassifierOutput
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        f"maxmin_rlhf.integrations.transformers needs transformers: pip install 'maxmin-kernels[trl]' ({error})"
    ) from error

__all__ = ["AnnotatorSampler", "MixtureRewardTrainer", "lora_config"]

_STATE = "maxmin_responsibilities.safetensors"


class MixtureRewardTrainer(Trainer):
    """The marginal likelihood (5) of annotators' pairs, by K heads and a trunk that learn together.

    A batch holds runs of one annotator's pairs; what their earlier batches said about their group enters as a prior
    (:class:`maxmin_rlhf.mixture.online.RunningResponsibilities`), over all processes.

    Args:
        model: from :func:`maxmin_rlhf.reward_model`, which starts it from a fit on frozen features. K = 1 is the pooled reward.
        args: ``transformers.TrainingArguments``; ``remove_unused_columns`` is set to False.
        processing_class: the tokenizer.
        train_dataset, eval_dataset (or several by name): ``datasets.Dataset`` in TRL's columns ``chosen, rejected`` and, if prompts are apart,
            ``prompt``: strings or conversations; and ``annotator``.
        mixture: the :class:`maxmin_rlhf.PreferenceMixture` of the heads: its responsibilities and shares are the first ones.
        peft_config: of PEFT, such as :func:`lora_config`.
        pairs_per_annotator: of one annotator side by side in a batch.
        decay, alpha: as of ``RunningResponsibilities``.
        kwargs: as Trainer's.

    Attributes:
        running: the ``RunningResponsibilities``; in each checkpoint, and back from it with
            ``train(resume_from_checkpoint=...)``.

    Raises:
        ValueError, TypeError: a missing column, a text without tokens, a model of another kind, a mixture of another K;
            one process for several devices; while training: rewards that are not finite.

    Note:
        The loss is the negative log-likelihood a pair. Evaluation scores held-out pairs by (11), with the group of annotators
        that were trained on and the shares for others: ``eval_loss``, ``eval_accuracy``. Logged besides: ``em/weight/<name>``.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        processing_class: Any,
        train_dataset: Any,
        eval_dataset: Any = None,
        mixture: Any = None,
        peft_config: Any = None,
        pairs_per_annotator: int = 8,
        decay: float | None = None,
        alpha: float = 1.0,
        **kwargs: Any,
    ) -> None:
        found = settings(model)
        # Small enough for single precision: steps and differences of rewards are below half precision's rounding.
        head = head_of(model).float()
        names = [str(model.config.id2label[k]) for k in range(model.config.num_labels)]
        if pairs_per_annotator < 1:
            raise ValueError(f"pairs_per_annotator: expected at least 1, got {pairs_per_annotator}")
        counts = Counter(column(train_dataset, "annotator", "train_dataset"))
        if None in counts:
            raise ValueError("train_dataset: expected an annotator in each row, got None")
        self.running = RunningResponsibilities(
            list(counts), list(counts.values()), len(names), decay=decay, alpha=alpha
        )
        if mixture is not None:
            self.running.start(mixture)
        place = {annotator: i for i, annotator in enumerate(counts)}
        self._token_options = {"tokenizer": processing_class, "max_length": found["max_length"], "place": place}  # fmt: skip
        train_dataset = self._tokenized(train_dataset, "train_dataset")
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {n: self._tokenized(d, n) for n, d in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._tokenized(eval_dataset, "eval_dataset")
        if args.n_gpu > 1:
            raise ValueError(f"args: expected a process for each device (torchrun), got one for {args.n_gpu}")  # fmt: skip
        self._names, self._settings, self._per_annotator = names, found, pairs_per_annotator
        _freeze_unused(model, head)
        # Whatever wraps the model (PEFT, DDP, FSDP, autocast) then goes through it.
        model.forward = MethodType(_rewards, model)
        self._core, self._forward = model, cast(Any, None)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        args.remove_unused_columns = False
        if args.gradient_checkpointing_kwargs is None:
            # The other way, older releases' default, gives adapters on a frozen trunk no gradient.
            args.gradient_checkpointing_kwargs = {"use_reentrant": False}
        pad = model.config.pad_token_id or 0
        super().__init__(
            model,
            args,
            data_collator=PairCollator(pad),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=kwargs.pop("compute_metrics", _metrics),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        self.running.to(self.args.device)
        self.add_callback(_Keep(self))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; with a checkpoint the responsibilities go on from it too."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            self.running.load(Path(folder, _STATE))
        self._through_ours()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._through_ours()
        return super().evaluation_loop(*args, **kwargs)

    def reward_model(self) -> Any:
        """The plain model, for a :class:`maxmin_rlhf.RewardBank` or ``save_reward_model``; adapters are merged in for good."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        self._put_shares()
        self._forward = model.__dict__.pop("forward", self._forward)
        return model.eval()

    def _through_ours(self) -> None:
        """The forward pass that :meth:`reward_model` took off is on again."""
        if self._forward is not None:
            self._core.__dict__.setdefault("forward", self._forward)

    # ---- Trainer's steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return AnnotatorSampler(list(data["annotator"]), self._per_annotator, seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return super().get_eval_dataloader(self._ready(eval_dataset, "eval_dataset"))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        return super().get_test_dataloader(self._ready(test_dataset, "test_dataset"))

    def _ready(self, data: Any, argument: str) -> Any:
        """Data that comes after the constructor, as token ids too; None or a name of eval_dataset's as it is."""
        if data is None or isinstance(data, str) or "chosen_ids" in data.column_names:
            return data
        return self._tokenized(data, argument)

    def _tokenized(self, data: Any, argument: str) -> Any:
        return tokenized(data, argument, **self._token_options)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Negative log-probability of the batch given the annotators' earlier ones, a pair."""
        margins = _margins(model, inputs)
        training = model.training
        if training and not bool(margins.isfinite().all()):
            # Taken in, it would stay in what is known of these annotators.
            raise ValueError(
                "model: expected finite rewards, got others: the training has diverged"
            )
        gather = self.accelerator.gather if self.accelerator.num_processes > 1 else None
        owner = inputs["annotator"]
        total = self.running.log_predictive(margins, owner, gather=gather, learn=training)
        loss = -(total / len(owner)).float()
        return (loss, {"margins": margins}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            margins = _margins(model, inputs)
        log_prob = self.running.log_probability(margins, inputs["annotator"])
        loss = -log_prob.mean().float()
        if prediction_loss_only:
            return loss, None, None
        return loss, log_prob.float(), inputs["annotator"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            shares = self.running.shares.tolist()
            logs.update({f"em/weight/{n}": s for n, s in zip(self._names, shares, strict=True)})
        super().log(logs, *args, **kwargs)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.running.load(Path(str(self.state.best_model_checkpoint), _STATE))

    def _save(self, *args: Any, **kwargs: Any) -> None:
        self._put_shares()
        super()._save(*args, **kwargs)

    def _put_shares(self) -> None:
        self._settings["shares"] = self.running.shares.tolist()


class _Keep(TrainerCallback):
    """Puts the responsibilities into every checkpoint."""

    def __init__(self, trainer: MixtureRewardTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            self.trainer.running.save(folder / _STATE)


def lora_config(rank: int = 8, *, head_rank: int | None = None, **options: Any) -> Any:
    """LoRA of PEFT on the trunk's linear layers, beside heads that learn freely or by a map that they share.

    Args:
        rank: of the trunk's.
        head_rank: None: every head learns by itself. r: the heads' change is ``U V`` with ``V (r, D)`` shared by all groups
            and ``U (K, r)``, so that a small group leans on directions that others found.
        options: as of ``peft.LoraConfig``.
    """
    from peft import LoraConfig

    options.setdefault("target_modules", "all-linear")
    if head_rank is None:
        return LoraConfig(r=rank, modules_to_save=["score", "classifier"], **options)
    return LoraConfig(r=rank, rank_pattern={"(score|classifier)": head_rank}, **options)


def _rewards(model: Any, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
    """``logits (B, K)`` as a RewardBank reads them, whatever the class would pool itself."""
    found = settings(model)
    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    vectors = pool(hidden, attention_mask, found["pooling"])
    if found["normalize"]:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    # Called, not read: an adapter may stand in its place.
    head = getattr(model, "score", None) or model.classifier
    # In half precision two long texts' rewards would differ by less than their rounding.
    with torch.autocast(vectors.device.type, enabled=False):
        return SequenceClassifierOutput(logits=head(vectors.to(head.weight.dtype)))


def _freeze_unused(model: Any, head: Any) -> None:
    """Parameters without a gradient, on which DistributedDataParallel would wait: encoders' poolers, layers before a head."""
    trunk = {
        id(parameter)
        for name, parameter in model.base_model.named_parameters()
        if not name.startswith("pooler.")
    }
    used = trunk | {id(parameter) for parameter in head.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def _margins(model: Any, inputs: Any) -> Tensor:
    """(B, K) chosen minus rejected, from one pass over both."""
    flat = {name: inputs[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
    rewards: Tensor = model(**flat).logits.float().view(len(inputs["annotator"]), 2, -1)
    return rewards[:, 0] - rewards[:, 1]


def _metrics(prediction: Any) -> dict[str, float]:
    """A pair counts as right where its probability, over the groups, is above one half."""
    return {"accuracy": float((prediction.predictions > math.log(0.5)).mean())}

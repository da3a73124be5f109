"""DPO for groups, in TRL's trainer (``trl>=1.0,<2``): no group's preferences are learned at another's cost alone.

    trainer = GroupDPOTrainer(model, responsibilities=fit, args=DPOConfig(...), train_dataset=pairs)
    trainer.train()

A group's loss is DPO's over its pairs; pairs count for a group by their annotator's responsibility. The weights of the
groups adapt to the groups' losses, as in group distributionally robust optimisation, or are those of
:func:`maxmin_rlhf.solve_maxmin` for good.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maxmin_rlhf.integrations.trl import KeptWeights, MaxMinCallback
from maxmin_rlhf.welfare import MaxMinWeights

__all__ = ["GroupDPOMixin", "GroupDPOTrainer"]  # noqa: F822

_COLUMN = "responsibilities"
# A group with less than this mass of a batch says nothing about its mean loss.
_PRESENT = 1e-3


class GroupDPOMixin(KeptWeights):
    """What groups change in ``trl.DPOTrainer``: the loss is ``Σ_k w_k L_k``, L_k the mean loss over group k's pairs.

    A pair of annotator a counts ``Σ_k w_k γ_ak / π_k``, with π the groups' shares of the training pairs: batches then
    give the gradient without bias. One group is plain DPO. After each batch, before its gradient, the weights take in
    the groups' mean losses, over all processes, as utilities ``-L_k``.

    Args:
        model: as TRL's.
        responsibilities: a fitted :class:`maxmin_rlhf.PreferenceMixture`, or ``{annotator: (K,) numbers >= 0}``, for a
            data set with a column ``annotator``; None: the data set has a column ``responsibilities``, K numbers a row.
        weights: None: ``MaxMinWeights(K, "exponentiated_gradient")``; ``MaxMinWeights(K, "fixed", initial=w)`` keeps the
            solver's.
        args, train_dataset, eval_dataset, ...: as TRL's; with its loss "sigmoid" and none of the options that change it.

    Attributes:
        maxmin_weights: the :class:`MaxMinWeights`; kept in each checkpoint, and back from it with
            ``train(resume_from_checkpoint=...)``. shares: ``(K,)`` float64, π.

    Raises:
        ValueError, TypeError: a missing column, an annotator without responsibilities, numbers that are none, a group
            without pairs, weights of another K, an option under which this is not DPO's sigmoid loss; while training: a
            loss that is not finite.

    Note:
        Logged: ``maxmin/weight/group_k``, ``maxmin/utility/group_k`` (running means), ``maxmin/worst``, ``maxmin/gap``,
        ``rewards/accuracies/group_k``, and TRL's ``rewards/*`` and ``logps/*``. Logits are made whole: TRL's fused head
        gives no gradient of single pairs.
    """

    data_collator: Any

    def __init__(
        self,
        model: Any,
        *,
        args: Any,
        train_dataset: Any,
        eval_dataset: Any = None,
        responsibilities: Any = None,
        weights: MaxMinWeights | None = None,
        **kwargs: Any,
    ) -> None:
        self._known = known = _by_annotator(responsibilities)
        train_dataset = _with_column(train_dataset, known, "train_dataset")
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {n: _with_column(d, known, n) for n, d in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = _with_column(eval_dataset, known, "eval_dataset")
        resp = np.asarray(list(train_dataset[_COLUMN]), np.float64)
        self.shares = torch.from_numpy(resp.mean(0))
        n_groups = len(self.shares)
        empty = np.flatnonzero(resp.sum(0) == 0)
        if empty.size:
            raise ValueError(f"responsibilities: group {empty[0]} has no pairs in train_dataset")
        if weights is None:
            weights = MaxMinWeights(n_groups, "exponentiated_gradient")
        if weights.n_groups != n_groups:
            raise ValueError(
                f"weights: expected {n_groups} groups as responsibilities have, got {weights.n_groups}"
            )
        _check_options(args)
        super().__init__(
            model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        if getattr(self, "aux_loss_enabled", False):
            raise ValueError("model: expected one without a router's loss, which would be left out")
        self.maxmin_weights = weights
        self.data_collator = _Collator(self.data_collator)
        self.add_callback(MaxMinCallback(weights))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if _COLUMN not in self._signature_columns:
            self._signature_columns.append(_COLUMN)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; a later data set needs the columns of the first one."""
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {n: self._judged(d, n) for n, d in eval_dataset.items()}
        elif eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._judged(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _judged(self, data: Any, argument: str) -> Any:
        given = _COLUMN in (getattr(data, "column_names", None) or [])
        return _with_column(data, None if given else self._known, argument)

    def compute_ref_log_probs(self, *args: Any) -> Any:
        """As TRL's; the groups are none of the model's inputs."""
        *model, inputs = args
        plain = {name: value for name, value in inputs.items() if name != _COLUMN}
        return super().compute_ref_log_probs(*model, plain)

    # ---- the loss

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        training = self.model.training
        inputs = dict(inputs)
        resp = inputs.pop(_COLUMN).double()  # [B, K]
        chosen, rejected, outputs = self._log_probs(model, inputs)
        reference = self._reference(inputs)
        ratios = chosen - reference[0], rejected - reference[1]
        loss = -F.logsigmoid(self.beta * (ratios[0] - ratios[1])).double()  # [B]
        right = (ratios[0] > ratios[1]).double()
        gather = self.accelerator.gather
        everyone = gather(resp), gather(loss.detach()), gather(right)
        mass = everyone[0].sum(0)
        if training:
            _check_finite(everyone[0], everyone[1])
            means = (everyone[0].T @ everyone[1]) / mass
            utilities = torch.where(mass > _PRESENT, -means, torch.nan)
            self.maxmin_weights.update(utilities[None], gathered=True)
        shares, weights = self.shares.to(resp), self.maxmin_weights.weights.to(resp)
        total = (loss * (resp @ (weights / shares))).mean().to(chosen.dtype)
        self._log_groups(everyone, mass, training)
        self._log_pairs(chosen, rejected, ratios, training)
        return (total, outputs) if return_outputs else total

    def _log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        """(B,) summed log-probabilities of the chosen and of the rejected completions, and the model's outputs."""
        ours = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
        outputs = model(**{k: v for k, v in inputs.items() if k not in ours}, use_cache=False)
        said = inputs["completion_mask"][:, 1:] == 1
        labels = inputs["input_ids"][:, 1:].masked_fill(~said, -100)
        logits = outputs.logits[:, -labels.shape[1] - 1 : -1].float()
        logps = -F.cross_entropy(logits.mT, labels, reduction="none", ignore_index=-100)
        chosen, rejected = logps.sum(1).chunk(2)
        return chosen, rejected, outputs

    def _reference(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if self.precompute_ref_logps:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        if self.ref_model is not None:
            # By the same steps as the policy, so that before the first one both are the same to the bit.
            with torch.no_grad():
                return self._log_probs(self.ref_model, inputs)[:2]
        # The policy without its adapter; early releases find the model themselves.
        if "model" in inspect.signature(super().compute_ref_log_probs).parameters:
            return self.compute_ref_log_probs(self.model, inputs)
        return self.compute_ref_log_probs(inputs)

    # ---- what is logged

    def _log_groups(self, everyone: tuple[Tensor, ...], mass: Tensor, training: bool) -> None:
        metrics = self._metrics["train" if training else "eval"]
        accuracy = (everyone[0].T @ everyone[2]) / mass
        for k, (share, value) in enumerate(zip(mass.tolist(), accuracy.tolist(), strict=True)):
            if share > _PRESENT:
                metrics[f"rewards/accuracies/group_{k}"].append(value)
        if not training:
            return
        state = self.maxmin_weights
        worst = float(state.utilities.min())
        for k, (weight, utility) in enumerate(
            zip(state.weights.tolist(), state.utilities.tolist(), strict=True)
        ):
            metrics[f"maxmin/weight/group_{k}"].append(weight)
            metrics[f"maxmin/utility/group_{k}"].append(utility)
        metrics["maxmin/worst"].append(worst)
        metrics["maxmin/gap"].append(float(state.weights @ state.utilities) - worst)

    def _log_pairs(
        self, chosen: Tensor, rejected: Tensor, ratios: tuple[Tensor, Tensor], training: bool
    ) -> None:
        metrics = self._metrics["train" if training else "eval"]
        good, bad = self.beta * ratios[0].detach(), self.beta * ratios[1].detach()
        values = {
            "rewards/chosen": good,
            "rewards/rejected": bad,
            "rewards/accuracies": (good > bad).float(),
            "rewards/margins": good - bad,
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
        }
        for name, value in values.items():
            metrics[name].append(float(self.accelerator.gather(value).mean()))


class _Collator:
    """TRL's batch, and ``responsibilities (B, K)`` beside it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = self.inner(examples)
        out[_COLUMN] = torch.tensor([e[_COLUMN] for e in examples], dtype=torch.float64)
        return out


def _check_finite(resp: Tensor, loss: Tensor) -> None:
    """To the weights NaN is an absent group: they would go on as if nobody of a diverged model's groups were there."""
    for row in (~loss.isfinite()).nonzero().flatten().tolist():
        found = f"{float(loss[row])} for a pair of group {int(resp[row].argmax())}"
        raise ValueError(f"loss: expected finite numbers, got {found}: has the model diverged?")


def _check_options(args: Any) -> None:
    plain = {
        "loss_type": ["sigmoid"],
        "loss_weights": None,
        "f_divergence_type": "reverse_kl",
        "ld_alpha": None,
        "use_weighting": False,
        "use_liger_kernel": False,
        "sync_ref_model": False,
    }
    for name, expected in plain.items():
        got = getattr(args, name, expected)
        if got != expected and [got] != expected and getattr(got, "value", got) != expected:
            raise ValueError(f"args.{name}: expected {expected!r}, got {got!r}")


def _by_annotator(responsibilities: Any) -> dict[Any, list[float]] | None:
    if responsibilities is None:
        return None
    if hasattr(responsibilities, "responsibilities_"):
        rows = responsibilities.responsibilities_.tolist()
        return dict(zip(responsibilities.annotators_.tolist(), rows, strict=True))
    if not isinstance(responsibilities, Mapping):
        raise TypeError(
            "responsibilities: expected a fitted PreferenceMixture, a mapping from annotators, or None, got "
            f"{type(responsibilities).__name__}"
        )
    return {a: np.asarray(row, np.float64).tolist() for a, row in responsibilities.items()}


def _with_column(data: Any, known: dict[Any, list[float]] | None, argument: str) -> Any:
    """The data set with a checked column ``responsibilities`` of K numbers that add up to 1."""
    columns = getattr(data, "column_names", None)
    if not isinstance(columns, list) or not hasattr(data, "add_column"):
        raise TypeError(f"{argument}: expected a datasets.Dataset, got {type(data).__name__}")
    needed = _COLUMN if known is None else "annotator"
    if needed not in columns:
        raise ValueError(f"{argument}: expected a column {needed!r}, got {', '.join(columns)}")
    rows = list(data[needed])
    if known is not None:
        for row, annotator in enumerate(rows):
            if annotator not in known:
                raise ValueError(
                    f"responsibilities: expected those of {annotator!r}, {argument} row {row}, got none"
                )
        rows = [known[annotator] for annotator in rows]
    try:
        resp = np.asarray(rows, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"responsibilities: expected K numbers a row in {argument}") from None
    if resp.ndim != 2 or not resp.size:
        raise ValueError(f"responsibilities: expected shape (N, K) in {argument}, got {resp.shape}")
    if not (np.isfinite(resp).all() and (resp >= 0).all() and (resp.sum(1) > 0).all()):
        raise ValueError(
            f"responsibilities: expected numbers >= 0 with a positive sum a row in {argument}"
        )
    if _COLUMN in columns:
        data = data.remove_columns(_COLUMN)
    return data.add_column(_COLUMN, (resp / resp.sum(1, keepdims=True)).tolist())


def __getattr__(name: str) -> Any:
    """The trainer: TRL imports slowly."""
    if name != "GroupDPOTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    trl: Any = importlib.import_module("trl")
    doc = "``trl.DPOTrainer`` with a weighted loss of groups: :class:`GroupDPOMixin`."
    trainer = type(name, (GroupDPOMixin, trl.DPOTrainer), {"__doc__": doc, "__module__": __name__})
    globals()[name] = trainer
    return trainer

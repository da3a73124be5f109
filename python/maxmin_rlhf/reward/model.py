"""K reward heads on one trunk, as a plain ``AutoModelForSequenceClassification`` checkpoint: any program can load it.

What else scoring needs (how texts become vectors, the groups' shares, zero and unit of their rewards) is one entry,
``maxmin``, of the configuration.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from maxmin_rlhf.pooling import POOLINGS
from maxmin_rlhf.reward.card import card

FORMAT = 1
_HEADS = ("score", "classifier")


def reward_model(
    mixture: Any,
    trunk: Any,
    *,
    pooling: str = "last",
    normalize: bool = False,
    max_length: int | None = None,
    names: Sequence[str] | None = None,
) -> Any:
    """A model with one label a group: the trunk that made the features, and the heads fitted to them.

    Args:
        mixture: a fitted `maxmin_rlhf.PreferenceMixture`, or its heads ``(K, D)``.
        trunk: a folder or a model of transformers, with a head of its own or without.
        pooling: how the features were made from the last hidden states: ``"last"`` token, ``"mean"``, ``"cls"`` (first).
        normalize: whether they were divided by their length.
        max_length: tokens that were kept, the last ones; None: all.
        names: of the groups; None: ``group_0``, ``group_1``, …

    Returns:
        ``AutoModelForSequenceClassification`` with ``num_labels=K`` in evaluation mode. Its own forward pass gives the
        rewards only for ``"last"`` without ``normalize`` and a padding token that no text has; a
        `maxmin_rlhf.RewardBank` of it gives them always.

    Raises:
        ValueError: heads of another width than the trunk's; a model class without a linear head.
    """
    from transformers import AutoModelForSequenceClassification

    heads = np.asarray(getattr(mixture, "heads_", mixture), np.float64)
    if heads.ndim != 2 or not np.isfinite(heads).all():
        raise ValueError(f"mixture: expected finite heads (K, D), got shape {heads.shape}")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
    n_groups = len(heads)
    shares = getattr(mixture, "weights_", np.full(n_groups, 1 / n_groups))
    names = [f"group_{k}" for k in range(n_groups)] if names is None else list(names)
    if len(names) != n_groups or len(set(names)) != n_groups:
        raise ValueError(f"names: expected {n_groups} different ones, got {names}")
    if isinstance(trunk, (str, os.PathLike)):
        from transformers import AutoModel

        trunk = AutoModel.from_pretrained(trunk)
    trunk = getattr(trunk, "base_model", trunk)
    config = copy.deepcopy(trunk.config)
    # The number of labels follows from the names.
    config.id2label, config.label2id = dict(enumerate(names)), {n: k for k, n in enumerate(names)}
    config.maxmin = {
        "format": FORMAT,
        "pooling": pooling,
        "normalize": normalize,
        "max_length": max_length,
        "shares": [float(s) for s in shares],
        "centers": [0.0] * n_groups,
        "scales": [1.0] * n_groups,
    }
    model = AutoModelForSequenceClassification.from_config(config)
    model.to(trunk.dtype)
    model.base_model.load_state_dict(trunk.state_dict(), strict=False)
    linear = head_of(model)
    if linear.in_features != heads.shape[1]:
        raise ValueError(
            f"mixture: expected heads of width {linear.in_features}, the trunk's, got {heads.shape[1]}"
        )
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(heads))
        if linear.bias is not None:
            linear.bias.zero_()
    return model.eval()


def head_of(model: Any) -> nn.Linear:
    """The linear layer from hidden states to labels."""
    for name in _HEADS:
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return head
    raise ValueError(
        f"model: expected a linear head named {' or '.join(_HEADS)}, got {type(model).__name__}"
    )


def settings(model: Any) -> dict[str, Any]:
    """The configuration's entry.

    Raises:
        ValueError: it has none, or one of another version.
    """
    found = getattr(model.config, "maxmin", None)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise ValueError(
            f"model: expected an entry 'maxmin' of format {FORMAT} in the configuration, got {version!r}; make the model "
            "with maxmin_rlhf.reward.reward_model"
        )
    return found


def save_reward_model(model: Any, tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Model, tokenizer and a card (README.md) as a folder for ``from_pretrained``."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    plain = reads_itself(model)
    Path(folder, "README.md").write_text(card(model.config, settings(model), plain), "utf-8")


def reads_itself(model: Any) -> bool:
    """Whether the model's own forward pass is the rewards, but for zero and unit."""
    found = settings(model)
    return hasattr(model, "score") and found["pooling"] == "last" and not found["normalize"]


def export_heads(
    model: Any, tokenizer: Any, folder: str | os.PathLike[str], mixes: dict[str, Any]
) -> list[Path]:
    """Plain one-label checkpoints, one a mix: for programs that know one reward.

    Args:
        mixes: ``{folder's name: (K,) weights}``. The reward is ``Σ_k w_k r_k`` in the calibrated units; constants, which no
            comparison at one prompt can see, are left out.

    Returns:
        The folders, in the order of ``mixes``.

    Raises:
        ValueError: the model's own forward pass would not be its reward (pooled otherwise than by the last token).
    """
    if not reads_itself(model):
        found = settings(model)
        raise ValueError(
            "model: expected one that reads the last token and nothing else, since a plain checkpoint does; got "
            f"pooling={found['pooling']!r}, normalize={found['normalize']} in {type(model).__name__}"
        )
    from transformers import AutoModelForSequenceClassification

    scales = torch.tensor(settings(model)["scales"], dtype=torch.float64)
    out = []
    for name, mix in mixes.items():
        weights = torch.as_tensor(mix, dtype=torch.float64)
        if weights.shape != scales.shape or not bool(weights.isfinite().all()):
            raise ValueError(
                f"weights: expected {len(scales)} finite numbers, got {weights.tolist()}"
            )
        config = copy.deepcopy(model.config)
        del config.maxmin
        config.id2label, config.label2id = {0: name}, {name: 0}
        single = AutoModelForSequenceClassification.from_config(config).to(model.dtype)
        single.base_model.load_state_dict(model.base_model.state_dict())
        mixed = (weights / scales) @ head_of(model).weight.detach().cpu().double()
        with torch.no_grad():
            head_of(single).weight.copy_(mixed[None])
        path = Path(folder, name)
        single.save_pretrained(path)
        tokenizer.save_pretrained(path)
        out.append(path)
    return out

"""Preferences as the flags name them, and what lies beside a mixture: the ids of one-hot features, the encoder of texts."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from maxmin_rlhf.commands import _output
from maxmin_rlhf.data import FeatureStore, PreferenceData, PreferenceStore, TextPreferences
from maxmin_rlhf.data.feature_store import quarter_of_memory


def preferences_to_fit(args: argparse.Namespace) -> PreferenceData | PreferenceStore:
    """The same; texts whose features take more than a quarter of memory are read from disk in every pass."""
    if args.store is None:
        if args.stream:
            raise ValueError("--stream: expected --store beside it")
        return preferences(args)
    texts, store = text_preferences(args), FeatureStore(args.store)
    n_bytes = len(texts.texts) * store.n_features * store.dtype.itemsize
    if args.stream or n_bytes > quarter_of_memory():
        return texts.stream(store)
    return texts.over(store)


def preferences(args: argparse.Namespace) -> PreferenceData:
    """Read the file, and the store if the preferences are texts."""
    if args.store is not None:
        return text_preferences(args).over(FeatureStore(args.store))
    if args.prompt is not None or args.form is not None:
        raise ValueError("--prompt, --form: expected --store beside them")
    return PreferenceData.read(
        args.preferences,
        annotator=args.annotator,
        features=args.features,
        chosen=_side(args.chosen),
        rejected=_side(args.rejected),
        items=args.items,
        comparison=args.comparison,
        weight=args.weight,
    )


def text_preferences(args: argparse.Namespace) -> TextPreferences:
    """Read the file as texts."""
    for name in ("features", "items", "comparison"):
        if getattr(args, name, None) is not None:
            raise ValueError(f"--{name}: expected no such thing with --store, which has the features of texts")  # fmt: skip
    sides = {name: getattr(args, name) or [name] for name in ("chosen", "rejected")}
    for name, columns in sides.items():
        if len(columns) > 1:
            raise ValueError(f"--{name}: expected one column of texts, got {len(columns)} columns")
    return TextPreferences.read(
        args.preferences,
        annotator=args.annotator,
        prompt=args.prompt,
        chosen=sides["chosen"][0],
        rejected=sides["rejected"][0],
        weight=args.weight,
        form=args.form or "pair",
    )


def _side(columns: list[str] | None) -> Any:
    """One name is a column of ids or lists, several are columns of numbers."""
    return columns[0] if columns is not None and len(columns) == 1 else columns


def _ids_path(mixture: str) -> str:
    return f"{mixture}.items.json"


def keep_ids(
    mixture: str, data: PreferenceData | PreferenceStore, args: argparse.Namespace
) -> None:
    """Write down which item each one-hot feature of a fit stands for."""
    path = _ids_path(mixture)
    ids = data.item_ids if isinstance(data, PreferenceData) else None
    if ids is not None and args.items is None and args.store is None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(ids.tolist(), file)
    elif os.path.exists(path):  # of a fit that was here before
        os.unlink(path)


def kept_ids(mixture: str) -> list[Any] | None:
    """The ids that `keep_ids` wrote, None where the features are others."""
    try:
        with open(_ids_path(mixture), encoding="utf-8") as file:
            ids = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{_ids_path(mixture)}: expected a list of ids ({error})") from None
    return list(ids)


def keep_encoder(mixture: str, args: argparse.Namespace) -> None:
    """Write down what made the features of a fit."""
    encoder = None if args.store is None else FeatureStore(args.store).encoder
    _output.keep_json(f"{mixture}.encoder.json", encoder)


def _check_encoder(mixture: str, args: argparse.Namespace) -> None:
    path = f"{mixture}.encoder.json"
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        fitted = json.load(file)
    if args.store is None:
        raise ValueError(f"--store: {mixture} was fitted to texts, give the store of their features")  # fmt: skip
    here = FeatureStore(args.store).encoder
    differing = [name for name in fitted if name != "model" and fitted[name] != here.get(name)]
    if differing:
        raise ValueError(
            f"--store: {args.store} was made by another encoder ({here.get('model')}) than {mixture} was fitted with "
            f"({fitted.get('model')}): they differ in {', '.join(differing)}"
        )


def selection_path(mixture: str) -> str:
    """Where `maxmin fit` writes down how it chose the number of groups, for `maxmin report`."""
    return f"{mixture}.selection.json"


def preferences_of(mixture: str, args: argparse.Namespace) -> PreferenceData:
    """The preferences with the features of a fitted mixture."""
    _check_encoder(mixture, args)
    data = preferences(args)
    if data.item_ids is None or args.items is not None or args.store is not None:
        return data
    known = kept_ids(mixture)
    if known is None:
        raise ValueError(f"--items: {mixture} was fitted to features of items, give their table")
    column = {key: i for i, key in enumerate(known)}
    strangers = [key for key in data.item_ids.tolist() if key not in column]
    if strangers:
        raise ValueError(
            f"chosen, rejected: {strangers[0]!r} is not among the {len(known)} items of {mixture}"
        )
    at = torch.tensor([column[key] for key in data.item_ids.tolist()])
    features = torch.zeros(len(at), len(known), dtype=data.dtype)
    features[torch.arange(len(at)), at] = 1
    return replace(data, features=features)


def menu(args: argparse.Namespace, mixture: str) -> tuple[Any, Any]:
    """Features ``(M, D)`` and ids ``(M,)`` of the items to choose from."""
    from maxmin_rlhf.data.reader import _item_table

    if args.items is not None:
        features, ids = _item_table(args.items)
        return features, np.arange(len(features)) if ids is None else ids
    known = kept_ids(mixture)
    if known is None:
        raise ValueError(f"--items: expected the menu, {mixture} was fitted to features of items")
    return np.eye(len(known)), np.array([*known, None], dtype=object)[:-1]

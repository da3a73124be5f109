"""The experiment: who is served by which policy, as one population grows, and where the groups cannot be found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maxmin_rlhf.demo.language import experiment
from maxmin_rlhf.demo.language.annotators import SHARPNESS
from maxmin_rlhf.demo.language.experiment import BALANCE, CONTROLS, THIRD, Run, Setting
from maxmin_rlhf.demo.language.responses import Responses
from maxmin_rlhf.demo.language.summary import Resamples, falls, summarise
from maxmin_rlhf.mixture import PreferenceMixture
from maxmin_rlhf.report import card


def study(
    responses: Responses,
    *,
    n_seeds: int = 5,
    n_selected: int = 1,
    balance: Sequence[Setting] = BALANCE,
    third: Sequence[Setting] = THIRD,
    controls: Sequence[Setting] = CONTROLS,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every setting.

    Args:
        responses: what is judged and chosen among.
        n_seeds: runs of a setting; each draws annotators, pairs and held-out questions anew.
        n_selected: of how many runs the number of groups is chosen by held-out annotators too.
        balance, third, controls: the settings. The last of ``balance`` is compared with its first.
        seed: the first of the seeds.
        say: is told what is going on.

    Returns:
        ``balance``, ``third``, ``controls``: a summary of each setting; ``falls``; ``method``; ``seconds``: JSON
        through and through.
    """
    began = time.perf_counter()
    seeds = list(range(seed, seed + n_seeds))
    resamples = Resamples(n_seeds, len(responses.prompts), np.random.default_rng([seed, 2]))
    all_runs: dict[str, list[Run]] = {}
    every = [*balance, *third, *controls]

    def one(setting: Setting) -> dict[str, Any]:
        at = every.index(setting) + 1
        say(f"language {at}/{len(every)}: {setting.name}")
        found: dict[str, Any] = {"name": setting.name, "populations": list(setting.tastes)}
        if len(setting.tastes) > 1:
            all_runs[setting.name] = [experiment.run(responses, setting, s) for s in seeds]
            found = summarise(setting, all_runs[setting.name], resamples)
        sizes = (1, 2, 3, 4) if len(setting.tastes) > 2 else (1, 2, 3)
        found["selections"] = [
            experiment.describe(
                experiment.choose_size(experiment.draw(responses, setting, s)[0].data, s, sizes)
            )
            for s in seeds[:n_selected]
        ]
        return found

    result: dict[str, Any] = {
        "balance": [one(s) for s in balance],
        "third": [one(s) for s in third],
        "controls": [one(s) for s in controls],
    }
    first, last = balance[0].name, balance[-1].name
    result["falls"] = {
        "from": first,
        "to": last,
        **falls(all_runs[first], all_runs[last], resamples),
    }
    result["method"] = {
        "prompts": len(responses.prompts),
        "responses": responses.features.shape[1],
        "features": responses.features.shape[2],
        "judged_prompts": experiment.TRAINED,
        "sharpness": SHARPNESS,
        "kl": experiment.KL,
        "l2": experiment.L2,
        "seeds": n_seeds,
        "selected_seeds": n_selected,
        "first_seed": seed,
        "tastes_correlation": float((responses.positive * responses.concise).mean()),
    }
    result["seconds"] = time.perf_counter() - began
    return result


def one_mixture(
    responses: Responses,
    name: str,
    selection: Mapping[str, Any],
    *,
    seed: int = 0,
    n_refits: int = 30,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The report card of the mixture of one run, over the questions that nobody judged."""
    setting = next(s for s in BALANCE if s.name == name)
    judged, _, held_out = experiment.draw(responses, setting, seed)
    mixture = PreferenceMixture(2, n_init=8, l2=experiment.L2, random_state=seed).fit(judged.data)
    n_samples = responses.features.shape[1]
    menu = card.Menu(
        features=responses.features[held_out].reshape(-1, responses.features.shape[2]),
        ids=(held_out[:, None] * n_samples + np.arange(n_samples)).ravel(),
        prompt=np.repeat(np.array(responses.prompts, dtype=object)[held_out], n_samples),
        texts=responses.texts[held_out].ravel(),
    )
    return card.describe(
        mixture,
        judged.data,
        menu=menu,
        selection=selection,
        kl=experiment.KL,
        n_refits=n_refits,
        seed=seed,
        say=say,
    )

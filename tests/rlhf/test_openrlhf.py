"""MaxMinRewardFunction as OpenRLHF calls it: its executor's steps are written down here (its own: test_openrlhf_step.py); one against many processes; errors."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maxmin_rlhf import MaxMinWeights
from maxmin_rlhf.integrations.openrlhf import MaxMinRewardFunction


def happy(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [c.count("happy") - 0.5 for c in completions]


def calm(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
    return [None if "?" in c else c.count("calm") - 0.25 for c in completions]


def function(folder: Path, **options: Any) -> MaxMinRewardFunction:
    weights = options.pop("weights", MaxMinWeights(2, "exponentiated_gradient", lr=0.5))
    return MaxMinRewardFunction([happy, calm], weights, state_file=folder / "weights.json", **options)  # fmt: skip


SAID = ["happy happy", "calm", "happy calm", "what?", "calm calm", "no", "happy", "happy calm calm"]


# ---- OpenRLHF's side: one sample a call in a thread, the answer to tensors (openrlhf.utils.agent, samples_generator, 0.11.2)


async def executed(reward_func: Any, prompt: str, said: str, label: Any) -> dict[str, Any]:
    info = await asyncio.to_thread(reward_func, [prompt + said], [prompt], [label])
    scores = info.get("scores")
    out = {"reward": torch.tensor([info.get("rewards")]), "score": torch.tensor([scores])}
    for key, value in info["extra_logs"].items():
        if isinstance(value, torch.Tensor):
            value = value.flatten()[0].item()
        out[key] = torch.tensor([value])
    return out


def test_a_rollout_batch(tmp_path: Path) -> None:
    """Sample by sample in threads: the weights after it are those of the batch at once."""
    reward = function(tmp_path, update_every=len(SAID))

    async def rollout() -> list[dict[str, Any]]:
        return await asyncio.gather(*(executed(reward, "Say: ", s, "none") for s in SAID))

    first = asyncio.run(rollout())
    expected = MaxMinWeights(2, "exponentiated_gradient", lr=0.5)
    rewards = np.array([[happy(0, [s])[0], calm(0, [s])[0]] for s in SAID], float)
    for sample, row in zip(first, rewards, strict=True):
        assert sample["reward"].shape == (1,) and sample["score"] == sample["reward"]
        assert float(sample["reward"]) == pytest.approx(0.5 * np.nansum(row))
        for name, r in zip(("happy", "calm"), row, strict=True):
            np.testing.assert_allclose(sample[f"maxmin/reward/{name}"], [r])
            assert float(sample[f"maxmin/weight/{name}"]) == 0.5
    weights = expected.update(rewards)
    second = asyncio.run(executed(reward, "Say: ", "happy calm", "none"))
    assert float(second["reward"]) == pytest.approx(
        float(weights @ torch.tensor([0.5, 0.75]).double())
    )
    torch.testing.assert_close(reward.weights.weights, weights, rtol=1e-12, atol=0)
    torch.testing.assert_close(reward.weights.utilities, expected.utilities, rtol=1e-12, atol=0)


def test_queries_are_text_around_the_completion(tmp_path: Path) -> None:
    seen: list[str] = []

    def judge(prompts: Any, completions: Any, **_: Any) -> list[float]:
        seen.extend(completions)
        return [0.0] * len(completions)

    reward = MaxMinRewardFunction({"judge": judge}, state_file=tmp_path / "w", end_marks=["<eos>", "<pad>"])  # fmt: skip
    long = "A prompt that is so long that its beginning is cut off. Answer: "
    queries = [long + "yes<eos><pad>", long[20:] + "yes Answer: yes", "Answer:Answer:"]
    reward(queries, [long, long, "Answer:"], ["", "", ""])
    assert seen == ["yes", "yes Answer: yes", "Answer:"]
    # Decoded again, a prompt may have gained or lost blanks; those of its end are still its own.
    seen.clear()
    prompts = [long, long, "Say:", "It is n't so .", "\n"]
    queries = [" " + long + " yes", " " + long[20:] + "yes", " Say: yes", "It isn't so. yes", "yes"]
    reward(queries, prompts, [""] * 5)
    assert seen == [" yes", "yes", " yes", " yes", "yes"]
    with pytest.raises(ValueError, match="queries: expected one that begins with its prompt, got 'Hello'"):  # fmt: skip
        reward(["Hello"], [long], [""])


PROCESS = """
import sys
from pathlib import Path
from tests.rlhf.test_openrlhf import SAID, function
reward = function(Path(sys.argv[1]), update_every=2 * len(SAID))
for said in SAID:
    reward(["Say: " + said], ["Say: "], [None])
"""


def test_processes_share_the_weights(tmp_path: Path) -> None:
    """Two processes with a batch each are one with both; nothing is lost, whoever writes when."""
    run = [sys.executable, "-c", PROCESS, str(tmp_path / "two")]
    processes = [subprocess.Popen(run, env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}) for _ in range(2)]  # fmt: skip
    assert [p.wait(120) for p in processes] == [0] * 2
    one = function(tmp_path / "one", update_every=2 * len(SAID))
    for said in SAID * 2:
        one(["Say: " + said], ["Say: "], [None])
    two, alone = (json.loads((tmp_path / n / "weights.json").read_text()) for n in ("two", "one"))
    assert two["weights"]["steps"] == alone["weights"]["steps"] == 1
    assert (two["samples"], alone["samples"]) == (0, 0)
    np.testing.assert_allclose(two["weights"]["weights"], alone["weights"]["weights"], rtol=1e-12)


def test_goes_on_from_its_file(tmp_path: Path) -> None:
    whole, cut = function(tmp_path / "whole", update_every=3), function(tmp_path / "cut", update_every=3)  # fmt: skip
    for i, said in enumerate(SAID):
        expected = whole(["p" + said], ["p"], [None])
        if i == 4:  # in the middle of a sum
            cut = function(tmp_path / "cut", update_every=3)
        got = cut(["p" + said], ["p"], [None])
        assert torch.equal(got["rewards"], expected["rewards"])
    assert torch.equal(whole.weights.weights, cut.weights.weights)


def test_who_never_judges(tmp_path: Path) -> None:
    nobody = MaxMinRewardFunction({"a": lambda prompts, completions, **_: [None] * len(completions)}, state_file=tmp_path / "w", update_every=1)  # fmt: skip
    with pytest.warns(UserWarning, match="gave no reward so far"):
        out = nobody(["px"], ["p"], [None])
    assert float(out["rewards"]) == 0 and math.isnan(float(out["extra_logs"]["maxmin/reward/a"]))


# ---- errors


@pytest.mark.parametrize("bad", [math.nan, math.inf, "much"])
def test_a_head_that_gives_no_number(tmp_path: Path, bad: Any) -> None:
    reward = MaxMinRewardFunction({"a": happy, "b": lambda prompts, completions, **_: [bad]}, state_file=tmp_path / "w")  # fmt: skip
    with pytest.raises(ValueError, match="group 'b': expected a finite number or None for completion 0, got"):  # fmt: skip
        reward(["px"], ["p"], [None])
    assert not (tmp_path / "w").exists()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights: expected 2 groups \(happy, calm\), got 3"):
        function(tmp_path, weights=MaxMinWeights(3))
    with pytest.raises(ValueError, match="update_every: expected at least 1, got 0"):
        function(tmp_path, update_every=0)
    with pytest.raises(ValueError, match="reward_funcs: expected at least one function, got none"):
        MaxMinRewardFunction([], state_file=tmp_path / "w")
    with pytest.raises(TypeError, match="reward_funcs: expected functions, got 1 for group 'a'"):
        MaxMinRewardFunction({"a": 1}, state_file=tmp_path / "w")
    reward = function(tmp_path)
    with pytest.raises(ValueError, match="completions: expected at least one, got none"):
        reward([], [], [])
    with pytest.raises(ValueError, match="prompts: expected 2, one a query, got 1"):
        reward(["px", "py"], ["p"], [None, None])
    short = MaxMinRewardFunction({"a": lambda prompts, completions, **_: []}, state_file=tmp_path / "w")  # fmt: skip
    with pytest.raises(ValueError, match="group 'a': expected 1 rewards, got 0"):
        short(["px"], ["p"], [None])


def test_a_file_of_another_run(tmp_path: Path) -> None:
    function(tmp_path)(["px"], ["p"], [None])
    with pytest.raises(ValueError, match=r"expected format 1 of groups \['calm', 'happy'\], got 1 of \['happy', 'calm'\]"):  # fmt: skip
        MaxMinRewardFunction([calm, happy], state_file=tmp_path / "weights.json")
    with pytest.raises(ValueError, match="state: expected method 'softmin', got 'exponentiated_gradient'"):  # fmt: skip
        function(tmp_path, weights=None)
    (tmp_path / "weights.json").write_text('{"format": 1, "gr')
    with pytest.raises(ValueError, match=r"weights\.json: expected weights, got a damaged file"):
        function(tmp_path)

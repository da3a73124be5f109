"""What a solver of section 4 hands back, and what it warns about."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from maxmin_rlhf.welfare.shards import Shards

# A group that alone is the worst off at more than this share of the samples decides alone.
_DOMINANT = 0.95


@dataclass(frozen=True)
class Solution:
    """A policy for K groups as probabilities of the samples, and what it is worth to each group.

    Attributes:
        weights: (K,) weights, of sum 1, of the groups' rewards in the policy's one reward; NaN for ``per_sample_min``
            and ``batch_argmin``.
        utilities: (K,) expected calibrated rewards under the policy, without the KL term.
        value: what the objective attains, KL term included: the dual's value, D(w*) of (13) for ``maxmin``.
        gap: the certificate (15), (15'): no policy over these samples is worth more than this above the one found, in
            units of ``value`` (calibrated reward; for ``nash`` its logarithm). 0 for ``mean``, NaN for
            ``per_sample_min`` and ``batch_argmin``.
        ess: (P,) effective number of samples behind the policy at each prompt, 0 where no sample could be used. Of
            shards: those of this rank, one after the other.
        policy: (P, S) probabilities of the samples, 0 for those left out. (0, 0) for shards, whose
            policy `maxmin_rlhf.evaluate_maxmin` gives one by one.
        relative_gap: the gap as a share of the value, or of the rewards' spread where that is larger (``nash``: of 1).
        left_out: groups whose share is below ``min_mass``: weight 0, and no say in anything.
        fresh_gap: the gap of these weights on the second sample; None without one.
    """

    weights: np.ndarray
    utilities: np.ndarray
    value: float
    gap: float
    ess: np.ndarray
    policy: np.ndarray
    relative_gap: float = 0.0
    left_out: tuple[int, ...] = ()
    fresh_gap: float | None = None

    @property
    def worst_group(self) -> int:
        """The group with the least utility, the first of equals; those left out do not count."""
        counted = self.utilities.copy()
        counted[list(self.left_out)] = np.nan
        return int(np.nanargmin(counted))


def warn(
    solution: Solution, shards: Shards, kept: np.ndarray, tol: float, counts: np.ndarray
) -> None:
    """About what a user should know before the numbers are used.

    Args:
        kept: (K',) the groups that are in the shards.
        counts: (P,) usable samples of each prompt.
    """

    def say(text: str) -> None:
        warnings.warn(f"solve_maxmin: {text}", UserWarning, stacklevel=4)

    if solution.left_out:
        say(f"groups {list(solution.left_out)} have a smaller share than min_mass and are left out")
    if solution.relative_gap > tol:
        say(
            f"the gap is {solution.gap:.2g}, {solution.relative_gap:.2g} of the value or spread and above "
            f"tol = {tol:g}; a larger beta can be solved more closely"
        )
    if shards.n_partial:
        missing = kept[shards.n_missing > 0].tolist()
        total = shards.n_partial + shards.n_samples
        say(
            f"{shards.n_partial:.0f} of {total:.0f} samples are left out, for groups {missing} have no reward there"
        )
    if len(kept) > 1 and shards.dominance.max() > _DOMINANT:
        k = shards.dominance.argmax()
        say(
            f"group {kept[k]} alone is the worst off at {100 * shards.dominance[k]:.0f} % of the samples, so it decides "
            "alone: are the groups' rewards comparable?"
        )
    used = counts > 0
    low = solution.ess[used] < np.minimum(10, counts[used] / 4)
    if low.size and low.mean() > 0.1:
        most = counts.max()
        say(
            f"at {low.sum()} of {low.size} prompts fewer than {min(10, most / 4):g} samples are behind the policy "
            f"(median {np.median(solution.ess[used]):.1f} of {most:.0f}): draw more, or raise beta. No matter if the "
            "samples are all there is to choose from"
        )

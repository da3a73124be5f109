"""A new annotator: which group he is in after a few comparisons, when to say nothing yet, and which pair to ask next."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maxmin_rlhf.mixture.arguments import check_number
from maxmin_rlhf.mixture.estimator import PreferenceMixture

Array = NDArray[np.float64]
ABSTAIN = -1


def assign(posterior: Any, certainty: float = 0.9) -> NDArray[np.int64]:
    """``(...,)`` the likeliest group of each posterior ``(..., K)``, or -1 where it is less likely than ``certainty``."""
    found = np.asarray(posterior, np.float64)
    check_number("certainty", certainty, 0.0)
    if certainty > 1:
        raise ValueError(f"certainty: expected a number in [0, 1], got {certainty:g}")
    groups: NDArray[np.int64] = np.where(found.max(-1) >= certainty, found.argmax(-1), ABSTAIN)
    return groups


def expected_information(posterior: Any, margins: Any, label_noise: float = 0.0) -> Array:
    """What the answer to each pair would tell about the group, before it is given: their mutual information.

    Args:
        posterior: ``(..., K)`` what is known of each annotator's group, (6).
        margins: ``(N, K)`` each candidate pair's margin (2) under each group's head.
        label_noise: the epsilon of (3b), in [0, 1).

    Returns:
        ``(..., N)`` nats: H(Σ_k γ_k p_k) − Σ_k γ_k H(p_k) ≥ 0, with p_k the chance that the first is preferred.
    """
    gamma, m = np.asarray(posterior, np.float64), np.asarray(margins, np.float64)
    if m.ndim != 2 or gamma.shape[-1:] != m.shape[1:]:
        raise ValueError(
            f"margins: expected shape (N, {gamma.shape[-1]}) as the posterior has groups, got {m.shape}"
        )
    p = np.exp(_log_probability(m, label_noise))
    told: Array = _entropy(gamma @ p.T) - gamma @ _entropy(p).T
    return np.maximum(told, 0.0)


class Newcomer:
    """One new annotator, whose group becomes known answer by answer.

    Args:
        mixture: fitted.
        certainty: posterior from which the group counts as known.

    Attributes:
        posterior: ``(K,)`` (6) with T = 1 after the answers so far; before any, the mixing weights.
        n_answers: how many they are.
    """

    def __init__(self, mixture: PreferenceMixture, certainty: float = 0.9) -> None:
        mixture._require_fit()
        assign(mixture.weights_, certainty)  # checks it
        self.mixture, self.certainty, self.n_answers = mixture, certainty, 0
        with np.errstate(divide="ignore"):
            self._joint: Array = np.log(mixture.weights_)

    @property
    def posterior(self) -> Array:
        weights: Array = np.exp(self._joint - self._joint.max())
        return weights / weights.sum()

    @property
    def group(self) -> int | None:
        """The group, or None: not known yet."""
        found = int(assign(self.posterior, self.certainty))
        return None if found == ABSTAIN else found

    def answer(self, chosen: Any, rejected: Any) -> Newcomer:
        """Take choices in: features ``(n, D)`` or ``(D,)`` of what was chosen and of what was not."""
        m = self._margins(chosen, rejected)
        self._joint = self._joint + _log_probability(m, self.mixture.label_noise).sum(0)
        self.n_answers += len(m)
        return self

    def ask(self, first: Any, second: Any) -> tuple[int, Array]:
        """Which of the pairs ``(N, D)``, ``(N, D)`` tells most, and what each tells ``(N,)`` in nats.

        Note:
            Answers count as independent given the group. Answers about one item again and again are not: offer pairs of
            items that were asked about least, or the posterior becomes sure too soon.
        """
        m = self._margins(first, second)
        if not len(m):
            raise ValueError("first: expected at least one pair to ask, got none")
        told = expected_information(self.posterior, m, self.mixture.label_noise)
        return int(told.argmax()), told

    def reward(self, items: Any) -> Array:
        """``(M,)`` expected reward of items ``(M, D)`` to this annotator: Σ_k γ_k r_k, up to an offset."""
        expected: Array = self.mixture.reward(items) @ self.posterior
        return expected

    def _margins(self, first: Any, second: Any) -> Array:
        a, b = (
            torch.atleast_2d(torch.as_tensor(np.asarray(x, np.float64))) for x in (first, second)
        )
        width = self.mixture.heads_.shape[1]
        for name, x in (("first", a), ("second", b)):
            if x.dim() != 2 or x.shape[1] != width or x.shape != a.shape:
                raise ValueError(
                    f"{name}: expected features ({a.shape[0]}, {width}), got {tuple(x.shape)}"
                )
            if not bool(x.isfinite().all()):
                raise ValueError(f"{name}: expected finite features")
        return self.mixture.reward(a) - self.mixture.reward(b)


def _log_probability(margins: Array, label_noise: float) -> Array:
    """(3), or (3b) for pairs."""
    log_p: Array = np.minimum(margins, 0) - np.log1p(np.exp(-np.abs(margins)))
    if label_noise == 0.0:
        return log_p
    noisy: Array = np.log((1 - label_noise) * np.exp(log_p) + label_noise / 2)
    return noisy


def _entropy(p: Array) -> Array:
    """Of an answer that is yes with chance p, nats."""
    p = np.clip(p, 1e-300, 1.0)
    q = np.clip(1 - p, 1e-300, 1.0)
    entropy: Array = -p * np.log(p) - q * np.log(q)
    return entropy

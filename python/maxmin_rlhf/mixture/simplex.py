"""Weights over K prototype rewards for each annotator: nobody is in a group, everybody is a blend.

The other family of pluralistic rewards, for comparison with the mixture in the same data and by the same score (11).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import maxmin_kernels as mk
from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.data.splits import held_out_masks
from maxmin_rlhf.mixture.arguments import check_count, check_number, check_seed
from maxmin_rlhf.mixture.estimator import FitWarning, PreferenceMixture
from maxmin_rlhf.mixture.objective import margins

Array = NDArray[np.float64]
_HISTORY = 20  # curvature pairs of the quasi-Newton method
_SOFTEST = 0.02  # least weight in the start that a mixture's responsibilities give


class SimplexWeights:
    """Annotator a's reward is Σ_k u_ak ⟨w_k, φ⟩ with u_a on the simplex: a maximum a posteriori fit.

    The weights are softmax(z_a) with z_a ~ N(c, spread² I) about a centre c that is fitted as well; heads have the ridge
    of (7). Heads and weights climb together (L-BFGS), from a :class:`PreferenceMixture` of K groups. A new annotator's z_a
    is fitted to the comparisons known of him, heads and centre as they are.

    Weights are points, not distributions, as this family has them: with few comparisons an annotator the heads stretch and
    overstate how sure people are. Choose ``l2`` and ``spread`` on held-out annotators.

    Args:
        n_heads: K, the number of prototypes.
        l2: ridge on each head, in units of the log-likelihood.
        spread: prior standard deviation of z; small: all are like the centre.
        n_init: starts of the mixture that this fit begins at.
        max_iter: L-BFGS steps. tol: change of the objective a comparison at which they end.
        random_state: seed.

    Attributes:
        heads_: ``(K, D)``. center_: ``(K,)``. weights_: ``(A, K)`` in the order of ``annotators_``.
        objective_: penalised log-likelihood. converged_: whether ``tol`` was reached.
    """

    def __init__(
        self,
        n_heads: int,
        *,
        l2: float = 1.0,
        spread: float = 1.0,
        n_init: int = 4,
        max_iter: int = 500,
        tol: float = 1e-8,
        random_state: int | None = None,
    ) -> None:
        self.n_heads = check_count("n_heads", n_heads)
        self.l2 = check_number("l2", l2, 0.0)
        self.spread = check_number("spread", spread, 0.0, open_low=True)
        self.n_init, self.max_iter = (
            check_count("n_init", n_init),
            check_count("max_iter", max_iter),
        )
        self.tol, self.random_state = check_number("tol", tol, 0.0), check_seed(random_state)

    def fit(self, data: PreferenceData) -> SimplexWeights:
        """Heads, centre and everybody's weights."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # only a start
            start = PreferenceMixture(
                self.n_heads, l2=self.l2, n_init=self.n_init, random_state=self.random_state
            ).fit(data)
        device = data.features.device
        heads = torch.from_numpy(start.heads_.copy()).to(device).requires_grad_()
        resp = torch.from_numpy(start.responsibilities_).to(device)
        z = (resp + _SOFTEST).log()
        z = (z - z.mean(1, keepdim=True)).requires_grad_()
        center = z.detach().mean(0).requires_grad_()

        def loss() -> Tensor:
            own = _own_margins(data, margins(data, heads), z)
            return -_log_likelihood(data, own) + self._penalty(z, center) + 0.5 * self.l2 * heads.square().sum()  # fmt: skip

        value, self.converged_ = self._descend([heads, z, center], loss, data.n_comparisons)
        if not self.converged_:
            warnings.warn(f"the fit made {self.max_iter} steps without converging: raise max_iter or tol", FitWarning, stacklevel=2)  # fmt: skip
        self.heads_, self.center_ = heads.detach().cpu().numpy(), center.detach().cpu().numpy()
        self.weights_: Array = z.detach().softmax(1).cpu().numpy()
        self.objective_, self.annotators_ = -value, data.annotators_
        return self

    def predict_weights(self, data: PreferenceData) -> Array:
        """``(A', K)`` weights of annotators, fitted or not, from the comparisons in ``data``; without any, the centre's."""
        self._check(data)
        device = data.features.device
        center = torch.from_numpy(self.center_).to(device)
        z = center.repeat(data.n_annotators, 1).requires_grad_()
        with torch.no_grad():
            scores = margins(data, torch.from_numpy(self.heads_).to(device))

        def loss() -> Tensor:
            return self._penalty(z, center) - _log_likelihood(data, _own_margins(data, scores, z))

        self._descend([z], loss, max(1, data.n_comparisons))
        weights: Array = z.detach().softmax(1).cpu().numpy()
        return weights

    def predict(self, data: PreferenceData) -> NDArray[np.int64]:
        """``(A',)`` the prototype that weighs most."""
        largest: NDArray[np.int64] = self.predict_weights(data).argmax(1)
        return largest

    def log_prob(self, data: PreferenceData, weights: Any) -> Array:
        """``(C,)`` log-probability of each choice of ``data`` under its annotator's weights ``(A', K)``."""
        self._check(data)
        u = torch.from_numpy(np.asarray(weights, np.float64)).to(data.features.device)
        with torch.no_grad():
            scores = margins(data, torch.from_numpy(self.heads_).to(data.features.device))
            own = _own_margins(data, scores, u.log())
            log_prob, _ = mk.choice_shares(own[:, None], data.choice_indptr)
        found: Array = log_prob[:, 0].double().cpu().numpy()
        return found

    def reward(self, items: Any) -> Array:
        """``(M, K)`` reward of items ``(M, D)`` by each prototype; somebody's is this times his weights."""
        self._check(None)
        found: Array = np.asarray(items, np.float64) @ self.heads_.T
        return found

    def score(
        self, data: PreferenceData, split: str = "auto", random_state: int | None = None
    ) -> float:
        """(11) with the weights in the place of the posterior; arguments as of :meth:`PreferenceMixture.score`."""
        visible, scored, _ = held_out_masks(data, split, random_state)
        weights = self.predict_weights(data.select_comparisons(visible))
        rest = data.select_comparisons(scored)
        v = np.ones(rest.n_comparisons) if rest.weight is None else rest.weight.cpu().numpy()
        return float(v @ self.log_prob(rest, weights) / v.sum())

    @property
    def n_parameters(self) -> int:
        """Shared ones: K D heads and the centre; K - 1 more an annotator."""
        return self.heads_.size + self.n_heads - 1

    def _penalty(self, z: Tensor, center: Tensor) -> Tensor:
        return (z - center).square().sum() / (2 * self.spread**2)

    def _descend(self, parameters: list[Tensor], loss: Any, n: int) -> tuple[float, bool]:
        """L-BFGS until ``tol`` a comparison; the value, and whether it got there."""
        optimiser = torch.optim.LBFGS(
            parameters,
            max_iter=self.max_iter,
            max_eval=2 * self.max_iter,
            history_size=_HISTORY,
            tolerance_change=self.tol,
            tolerance_grad=1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            value: Tensor = loss() / n
            value.backward()
            return value

        optimiser.step(closure)
        steps = optimiser.state[parameters[0]]["n_iter"]
        with torch.no_grad():
            value = float(loss())
        if not math.isfinite(value):
            raise ValueError("data: the objective is not finite; are the features on a common scale?")  # fmt: skip
        return value, steps < self.max_iter

    def _check(self, data: PreferenceData | None) -> None:
        if not hasattr(self, "heads_"):
            raise ValueError("this model is not fitted yet: call fit(data) first")
        if data is not None and data.n_features != self.heads_.shape[1]:
            raise ValueError(f"data: expected {self.heads_.shape[1]} features as fitted, got {data.n_features}")  # fmt: skip


def _own_margins(data: PreferenceData, scores: Tensor, z: Tensor) -> Tensor:
    """(N,) each row's margin under its annotator's own reward, from the prototypes' (N, K)."""
    owner = torch.from_numpy(data.comparison_annotator[data.row_comparison]).to(z.device)
    return (scores * z.softmax(1).to(scores.dtype)[owner]).sum(1)


def _log_likelihood(data: PreferenceData, own: Tensor) -> Tensor:
    log_prob, _ = mk.choice_shares(own[:, None], data.choice_indptr)
    weight = 1.0 if data.weight is None else data.weight
    return (weight * log_prob[:, 0].double()).sum()

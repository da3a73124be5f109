"""PreferenceMixture: K reward heads and who holds which, by EM over annotators."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import maxmin_kernels as mk
from maxmin_rlhf.data._arrays import as_device
from maxmin_rlhf.mixture import checkpoint as files
from maxmin_rlhf.mixture.arguments import (
    Preferences,
    as_dtype,
    check_count,
    check_number,
    check_preferences,
    check_seed,
    fresh_seed,
    place,
)
from maxmin_rlhf.mixture.bank import Bank, take
from maxmin_rlhf.mixture.fit import Fit, Problem
from maxmin_rlhf.mixture.heldout import held_out_score
from maxmin_rlhf.mixture.objective import Objective
from maxmin_rlhf.mixture.progress import Watch
from maxmin_rlhf.mixture.solver import State

Array = NDArray[np.float64]


class FitWarning(UserWarning):
    """A fit that ended, but not as hoped: not converged, an empty group."""


class PreferenceMixture:
    """A mixture of reward heads over annotators, fitted by EM: MATH (1)-(10).

    Args:
        n_groups: K, the number of groups.
        n_init: starts that are climbed to convergence (four times as many are looked at).
        l2: lambda of (7), the ridge on each head, in units of the log-likelihood.
        alpha: Dirichlet prior of the mixing weights, >= 1; 1 is none.
        hard: one-hot responsibilities: climbs (7H), classification EM, instead of (7).
        temperature: T of (7T); 1 is the mixture's own likelihood.
        label_noise: epsilon of (3b), in [0, 1).
        init: "auto", "random" or "annotators" (docs/fitting.md), or heads ``(K, D)`` to start from once.
        solver: "auto", the only one: preconditioned quasi-Newton steps (docs/fitting.md).
        max_iter: passes over the data of one start.
        tol: relative gain of ``lower_bound_`` a round below which a start has converged.
        backend: of maxmin_kernels; None: the best there is.
        device, dtype: where and in what precision the features are read; None: as the data are.
        random_state: seed; None: another one each time.
        verbose: 1 writes lines to stderr.

    Attributes:
        heads_: ``(K, D)``, largest group first. weights_: ``(K,)``.
        responsibilities_: ``(A, K)`` in the order of ``annotators_``, of the objective that was climbed.
        log_likelihood_: the sum of (5) over annotators, unpenalised. lower_bound_: (7), (7T) or (7H), whichever was
            climbed; lower_bounds_: after each pass.
        converged_, n_iter_: of the best start.
    """

    heads_: Array
    weights_: Array
    responsibilities_: Array
    lower_bounds_: Array
    annotators_: NDArray[Any]
    log_likelihood_: float
    lower_bound_: float
    converged_: bool
    n_iter_: int
    _endless: list[int]

    def __init__(
        self,
        n_groups: int,
        *,
        n_init: int = 16,
        l2: float = 1.0,
        alpha: float = 1.0,
        hard: bool = False,
        temperature: float = 1.0,
        label_noise: float = 0.0,
        init: str | Array | Tensor = "auto",
        solver: str = "auto",
        max_iter: int = 500,
        tol: float = 1e-7,
        backend: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        random_state: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_groups = check_count("n_groups", n_groups)
        self.n_init = check_count("n_init", n_init)
        self.l2 = check_number("l2", l2, 0.0)
        self.alpha = check_number("alpha", alpha, 1.0)
        self.hard = bool(hard)
        self.temperature = check_number("temperature", temperature, 0.0, open_low=True)
        self.label_noise = check_number("label_noise", label_noise, 0.0)
        if self.label_noise >= 1.0:
            raise ValueError(f"label_noise: expected a number in [0, 1), got {label_noise}")
        if isinstance(init, str) and init not in ("auto", "random", "annotators"):
            raise ValueError(
                f"init: expected 'auto', 'random', 'annotators' or heads (K, D), got {init!r}"
            )
        self.init = init
        if solver != "auto":
            raise ValueError(f"solver: expected 'auto', got {solver!r}")
        self.solver = solver
        self.max_iter = check_count("max_iter", max_iter)
        self.tol = check_number("tol", tol, 0.0)
        self.backend, self.device = backend, device
        self.dtype = as_dtype(dtype)
        self.random_state, self.verbose = check_seed(random_state), verbose

    # ---- fitting

    def fit(
        self,
        data: Preferences,
        checkpoint: str | PathLike[str] | None = None,
        process_group: Any = None,
    ) -> PreferenceMixture:
        """Find the best of ``n_init`` starts.

        Args:
            data: the preferences; those of a `PreferenceStore` are read from disk in every pass.
            checkpoint: a file that is kept up to date while the fit runs, from which it goes on, to the same result,
                if it is there already, and which is removed at the end.
            process_group: of ``torch.distributed``: each process brings annotators of its own in ``data``, and all get
                the same heads, to rounding those of one process. Responsibilities are of the process's own annotators.
                The first process writes the checkpoint, all read it, on whatever number of processes.
        """
        fit_problems([self], data, checkpoint, process_group)
        self._warn(2)
        return self

    def _options(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "label_noise": self.label_noise,
            "hard": self.hard,
            "temperature": self.temperature,
        }

    def _adopt(self, objective: Objective, state: State, annotators: NDArray[Any]) -> None:
        """Take the one mixture of ``state`` over, largest group first."""
        weights = state.bank.log_weights[0, : self.n_groups].exp()
        order = weights.argsort(descending=True, stable=True)
        theta = state.theta[:, order]
        bank = Bank(theta, state.mask[:, order], state.l2)
        at = objective(bank, with_resp=True)
        self.heads_ = theta[0, :, :-1].cpu().numpy()
        self.weights_ = weights[order].cpu().numpy()
        assert at.log_resp is not None
        self.responsibilities_ = at.log_resp.exp().double().cpu().numpy()
        self.log_likelihood_ = float(at.log_likelihood[0])
        if self.hard or self.temperature != 1.0:
            plain = replace(objective, hard=False, temperature=1.0)
            self.log_likelihood_ = float(plain(bank).log_likelihood[0])
        history = state.history[0, : int(state.rounds[0])]
        self.lower_bound_ = float(state.value[0])
        self.lower_bounds_ = history.cpu().numpy()
        self.converged_ = bool(state.converged[0])
        self.n_iter_ = int(state.rounds[0])
        self.annotators_ = annotators

    def _find_endless(self, objective: Objective) -> list[int]:
        """Groups whose head would do better still if it were twice as long: their choices are separable."""
        if self.l2 > 0:
            return []
        heads, log_weights = torch.from_numpy(self.heads_), torch.from_numpy(self.weights_).log()
        longer = [heads.clone() for _ in range(self.n_groups)]
        for k, head in enumerate(longer):
            head[k] *= 2
        device = objective.data.device
        bank = Bank.of(
            [head.to(device) for head in longer],
            [log_weights.to(device)] * self.n_groups,
            torch.zeros(self.n_groups),
            self.n_groups,
        )
        gain = replace(objective, hard=False, temperature=1.0)(bank).log_likelihood.cpu().numpy()
        gain = gain - self.log_likelihood_
        held = self.weights_ * objective.ranks.n_annotators > 0.5
        # At a maximum a longer head loses; rounding is no gain.
        return np.flatnonzero(held & (gain > 1e-12 * abs(self.log_likelihood_))).tolist()

    def _warn(self, stacklevel: int) -> None:
        """Say what a user should know of the fit; ``stacklevel`` frames above is the user."""
        if not self.converged_:
            warnings.warn(
                f"the fit of {self.n_groups} groups made {self.n_iter_} passes without converging: "
                f"raise max_iter or tol, or raise l2 if choices are separable",
                FitWarning,
                stacklevel=stacklevel + 1,
            )
        if self._endless:
            warnings.warn(
                f"the choices of groups {', '.join(map(str, self._endless))} can be told without fail, so that without a ridge "
                f"their heads grow for ever: how long they are says nothing, raise l2",
                FitWarning,
                stacklevel=stacklevel + 1,
            )
        empty = np.flatnonzero(self.responsibilities_.sum(0) < 0.5)
        if empty.size:
            warnings.warn(
                f"{empty.size} of {self.n_groups} groups hold less than half an annotator "
                f"(groups {', '.join(map(str, empty))}): try fewer groups",
                FitWarning,
                stacklevel=stacklevel + 1,
            )

    # ---- using

    def _require_fit(self) -> None:
        if not hasattr(self, "heads_"):
            raise ValueError("this mixture is not fitted yet: call fit(data) first")

    def _bank(self, device: torch.device) -> Bank:
        self._require_fit()
        heads = torch.from_numpy(self.heads_).to(device)
        log_weights = torch.from_numpy(self.weights_).to(device).log()
        return Bank.of([heads], [log_weights], torch.zeros(1), self.n_groups)

    def _placed(self, data: Preferences) -> Preferences:
        check_preferences(data)
        if data.n_features != self.heads_.shape[1]:
            raise ValueError(
                f"data: expected {self.heads_.shape[1]} features as fitted, got {data.n_features}"
            )
        return place(data, self.device, self.dtype)

    def predict_proba(self, data: Preferences) -> Array:
        """(A', K) the soft posterior (6), T = 1, of each annotator of ``data``, fitted or not."""
        self._require_fit()
        placed = self._placed(data)
        objective = Objective.of(placed, label_noise=self.label_noise)
        with mk.backend(self.backend):
            at = objective(self._bank(placed.device), with_resp=True)
        assert at.log_resp is not None
        return at.log_resp.exp().double().cpu().numpy()

    def predict(self, data: Preferences) -> NDArray[np.int64]:
        """(A',) the likeliest group of each annotator."""
        groups: NDArray[np.int64] = self.predict_proba(data).argmax(1)
        return groups

    def reward(self, items: Any) -> Array:
        """(M, K) reward of each item ``(M, D)`` to each group, up to an offset that they do not share."""
        self._require_fit()
        hidden = torch.as_tensor(items).detach()
        if hidden.dim() != 2 or hidden.shape[1] != self.heads_.shape[1]:
            raise ValueError(
                f"items: expected shape (M, {self.heads_.shape[1]}), got {tuple(hidden.shape)}"
            )
        if not hidden.dtype.is_floating_point:
            hidden = hidden.double()
        hidden = hidden.to(as_device(self.device) or hidden.device)
        with mk.backend(self.backend):
            heads = torch.from_numpy(self.heads_).to(hidden.device)
            if hidden.dtype != torch.float64:
                heads = heads.float()
            return mk.reward_heads(hidden, heads).double().cpu().numpy()

    def score(
        self, data: Preferences, split: str = "auto", random_state: int | None = None
    ) -> float:
        """(11): mean log-likelihood of a held-out comparison, never one that assigned its annotator.

        Args:
            data: annotators that the fit has not seen.
            split: "item", "comparison", or "auto": by item when items have ids.
            random_state: seed of the split.
        """
        self._require_fit()
        placed = self._placed(data)
        with mk.backend(self.backend):
            held_out = held_out_score(
                placed, self._bank(placed.device), split, random_state, self.label_noise
            )
        return float(held_out.score[0])

    def _log_evidence(self, data: Preferences) -> tuple[float, Array]:
        placed = self._placed(data)
        objective = Objective.of(placed, label_noise=self.label_noise)
        with mk.backend(self.backend):
            at = objective(self._bank(placed.device), with_resp=True)
        assert at.log_resp is not None
        return float(at.log_likelihood[0]), at.log_resp.double().cpu().numpy()

    @property
    def n_parameters(self) -> int:
        """Of the likelihood: K D + K - 1."""
        return self.heads_.size + self.n_groups - 1

    def bic(self, data: Preferences) -> float:
        """-2 log-likelihood + d log A, unpenalised; lower is better."""
        self._require_fit()
        log_likelihood, _ = self._log_evidence(data)
        return -2.0 * log_likelihood + self.n_parameters * math.log(data.n_annotators)

    def icl(self, data: Preferences) -> float:
        """BIC plus twice the entropy of the assignments: also asks that groups be told apart."""
        self._require_fit()
        _, log_resp = self._log_evidence(data)
        resp = np.exp(log_resp)
        entropy = -(resp * np.where(resp > 0, log_resp, 0.0)).sum()
        return self.bic(data) + 2.0 * float(entropy)

    # ---- keeping

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted mixture, whole or not at all. Annotators' ids are kept as JSON or, failing that, as text."""
        self._require_fit()
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(getattr(self, f"{name}_")))
            for name in ("heads", "weights", "responsibilities", "lower_bounds")
        }
        options = {
            name: getattr(self, name)
            for name in (
                *("n_groups", "n_init", "l2", "alpha", "hard", "temperature", "label_noise"),
                *("max_iter", "tol", "random_state", "verbose"),
            )
        }
        fitted = {
            name: getattr(self, f"{name}_")
            for name in ("log_likelihood", "lower_bound", "converged", "n_iter")
        }
        facts = {
            "options": options,
            "fitted": fitted,
            "annotators": [_plain(a) for a in self.annotators_.tolist()],
        }
        files.write(path, "mixture", tensors, facts)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PreferenceMixture:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError, ValueError: no file; a truncated or foreign one, or another version's.
        """
        tensors, facts = files.read(path, "mixture")
        mixture = cls(**facts["options"])
        for name, tensor in tensors.items():
            setattr(mixture, f"{name}_", tensor.numpy())
        for name, value in facts["fitted"].items():
            setattr(mixture, f"{name}_", value)
        mixture.annotators_ = np.array([*facts["annotators"], None], dtype=object)[:-1]
        return mixture

    def __repr__(self) -> str:
        fitted = ", fitted" if hasattr(self, "heads_") else ""
        return f"PreferenceMixture(n_groups={self.n_groups}, l2={self.l2:g}{fitted})"


def fit_problems(
    mixtures: list[PreferenceMixture],
    data: Preferences,
    checkpoint: str | PathLike[str] | None = None,
    process_group: Any = None,
) -> None:
    """Fit mixtures that differ in ``n_groups`` and ``l2`` only, in shared passes."""
    first = mixtures[0]
    placed = place(data, first.device, first.dtype)
    objective = Objective.of(placed, process_group, **first._options())
    ranks, device = objective.ranks, placed.device
    for mixture in mixtures:
        if mixture.n_groups > ranks.n_annotators:
            raise ValueError(
                f"n_groups: expected at most {ranks.n_annotators}, the number of annotators, "
                f"got {mixture.n_groups}"
            )
    seed = first.random_state
    fit = Fit(
        objective,
        [Problem(m.n_groups, m.l2) for m in mixtures],
        n_init=first.n_init,
        init=first.init if isinstance(first.init, str) else [_heads(first.init, first, data)],
        max_iter=first.max_iter,
        tol=first.tol,
        seed=[ranks.same(fresh_seed()) if seed is None else seed],
    )
    facts: dict[str, Any] = {}
    if checkpoint is not None:
        facts = {
            "data": files.fingerprint(placed) if process_group is None else _counts(objective),
            "problems": [[p.n_groups, p.l2] for p in fit.problems],
            "options": [fit.n_init, fit.max_iter, fit.tol, *first._options().values()],
            "init": fit.init if isinstance(fit.init, str) else files.checksum(fit.init[0]),
            "random_state": seed,
        }
        kept = files.load_progress(checkpoint, facts, placed.device)
        found = torch.tensor(float(kept is not None), device=device)
        if process_group is not None and float(ranks.sum(found)[0]) % process_group.size():
            raise ValueError("checkpoint: expected the same file for every process, some have none")
        if kept is not None:
            fit.progress, fit.seed = kept
    watch = Watch(checkpoint if ranks.first else None, facts, first.verbose if ranks.first else 0)
    fit.on_round = watch
    with mk.backend(first.backend):
        try:
            best = fit.run()
        finally:
            watch.close()
        for i, mixture in enumerate(mixtures):
            mixture._adopt(objective, take(best, torch.tensor([i])), data.annotators_)
            mixture._endless = mixture._find_endless(objective)
    if checkpoint is not None and ranks.first:
        files.discard(checkpoint)


def _counts(objective: Objective) -> list[int]:
    """What tells one data set from another, however it is dealt to processes."""
    ranks = objective.ranks
    return [ranks.n_annotators, ranks.n_comparisons, objective.data.n_features]


def _heads(init: Any, mixture: PreferenceMixture, data: Preferences) -> Tensor:
    heads = torch.as_tensor(init, dtype=torch.float64)
    if tuple(heads.shape) != (mixture.n_groups, data.n_features):
        raise ValueError(
            f"init: expected heads of shape ({mixture.n_groups}, {data.n_features}), "
            f"got {tuple(heads.shape)}"
        )
    if not bool(heads.isfinite().all()):
        raise ValueError("init: expected finite heads, got NaN or infinity")
    return heads


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) else str(value)

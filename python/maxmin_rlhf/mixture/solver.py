"""The ascent: preconditioned limited-memory quasi-Newton steps on (7), of all mixtures of a bank at once.

By Fisher's identity EM and the observed log-likelihood have the same gradient, so the first step of a mixture is one of
EM: a Newton-like step of each head with its responsibilities held fixed, by a curvature that all heads share. EM alone
then crawls where groups overlap; a few remembered steps carry what that curvature cannot see: each head's own, and the
coupling of the heads through the responsibilities. A step that lowers the objective is shortened until it does not.

Every mixture keeps its own step and memory. Mixtures that have converged drop out of the passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maxmin_rlhf.mixture.bank import Bank, put, take
from maxmin_rlhf.mixture.objective import Evaluation, Objective

MEMORY = 8  # remembered steps
_SUFFICIENT = 1e-4  # Armijo's fraction of the promised gain
_SHORTEST = 1e-8  # a step below this is no step
_LOOK = 8  # rounds that a device makes between two looks of the host


@dataclass(frozen=True)
class State:
    """Where each mixture stands; every tensor has the mixtures first, so that it can be taken apart and saved."""

    theta: Tensor  # (G, K, D + 1)
    mask: Tensor  # (G, K)
    l2: Tensor  # (G,)
    value: Tensor  # (G,) objective at theta
    log_likelihood: Tensor  # (G,) unpenalised
    gradient: Tensor  # (G, K, D + 1)
    mass: Tensor  # (G, K)
    direction: Tensor  # (G, K, D + 1)
    step: Tensor  # (G,) length of the next trial
    steps: Tensor  # (G, MEMORY, K, D + 1) newest first
    pulls: Tensor  # (G, MEMORY, K, D + 1) falls of the gradient along them
    rounds: Tensor  # (G,) passes made
    history: Tensor  # (G, R) value after each pass, NaN where none was made
    converged: Tensor  # (G,)
    finished: Tensor  # (G,) converged or stuck

    @property
    def bank(self) -> Bank:
        """The parameters."""
        return Bank(self.theta, self.mask, self.l2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1))


def _per_mixture(x: Tensor) -> Tensor:
    return x[:, None, None]


@dataclass(frozen=True)
class Preconditioner:
    """The inverse curvature of the M-step, from one pooled curvature C (or its diagonal) that all heads share.

    A head that holds the part p of the annotators has about the curvature p C + l2 I; its inverse comes from one
    eigendecomposition for any part and any ridge.

    Attributes:
        basis: ``(D, D)`` eigenvectors of C; None where C is a diagonal.
        spectrum: ``(D,)`` eigenvalues.
    """

    n_annotators: int
    alpha: float
    basis: Tensor | None
    spectrum: Tensor

    @classmethod
    def of(cls, objective: Objective, pooled: Tensor) -> Preconditioner:
        """``pooled``: (D, D) curvature of one head for everybody, or its diagonal (D,)."""
        n, alpha = objective.ranks.n_annotators, objective.alpha
        if pooled.dim() == 1:
            return cls(n, alpha, None, pooled.double())
        spectrum, basis = torch.linalg.eigh(pooled.double())
        return cls(n, alpha, basis, spectrum.clamp_min(0.0))

    def apply(self, state: State, gradient: Tensor) -> Tensor:
        """(G, K, D + 1) the direction of a step up."""
        floor = 1e-8 * self.spectrum.max() + torch.finfo(torch.float64).tiny
        part = (state.mass / self.n_annotators).clamp_min(0.5 / self.n_annotators)
        curvature = part[..., None] * (self.spectrum + floor) + state.l2[:, None, None]
        heads = gradient[..., :-1]
        if self.basis is None:
            heads = heads / curvature
        else:
            heads = ((heads @ self.basis) / curvature) @ self.basis.T
        mass = (state.mass + (self.alpha - 1.0)).clamp_min(1.0)
        return torch.cat([heads, (gradient[..., -1] / mass)[..., None]], dim=2)


def _quasi_newton(state: State, preconditioner: Preconditioner) -> Tensor:
    """The two-loop recursion; an empty slot of the memory is zero and does nothing."""
    curvatures = _dot(state.steps, state.pulls)  # (G, MEMORY)
    inverse = torch.where(curvatures > 0, 1.0 / curvatures.clamp_min(1e-300), 0.0)
    q, weights = state.gradient, []
    for i in range(MEMORY):
        w = inverse[:, i] * _dot(state.steps[:, i], q)
        weights.append(w)
        q = q - _per_mixture(w) * state.pulls[:, i]
    direction = preconditioner.apply(state, q)
    newest = state.pulls[:, 0]  # the pooled curvature's scale, corrected by the last step
    size = _dot(newest, preconditioner.apply(state, newest))
    scale = torch.where(curvatures[:, 0] > 0, curvatures[:, 0] / size.clamp_min(1e-300), 1.0)
    direction = direction * _per_mixture(scale)
    for i in reversed(range(MEMORY)):
        w = inverse[:, i] * _dot(state.pulls[:, i], direction)
        direction = direction + _per_mixture(weights[i] - w) * state.steps[:, i]
    return direction


def start(objective: Objective, bank: Bank, preconditioner: Preconditioner) -> State:
    """Evaluate the bank and point every mixture uphill."""
    at = objective(bank)
    n_mixtures, width, n_parameters = bank.theta.shape
    zeros = bank.theta.new_zeros
    state = State(
        theta=bank.theta,
        mask=bank.mask,
        l2=bank.l2,
        value=at.value,
        log_likelihood=at.log_likelihood,
        gradient=at.gradient,
        mass=at.mass,
        direction=at.gradient,
        step=torch.ones_like(at.value),
        steps=zeros(n_mixtures, MEMORY, width, n_parameters),
        pulls=zeros(n_mixtures, MEMORY, width, n_parameters),
        rounds=torch.ones_like(at.value, dtype=torch.int64),
        history=at.value[:, None],
        converged=torch.zeros_like(at.value, dtype=torch.bool),
        finished=torch.zeros_like(at.value, dtype=torch.bool),
    )
    return replace(state, direction=preconditioner.apply(state, at.gradient))


def advance(
    objective: Objective,
    state: State,
    preconditioner: Preconditioner,
    tol: float,
    bank: Bank | None = None,
) -> State:
    """One round: one pass over the data at every mixture's trial.

    ``bank``: any with the state's mask; over several rounds the same, it is waited for once.
    """
    trial = state.theta + _per_mixture(state.step) * state.direction
    bank = (state.bank if bank is None else bank).replace(trial)
    at = objective(bank)
    promised = _dot(state.gradient, state.direction)
    scale = at.value.abs().maximum(state.value.abs())
    rounding = (1e-13 if objective.acc == torch.float64 else 1e-9) * scale
    gain = at.value - state.value
    accepted = (gain >= _SUFFICIENT * state.step * promised - rounding) & at.value.isfinite()

    moved = _accept(state, bank, at, accepted)
    direction = _quasi_newton(moved, preconditioner)
    slope = _dot(moved.gradient, direction)
    lost = accepted & ~(slope > 0)  # the memory misleads: forget it
    moved = _forget(moved, lost)
    uphill = preconditioner.apply(moved, moved.gradient)
    direction = torch.where(_per_mixture(lost), uphill, direction)
    slope = torch.where(lost, _dot(moved.gradient, uphill), slope)

    # A refused step: shorten it to the top of the parabola through what is known.
    fall = promised * state.step - gain
    shorter = (0.5 * promised * state.step / fall.clamp_min(1e-300)).nan_to_num(0.1).clamp(0.1, 0.5)
    step = torch.where(accepted, 1.0, state.step * shorter)
    stuck = ~accepted & (step < _SHORTEST)
    hopeless = stuck & (moved.steps[:, 0].abs().amax((1, 2)) == 0)
    moved = _forget(moved, stuck)
    direction = torch.where(_per_mixture(accepted), direction, state.direction)
    direction = torch.where(_per_mixture(stuck), uphill, direction)
    step = torch.where(stuck, 1.0, step)

    small = tol * scale.clamp_min(1.0)
    converged = accepted & (gain <= small) & (0.5 * slope <= small)
    converged = converged | (hopeless & (0.5 * promised <= 100 * small))
    history = state.history.scatter(1, state.rounds[:, None], moved.value[:, None])
    return replace(
        moved,
        direction=direction,
        step=step,
        rounds=state.rounds + 1,
        history=history,
        converged=converged,
        finished=converged | hopeless,
    )


def _accept(state: State, bank: Bank, at: Evaluation, accepted: Tensor) -> State:
    """Move the accepted mixtures and remember their steps."""
    keep = _per_mixture(accepted)
    step, pull = bank.theta - state.theta, state.gradient - at.gradient
    sound = accepted & (_dot(step, pull) > 1e-10 * (_dot(step, step) * _dot(pull, pull)).sqrt())
    remember = sound[:, None, None, None]
    steps = torch.cat([step[:, None], state.steps[:, :-1]], dim=1)
    pulls = torch.cat([pull[:, None], state.pulls[:, :-1]], dim=1)
    return replace(
        state,
        theta=torch.where(keep, bank.theta, state.theta),
        value=torch.where(accepted, at.value, state.value),
        log_likelihood=torch.where(accepted, at.log_likelihood, state.log_likelihood),
        gradient=torch.where(keep, at.gradient, state.gradient),
        mass=torch.where(accepted[:, None], at.mass, state.mass),
        steps=torch.where(remember, steps, state.steps),
        pulls=torch.where(remember, pulls, state.pulls),
    )


def _forget(state: State, which: Tensor) -> State:
    gone = which[:, None, None, None]
    return replace(
        state,
        steps=state.steps.masked_fill(gone, 0.0),
        pulls=state.pulls.masked_fill(gone, 0.0),
    )


def climb(
    objective: Objective,
    state: State,
    preconditioner: Preconditioner,
    *,
    max_iter: int,
    tol: float,
    on_round: Callable[[Callable[[], State]], None] | None = None,
    look: int | None = None,
) -> State:
    """Rounds until every mixture has converged, is stuck, or has made ``max_iter`` passes.

    ``on_round(whole)`` is called after each round; ``whole()`` puts the state of all mixtures together. The host asks
    every ``look`` rounds who has finished, which waits for the device; who has, stays as it is until then. None: every
    round on a CPU, where asking costs nothing.
    """
    if look is None:
        look = 1 if state.theta.device.type == "cpu" else _LOOK
    room = max_iter - state.history.shape[1]
    if room > 0:
        history = torch.nn.functional.pad(state.history, (0, room), value=torch.nan)
        state = replace(state, history=history)
    while True:
        active = (~state.finished & (state.rounds < max_iter)).nonzero()[:, 0]
        if active.numel() == 0:
            return state
        part = take(state, active)
        bank = part.bank
        left = max_iter - int(part.rounds.max())
        while left > 0 and not bool(part.finished.any()):
            for _ in range(min(look, left)):
                moved = advance(objective, part, preconditioner, tol, bank)
                part = moved if look == 1 else _rest(part, moved)
                if on_round is not None:
                    on_round(functools.partial(put, state, active, part))
            left -= look
        state = put(state, active, part)


def _rest(before: State, after: State) -> State:
    """``after``, but what had finished before stands still. Its direction, step and memory count no more."""
    names = ("theta", "value", "log_likelihood", "gradient", "mass", "rounds", "history")
    kept = {}
    for name in (*names, "converged", "finished"):
        old, new = getattr(before, name), getattr(after, name)
        finished = before.finished.view(-1, *[1] * (old.dim() - 1))
        kept[name] = torch.where(finished, old, new)
    return replace(after, **kept)

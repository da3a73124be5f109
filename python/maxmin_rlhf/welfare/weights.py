"""Weights of the groups that adapt while a policy is trained: the players against it in (12)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from maxmin_kernels import functional

ONLINE = ("exponentiated_gradient", "optimistic")
WELFARES = (
    *("softmin", "argmin", "mean", "nash", "power", "cvar"),
    *("owa", "leximin", "kl", "chi2", "tv", "floor"),
)
METHODS = (*WELFARES, *ONLINE, "fixed")
_FORMAT = 1
# One group at the minimum in more than this share of so many steps: more likely a question of units than of taste.
_DOMINANT, _DOMINANT_STEPS = 0.95, 100


class MaxMinWeights:
    """Weights of K groups from their rewards, batch by batch.

    A minimum over one batch's means jumps from group to group with the noise. So the default is the softmin of a running
    mean; each welfare of section 5 of docs/math.md can take its place, or one of two online methods, or weights that
    stay (those of `maxmin_rlhf.solve_maxmin`). Rewards should be calibrated before, and with every method the
    one thing that counts are *expected* rewards, never a sample's minimum.

    Args:
        n_groups: K.
        method: ``"softmin"`` (with ``tau``), ``"argmin"``, ``"mean"``, ``"nash"``, ``"power"``, ``"cvar"``, ``"owa"``,
            ``"leximin"``, ``"kl"``, ``"chi2"``, ``"tv"`` or ``"floor"``: the weights that
            `maxmin_kernels.welfare` gives the running means. ``"exponentiated_gradient"``: ``w ∝ w exp(-lr u)``
            with each batch's means u; ``"optimistic"``: the same with ``2u - (the last u)``. ``"fixed"``:
            ``initial``, for good.
        momentum: of the running mean, in [0, 1); 0 is the last batch's.
        lr: step of the online methods, in units of one over reward.
        tau: of softmin, in units of reward; None: 0.5, for rewards of spread one.
        alpha, p, radius, floor, rank_weights: of the other welfares, as in `maxmin_kernels.welfare`.
        group_weights: ``(K,)`` shares of the population; None: equal.
        initial: ``(K,)`` weights before the first batch; None: the shares.

    Attributes:
        weights: ``(K,)`` float64 on the CPU.
        utilities: ``(K,)`` float64 running means; NaN for a group that was never seen.
        steps: updates so far. worst: ``(K,)`` how often each group was the worst off.

    Raises:
        ValueError, TypeError: an unknown method, a parameter that is missing, out of range or of another method.
    """

    def __init__(
        self,
        n_groups: int,
        method: str = "softmin",
        *,
        momentum: float = 0.9,
        lr: float = 0.1,
        tau: float | None = None,
        alpha: float | None = None,
        p: float | None = None,
        radius: float | None = None,
        floor: Any = None,
        rank_weights: Any = None,
        group_weights: Any = None,
        initial: Any = None,
    ) -> None:
        if isinstance(n_groups, bool) or not isinstance(n_groups, int) or n_groups < 1:
            raise ValueError(f"n_groups: expected an integer >= 1, got {n_groups!r}")
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {momentum}")
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError(f"lr: expected a number > 0, got {lr}")
        if method == "fixed" and initial is None:
            raise ValueError("initial: expected weights (K,) for method 'fixed', got None")
        self.n_groups, self.method, self.momentum, self.lr = n_groups, method, momentum, lr
        self.group_weights = self._vector("group_weights", group_weights)
        self._scalars = {
            "tau": 0.5 if method == "softmin" and tau is None else tau,
            "alpha": alpha,
            "p": p,
            "radius": radius,
        }
        self._tensors = {
            "floor": None if floor is None else torch.as_tensor(floor, dtype=torch.float64),
            "rank_weights": (
                None if rank_weights is None else torch.as_tensor(rank_weights, dtype=torch.float64)
            ),
        }
        self._check_parameters()
        self.weights = (
            self.group_weights.clone() if initial is None else self._vector("initial", initial)
        )
        if method in ONLINE and not bool((self.weights > 0).all()):
            raise ValueError(
                f"{'group_weights' if initial is None else 'initial'}: expected numbers > 0 for method {method!r}, "
                f"got {self.weights.tolist()}"
            )
        self.utilities = torch.full((n_groups,), math.nan, dtype=torch.float64)
        self.worst = torch.zeros(n_groups, dtype=torch.int64)
        self.steps = 0
        self._last = self.utilities.clone()  # the means of the step before, for "optimistic"
        self._warned: set[str] = set()

    # ---- one step

    def update(
        self, rewards: Any, mask: Any = None, *, gathered: bool = False, process_group: Any = None
    ) -> Tensor:
        """Take a batch in; with several processes sums and counts are added over all of them first.

        Args:
            rewards: ``(B, K)`` calibrated rewards, NaN where a group gave none.
            mask: ``(B, K)`` bool, True where a reward counts.
            gathered: these are the rewards of all processes already: nothing is sent.
            process_group: of torch.distributed; None: all processes, if it is initialised.

        Returns:
            ``(K,)`` float64, the new weights. A group absent from the batch keeps its running mean; while one was never
            seen the weights stay as they are.

        Raises:
            ValueError, TypeError: another shape, infinite rewards, utilities outside the method's domain. The state is
                then as before.
        """
        sums, counts = self._totals(rewards, mask)
        if not gathered and dist.is_available() and dist.is_initialized():
            both = torch.stack([sums, counts])
            dist.all_reduce(both, group=process_group)
            sums, counts = both
        sums, counts = sums.cpu(), counts.cpu()
        if not bool(sums.isfinite().all()):
            group = int((~sums.isfinite()).nonzero()[0])
            raise ValueError(f"rewards: expected finite numbers, got inf for group {group}")
        here = counts > 0
        batch = torch.where(here, sums / counts.clamp_min(1), self.utilities)
        running = self.momentum * self.utilities + (1 - self.momentum) * batch
        running = torch.where(self.utilities.isnan(), batch, running)
        running = torch.where(here, running, self.utilities)
        if self._all_seen(running):
            self.weights = self._next(running, batch)
            self.worst[int(running.argmin())] += 1
        self.utilities, self._last = running, batch
        self.steps += 1
        self._watch_dominance()
        return self.weights.clone()

    def _totals(self, rewards: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """(K,) sums and counts of what is there, in float64 on the rewards' device."""
        if not isinstance(rewards, Tensor):
            rewards = torch.as_tensor(np.asarray(rewards, np.float64))
        if rewards.dim() != 2 or rewards.shape[1] != self.n_groups:
            raise ValueError(
                f"rewards: expected shape (B, {self.n_groups}), got {tuple(rewards.shape)}"
            )
        mask = None if mask is None else torch.as_tensor(mask, device=rewards.device)
        rewards = rewards.detach().double()
        means = functional.maxmin_reduce(rewards, "mean", mask).utilities
        present = ~rewards.isnan() if mask is None else ~rewards.isnan() & mask
        counts = present.sum(0).double()
        return torch.where(counts > 0, means * counts, 0.0), counts

    def _next(self, running: Tensor, batch: Tensor) -> Tensor:
        if self.method == "fixed":
            return self.weights
        if self.method in ONLINE:
            step = batch
            if self.method == "optimistic" and not bool(self._last.isnan().any()):
                step = 2 * batch - self._last
            # A weight that has become 0 would stay so, whatever happens to its group.
            least = torch.finfo(torch.float64).tiny
            return torch.softmax(self.weights.clamp_min(least).log() - self.lr * step, 0)
        weights = self._welfare(running)
        if bool(weights.isnan().any()):
            group = int(running.argmin())
            raise ValueError(
                f"rewards: expected positive mean rewards for method {self.method!r}, got "
                f"{float(running[group]):g} for group {group}; move their zero"
            )
        return weights

    def _welfare(self, utilities: Tensor, validate: bool = False) -> Tensor:
        kind = "min" if self.method == "argmin" else self.method
        shares = None if self.method in ("argmin", "owa", "leximin") else self.group_weights
        return functional.welfare(
            utilities,
            kind,
            group_weights=shares,
            validate=validate,
            **self._scalars,  # type: ignore[arg-type]
            **self._tensors,  # type: ignore[arg-type]
        ).weights

    # ---- checks

    def _check_parameters(self) -> None:
        if self.method in WELFARES:
            self._welfare(torch.ones(self.n_groups, dtype=torch.float64), validate=True)
            return
        given = [n for n, v in (*self._scalars.items(), *self._tensors.items()) if v is not None]
        if given:
            raise ValueError(f"{given[0]}: method {self.method!r} takes no such parameter")

    def _vector(self, name: str, value: Any) -> Tensor:
        """(K,) float64 on the simplex; None: equal parts."""
        if value is None:
            return torch.full((self.n_groups,), 1 / self.n_groups, dtype=torch.float64)
        vector = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
        if vector.shape != (self.n_groups,):
            raise ValueError(
                f"{name}: expected shape ({self.n_groups},), got {tuple(vector.shape)}"
            )
        if not bool(((vector >= 0) & vector.isfinite()).all() and vector.sum() > 0):
            raise ValueError(
                f"{name}: expected numbers >= 0 with a positive sum, got {vector.tolist()}"
            )
        return vector / vector.sum()

    def _all_seen(self, running: Tensor) -> bool:
        unseen = running.isnan().nonzero().flatten().tolist()
        if unseen:
            self._warn_once(
                f"groups {unseen} gave no reward so far: the weights stay as they are until all did"
            )
        return not unseen

    def _watch_dominance(self) -> None:
        group = int(self.worst.argmax())
        if (
            self.n_groups > 1
            and self.method != "fixed"
            and self.steps >= _DOMINANT_STEPS
            and int(self.worst[group]) > _DOMINANT * self.steps
        ):
            self._warn_once(
                f"group {group} was the worst off in more than {_DOMINANT:.0%} of the steps: are the rewards "
                "centred and in common units?"
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"MaxMinWeights: {message}", UserWarning, stacklevel=4)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """All that an update changes, in plain numbers that survive JSON exactly (None: NaN)."""
        return {
            "format": _FORMAT,
            "method": self.method,
            "steps": self.steps,
            "weights": self.weights.tolist(),
            "utilities": _plain(self.utilities),
            "last": _plain(self._last),
            "worst": self.worst.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: it is of another method, number of groups or version.
        """
        if state.get("format") != _FORMAT:
            raise ValueError(f"state: expected format {_FORMAT}, got {state.get('format')!r}")
        if state["method"] != self.method:
            raise ValueError(f"state: expected method {self.method!r}, got {state['method']!r}")
        if len(state["weights"]) != self.n_groups:
            raise ValueError(f"state: expected {self.n_groups} groups, got {len(state['weights'])}")
        self.steps = int(state["steps"])
        self.weights = torch.tensor(state["weights"], dtype=torch.float64)
        self.utilities, self._last = _tensor(state["utilities"]), _tensor(state["last"])
        self.worst = torch.tensor(state["worst"], dtype=torch.int64)

    def __repr__(self) -> str:
        rounded = [round(w, 4) for w in self.weights.tolist()]
        return f"MaxMinWeights({self.n_groups}, {self.method!r}, weights={rounded})"


def _plain(x: Tensor) -> list[float | None]:
    return [None if math.isnan(v) else v for v in x.tolist()]


def _tensor(x: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if v is None else v for v in x], dtype=torch.float64)

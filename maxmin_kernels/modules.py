"""nn.Module faces of the operations, for models and trainers: parameters and buffers, and nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maxmin_kernels import functional
from maxmin_kernels._checks import check_scalar

__all__ = ["MaxMinReduce", "MixtureLikelihoodLoss", "RewardHeads"]


class RewardHeads(nn.Module):
    """Several reward heads on one trunk: `reward_heads` with its parameters.

    Args:
        hidden_size: D, the width of the hidden states.
        n_heads: H, rewards of each sequence.
        bias: a bias of each head. It cancels in margins of responses to one prompt.
        device, dtype: of the parameters.

    Attributes:
        weight: ``(H, D)``, drawn with standard deviation ``1 / sqrt(D + 1)``.
        bias: ``(H,)`` zeros, or None.
    """

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("n_heads", n_heads)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        self.hidden_size, self.n_heads = hidden_size, n_heads
        self.weight = nn.Parameter(torch.empty(n_heads, hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(n_heads, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights afresh; biases to zero."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.hidden_size + 1))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor, token_index: Tensor | None = None) -> Tensor:
        """Hidden states ``(B, D)``, or ``(B, T, D)`` with the ``(B,)`` tokens to read, to rewards ``(B, H)``.

        In float32 (float64 for float64 hidden states); a token of -1 gives NaN.
        """
        return functional.reward_heads(hidden, self.weight, self.bias, token_index)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, {self.n_heads}, bias={self.bias is not None}"


class MixtureLikelihoodLoss(nn.Module):
    """Mean negative log-likelihood of annotators' choices under a mixture of heads: (3)-(5).

    An annotator, not a comparison, has a group, so a batch must hold an annotator's comparisons side by side.

    Args:
        n_groups: K, heads of the mixture.
        log_weights: ``(K,)`` fixed log mixing weights. None: they are learned, as the softmax of ``logits``.
        per: ``"comparison"`` divides by the comparisons' total weight, ``"annotator"`` by the number of annotators.
        label_noise, hard, temperature: as in `mixture_log_likelihood`.

    Attributes:
        logits: ``(K,)`` parameter, zeros at first (equal shares); None if ``log_weights`` are given.
    """

    fixed_log_weights: Tensor | None

    def __init__(
        self,
        n_groups: int,
        *,
        log_weights: Tensor | None = None,
        per: str = "comparison",
        label_noise: float = 0.0,
        hard: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if n_groups < 1:
            raise ValueError(f"n_groups: expected at least 1, got {n_groups}")
        if per not in ("comparison", "annotator"):
            raise ValueError(f"per: expected 'comparison' or 'annotator', got {per!r}")
        if log_weights is not None and log_weights.shape != (n_groups,):
            raise ValueError(
                f"log_weights: expected shape ({n_groups},), got {tuple(log_weights.shape)}"
            )
        self.n_groups, self.per = n_groups, per
        self.label_noise, self.hard, self.temperature = label_noise, hard, temperature
        self.logits = nn.Parameter(torch.zeros(n_groups)) if log_weights is None else None
        self.register_buffer("fixed_log_weights", log_weights)

    @property
    def log_weights(self) -> Tensor:
        """(K,) log mixing weights: those given, or those learned so far."""
        if self.logits is not None:
            return self.logits.log_softmax(0)
        assert self.fixed_log_weights is not None
        return self.fixed_log_weights

    def forward(
        self,
        margins: Tensor,
        indptr: Tensor,
        *,
        choice_indptr: Tensor | None = None,
        comparison_weight: Tensor | None = None,
    ) -> Tensor:
        """Margins ``(N, K)`` and ``indptr`` (A + 1), the comparisons of each annotator, to a scalar.

        Args:
            margins: as from `preference_margins`.
            indptr: int64; annotators without comparisons add nothing.
            choice_indptr: ``(C + 1)`` int64, rows of each comparison; None: every row is a pair.
            comparison_weight: ``(C,)`` weights >= 0.

        Returns:
            The loss in the margins' accumulation dtype; 0 for an empty batch.
        """
        z, _ = functional.mixture_log_likelihood(
            margins,
            indptr,
            self.log_weights,
            choice_indptr=choice_indptr,
            comparison_weight=comparison_weight,
            label_noise=self.label_noise,
            hard=self.hard,
            temperature=self.temperature,
        )
        if self.per == "annotator":
            return -z.sum() / max(1, indptr.shape[0] - 1)
        if comparison_weight is not None:
            total = comparison_weight.to(z.dtype).sum()
            return -z.sum() / torch.where(total > 0, total, 1.0)
        rows = margins if choice_indptr is None else choice_indptr[1:]
        return -z.sum() / max(1, rows.shape[0])

    def extra_repr(self) -> str:
        return f"{self.n_groups}, per={self.per!r}, learned={self.logits is not None}"


class MaxMinReduce(nn.Module):
    """Welfare of a batch of rewards, with running estimates for groups that a batch does not hold.

    `maxmin_reduce` with its parameters and memory: while training, a group's estimate
    moves towards its mean in every batch that has it. Estimates are of this process; nothing is exchanged.

    Args:
        n_groups: K.
        kind: of welfare.
        momentum: share of the old estimate that stays, in [0, 1). The first batch of a group sets its estimate.
        group_weights, tau, alpha, p, radius, floor, rank_weights: as in
            `welfare`.

    Attributes:
        running: ``(K,)`` float32 estimates of the utilities; NaN for a group never met.
    """

    running: Tensor
    group_weights: Tensor | None
    floor: Tensor | None
    rank_weights: Tensor | None

    def __init__(
        self,
        n_groups: int,
        kind: str = "min",
        *,
        momentum: float = 0.9,
        group_weights: Tensor | None = None,
        tau: float | None = None,
        alpha: float | None = None,
        p: float | None = None,
        radius: float | None = None,
        floor: Tensor | None = None,
        rank_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if n_groups < 1:
            raise ValueError(f"n_groups: expected at least 1, got {n_groups}")
        check_scalar("momentum", momentum, low=0.0, high=1.0, high_open=True)
        self.n_groups, self.kind, self.momentum = n_groups, kind, momentum
        self.tau, self.alpha, self.p, self.radius = tau, alpha, p, radius
        self.register_buffer("running", torch.full((n_groups,), math.nan))
        self.register_buffer("group_weights", group_weights)
        self.register_buffer("floor", floor)
        self.register_buffer("rank_weights", rank_weights)
        # Parameters that do not fit are refused here, not at the first batch.
        self._reduce(torch.zeros(1, n_groups, device=self.running.device), None)

    def _reduce(self, rewards: Tensor, mask: Tensor | None) -> functional.MaxMinReduction:
        return functional.maxmin_reduce(
            rewards,
            self.kind,
            mask,
            running=self.running,
            group_weights=self.group_weights,
            tau=self.tau,
            alpha=self.alpha,
            p=self.p,
            radius=self.radius,
            floor=self.floor,
            rank_weights=self.rank_weights,
        )

    def forward(self, rewards: Tensor, mask: Tensor | None = None) -> functional.MaxMinReduction:
        """Rewards ``(B, K)``, NaN or hidden by ``mask`` ``(B, K)`` where absent, to (value, weights, utilities)."""
        result = self._reduce(rewards, mask)
        if self.training:
            # A group that is absent has its estimate for its utility, and so stays where it is.
            with torch.no_grad():
                fresh = result.utilities.to(self.running.dtype)
                moved = self.running + (1 - self.momentum) * (fresh - self.running)
                self.running.copy_(torch.where(self.running.isnan(), fresh, moved))
        return result

    def extra_repr(self) -> str:
        scalars = {"tau": self.tau, "alpha": self.alpha, "p": self.p, "radius": self.radius}
        given = "".join(f", {n}={v}" for n, v in scalars.items() if v is not None)
        return f"{self.n_groups}, kind={self.kind!r}{given}, momentum={self.momentum}"

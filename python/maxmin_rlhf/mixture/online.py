"""Online EM: who belongs to which group, from margins that come batch by batch while the trunk that makes them learns.

Section 2 of docs/math.md over a stream. What an annotator's earlier batches said about their group enters a batch as a
prior, so that the batch's gradient is that of the whole marginal likelihood (8), not of the batch's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from maxmin_kernels import functional
from maxmin_rlhf.mixture import checkpoint as files

# Below this a responsibility is none; logarithms stay finite.
_TINY = 1e-30
Gather = Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


class RunningResponsibilities:
    """The E-step (4)-(6) and the shares (9), kept up to date by batches.

    An annotator with ``n`` pairs, ``b`` of them in the batch, keeps ``1 - b / n`` of the evidence so far: the sum is then
    of about one epoch's pairs, older values of the margins fading. Shares are means of the annotators' newest
    responsibilities (incremental EM).

    Args:
        annotators: ``(A,)`` ids. counts: ``(A,)`` pairs of each. n_groups: K.
        decay: kept at each visit instead, in [0, 1]; 0: a batch stands alone. None: as above.
        alpha: >= 1, of (9).

    Attributes:
        evidence: ``(A, K)`` float64, log-likelihood of each annotator's earlier batches, up to a constant a row.
        responsibilities: ``(A, K)`` float64. shares: ``(K,)`` float64.

    Raises:
        ValueError: numbers out of range.
    """

    def __init__(
        self,
        annotators: Sequence[Any],
        counts: Sequence[int],
        n_groups: int,
        *,
        decay: float | None = None,
        alpha: float = 1.0,
    ) -> None:
        if decay is not None and not 0 <= decay <= 1:
            raise ValueError(f"decay: expected a number in [0, 1] or None, got {decay}")
        if not 1 <= alpha < float("inf"):
            raise ValueError(f"alpha: expected a finite number >= 1, got {alpha}")
        self.annotators, self.decay, self.alpha = list(annotators), decay, alpha
        self.counts = torch.as_tensor(counts, dtype=torch.float64)
        self.shares = torch.full((n_groups,), 1 / n_groups, dtype=torch.float64)
        self.responsibilities = self.shares.expand(len(self.annotators), n_groups).clone()
        self.evidence = torch.zeros_like(self.responsibilities)

    def start(self, mixture: Any) -> None:
        """From a fitted :class:`maxmin_rlhf.PreferenceMixture`: its shares, and what it found of annotators that are here.

        Raises:
            ValueError: another number of groups.
        """
        shares = torch.as_tensor(mixture.weights_, dtype=torch.float64).clamp_min(_TINY)
        if shares.shape != self.shares.shape:
            raise ValueError(
                f"mixture: expected {len(self.shares)} groups as the model has, got {len(shares)}"
            )
        self.shares = shares / shares.sum()
        self.responsibilities = self.shares.expand_as(self.evidence).clone()
        row = {annotator: i for i, annotator in enumerate(mixture.annotators_.tolist())}
        known = [i for i, annotator in enumerate(self.annotators) if annotator in row]
        if not known:
            warnings.warn(
                f"mixture: none of the {len(self.annotators)} annotators is one that it was fitted to (are the ids of one type?)",
                UserWarning,
                stacklevel=2,
            )
        found = [row[self.annotators[i]] for i in known]
        resp = torch.from_numpy(mixture.responsibilities_)[found].double().clamp_min(_TINY)
        self.responsibilities[known] = resp
        self.evidence[known] = resp.log() - self.shares.log()

    def to(self, device: torch.device) -> RunningResponsibilities:
        """Where the margins are."""
        for name in ("counts", "shares", "responsibilities", "evidence"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    # ---- a batch

    def log_predictive(
        self, margins: Tensor, owner: Tensor, *, gather: Gather | None = None, learn: bool = True
    ) -> Tensor:
        """Log-probability of an annotator's choices in this batch given those before, summed over the annotators.

        Its gradient by a margin is ``γ_ah σ(-m_ih)``, (10) with the posterior of both. Value and gradient add up over
        processes to those of one process with all the pairs.

        Args:
            margins: ``(B, K)`` of this process, chosen minus rejected; any float dtype.
            owner: ``(B,)`` int64 places in ``annotators``, ascending.
            gather: concatenates ``(owner, log-likelihoods)`` over processes.
            learn: whether the state takes the batch in.

        Returns:
            A float64 scalar, differentiable once by the margins.
        """
        margins = margins.double()
        log_lik = logsigmoid(margins.detach())  # [B, K]
        everyone = (owner, log_lik) if gather is None else gather((owner, log_lik))
        there = everyone[0].unique()  # [C]
        # A product with 0 and 1 instead of an indexed sum: the same bits each time on a device too.
        member = (there[:, None] == everyone[0]).double()
        visited, batch = member.sum(1), member @ everyone[1]
        before = self._kept(there, visited)
        prior = before + self.shares.log()
        joint = prior + batch
        mine, n_mine = owner.unique_consecutive(return_counts=True)
        at = torch.searchsorted(there, mine)
        own = (mine[:, None] == owner).double() @ log_lik
        z = _marginal(margins, owner, mine, n_mine, (joint[at] - own))
        predictive = joint.logsumexp(1) - prior.logsumexp(1)
        share = predictive[at] * (n_mine / visited[at])
        if learn:
            self._take_in(there, before + batch, joint)
        return share.sum() + (z - z.detach()).sum()

    def _kept(self, there: Tensor, visited: Tensor) -> Tensor:
        rate = (1 - visited / self.counts[there]).clamp_min(0) if self.decay is None else self.decay
        return self.evidence[there] * torch.as_tensor(rate).to(visited).view(-1, 1)

    def _take_in(self, there: Tensor, evidence: Tensor, joint: Tensor) -> None:
        self.evidence[there] = evidence - evidence.amax(1, keepdim=True)
        self.responsibilities[there] = joint.softmax(1).clamp_min(_TINY)
        n_groups = len(self.shares)
        mass = self.responsibilities.sum(0) + self.alpha - 1
        self.shares = mass / (len(self.annotators) + n_groups * (self.alpha - 1))

    @torch.no_grad()
    def log_probability(self, margins: Tensor, owner: Tensor) -> Tensor:
        """(B,) float64: (11) of new pairs; an annotator's group as known now, the shares for those unknown (-1)."""
        resp = torch.where((owner < 0)[:, None], self.shares, self.responsibilities[owner])
        return (resp.log() + logsigmoid(margins.double())).logsumexp(1)

    # ---- files

    def save(self, path: str | PathLike[str]) -> None:
        """All that a batch changes, whole or not at all."""
        tensors = {n: getattr(self, n) for n in ("evidence", "responsibilities", "shares")}
        facts = {"annotators": [str(a) for a in self.annotators]}
        files.write(path, "running responsibilities", tensors, facts)

    def load(self, path: str | PathLike[str]) -> None:
        """Go on where :meth:`save` was.

        Raises:
            FileNotFoundError, ValueError: no file; a damaged one; other annotators or another number of groups.
        """
        tensors, facts = files.read(path, "running responsibilities")
        if facts["annotators"] != [str(a) for a in self.annotators]:
            raise ValueError(f"{path}: expected the annotators of this data set, got others")
        if tensors["shares"].shape != self.shares.shape:
            raise ValueError(
                f"{path}: expected {len(self.shares)} groups, got {len(tensors['shares'])}"
            )
        for name, tensor in tensors.items():
            setattr(self, name, tensor.to(self.shares.device))


def _marginal(margins: Tensor, owner: Tensor, mine: Tensor, n_mine: Tensor, rest: Tensor) -> Tensor:
    """(C,) log-evidence (5) of each annotator, up to a constant, whose evidence from elsewhere is ``rest (C, K)``.

    The kernel knows one prior for all. So what else is known of an annotator enters as one more pair of theirs, with the
    margin whose log-sigmoid it is; a constant makes that negative and cancels in the posterior.
    """
    rest = rest - rest.amax(1, keepdim=True) - 1
    pseudo = rest - torch.log1p(-rest.exp())
    order = torch.cat([owner, mine]).argsort(stable=True)
    rows = torch.cat([margins, pseudo])[order]
    indptr = torch.nn.functional.pad((n_mine + 1).cumsum(0), (1, 0))
    no_prior = torch.zeros(margins.shape[1], dtype=torch.float64, device=margins.device)
    return functional.mixture_log_likelihood(rows, indptr, no_prior)[0][:, 0]

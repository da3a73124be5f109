"""A latent taste for each annotator, inferred by a small network from his comparisons: variational preference learning.

The sibling of the mixture, for comparison in the same data and by the same score (11): an encoder reads an annotator's
comparisons and gives a Gaussian over his latent z; a reward linear in the same frozen features has a head that depends on z;
both are trained by the evidence lower bound. This is an implementation of the idea for frozen features, not of anybody's
code: it infers z by a product of Gaussian factors, one a comparison, so that no comparison gives the prior and many give a
narrow posterior. Where people differ little for the number of features the latent can stay empty, and prediction is then
about that of one pooled reward: compare scores before relying on it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import maxmin_kernels as mk
from maxmin_rlhf.data import PreferenceData
from maxmin_rlhf.data.splits import held_out_masks
from maxmin_rlhf.mixture.arguments import check_count, check_number, check_seed
from maxmin_rlhf.mixture.objective import _differences

Array = NDArray[np.float64]
_BATCH = 16  # annotators a step
_VALIDATION = 0.1  # share of the annotators that say when to stop
_SAMPLES = 64  # of z behind a prediction


@dataclass(frozen=True)
class _Rows:
    """Comparisons of some annotators: differences (N, D) float32, who each row and comparison is of."""

    features: Tensor
    row_owner: Tensor
    comparison_owner: Tensor
    choice_indptr: Tensor | None
    weight: Tensor
    n: int

    @classmethod
    def of(cls, data: PreferenceData) -> _Rows:
        owner = torch.from_numpy(data.comparison_annotator)
        weight = torch.ones(data.n_comparisons) if data.weight is None else data.weight.float()
        at = torch.from_numpy(data.row_comparison)
        return cls(_differences(data).float(), owner[at], owner, data.choice_indptr, weight, data.n_annotators)  # fmt: skip


class _Net(nn.Module):
    def __init__(self, n_features: int, n_latent: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 2 * n_latent)
        nn.init.constant_(last.bias[n_latent:], -3.0)  # one comparison says little
        # What a comparison tells of z it tells by its margins under the directions that heads are made of.
        self.factors = nn.Sequential(nn.Linear(hidden + 1, hidden), nn.Tanh(), last)
        self.common = nn.Parameter(torch.zeros(n_features))
        self.inner = nn.Linear(n_latent, hidden)
        self.outer = nn.Linear(hidden, n_features, bias=False)

    def posterior(self, rows: _Rows, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(A, L) mean and variance of z: N(0, I) times a Gaussian factor for each row."""
        directions = torch.cat([self.common[None], self.outer.weight.T])
        push, precision = self.factors(rows.features @ directions.T).chunk(2, 1)
        precision = F.softplus(precision)
        scale = rows.weight if keep is None else rows.weight * keep
        scale = scale[_comparison_of_row(rows)][:, None]
        # A factor pulls to push with its precision.
        zeros = push.new_zeros(rows.n, push.shape[1])
        total = 1 + zeros.index_add(0, rows.row_owner, scale * precision)
        mean = zeros.index_add(0, rows.row_owner, scale * precision * push) / total
        return mean, 1 / total

    def heads(self, z: Tensor) -> Tensor:
        """(..., D) reward head of a latent (..., L)."""
        found: Tensor = self.common + self.outer(torch.tanh(self.inner(z)))
        return found

    def log_prob(self, rows: _Rows, heads: Tensor) -> Tensor:
        """(C,) of each choice under its annotator's head (A, D)."""
        own = (rows.features * heads[rows.row_owner]).sum(1)
        log_prob: Tensor = mk.choice_shares(own[:, None], rows.choice_indptr)[0][:, 0]
        return log_prob


class VariationalPreferences:
    """Reward ⟨w(z_a), φ⟩ with a Gaussian latent z_a a person; trained by the ELBO with Adam, on the CPU.

    Args:
        n_latent: L, dimensions of z.
        hidden: width of the encoder's and the head's one hidden layer.
        l2: ridge on the common head and on the output layer of the others, in units of the log-likelihood.
        max_epochs: passes over the annotators at most. patience: epochs without a better score of annotators set aside
            (a tenth; (11) by comparison) after which training ends; the best network is kept.
        lr: of Adam.
        random_state: seed.

    Attributes:
        n_epochs_: passes made. validation_: (11) of the annotators set aside, by epoch. n_parameters.
    """

    def __init__(
        self,
        n_latent: int = 4,
        *,
        hidden: int = 32,
        l2: float = 1.0,
        max_epochs: int = 200,
        patience: int = 10,
        lr: float = 0.01,
        random_state: int | None = None,
    ) -> None:
        self.n_latent, self.hidden = check_count("n_latent", n_latent), check_count("hidden", hidden)  # fmt: skip
        self.l2, self.lr = check_number("l2", l2, 0.0), check_number("lr", lr, 0.0, open_low=True)
        self.max_epochs = check_count("max_epochs", max_epochs)
        self.patience = check_count("patience", patience)
        self.random_state = check_seed(random_state)

    def fit(self, data: PreferenceData) -> VariationalPreferences:
        """Train on all annotators but those set aside.

        Raises:
            ValueError: fewer than two annotators.
        """
        if data.n_annotators < 2:
            raise ValueError(f"data: expected at least 2 annotators, got {data.n_annotators}")
        rng = np.random.default_rng(self.random_state)
        order = rng.permutation(data.n_annotators)
        cut = max(1, round(_VALIDATION * data.n_annotators))
        aside = data.select_annotators(np.sort(order[:cut]))
        batches = [
            _Rows.of(data.select_annotators(np.sort(some)))
            for some in np.array_split(order[cut:], -(-(order.size - cut) // _BATCH))
        ]
        total = sum(b.comparison_owner.numel() for b in batches)
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**31)))
            self._net = net = _Net(data.n_features, self.n_latent, self.hidden)
            adam = torch.optim.Adam(net.parameters(), lr=self.lr)
            best, kept, since = -np.inf, copy.deepcopy(net.state_dict()), 0
            self.validation_: list[float] = []
            for _ in range(self.max_epochs):
                for i in rng.permutation(len(batches)).tolist():
                    adam.zero_grad()
                    loss = -self._elbo(batches[i], total) / batches[i].comparison_owner.numel()
                    loss.backward()
                    adam.step()
                score = self.score(aside, "comparison", 0)
                self.validation_.append(score)
                if not np.isfinite(score):
                    raise ValueError("data: training diverged; lower lr, or put features on a common scale")  # fmt: skip
                since += 1
                if score > best + 1e-5:
                    best, kept, since = score, copy.deepcopy(net.state_dict()), 0
                if since >= self.patience:
                    break
            net.load_state_dict(kept)
        self.n_epochs_ = len(self.validation_)
        return self

    def _elbo(self, rows: _Rows, total: int) -> Tensor:
        """Of one batch, its part of the ridge included. The encoder reads a random part of the comparisons, any size."""
        share = torch.rand(rows.n)[rows.comparison_owner]
        keep = (torch.rand(rows.comparison_owner.numel()) < share).float()
        mean, variance = self._net.posterior(rows, keep)
        z = mean + variance.sqrt() * torch.randn_like(mean)
        fit = (rows.weight * self._net.log_prob(rows, self._net.heads(z))).sum()
        divergence = 0.5 * (mean**2 + variance - 1 - variance.log()).sum()
        ridge = self._net.common.square().sum() + self._net.outer.weight.square().sum()
        return fit - divergence - 0.5 * self.l2 * ridge * rows.comparison_owner.numel() / total

    @torch.no_grad()
    def posterior(self, data: PreferenceData) -> tuple[Array, Array]:
        """``(A', L)`` mean and variance of each annotator's latent, fitted or not; N(0, 1) for one without comparisons."""
        self._check(data)
        mean, variance = self._net.posterior(_Rows.of(data))
        return mean.double().numpy(), variance.double().numpy()

    @torch.no_grad()
    def sample_heads(self, data: PreferenceData, n: int, seed: int = 0) -> Array:
        """``(n, D)`` heads of latents drawn from the posteriors of annotators drawn from ``data``.

        With ``features @ heads.T`` as ``(P, S, n)`` rewards :func:`maxmin_rlhf.solve_maxmin` is fair to all of them.
        """
        mean, variance = self.posterior(data)
        rng = np.random.default_rng(seed)
        who = rng.integers(len(mean), size=check_count("n", n))
        z = mean[who] + np.sqrt(variance[who]) * rng.standard_normal((n, self.n_latent))
        return self._net.heads(torch.from_numpy(z).float()).double().numpy()

    @torch.no_grad()
    def log_prob(self, data: PreferenceData, known: PreferenceData, seed: int = 0) -> Array:
        """``(C,)`` log predictive of each choice of ``data``, its annotator known by the same one's of ``known``."""
        self._check(data)
        if known.n_annotators != data.n_annotators:
            raise ValueError(f"known: expected {data.n_annotators} annotators as in data, got {known.n_annotators}")  # fmt: skip
        mean, variance = self._net.posterior(_Rows.of(known))
        rows, rng = _Rows.of(data), torch.Generator().manual_seed(seed)
        drawn = []
        for _ in range(_SAMPLES):
            z = mean + variance.sqrt() * torch.randn(mean.shape, generator=rng)
            drawn.append(self._net.log_prob(rows, self._net.heads(z)))
        predicted = torch.stack(drawn).double().logsumexp(0) - np.log(_SAMPLES)
        found: Array = predicted.numpy()
        return found

    def score(
        self, data: PreferenceData, split: str = "auto", random_state: int | None = None
    ) -> float:
        """(11) with the latent in the place of the group; arguments as of :meth:`PreferenceMixture.score`."""
        visible, scored, _ = held_out_masks(data, split, random_state)
        rest = data.select_comparisons(scored)
        v = np.ones(rest.n_comparisons) if rest.weight is None else rest.weight.cpu().numpy()
        predicted = self.log_prob(rest, data.select_comparisons(visible))
        return float(v @ predicted / v.sum())

    @property
    def n_parameters(self) -> int:
        """Of both networks."""
        self._check(None)
        return sum(p.numel() for p in self._net.parameters())

    def _check(self, data: PreferenceData | None) -> None:
        if not hasattr(self, "_net"):
            raise ValueError("this model is not fitted yet: call fit(data) first")
        width = self._net.common.numel()
        if data is not None and data.n_features != width:
            raise ValueError(f"data: expected {width} features as fitted, got {data.n_features}")


def _comparison_of_row(rows: _Rows) -> Tensor:
    if rows.choice_indptr is None:
        return torch.arange(rows.features.shape[0])
    return torch.repeat_interleave(rows.choice_indptr.diff())

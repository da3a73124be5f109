"""A pass as a sum over blocks of annotators; an annotator may be cut by them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import maxmin_kernels as mk
from maxmin_rlhf.data.store_blocks import Block


def on_device(block: Block) -> tuple[Block, mk.EMPlan | None]:
    """A block whose pointers lie where its features do, and its plan, which a CPU does not need.

    The plan is made before they go there: nobody waits for the device.
    """
    data, device = block.data, block.data.device
    if device.type == "cpu":
        return block, None
    plan = mk.em_plan(data.indptr.cpu(), choice_indptr=_cpu(data.choice_indptr))
    plan = replace(
        plan,
        chunk_indptr=_to(plan.chunk_indptr, device),
        annotator_chunks=_to(plan.annotator_chunks, device),
    )
    data = replace(
        data,
        indptr=data.indptr.to(device),
        choice_indptr=_to(data.choice_indptr, device),
        weight=_to(data.weight, device),
    )
    return block._replace(data=data), plan


def _cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


class PassSums:
    """What an EM pass sums: evidence, masses, gradients. In float64 from the second block on.

    An annotator in parts: gamma is known when all are seen, so his L of (4) and G of (8) are summed first, of each head as
    a mixture of its own, where gamma is 1; then the gradient is gamma G.

    Args:
        heads, log_weights, mixture_indptr: of the pass, packed: (H, D), (H,), (G + 1).
        options: label noise, hard, temperature.
    """

    def __init__(
        self,
        heads: Tensor,
        log_weights: Tensor,
        mixture_indptr: Tensor,
        options: tuple[float, bool, float],
    ) -> None:
        self.heads, self.log_weights, self.mixture_indptr = heads, log_weights, mixture_indptr
        self.label_noise, self.hard, self.temperature = options
        self.log_resp: Tensor | None = None
        self._keeps = False
        self._totals: list[Tensor] | None = None
        self._joint: Tensor | None = None
        self._gradient: Tensor | None = None

    def keep_resp(self, n_annotators: int, dtype: torch.dtype) -> None:
        """Keep the log responsibilities of all blocks, (A, H)."""
        self.log_resp = self.heads.new_empty(n_annotators, len(self.heads), dtype=dtype)
        self._keeps = True

    @property
    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihood (G,), mass (H,), gradient by heads (H, D)."""
        if self._totals is None:  # no annotator at all
            zeros = torch.zeros_like
            self._totals = [self.log_weights.new_zeros(len(self.mixture_indptr) - 1), zeros(self.log_weights), zeros(self.heads)]  # fmt: skip
        a, b, c = self._totals
        return a, b, c

    def add(self, block: Block, plan: mk.EMPlan | None) -> None:
        """One more block, in the order of the annotators."""
        data = block.data
        whole = not block.part
        each = torch.arange(len(self.heads) + 1, device=self.heads.device)
        result = mk.em_pass(
            data.features,
            data.indptr,
            self.heads,
            self.log_weights if whole else torch.zeros_like(self.log_weights),
            chosen=data.chosen,
            rejected=data.rejected,
            choice_indptr=data.choice_indptr,
            mixture_indptr=self.mixture_indptr if whole else each,
            comparison_weight=data.weight,
            label_noise=self.label_noise,
            hard=self.hard and whole,
            temperature=self.temperature if whole else 1.0,
            plan=plan,
        )
        if whole:
            self._sum(result.log_likelihood, result.mass, result.grad_weight)
            self._keep(block, result.log_resp)
            return
        joint, gradient = result.log_likelihood, result.grad_weight.double()
        if self._joint is not None and self._gradient is not None:
            joint, gradient = self._joint + joint, self._gradient + gradient
        self._joint, self._gradient = joint, gradient
        if block.last:
            self._join(block, joint, gradient)
            self._joint = self._gradient = None

    def _join(self, block: Block, joint: Tensor, gradient: Tensor) -> None:
        """All parts of an annotator are there: he is one without comparisons whose prior is L."""
        z, log_resp = mk.mixture_log_likelihood(
            joint.new_zeros(0, len(joint)),
            torch.zeros(2, dtype=torch.int64, device=joint.device),
            self.log_weights.double() + joint,
            mixture_indptr=self.mixture_indptr,
            hard=self.hard,
            temperature=self.temperature,
        )
        mass = log_resp[0].exp()
        self._sum(z[0], mass, mass[:, None] * gradient)
        self._keep(block, log_resp)

    def _sum(self, *parts: Tensor) -> None:
        if self._totals is None:
            self._totals = list(parts)
        else:
            self._totals = [a.double() + b for a, b in zip(self._totals, parts, strict=True)]

    def _keep(self, block: Block, log_resp: Tensor) -> None:
        if self._keeps and self.log_resp is not None:
            self.log_resp[block.first : block.first + len(log_resp)] = log_resp
        else:
            self.log_resp = log_resp if block.first == 0 else None

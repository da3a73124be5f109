"""One EM pass, (2)-(6), (8) and the masses, in launches of which two read the features.

    margins -> choices (sets only) -> annotators: Z, γ -> pull c = γ v s -> gradient cᵀ X

Between the launches go (N, H) and (A, H): against D features a row they are a small part of what is moved. Items: the
margins are gathered from the table of scores wherever they are wanted, never written. Pairs whose features fit the
chip are read once instead (``one_read.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from maxmin_kernels import reference
from maxmin_kernels.triton import one_read
from maxmin_kernels.triton.choices import pull
from maxmin_kernels.triton.items import by_item
from maxmin_kernels.triton.mixture import annotators
from maxmin_kernels.triton.rows import gradient, margins


def em_pass_fwd(
    features: Tensor,
    indptr: Tensor,
    weight: Tensor,
    log_weights: Tensor,
    chosen: Tensor | None,
    rejected: Tensor | None,
    choice_indptr: Tensor | None,
    mixture_indptr: Tensor | None,
    comparison_weight: Tensor | None,
    label_noise: float,
    hard: bool,
    temperature: float,
    plan: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the schema says."""
    n_rows = features.shape[0]
    plain = chosen is None and choice_indptr is None and label_noise == 0.0 and not hard
    n_mixtures = 1 if mixture_indptr is None else mixture_indptr.shape[0] - 1
    once = one_read.config_for(features, weight.shape[0], n_mixtures, plain and temperature == 1.0)
    # The first four tensors of a plan are about items, what is left about long annotators.
    chunks = plan if chosen is None else plan[4:]
    # Somebody's comparisons that are cut into chunks would be a single program's work in the other way.
    if once is not None and not chunks:
        return one_read.em_pass(
            once, features, indptr, weight, log_weights, mixture_indptr, comparison_weight
        )
    table = margins(features, weight)
    if chosen is not None and rejected is not None:
        n_rows = chosen.shape[0]
        if not plan:
            plan = _items_of(chosen, rejected, features.shape[0])
        chosen, rejected = plan[0], plan[1]
    n_choices = n_rows if choice_indptr is None else choice_indptr.shape[0] - 1
    shared = (table, chosen, rejected)
    z, log_resp = annotators(
        *shared,
        indptr,
        log_weights,
        choice_indptr,
        mixture_indptr,
        comparison_weight,
        label_noise,
        hard,
        temperature,
        n_rows,
        torch.float64,
        chunks,
    )
    resp = log_resp.exp()
    pulled = pull(
        *shared,
        choice_indptr,
        label_noise,
        n_rows,
        reference.owner_of(indptr, n_choices),
        resp.to(weight.dtype),
        None if comparison_weight is None else comparison_weight.contiguous(),
        weight.dtype,
    )
    if chosen is not None:
        pulled = by_item(pulled, plan[2], plan[3])
    grad_weight = gradient(features, pulled)
    return z.sum(0), log_resp.to(weight.dtype), resp.sum(0), grad_weight


def _items_of(chosen: Tensor, rejected: Tensor, n_items: int) -> list[Tensor]:
    """What `em_plan` would give, without a look at the values."""
    both = torch.cat([chosen, rejected])
    places = both.argsort(stable=True)
    items = torch.arange(n_items + 1, device=both.device)
    return [chosen.contiguous(), rejected.contiguous(), torch.searchsorted(both[places], items), places]  # fmt: skip

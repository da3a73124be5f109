"""Where the last real token of each sequence stands, whichever side is padded; -1 if there is none."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _last_token_kernel(mask_ptr, out_ptr, T, stride_b, stride_t, BLOCK_T: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    last = tl.full((BLOCK_T,), -1, tl.int64)
    for t0 in tl.range(0, T, BLOCK_T):
        t = (t0 + tl.arange(0, BLOCK_T)).to(tl.int64)
        real = tl.load(mask_ptr + b * stride_b + t * stride_t, mask=t < T, other=0) != 0
        last = tl.maximum(last, tl.where(real, t, -1))
    tl.store(out_ptr + b, tl.max(last, 0))


def last_token_index_fwd(attention_mask: Tensor) -> Tensor:
    """``(B,)`` int64 of a mask ``(B, T)``."""
    n_rows, n_tokens = attention_mask.shape
    out = torch.empty(n_rows, dtype=torch.int64, device=attention_mask.device)
    if n_rows == 0:
        return out
    mask = attention_mask
    if mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    block_t = min(2048, max(16, triton.next_power_of_2(n_tokens)))
    with torch.cuda.device_of(mask):
        _last_token_kernel[(n_rows,)](
            mask, out, n_tokens, mask.stride(0), mask.stride(1), BLOCK_T=block_t
        )
    return out

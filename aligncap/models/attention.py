"""Attention in float32 within bfloat16 training on the CPU, where bfloat16 has a slow backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA_FLOAT32 = "sdpa_float32"


def sdpa_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' "sdpa" of bfloat16 queries, keys and values, computed in float32 whatever autocast says.

    Of 8 rows of 55 tokens with 9 heads, forward and backward take a third of bfloat16's time on a CPU with
    bfloat16 instructions (docs/log.md). What float32 needs for the backward pass is computed anew there.

    Args:
        query: (batch, heads, queries, width of a head); key, value: (batch, key heads, keys, width).

    Returns:
        (batch, queries, heads, width), float32, and None, as transformers asks of an attention function.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            wide = query.float(), key.float(), value.float()
            return sdpa_attention_forward(module, *wide, attention_mask, **kwargs)[0]

    inputs = query.bfloat16(), key.bfloat16(), value.bfloat16()
    if torch.is_grad_enabled():
        return checkpoint(attend, *inputs, use_reentrant=False), None
    return attend(*inputs), None


AttentionInterface.register(SDPA_FLOAT32, sdpa_float32)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)

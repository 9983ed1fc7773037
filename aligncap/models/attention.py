"""Attention in float32 within bfloat16 training on the CPU: torch's own backward pass is slow there in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

SDPA_FLOAT32 = "sdpa_float32"


def sdpa_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' "sdpa", computed in float32 whatever autocast says.

    Of 8 rows of 55 tokens with 9 heads, forward and backward take a third of bfloat16's time on a CPU with
    bfloat16 instructions (docs/log.md); attention is few of a step's multiplications.

    Args:
        query: (batch, heads, queries, width of a head); key, value: (batch, key heads, keys, width).

    Returns:
        (batch, queries, heads, width), float32, and None, as transformers asks of an attention function.
    """
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **kwargs
        )


AttentionInterface.register(SDPA_FLOAT32, sdpa_float32)
AttentionMaskInterface.register(SDPA_FLOAT32, AttentionMaskInterface._global_mapping["sdpa"])

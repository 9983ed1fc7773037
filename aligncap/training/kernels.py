"""How training computes on its device: precision of frozen weights, compiled layers, FlexAttention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from aligncap.models.precision import suit_half
from aligncap.training.packing import language_model

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.nn.attention.flex_attention import BlockMask

    from aligncap.training.config import RunConfig

FLEX = "flex_attention"


def lay_out(model: PeftModel, args: RunConfig, sharded: bool) -> None:
    """Lay out a model with adapters for its training, once all are in place and before it is wrapped.

    Args:
        sharded: weights will lie in shards, which are of one precision.
    """
    if args.compute_dtype != torch.float32 and not sharded:
        suit_half(model, args.compute_dtype)
    if args.compile_layers:
        compile_layers(language_model(model))


def compile_layers(llm: Any, backend: str = "inductor") -> int:
    """Compile each decoder layer in its place: the names of weights stay, and one graph serves all layers.

    The whole model is not compiled: response positions are picked by a mask, whose count breaks its graph in
    every batch. Lengths are dynamic.

    Returns:
        The number of layers.
    """
    kinds = set(llm._no_split_modules or ())
    layers = [module for module in llm.modules() if type(module).__name__ in kinds]
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)
    return len(layers)


def block_mask(segments: Tensor, prompt: int) -> BlockMask:
    """What `shared_prefix.pack_pairs` lets each query see, in blocks: FlexAttention skips empty ones.

    Args:
        segments: (rows, length), the number of each token's segment; prompt: that of the shared prompt.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segments[row, key]
        return (query >= key) & ((own == prompt) | (own == segments[row, query]))

    rows, length = segments.shape
    return create_block_mask(seen, rows, None, length, length, device=str(segments.device))


@contextlib.contextmanager
def attention(llm: nn.Module, kind: str) -> Iterator[None]:
    """`llm` with this implementation of attention, and after it with its own again."""
    model: Any = llm
    own = model.config._attn_implementation
    if own != kind:
        model.set_attn_implementation(kind)
    yield
    if own != kind:
        model.set_attn_implementation(own)

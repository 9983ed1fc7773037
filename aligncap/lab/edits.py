"""Changes to a language model's pass over a prompt, by plain PyTorch hooks.

Blocks are numbered from 1 to L. State l is what leaves block l (the residual stream), state 0 what enters
block 1. Positions are masks over a left-padded prompt, (batch, length), bool; its last column is the answer
position. Where tokens follow the prompt (while an answer is decoded, or is given), what holds at the answer
position holds for them too, except in `Replace`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aligncap.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Replace:
    """State `layer` at `positions` becomes `values` there, (batch, length, width)."""

    layer: int
    positions: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Add:
    """`vector`, broadcast to (batch, length, width), is added to state `layer` at `positions`."""

    layer: int
    positions: Tensor
    vector: Tensor


@dataclass(frozen=True, eq=False)
class Attend:
    """`bias` is added to what queries give keys before the softmax; the default knocks the attention out.

    Args:
        layers: blocks.
        queries, keys: positions from which and to which.
        bias: a number (log(2) doubles a key's weight against the others), or one a head, (batch or 1, heads).
        heads: of the blocks, that a number is for; None: all.
    """

    layers: Collection[int]
    queries: Tensor
    keys: Tensor
    bias: float | Tensor = -math.inf
    heads: Collection[int] | None = None


@dataclass(frozen=True, eq=False)
class ScaleHeads:
    """Outputs of the heads of block `layer` are multiplied by `factors`, (heads,), at `positions`."""

    layer: int
    positions: Tensor
    factors: Tensor


Edit = Replace | Add | Attend | ScaleHeads
_BLOCKS = ("layers", "h")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense")


@dataclass(frozen=True)
class Trunk:
    """The parts of a transformers language model without its head that hooks are put on.

    body: what embeds and runs the blocks, which are its list `name`; norm: what the last state passes before
    the head.
    """

    body: nn.Module
    name: str
    blocks: Sequence[nn.Module]
    norm: nn.Module
    heads: int

    @classmethod
    def of(cls, language_model: nn.Module) -> Trunk:
        """
        Raises:
            UserError: a part has none of the names that are known here.
        """
        body = getattr(language_model, "decoder", language_model)
        blocks = _named(body, _BLOCKS)
        name = next(name for name in _BLOCKS if getattr(body, name, None) is blocks)
        norm = _named(body, ("norm", "ln_f", "final_layer_norm"))
        config: Any = language_model.config
        return cls(body, name, list(blocks), norm, config.num_attention_heads)

    def attention(self, block: int) -> nn.Module:
        """The attention of block 1 … L."""
        return _named(self.blocks[block - 1], _ATTENTION)

    def output(self, block: int) -> nn.Module:
        """The layer that reads all heads of a block side by side, (…, heads · size)."""
        return _named(self.attention(block), _OUTPUT)


def _named(module: nn.Module, names: Sequence[str]) -> Any:
    for name in names:
        if (found := getattr(module, name, None)) is not None:
            return found
    kind = type(module).__name__
    raise UserError(f"{kind}: none of {', '.join(names)} is in it; the lab does not know this architecture")


class _Span:
    """Which positions the pass under way is over: `start` to `end`, of the prompt and what follows it."""

    start, end = 0, 0

    def cut(self, mask: Tensor, onward: bool = True) -> Tensor:
        """Columns of a mask over the prompt, gone on with its last one or with False, (batch, width)."""
        return self.through(mask, onward)[:, self.start :]

    def through(self, mask: Tensor, onward: bool) -> Tensor:
        """As `cut`, from the prompt's beginning."""
        more = self.end - mask.shape[1]
        if more <= 0:
            return mask[:, : self.end]
        last = mask[:, -1:] if onward else torch.zeros_like(mask[:, -1:])
        return torch.cat([mask, last.expand(-1, more)], 1)


@contextmanager
def edited(trunk: Trunk, edits: Sequence[Edit]) -> Iterator[None]:
    """Within the block, passes of the trunk are edited; edits of one place are made in their order.

    Raises:
        ValueError: a block or state that the model does not have.
    """
    if not edits:
        yield
        return
    span, count = _Span(), len(trunk.blocks)

    def see(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        span.start = 0 if past is None else int(past.get_seq_length())
        span.end = span.start + int(kwargs["inputs_embeds"].shape[1])

    with ExitStack() as stack:
        stack.enter_context(_hook(trunk.body.register_forward_pre_hook(see, with_kwargs=True)))
        for edit in edits:
            places = edit.layers if isinstance(edit, Attend) else [edit.layer]
            least = 0 if isinstance(edit, (Replace, Add)) else 1
            if wrong := [place for place in places if not least <= place <= count]:
                raise ValueError(f"layer {wrong[0]}: the model has blocks 1 to {count}")
            for place in places:
                stack.enter_context(_hook(_register(trunk, edit, place, span)))
        yield


def first_place(edits: Sequence[Edit]) -> float:
    """The lowest layer that is edited; infinite where none is."""
    places = [min(e.layers) if isinstance(e, Attend) else e.layer for e in edits]
    return min(places, default=math.inf)


@contextmanager
def resumed(trunk: Trunk, layer: int, states: Tensor) -> Iterator[None]:
    """Within the block, passes leave out the blocks up to `layer` and go on from its `states`.

    The blocks keep their places, since trunks look up by number which mask a block is given.
    """
    blocks: Any = trunk.body.get_submodule(trunk.name)
    usual = list(blocks)[:layer]
    try:
        for place, block in enumerate(usual):
            blocks[place] = _Skipped(block, states)
        yield
    finally:
        for place, block in enumerate(usual):
            blocks[place] = block


class _Skipped(nn.Module):
    """In a block's place: gives `states`; all else that trunks ask of a block is the block's own."""

    def __init__(self, block: nn.Module, states: Tensor) -> None:
        super().__init__()
        self.__dict__ |= {"block": block, "states": states}  # no submodule of its own

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return self.__dict__["states"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _register(trunk: Trunk, edit: Edit, place: int, span: _Span) -> Any:
    if isinstance(edit, Attend):
        return trunk.attention(place).register_forward_pre_hook(_attending(edit, span), with_kwargs=True)
    if isinstance(edit, ScaleHeads):
        return trunk.output(place).register_forward_pre_hook(_scaling(edit, span))
    change = _changing(edit, span)
    if place:

        def after(_module: nn.Module, _args: object, out: Any) -> Any:
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        return trunk.blocks[place - 1].register_forward_hook(after)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    return trunk.blocks[0].register_forward_pre_hook(before, with_kwargs=True)


def _changing(edit: Replace | Add, span: _Span) -> Any:
    def change(states: Tensor) -> Tensor:
        if isinstance(edit, Add):
            added = edit.vector.to(states)
            if added.dim() == 3:  # of each position of the prompt; none for what follows
                if span.start or span.end > added.shape[1]:
                    return states
            elif added.dim() == 2:
                added = added[:, None]
            return torch.where(span.cut(edit.positions)[..., None].to(states.device), states + added, states)
        if span.start:
            return states
        own = span.cut(edit.positions, onward=False)[..., None].to(states.device)
        values = nn.functional.pad(edit.values.to(states), (0, 0, 0, span.end - edit.values.shape[1]))
        return torch.where(own, values, states)

    return change


def _scaling(edit: ScaleHeads, span: _Span) -> Any:
    def scale(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        found: Tensor = args[0]
        size = found.shape[-1] // len(edit.factors)
        factors = edit.factors.to(found).repeat_interleave(size)
        own = span.cut(edit.positions)[..., None].to(found.device)
        return (torch.where(own, found * factors, found), *args[1:])

    return scale


def _attending(edit: Attend, span: _Span) -> Any:
    def attend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        mask, new, end = kwargs.get("attention_mask"), span.end - span.start, span.end
        least = torch.finfo(states.dtype).min
        if mask is None:  # a plain causal pass without padding
            rows = torch.arange(span.start, end, device=states.device)[:, None]
            seen = torch.arange(end, device=states.device) <= rows
            mask = torch.zeros(1, 1, new, end, dtype=states.dtype, device=states.device)
            mask = mask.masked_fill(~seen, least)
        elif mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, least)
        queries = span.cut(edit.queries).to(states.device)
        pairs = queries[:, None, :, None] & span.through(edit.keys, False).to(states.device)[:, None, None, :]
        if edit.heads is not None:
            count: int = module.config.num_attention_heads  # type: ignore[union-attr,assignment]
            own = torch.zeros(count, dtype=torch.bool, device=states.device)
            own[list(edit.heads)] = True
            pairs = pairs & own[None, :, None, None]
        if isinstance(edit.bias, Tensor):
            added = pairs * edit.bias.to(states)[:, :, None, None]
        else:
            added = pairs.to(states.dtype) * max(edit.bias, least / 2)
        mask = (mask + added).clamp(min=least)
        return args, kwargs | {"attention_mask": mask}

    return attend

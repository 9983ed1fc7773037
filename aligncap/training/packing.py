"""Several texts in one row of a language model, each seeing itself alone.

A row of 60 tokens beside one of 100 is 40 % padding. Packed rows are nearly full, and what each text sees,
and at which positions, is what it has in a row of its own; so losses and gradients are those of plain rows.
Texts are told apart by their positions, which begin at 0 again: transformers makes its masks of them, windows
of sliding layers included, unless a family never hands them to its mask. For those the mask is written out
here.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aligncap.utils.errors import UserError

PADDING = 0.03  # share of padding that packed rows aim at
WIDEST = 8  # times the longest text, no packed row of a batch is wider: attention costs the square of it
PAD_POSITION = 1  # does not go on from any text and begins none: a padding token sees itself alone
USED = 0.9  # of a batch's tokens, by rows of one width
TRIED = 5_000  # texts on which a width is tried


def plan_rows(lengths: Sequence[int], width: int = 0) -> list[list[int]]:
    """Which texts of a batch share a row.

    As many rows, and so as narrow ones, as keep padding within `PADDING`; if none within `WIDEST` does, those
    with least padding. For each number of rows texts are dealt out longest first, each to the row that is
    shortest so far (Graham 1969). Texts and rows keep their order.

    >>> plan_rows([7, 3, 4, 6])
    [[0, 1], [2, 3]]
    >>> plan_rows([5, 5, 5])
    [[0], [1], [2]]

    Args:
        width: the texts are in the order of `fill_rows`: one after the other into rows of at most so many
            tokens.
    """
    if width:
        return _in_order(lengths, width)
    total, longest = sum(lengths), max(lengths)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best: tuple[int, list[list[int]]] | None = None
    # A row is at least as wide as the longest text: more rows than this are too empty.
    most = max(1, min(len(lengths), int(total / (longest * (1 - PADDING)))))
    for count in range(most, max(1, math.ceil(total / (WIDEST * longest))) - 1, -1):
        rows: list[list[int]] = [[] for _ in range(count)]
        widths = [(0, place) for place in range(count)]
        for i in order:
            shortest, place = widths[0]
            rows[place].append(i)
            heapq.heapreplace(widths, (shortest + lengths[i], place))
        size = count * max(widths)[0]
        if best is None or size < best[0]:
            best = size, rows
        if total >= (1 - PADDING) * size:
            break
    assert best is not None
    return sorted(sorted(row) for row in best[1])


def _in_order(lengths: Sequence[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    space = 0
    for i, length in enumerate(lengths):
        if not rows or length > space:
            rows.append([])
            space = width
        rows[-1].append(i)
        space -= length
    return rows


def packed_size(lengths: Sequence[int], width: int = 0) -> int:
    """Tokens of a batch of packed rows, padding included; `width` as in `plan_rows`.

    >>> packed_size([7, 3, 4, 6])
    20
    """
    rows = plan_rows(lengths, width)
    return len(rows) * max(sum(lengths[i] for i in row) for row in rows)


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of at most `width` tokens of all texts of a data set: the longest first, each where it fits best.

    >>> fill_rows([4, 7, 3, 6, 12], width=10)
    [[4], [1, 2], [3, 0]]

    A text longer than `width` stands alone.
    """
    rows: list[list[int]] = []
    spaces: list[int] = []  # that rows have left, each once, in order
    having: dict[int, list[int]] = {}  # of each space the rows that have it
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length, place = lengths[i], bisect.bisect_left(spaces, lengths[i])
        if place == len(spaces):
            row, space = len(rows), width
            rows.append([])
        else:
            space = spaces[place]
            row = having[space].pop()
            if not having[space]:
                del spaces[place]
        rows[row].append(i)
        if space > length:
            if not having.setdefault(space - length, []):
                bisect.insort(spaces, space - length)
            having[space - length].append(row)
    return rows


def row_width(lengths: Sequence[int], tokens: int) -> int:
    """Width of packed rows, of which several make a batch of at most `tokens` tokens.

    The narrowest with which padding is within `PADDING` and a batch has `USED` of its tokens, tried on the
    first `TRIED` lengths; `tokens`, one row a batch, where there is none.

    >>> row_width([6, 4, 5, 5, 3, 7, 10], tokens=32)
    10
    """
    some = lengths[:TRIED]
    longest = max(lengths)
    for width in range(longest, tokens, max(1, longest // 64)):
        if tokens // width * width < USED * tokens:
            continue
        if sum(some) >= (1 - PADDING) * width * len(fill_rows(some, width)):
            return width
    return tokens


def pair_mask(position_ids: Tensor) -> Tensor:
    """(rows, 1, length, length), true where a query sees a key: what transformers makes of the positions.

    >>> pair_mask(torch.tensor([[0, 1, 0, 1]]))[0, 0].int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    before = nn.functional.pad(position_ids, (1, 0))[:, :-1]
    text = (position_ids != before + 1).cumsum(1)
    length = position_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=position_ids.device).tril()
    return (causal & (text[:, :, None] == text[:, None, :]))[:, None]


def language_model(model: Any) -> Any:
    """What reads rows of text: of a student its LLM, of a text LLM itself, adapters or none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner: Any = getattr(base, "model", None)
    return inner.language_model if hasattr(inner, "multi_modal_projector") else base


def with_mask(llm: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Packed `inputs` with the mask over pairs of tokens, as the attention of `llm` takes it."""
    mask = pair_mask(inputs["position_ids"])
    if llm.config._attn_implementation == "eager":  # added to the scores
        dtype = llm.get_input_embeddings().weight.dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(dtype).min
        )
    return inputs | {"attention_mask": mask}


@torch.no_grad()
def needs_mask(llm: Any) -> bool:
    """Whether packed rows of this language model need the mask written out (`with_mask`), by trying it.

    Families differ in whether their masks come from positions (OPT's does not), attention implementations in
    what masks they take; so short texts are read in rows of their own and packed.

    Args:
        llm: with or without its head, adapters or none, on any device.

    Raises:
        UserError: packed rows are read otherwise in both ways.
    """
    device, config = llm.device, llm.config
    if "flash" in str(config._attn_implementation):
        raise UserError(
            f"packing: attention {config._attn_implementation!r} finds packed texts in batches of one row "
            "alone; leave packing out, or take sdpa"
        )
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(llm.get_input_embeddings().num_embeddings, 200)
    a, b, c = (torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (5, 7, 4))
    packed = {
        "input_ids": torch.tensor([a + b, b + c + [0]], device=device),
        "position_ids": torch.tensor(
            [[*range(5), *range(7)], [*range(7), *range(4), PAD_POSITION]], device=device
        ),
    }
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    windowed = bool(windows or getattr(config, "sliding_window", None))  # a written mask would undo windows
    was_training = llm.training
    llm.eval()
    try:
        rows = [
            llm(input_ids=torch.tensor([text], device=device), use_cache=False)[0] for text in (a, b, b, c)
        ]
        alone = torch.cat(rows, 1)[0].float()
        tolerance = 1e-3 if rows[0].dtype == torch.float32 else 3e-2
        for written in (False,) if windowed else (False, True):
            try:
                read = llm(**(with_mask(llm, packed) if written else packed), use_cache=False)[0].float()
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
                continue  # a family that takes no such mask
            apart = torch.cat([read[0], read[1, :-1]]) - alone
            if apart.abs().mean() <= tolerance * alone.abs().mean():
                return written
    finally:
        llm.train(was_training)
    raise UserError(
        f"packing: {config.model_type} with attention {config._attn_implementation!r} reads texts that share "
        "a row otherwise than alone; leave packing out"
    )

"""Log-probabilities of chosen and rejected captions, both behind one pass over prompt and audio.

trl's layout holds each prompt twice: B rows that end in the chosen caption, then B rows that end in the
rejected one. A packed row holds it once:

    [prompt with audio][chosen][rejected][padding]

The rejected caption does not see the chosen one and its positions go on from the prompt's, so what each token
sees, and what it is given, are as in a row of its own.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trl.trainer.utils import FusedCausalLMOutput

from aligncap.training.collators import IGNORE, response_positions
from aligncap.training.kernels import FLEX, block_mask

PADDING, PROMPT, CHOSEN, REJECTED = -1, 0, 1, 2
AUDIO = ("input_features", "input_features_mask", "audio_frames", "audio_frames_mask")


@dataclass
class Layout:
    """Rows for the language model, and which of their logits predict the response tokens.

    inputs: input_ids (rows, length) and attention_mask (rows, length); packed rows have an attention_mask
        (rows, 1, length, length), true where a query sees a key, or FlexAttention's block mask of the same,
        and position_ids (rows, length).
    keep: (rows, length), bool: positions whose logits are needed.
    which: (response tokens,), in the row-major order of trl's labels: the number, among the kept positions,
        of the one that predicts this token.
    """

    inputs: dict[str, Any]
    keep: Tensor
    which: Tensor


def plain_rows(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Layout:
    """Rows as they are, one caption each: what `pack_pairs` must equal."""
    keep = response_positions(labels)
    which = torch.arange(int(keep.sum()), device=keep.device)
    return Layout({"input_ids": input_ids, "attention_mask": attention_mask}, keep, which)


def pack_pairs(input_ids: Tensor, attention_mask: Tensor, labels: Tensor, blocks: bool = False) -> Layout:
    """One row a pair. Rows i and B + i of the batch are of one prompt, which is not empty.

    A prompt of three tokens, chosen [7, 8], rejected [9]:
        input_ids     [[5, 6, 4, 7, 8], [5, 6, 4, 9, 0]]   ->  [[5, 6, 4, 7, 8, 9]]
        position_ids                                       ->  [[0, 1, 2, 3, 4, 3]]
        attention_mask, the last query's row               ->  [1, 1, 1, 0, 0, 1]
        keep                                               ->  [[0, 0, 1, 1, 0, 0]]
        which                                              ->  [0, 1, 0]: the prompt's end predicts 7 and 9

    Args:
        input_ids, attention_mask, labels: (2 B, length) in trl's layout, labels −100 outside the captions.
        blocks: give a block mask of FlexAttention, in place of one over all pairs of tokens.
    """
    pairs = len(input_ids) // 2
    response = labels != IGNORE
    segments = torch.full_like(input_ids, PADDING)
    segments[:pairs][attention_mask[:pairs].bool()] = PROMPT
    segments[:pairs][response[:pairs]] = CHOSEN
    segments[pairs:][response[pairs:]] = REJECTED
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    # Placeholders of audio must not stay behind in what is now padding.
    ids = input_ids.masked_fill(segments == PADDING, 0)

    wide = [torch.cat(values.chunk(2), 1) for values in (ids, positions, segments)]
    padding = wide[2] == PADDING
    order = padding.byte().argsort(dim=1, stable=True)[:, : int((~padding).sum(1).max())]
    ids, positions, segments = (values.gather(1, order) for values in wide)

    length = ids.shape[1]
    # Padding stands last and is seen by itself alone, so no query is without a key.
    if blocks:
        seen: Any = block_mask(segments, PROMPT)
    else:
        keys, queries = segments[:, None, None, :], segments[:, None, :, None]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        seen = causal & ((keys == PROMPT) | (keys == queries))

    found = [(segments == side).nonzero(as_tuple=True) for side in (CHOSEN, REJECTED)]
    rows, columns = (torch.cat(parts) for parts in zip(*found, strict=True))
    goes_on = segments[rows, columns - 1] == segments[rows, columns]
    before = torch.where(goes_on, columns - 1, (segments == PROMPT).sum(1)[rows] - 1)
    keep = torch.zeros_like(segments, dtype=torch.bool)
    keep[rows, before] = True
    which = keep.flatten().cumsum(0)[rows * length + before] - 1
    return Layout({"input_ids": ids, "attention_mask": seen, "position_ids": positions}, keep, which)


def why_not_packed(llm: Any) -> str | None:
    """Why this language model cannot read packed rows, None if it can.

    Rows are told apart by a mask over pairs of tokens, so attention must take one and see by it alone.
    """
    attention = llm.config._attn_implementation
    if attention not in ("sdpa", "eager", FLEX):
        return f"attention {attention!r} takes no mask over pairs of tokens (sdpa, eager and {FLEX} do)"
    others = set(getattr(llm.config, "layer_types", None) or ()) - {"full_attention"}
    if others or getattr(llm.config, "sliding_window", None):
        return f"layers of the LLM see no whole text ({', '.join(sorted(others)) or 'sliding window'})"
    if getattr(llm.config, "alibi", False):
        return "the LLM counts distances (ALiBi) from the mask"
    return None


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as eager attention wants it: added to the scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def score_responses(model: nn.Module, shared_prefix: bool = True) -> None:
    """Give `model` the forward that trl's loss calls: `model(..., labels, fused_lm_head=True)`.

    It takes the place of trl's own, which off the GPU computes logits at every position, prompt included, and
    counts the audio placeholder as a word. Fields are (rows, length − 1), zero where the label is −100.

    A batch of pairs holds 2 B rows of text and B of audio: it is packed, or with `shared_prefix` false its
    audio is read twice. `model(**audio, encode_only=True)` gives the audio's pooled frames.
    """
    plain = type(model).forward
    limit: Any = model.config.audio_token_id  # type: ignore[union-attr]

    @functools.wraps(plain)
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        encode_only: bool = False,
        labels: Any = None,
        **kwargs: Any,
    ) -> Any:
        if encode_only:
            pooled = self.model.encode_audio(kwargs["input_features"], kwargs["input_features_mask"])
            return {"audio_frames": pooled.frames, "audio_frames_mask": pooled.mask}
        if not fused_lm_head:
            return plain(self, *args, labels=labels, **kwargs)
        text = kwargs.pop("input_ids"), kwargs.pop("attention_mask"), labels
        audio = {name: kwargs.pop(name) for name in AUDIO if kwargs.get(name) is not None}
        are_pairs = any(2 * len(value) == len(labels) for value in audio.values())
        if are_pairs and shared_prefix:
            llm = self.model.language_model
            layout = pack_pairs(*text, blocks=llm.config._attn_implementation == FLEX)
            if llm.config._attn_implementation == "eager":
                dtype = llm.get_input_embeddings().weight.dtype
                layout.inputs["attention_mask"] = _additive(layout.inputs["attention_mask"], dtype)
        else:
            layout = plain_rows(*text)
            if are_pairs:
                audio = {name: torch.cat([value, value]) for name, value in audio.items()}
        logits = plain(self, *args, **layout.inputs, **audio, logits_to_keep=layout.keep, **kwargs).logits
        return _spread(logits[:, :limit], layout.which, labels)

    model.forward = types.MethodType(forward, model)


def _spread(logits: Tensor, which: Tensor, labels: Tensor, chunk: int = 32) -> FusedCausalLMOutput:
    """trl's fields from logits (kept positions, vocabulary).

    In chunks of positions, recomputed in the backward pass: the float32 softmaxes of a whole batch
    (positions × vocabulary) never stand in memory together.
    """
    place = labels[:, 1:] != IGNORE
    targets = labels[:, 1:][place]
    order, found = [], []
    for start, part in zip(range(0, max(len(logits), 1), chunk), logits.split(chunk), strict=True):
        mine = ((which >= start) & (which < start + chunk)).nonzero()[:, 0]
        order.append(mine)
        found.append(_score(part, which[mine] - start, targets[mine]))
    back = torch.cat(order).argsort()

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(place.shape).masked_scatter(place, values[back])

    log_probs, entropy, means, top = (spread(torch.cat(parts)) for parts in zip(*found, strict=True))
    return FusedCausalLMOutput(
        log_probs=log_probs, label_mask=place, entropy=entropy, mean_logits=means, is_top1=top
    )


def _score(logits: Tensor, which: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each target at position `which`: log-probability, entropy, mean logit, is it likeliest."""
    with torch.no_grad():
        wide = logits.float()
        words = wide.log_softmax(-1)
        entropy = -torch.linalg.vecdot(words.exp(), words)
        means, best = wide.mean(-1), wide.argmax(-1)
        chosen = words[which, targets]
    if logits.requires_grad:

        def log_probs(logits: Tensor) -> Tensor:
            return logits.float().log_softmax(-1)[which, targets]

        chosen = checkpoint(log_probs, logits, use_reentrant=False)
    return chosen, entropy[which], means[which], best[which] == targets

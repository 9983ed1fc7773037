"""Batches of training rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.training.packing import PAD_POSITION, plan_rows

IGNORE = -100
Row = dict[str, Any]  # of a dataset: lists of token ids, tensors, samples


def response_positions(labels: Tensor) -> Tensor:
    """Bool mask (batch, length) of the positions whose logits predict a response token: i predicts i + 1.

    >>> response_positions(torch.tensor([[-100, -100, 7, 8]])).tolist()
    [[False, True, True, False]]
    """
    return F.pad(labels[:, 1:] != IGNORE, (0, 1), value=False)


def join_prompt_and_response(
    prompts: list[list[int]], responses: list[list[int]], pad: int
) -> dict[str, Tensor]:
    """Left-pad prompts, right-pad responses, put them side by side.

    All responses start in the same column, so the k-th response token of a row lies at the same place for
    teacher and student whatever their prompts' lengths.

    >>> batch = join_prompt_and_response([[1, 2], [3]], [[7, 8], [9]], pad=0)
    >>> batch["input_ids"].tolist()
    [[1, 2, 7, 8], [0, 3, 9, 0]]
    >>> batch["attention_mask"].tolist()
    [[1, 1, 1, 1], [0, 1, 1, 0]]
    >>> batch["labels"].tolist()
    [[-100, -100, 7, 8], [-100, -100, 9, -100]]
    """
    left = max(map(len, prompts))
    right = max(map(len, responses))
    ids, mask, labels = [], [], []
    for prompt, response in zip(prompts, responses, strict=True):
        before, after = left - len(prompt), right - len(response)
        ids.append([pad] * before + prompt + response + [pad] * after)
        mask.append([0] * before + [1] * (len(prompt) + len(response)) + [0] * after)
        labels.append([IGNORE] * left + response + [IGNORE] * after)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


def join_packed(
    prompts: list[list[int]], responses: list[list[int]], pad: int, width: int = 0
) -> tuple[dict[str, Tensor], list[int]]:
    """Texts of prompt and response, several to a row, and the order in which they stand there.

    `width` as in `packing.plan_rows`.

    No prompt may be empty: its response's first token would be predicted by the text before it.

    >>> batch, order = join_packed([[4], [1, 2, 3, 4], [5, 6]], [[7], [8], [9]], pad=0)
    >>> batch["input_ids"].tolist(), order
    ([[4, 7, 5, 6, 9], [1, 2, 3, 4, 8]], [0, 2, 1])
    >>> batch["position_ids"].tolist()
    [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    >>> batch["labels"].tolist()
    [[-100, 7, -100, -100, 9], [-100, -100, -100, -100, 8]]

    Padding, where there is any, stands last, at position 1 each: it sees itself alone.

    Raises:
        ValueError: a prompt is empty.
    """
    if not all(prompts):
        raise ValueError("a text without a prompt cannot stand in a packed row")
    rows = plan_rows([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], width)
    longest = max(sum(len(prompts[i]) + len(responses[i]) for i in row) for row in rows)
    ids, labels, positions = [], [], []
    for row in rows:
        own: tuple[list[int], list[int], list[int]] = ([], [], [])
        for i in row:
            own[0].extend(prompts[i] + responses[i])
            own[1].extend([IGNORE] * len(prompts[i]) + responses[i])
            own[2].extend(range(len(prompts[i]) + len(responses[i])))
        rest = longest - len(own[0])
        ids.append(own[0] + [pad] * rest)
        labels.append(own[1] + [IGNORE] * rest)
        positions.append(own[2] + [PAD_POSITION] * rest)
    batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
    return {name: torch.tensor(value) for name, value in batch.items()}, [i for row in rows for i in row]


def places_in(order: list[int], theirs: list[int], counts: Sequence[int]) -> Tensor:
    """Of the response tokens of texts in `order` the places among those of the texts in the order `theirs`.

    >>> places_in([0, 1], [1, 0], counts=[2, 1]).tolist()  # their tokens: one of text 1, two of text 0
    [1, 2, 0]

    Args:
        counts: response tokens of each text.
    """
    starts, place = {}, 0
    for i in theirs:
        starts[i] = place
        place += counts[i]
    return torch.cat([torch.arange(starts[i], starts[i] + counts[i]) for i in order])


def stack_frames(frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Right-pad pooled frames of different lengths with zeros.

    >>> padded, mask = stack_frames([torch.ones(2, 1), torch.ones(1, 1)])
    >>> padded.squeeze(-1).tolist(), mask.tolist()
    ([[1.0, 1.0], [1.0, 0.0]], [[True, True], [True, False]])
    """
    padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
    lengths = torch.tensor([len(f) for f in frames])
    return padded, torch.arange(padded.shape[1])[None] < lengths[:, None]


def pad_prompts(prompts: list[list[int]], pad: int) -> dict[str, Tensor]:
    """Left-pad prompts for generation.

    >>> pad_prompts([[1, 2], [3]], pad=0)["input_ids"].tolist()
    [[1, 2], [0, 3]]
    """
    batch = join_prompt_and_response(prompts, [[] for _ in prompts], pad)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def audio_batch(rows: list[Row], processor: AlignCapProcessor) -> dict[str, Tensor]:
    """Audio of rows of `data.ClipInputs`: cached frames or log-mel of samples."""
    if "frames" in rows[0]:
        frames, mask = stack_frames([row["frames"] for row in rows])
        return {"audio_frames": frames, "audio_frames_mask": mask}
    return dict(processor.features([row["samples"] for row in rows]))


Joined = tuple[dict[str, Tensor], list[int]]


def join_rows(
    prompts: list[list[int]], responses: list[list[int]], pad: int, packing: bool, width: int = 0
) -> Joined:
    """`join_packed`, or `join_prompt_and_response` and the order as it is."""
    if packing:
        return join_packed(prompts, responses, pad, width)
    return join_prompt_and_response(prompts, responses, pad), list(range(len(prompts)))


@dataclass
class TextCollator:
    """Rows {"prompt_ids", "response_ids"} of the text LLM; `packing`: several in one, see `join_packed`."""

    pad_token_id: int
    packing: bool = False
    width: int = 0

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        prompts, responses = ([row[f"{part}_ids"] for row in rows] for part in ("prompt", "response"))
        return join_rows(prompts, responses, self.pad_token_id, self.packing, self.width)[0]


@dataclass
class SpeechCollator:
    """Rows of the student, with what the teacher reads beside it.

    A row holds `prompt_ids` (placeholders expanded), `response_ids`, and either `frames` (cached pooled
    frames, (frames, width)) or `samples` (16 kHz audio). For distillation it holds `teacher_prompt_ids`, or
    `teacher_hidden` (response tokens, width) when the teacher's states are cached, or `teacher_top_k`
    (response tokens, 2k + 1), int32, when its most likely tokens are; see `divergences.pack`.

    A batch of two clips, of 1 and 2 audio tokens (A), responses [7, 8] and [9]:
        input_ids       [[0, 5, A, 6, 7, 8], [5, A, A, 6, 9, 0]]
        attention_mask  [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
        labels          [[-100, -100, -100, -100, 7, 8], [-100, -100, -100, -100, 9, -100]]
        audio_frames    (2, frames, width), audio_frames_mask (2, frames)
        teacher_*       the same three over the teacher's prompts, labels with the same responses

    With `packing` (`join_packed`) the same two, and a third of 10 tokens, 6 of them audio:
        input_ids       [[5, A, 6, 7, 8, 5, A, A, 6, 9], [5, A, A, A, A, A, A, 6, 7, 9]]
        position_ids    [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]
        labels          the responses where they stand, -100 elsewhere
        audio_frames    (3, frames, width): a clip a text, in the order of the texts
        teacher_*       its own rows: more or fewer texts may share one
        teacher_order   [0, 1, 2, 3, 4]: of each response token here, the number among the teacher's
    """

    processor: AlignCapProcessor
    packing: bool = False
    width: int = 0

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        pad = self.processor.tokenizer.pad_token_id
        responses = [r["response_ids"] for r in rows]
        prompts = [r["prompt_ids"] for r in rows]
        batch, order = join_rows(prompts, responses, pad, self.packing, self.width)
        if "teacher_prompt_ids" in rows[0]:
            prompts = [r["teacher_prompt_ids"] for r in rows]
            teacher, theirs = join_rows(prompts, responses, pad, self.packing)
            batch.update({f"teacher_{k}": v for k, v in teacher.items()})
            if self.packing:
                batch["teacher_order"] = places_in(order, theirs, [len(r) for r in responses])
        rows = [rows[i] for i in order]
        batch.update(audio_batch(rows, self.processor))
        for name in ("teacher_hidden", "teacher_top_k"):
            if name in rows[0]:
                # Flat, in the row-major order in which a bool mask picks response positions.
                batch[name] = torch.cat([r[name] for r in rows])
        return batch


def packed(collator: Any, width: int = 0) -> Callable[[list[Row]], dict[str, Tensor]]:
    """The same collator, packing rows; `width` as in `packing.plan_rows`.

    Raises:
        ValueError: it cannot.
    """
    if not hasattr(collator, "packing"):
        raise ValueError("packing: a collator of your own needs a field `packing`; see SpeechCollator")
    return replace(collator, packing=True, width=width)


@dataclass
class PreferenceCollator:
    """Batches in trl's layout: all chosen rows, then all rejected rows. The audio stands once.

    A batch of one clip of two audio tokens (A), chosen [7, 8], rejected [9]:
        input_ids         [[5, A, A, 6, 7, 8], [5, A, A, 6, 9, 0]]
        attention_mask    [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
        completion_mask   [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0]]
        audio_frames      (1, frames, width), audio_frames_mask (1, frames)
        ref_chosen_logps  [-3.2], ref_rejected_logps [-5.1]: where the reference is cached
    """

    processor: AlignCapProcessor

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        twice = rows + rows
        responses = [row[f"{side}_ids"] for side in ("chosen", "rejected") for row in rows]
        batch = join_prompt_and_response(
            [row["prompt_ids"] for row in twice], responses, self.processor.tokenizer.pad_token_id
        )
        batch["completion_mask"] = (batch.pop("labels") >= 0).long()
        batch.update(audio_batch(rows, self.processor))
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.stack([row[name] for row in rows]).reshape(-1)
        return batch

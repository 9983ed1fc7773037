"""Batches of training rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aligncap.models.processing_aligncap import AlignCapProcessor

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


@dataclass
class TextCollator:
    """Rows {"prompt_ids", "response_ids"} of the text LLM."""

    pad_token_id: int

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        return join_prompt_and_response(
            [r["prompt_ids"] for r in rows], [r["response_ids"] for r in rows], self.pad_token_id
        )


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
    """

    processor: AlignCapProcessor

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        pad = self.processor.tokenizer.pad_token_id
        responses = [r["response_ids"] for r in rows]
        batch = join_prompt_and_response([r["prompt_ids"] for r in rows], responses, pad)
        batch.update(audio_batch(rows, self.processor))
        if "teacher_prompt_ids" in rows[0]:
            teacher = join_prompt_and_response([r["teacher_prompt_ids"] for r in rows], responses, pad)
            batch.update({f"teacher_{k}": v for k, v in teacher.items()})
        for name in ("teacher_hidden", "teacher_top_k"):
            if name in rows[0]:
                # Flat, in the row-major order in which a bool mask picks response positions.
                batch[name] = torch.cat([r[name] for r in rows])
        return batch


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

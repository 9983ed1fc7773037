import doctest

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import voice

from aligncap.training import collators, distill
from aligncap.training.collators import IGNORE, SpeechCollator, join_prompt_and_response

ids = st.lists(st.integers(1, 50), min_size=1, max_size=6)


def test_docstring_tensors_are_true():
    for module in (collators, distill):
        assert doctest.testmod(module).failed == 0


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
def test_every_response_token_is_a_label_once_and_nothing_else(rows):
    batch = join_prompt_and_response([p for p, _ in rows], [r for _, r in rows], pad=0)
    for (prompt, response), row, mask, labels in zip(
        rows, *(batch[k].tolist() for k in ("input_ids", "attention_mask", "labels"))
    ):
        assert [t for t in labels if t != IGNORE] == response
        assert [t for t, m in zip(row, mask) if m] == prompt + response
        assert all(label in (IGNORE, token) for label, token in zip(labels, row))


def test_audio_placeholders_are_never_labels(tiny):
    _, processor = tiny
    token = processor.audio_token_id
    samples = voice(0.6)
    row = {
        "samples": samples,
        "prompt_ids": [token] * processor.num_audio_tokens(len(samples)),
        "response_ids": [5, 0],
    }
    batch = SpeechCollator(processor)([row, row])
    assert (batch["labels"] != token).all()
    assert batch["input_ids"].eq(token).sum() == 2 * processor.num_audio_tokens(len(samples))


def test_teacher_and_student_pick_the_same_response_tokens(tiny):
    _, processor = tiny
    rows = [
        {
            "frames": torch.zeros(3, 16),
            "prompt_ids": [1, 2],
            "teacher_prompt_ids": [3] * 5,
            "response_ids": [7, 8, 0],
        },
        {"frames": torch.zeros(5, 16), "prompt_ids": [1], "teacher_prompt_ids": [3], "response_ids": [9, 0]},
    ]
    batch = SpeechCollator(processor)(rows)
    picked = [batch[k][batch[k] != IGNORE].tolist() for k in ("labels", "teacher_labels")]
    assert picked[0] == picked[1] == [7, 8, 0, 9, 0]
    assert batch["audio_frames_mask"].sum(1).tolist() == [3, 5]
    assert np.isfinite(batch["audio_frames"]).all()

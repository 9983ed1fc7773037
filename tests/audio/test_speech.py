"""The voice-activity gate and the made sounds without speech."""

import numpy as np
import pytest
import torch

from aligncap.audio.files import load_audio
from aligncap.audio.nonspeech import KINDS, nonspeech
from aligncap.audio.speech import has_speech, speech_probabilities


@pytest.mark.parametrize("kind", KINDS)
def test_a_made_sound_is_repeatable_and_has_its_length(kind):
    one = nonspeech(kind, 0.7, 3)
    assert one.shape == (11_200,) and one.dtype == np.float32 and np.isfinite(one).all()
    assert np.array_equal(one, nonspeech(kind, 0.7, 3))


def test_silence_holds_no_speech():
    assert not has_speech(np.zeros(16_000, dtype=np.float32))
    assert not has_speech(np.zeros(0, dtype=np.float32))


@pytest.mark.parametrize(
    ("frames", "seconds", "speech"),
    [
        (1, 0.3, False),  # one frame is none
        (2, 0.6, True),  # 64 ms of 0.6 s
        (5, 10.0, False),  # a note of music: 0.16 s of 10 s
        (5, 1.9, True),  # the same in a short clip
        (16, 600.0, True),  # half a second is enough in any
    ],
)
def test_a_little_speech_counts_where_it_is_a_share_of_the_clip(frames, seconds, speech, monkeypatch):
    monkeypatch.setattr("aligncap.audio.speech.speech_probabilities", lambda x: np.ones(frames) * 0.6)
    assert has_speech(np.zeros(round(seconds * 16_000))) is speech


def test_real_speech_is_heard_at_any_level_without_changing_threads(corpora):
    threads = torch.get_num_threads()
    clip = load_audio(sorted((corpora / "ravdess").rglob("*.flac"))[0])
    found = speech_probabilities(clip)
    assert has_speech(clip) and has_speech(clip * 0.01)
    np.testing.assert_allclose(speech_probabilities(clip * 0.1), found, atol=1e-5)
    assert torch.get_num_threads() == threads

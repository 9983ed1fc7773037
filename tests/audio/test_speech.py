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


def test_real_speech_is_heard_at_any_level_without_changing_threads(corpora):
    threads = torch.get_num_threads()
    clip = load_audio(sorted((corpora / "ravdess").rglob("*.flac"))[0])
    found = speech_probabilities(clip)
    assert has_speech(clip) and has_speech(clip * 0.01)
    np.testing.assert_allclose(speech_probabilities(clip * 0.1), found, atol=1e-5)
    assert torch.get_num_threads() == threads

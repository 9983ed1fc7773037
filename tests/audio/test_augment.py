"""The same clip through another channel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import voice

from aligncap.audio.augment import through_channel
from aligncap.audio.cues import measure


@given(st.integers(1, 4000), st.text(max_size=8))
@settings(max_examples=40, deadline=None)
def test_length_is_kept_and_full_scale_never_passed(length, key):
    samples = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    heard = through_channel(samples, key)
    assert heard.shape == samples.shape and heard.dtype == np.float32
    assert np.isfinite(heard).all() and np.abs(heard).max() <= 0.991


def test_a_key_gives_one_channel_and_another_key_another():
    clip = voice(0.5)
    assert np.array_equal(through_channel(clip, "a"), through_channel(clip, "a"))
    assert not np.allclose(through_channel(clip, "a"), through_channel(clip, "b"))


def test_silence_stays_silent():
    assert not through_channel(np.zeros(8000, np.float32), "a").any()


def test_pitch_is_not_touched():
    clip = voice(1.5, f0=180)
    plain = measure(clip)["f0_median_hz"]
    heard = [measure(through_channel(clip, str(i))).get("f0_median_hz", plain) for i in range(12)]
    assert np.median(heard) == pytest.approx(plain, rel=0.02)

"""Faults do to a clip what they say, and the checks of features and audio find them."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from tiny import voice
from transformers import WhisperFeatureExtractor

from aligncap.audio.level import level_dbfs, normalise_level
from aligncap.data.manifest import Utterance
from aligncap.lab.faults import (
    FAULTS,
    check_audio,
    check_features,
    clipped,
    fit,
    interleaved,
    padded,
    quiet,
    read_at,
    read_stereo,
    truncated,
)


def pitch(samples: np.ndarray) -> float:
    """Hz of the strongest partial."""
    power = np.abs(np.fft.rfft(samples))
    return float(power.argmax() * 16_000 / len(samples))


def test_a_wrong_rate_changes_length_and_pitch_and_the_opposite_one_undoes_it():
    clip = voice(1.0, 200)
    slow = read_at(clip, 24_000)
    assert len(slow) == pytest.approx(1.5 * len(clip), abs=2)
    assert pitch(slow) == pytest.approx(200 / 1.5, abs=1)
    back = FAULTS["fast"].apply(slow)
    assert len(back) == pytest.approx(len(clip), abs=3) and pitch(back) == pytest.approx(200, abs=1)
    assert np.corrcoef(back[500:-500], clip[500 : len(back) - 500])[0, 1] > 0.99


def test_clipping_cuts_a_tenth_of_what_is_not_near_silence():
    clip = np.concatenate([voice(1.0), np.zeros(16_000, np.float32)])
    heard = clipped(clip)
    assert np.mean(np.abs(heard)[:16_000] == np.abs(heard).max()) == pytest.approx(0.1, abs=0.01)
    assert not clipped(np.zeros(100, np.float32)).any()


def test_quiet_is_forty_decibels_in_steps_of_sixteen_bits():
    clip = normalise_level(voice(1.0))
    assert level_dbfs(quiet(clip)) == pytest.approx(level_dbfs(clip) - 40, abs=0.1)
    assert set(np.unique(quiet(clip) * 32768 % 1)) == {0.0}


def test_lengths():
    clip = voice(2.0)
    assert len(padded(clip)) == len(clip) + 8 * 16_000 and not padded(clip)[:64_000].any()
    late = np.concatenate([np.zeros(8_000, np.float32), clip])
    assert len(truncated(clip)) == 16_000 and len(truncated(late)) == 24_000
    assert not len(truncated(np.zeros(0, np.float32)))
    assert len(interleaved(clip)) == 2 * len(clip) and pitch(interleaved(clip)) == pytest.approx(75, abs=1)
    assert len(fit(clip, 0.5)) == 8_000


def test_the_reader_of_sound_files_takes_stereo_out_of_phase_without_loss():
    clip = normalise_level(voice(1.0))
    assert np.corrcoef(read_stereo(clip), clip)[0, 1] > 0.999
    assert level_dbfs(read_stereo(clip)) == pytest.approx(-23, abs=0.2)


def test_whispers_own_settings_are_right():
    rows = check_features(WhisperFeatureExtractor(), 80, 1500)
    assert len(rows) == 9 and all(row["ok"] for row in rows)


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"hop_length": 107}, "hop at 16 kHz, ms"),
        ({"sampling_rate": 24_000}, "mel bin of a tone of 1000 Hz"),
        ({"feature_size": 128}, "mel bins, as the encoder"),
        ({"chunk_length": 10}, "mel frames of a full window, as the encoder"),
    ],
)
def test_a_wrong_setting_is_named(options, wrong):
    rows = check_features(WhisperFeatureExtractor(**options), 80, 1500)
    assert wrong in [row["what"] for row in rows if not row["ok"]]


@pytest.mark.parametrize("f0, ok", [(207, True), (138, False)])  # of women; 24 kHz taken for 16 kHz
def test_voices_of_a_wrong_rate_are_found_by_their_pitch(tmp_path, f0, ok):
    clips, paths = [], {}
    for i in range(4):
        paths[str(i)] = tmp_path / f"{i}.wav"
        soundfile.write(paths[str(i)], voice(0.8, f0 + 3 * i, seed=i), 16_000)
        clips.append(Utterance(str(i), ".", f"{i}.wav", "made", gender="female"))
    found = check_audio(clips, paths, max_seconds=29.0)
    assert found["rates"] == {"16000": 4} and found["too_long"] == 0 and found["shorter_than_1_s"] == 1
    assert [row["ok"] for row in found["voices"]] == [ok]
    assert check_audio(clips, paths, max_seconds=0.5)["too_long"] == 1

"""Recordings of any length in blocks, where somebody speaks in them, and their segments."""

import resource

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import voice

from aligncap.audio.activity import BLOCK, FRAME_SECONDS, Segment, activity, cut, read_blocks, segments_of
from aligncap.audio.files import AudioError, load_audio
from aligncap.audio.speech import MARGIN, speech_probabilities


def probabilities(*parts: tuple[float, float]) -> np.ndarray:
    """Frames of (seconds, probability) in a row."""
    return np.concatenate([np.full(round(s / FRAME_SECONDS), p, dtype=np.float32) for s, p in parts])


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_blocks_are_the_file(rate, channels, tmp_path):
    seconds = BLOCK / 16_000 * 1.3
    sound = np.resize(voice(3.0), round(seconds * rate))
    soundfile.write(tmp_path / "a.wav", np.stack([sound] * channels, 1), rate)
    blocks = list(read_blocks(tmp_path / "a.wav"))
    assert [len(b) == BLOCK for b in blocks] == [True, False]
    whole, found = load_audio(tmp_path / "a.wav", normalise=False), np.concatenate(blocks)
    assert abs(len(found) - len(whole)) <= 1
    np.testing.assert_allclose(found[: len(whole)], whole[: len(found)], atol=2e-3)


def test_what_is_no_sound_or_cut_off_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(AudioError, match="not a sound file"):
        list(read_blocks(tmp_path / "a.wav"))
    soundfile.write(tmp_path / "b.wav", voice(2.0), 16_000)
    (tmp_path / "c.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:20_000])
    with pytest.raises(AudioError, match="cut off"):
        list(read_blocks(tmp_path / "c.wav"))
    soundfile.write(tmp_path / "d.wav", np.full(8_000, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN"):
        list(read_blocks(tmp_path / "d.wav"))


def test_memory_does_not_grow_with_the_recording(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 16_000, 1) as file:
        for _ in range(60):  # an hour
            file.write(np.zeros(16_000 * 60, dtype=np.float32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(map(len, read_blocks(tmp_path / "a.wav"))) == 3600 * 16_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB; the hour has 230 MB


def test_a_short_recording_is_heard_as_a_clip_is():
    sound = voice(2.0)
    found = activity([sound])
    assert len(found) == -(-len(sound) // 512)
    np.testing.assert_array_equal(found, speech_probabilities(sound)[MARGIN // 512 :][: len(found)])


def test_silence_between_blocks_has_no_speech(monkeypatch):
    silence = np.zeros(BLOCK, dtype=np.float32)
    assert not activity([silence, silence[:1000]]).any() and len(activity([silence, silence[:1000]])) == 1026
    assert len(activity([])) == 0


def test_a_pause_ends_a_segment_of_two_seconds():
    #     silence   speech    pause     speech    pause     speech  (too short alone: joined)
    found = segments_of(
        probabilities((1, 0), (2, 0.9), (0.8, 0), (1, 0.9), (0.32, 0), (1.5, 0.9), (3, 0)), 9.62
    )
    assert found == [
        Segment(pytest.approx(0.5, abs=0.05), pytest.approx(3.4, abs=0.05)),
        Segment(pytest.approx(3.4, abs=0.05), pytest.approx(7.1, abs=0.05)),
    ]


def test_a_long_silence_ends_any_segment_and_a_word_takes_silence_around_it():
    (word, other) = segments_of(probabilities((3, 0), (0.5, 0.9), (6, 0), (2, 0.9)), 11.5)
    assert word == Segment(pytest.approx(2.25, abs=0.05), pytest.approx(4.25, abs=0.05))
    assert other.end == 11.5


def test_speech_without_a_pause_is_cut_where_it_is_least_likely():
    parts = probabilities((9, 0.95), (0.064, 0.6), (9, 0.95))
    first, second = segments_of(parts, 18.06)
    assert first.end == second.start == pytest.approx(9.0, abs=0.04)


def test_clicks_are_no_speech():
    assert segments_of(probabilities((3, 0), (0.032, 0.9), (3, 0.1)), 6.03) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.04, 20), st.sampled_from([0.0, 0.2, 0.45, 0.8])), max_size=30),
    st.floats(1, 3),
    st.floats(8, 20),
)
def test_segments_are_in_order_within_their_length_and_hold_all_speech(parts, shortest, longest):
    frames = probabilities(*parts) if parts else np.zeros(0, dtype=np.float32)
    seconds = len(frames) * FRAME_SECONDS
    found = segments_of(frames, seconds, shortest, longest)
    for one, other in zip(found, found[1:]):
        assert one.end <= other.start + 0.002
    assert all(-1e-6 <= s.start < s.end <= seconds + 0.001 and s.seconds <= longest + 0.01 for s in found)
    inside = np.zeros(len(frames), dtype=bool)
    for s in found:
        inside[int(s.start / FRAME_SECONDS) : int(np.ceil(s.end / FRAME_SECONDS))] = True
    likely = frames >= 0.5
    alone = np.diff(np.concatenate([[0], likely, [0]]).astype(int))
    single = (np.flatnonzero(alone == -1) - np.flatnonzero(alone == 1)) < 2
    if not single.any():
        assert inside[likely].all()


def test_samples_of_segments_come_from_blocks():
    sound = np.arange(3 * BLOCK // 2, dtype=np.float32)
    segments = [Segment(1.0, 2.5), Segment(32.0, 34.0), Segment(34.0, 49.152)]
    found = list(cut([sound[:BLOCK], sound[BLOCK:]], segments))
    for clip, segment in zip(found, segments, strict=True):
        np.testing.assert_array_equal(
            clip, sound[round(segment.start * 16_000) : round(segment.end * 16_000)]
        )
    assert list(cut([sound], [])) == []


@pytest.mark.real
def test_real_clips_in_a_row_are_found_one_by_one(corpora, tmp_path):
    clips = [
        load_audio(path, normalise=False)
        for path in sorted((corpora / "ravdess" / "Actor_01").glob("*.flac"))[:12]
    ]
    soundfile.write(tmp_path / "a.wav", np.concatenate(clips), 16_000)
    found = segments_of(activity(read_blocks(tmp_path / "a.wav")), sum(map(len, clips)) / 16_000)
    ends = np.cumsum([len(clip) for clip in clips]) / 16_000
    borders = np.array([s.end for s in found])
    assert len(found) == len(clips)
    assert np.abs(borders[:, None] - ends).min(0).max() < 1.0

"""Sound files in, 16 kHz mono at one level out; every error named."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from aligncap.audio.files import (
    SAMPLE_RATE,
    AudioError,
    check,
    fingerprint,
    info,
    load_audio,
    prepare_samples,
)
from aligncap.audio.level import level_dbfs, normalise_level
from aligncap.utils.errors import UserError

FORMATS = {
    "wav": dict(subtype="PCM_16"),
    "flac": dict(subtype="PCM_16"),
    "ogg": dict(subtype="VORBIS"),
    "mp3": dict(subtype="MPEG_LAYER_III"),
}


def tone(
    seconds: float = 1.0, rate: int = SAMPLE_RATE, hertz: float = 220.0, peak: float = 0.1
) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@contextmanager
def refused(kinds: str, message: str) -> Iterator[pytest.ExceptionInfo[AudioError]]:
    """The block ends in an error of one of `kinds`."""
    with pytest.raises(AudioError, match=message) as caught:
        yield caught
    assert caught.value.kind in kinds


def loudest_hertz(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples))


def write(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, **how: str) -> Path:
    soundfile.write(path, samples, rate, **how)
    return path


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("extension", FORMATS)
def test_any_format_rate_and_channel_count_gives_the_same_tone(
    tmp_path: Path, extension: str, channels: int, rate: int
) -> None:
    samples = np.repeat(tone(rate=rate)[:, None], channels, axis=1)
    path = write(tmp_path / f"tone.{extension}", samples, rate, **FORMATS[extension])
    heard = load_audio(path)
    assert heard.dtype == np.float32 and heard.ndim == 1
    assert len(heard) == pytest.approx(SAMPLE_RATE, abs=1300 if extension == "mp3" else 2)
    assert loudest_hertz(heard) == pytest.approx(220, abs=2)
    assert level_dbfs(heard) == pytest.approx(-23, abs=0.01)
    assert check(path) == []


def test_six_channels_of_24_bits_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.repeat(tone()[:, None], 6, axis=1), subtype="PCM_24")
    np.testing.assert_allclose(load_audio(path, normalise=False), tone(), atol=1e-6)


def test_frequencies_above_the_new_nyquist_do_not_fold_back(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.wav", tone(rate=48_000) + tone(rate=48_000, hertz=11_000), 48_000, subtype="FLOAT"
    )
    spectrum = np.abs(np.fft.rfft(load_audio(path) * np.hanning(SAMPLE_RATE)))
    assert spectrum[5000] < 1e-4 * spectrum[220]


def test_channels_of_opposite_polarity_do_not_cancel() -> None:
    assert level_dbfs(prepare_samples(np.stack([tone(), -tone()], axis=1), SAMPLE_RATE, normalise=False)) == (
        pytest.approx(level_dbfs(tone()), abs=0.1)
    )


def test_without_normalisation_the_level_is_the_files_own(tmp_path: Path) -> None:
    quiet = tone(peak=0.01)
    path = write(tmp_path / "a.wav", quiet, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(path, normalise=False), quiet)


def test_bytes_give_what_the_file_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", tone())
    np.testing.assert_array_equal(load_audio(path.read_bytes()), load_audio(path))
    with refused("unreadable", "upload 3: not a sound file"):
        load_audio(b"no sound at all", name="upload 3")


def test_integers_are_scaled_by_their_type_and_time_is_the_longer_axis() -> None:
    x = tone()
    for array in (np.round(x * 32768).astype(np.int16), np.stack([x, x]), np.stack([x, x], axis=1)):
        np.testing.assert_allclose(prepare_samples(array, SAMPLE_RATE, normalise=False), x, atol=2e-5)


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 2, 2)), np.arange(9000), np.zeros(9000, complex), np.zeros((9000, 0))]
)
def test_arrays_that_are_not_sound_are_refused(bad: np.ndarray) -> None:
    with refused("unreadable", "audio array: "):
        prepare_samples(bad, SAMPLE_RATE)


def test_info_reads_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", np.stack([tone(rate=24_000)] * 2, axis=1), 24_000)
    assert info(path) == (1.0, 24_000, 2)


def nan_samples() -> np.ndarray:
    x = tone()
    x[[100, 200]] = np.nan, np.inf
    return x


FAULTY = {
    "silent": (tone(peak=1e-4), "silent", "silent, no sample above -75 dBFS"),
    "constant": (np.full(16_000, 0.4, np.float32), "silent", "silent"),
    "nan": (nan_samples(), "not finite", "2 samples are NaN or infinite"),
    "short": (tone(0.05), "short", "0.050 s is below 0.1 s"),
    "empty": (tone(0.0), "short", "0.000 s is below 0.1 s"),
    "square": (np.sign(tone()), "clipped", "of the samples are clipped"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_samples_are_refused_by_name_from_file_and_array(tmp_path: Path, name: str) -> None:
    samples, kind, message = FAULTY[name]
    path = write(tmp_path / f"{name}.wav", samples, subtype="FLOAT")
    with refused(kind, message) as caught:
        load_audio(path)
    assert str(caught.value).startswith(f"{path}: ") and ";" in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert check(path) == [str(caught.value)]
    with refused(kind, message):
        prepare_samples(samples, SAMPLE_RATE)


def test_check_names_every_fault_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.zeros(800, np.float32))
    assert [text.split(": ")[1].split(" ")[0] for text in check(path)] == ["0.050", "silent,"]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("extension", FORMATS)
def test_a_cut_file_is_refused(tmp_path: Path, extension: str, share: float) -> None:
    random = np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32) * 0.05
    path = write(tmp_path / f"a.{extension}", random, **FORMATS[extension])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with refused("truncated unreadable", "cut off|corrupt") as caught:
        load_audio(path)
    assert check(path) == check(path, data=path.read_bytes()) == [str(caught.value)]


def test_a_streamed_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    at = content.index(b"data")
    content[4:8] = content[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert len(load_audio(path)) == SAMPLE_RATE


@pytest.mark.parametrize("name", ["text.wav", "text.mp3", "text.raw", "empty.wav", "noise.flac"])
def test_what_is_no_sound_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes({"empty": b"", "noise": os.urandom(4000)}.get(path.stem, b"hello, I am no sound\n" * 50))
    with pytest.raises(AudioError, match="text|empty|noise"):
        load_audio(path)
    assert len(check(path)) == 1


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.wav", "no such file"), (tmp_path, "is a folder")):
        with refused("missing", message):
            load_audio(path)
        with refused("missing", message):
            info(path)
        assert len(check(path)) == 1


def damaged_mp3(path: Path) -> Path:
    """Two seconds of which some bytes in the middle are noise."""
    write(path, tone(2.0), **FORMATS["mp3"])
    content = bytearray(path.read_bytes())
    content[1000:1300] = np.random.default_rng(0).bytes(300)
    path.write_bytes(content)
    return path


DECODE = """
import sys, threading
from aligncap.audio.files import check, info
for _ in range(3):
    info(sys.argv[1])
threads = [threading.Thread(target=check, args=(sys.argv[1],)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(check(sys.argv[1])[0])
print("ours", file=sys.stderr)
import ctypes
library = ctypes.CDLL(None)
library.perror(b"theirs")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the decoder is quietened by glibc's stderr")
def test_notes_of_the_mp3_decoder_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = damaged_mp3(tmp_path / "a.mp3")
    done = subprocess.run([sys.executable, "-c", DECODE, str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and str(path) in done.stdout
    # Python's messages get through, and afterwards those of C libraries too.
    assert done.stderr.splitlines()[0] == "ours" and done.stderr.splitlines()[1].startswith("theirs: ")
    assert len(done.stderr.splitlines()) == 2


def test_a_fingerprint_is_of_the_file_and_of_what_it_sounds_like(tmp_path: Path) -> None:
    integers = np.round(tone() * 32768).astype(np.int16)
    wav, flac = write(tmp_path / "a.wav", integers), write(tmp_path / "a.flac", integers)
    one, two = fingerprint(wav), fingerprint(flac)
    assert (one.duration_s, one.bytes) == (1.0, wav.stat().st_size)
    assert one.mtime_ns == wav.stat().st_mtime_ns
    assert one.sha256 == hashlib.sha256(wav.read_bytes()).hexdigest() != two.sha256
    assert one.samples_sha256 == two.samples_sha256
    wav.write_bytes(b"no sound")
    with refused("unreadable", "a.wav: not a sound file"):
        fingerprint(wav)


def test_the_length_limit_is_the_callers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(2.0))
    assert len(load_audio(path, max_seconds=2)) == 2 * SAMPLE_RATE
    with refused("long", "2.0 s, the limit is 1.5 s; cut it"):
        load_audio(path, max_seconds=1.5)
    assert check(path) == [] and len(check(path, max_seconds=1.5)) == 1


def test_a_rate_too_low_for_speech_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(rate=2_000), 2_000)
    with refused("unreadable", "sample rate of 2000 Hz"):
        load_audio(path)


def test_some_clipping_is_a_warning_not_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.wav", np.clip(tone(peak=1.02), -1, 1), subtype="PCM_16")
    with caplog.at_level(logging.WARNING):
        load_audio(path)
    assert check(path) == [] and len(caplog.records) == 1 and "clipped" in caplog.text


def test_floats_above_one_are_not_clipped() -> None:
    assert np.abs(prepare_samples(tone(peak=3.0) * np.linspace(0.2, 1, 16_000), SAMPLE_RATE)).max() < 1


bursts = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        np.random.default_rng(seed).standard_normal(8_000)
        * np.repeat(np.random.default_rng(seed + 1).uniform(0.01, 1, 10), 800)
        * 0.1
    )
)


@settings(max_examples=30, deadline=None)
@given(bursts, st.floats(-60, 30))
def test_level_after_normalisation_is_independent_of_level_before(x: np.ndarray, gain_db: float) -> None:
    once = normalise_level(x)
    np.testing.assert_allclose(normalise_level(x * 10 ** (gain_db / 20)), once, atol=1e-5)
    np.testing.assert_allclose(normalise_level(once), once, atol=1e-5)
    assert np.abs(once).max() < 1
    assert level_dbfs(once) <= -23 + 1e-3


@settings(max_examples=30, deadline=None)
@given(bursts, st.floats(-40, 40))
def test_gain_moves_the_measured_level_by_itself(x: np.ndarray, gain_db: float) -> None:
    assert level_dbfs(x * 10 ** (gain_db / 20)) == pytest.approx(level_dbfs(x) + gain_db, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1_700, 12_000), st.sampled_from([8_000, 11_025, 24_000, 44_100, 96_000]), st.integers(1, 3)
)
def test_resampling_keeps_the_duration(frames: int, rate: int, channels: int) -> None:
    frames = max(frames, rate // 8)
    x = np.random.default_rng(frames).standard_normal((frames, channels)) * 0.1
    heard = prepare_samples(x, rate)
    assert len(heard) == pytest.approx(frames * SAMPLE_RATE / rate, abs=1)
    assert np.isfinite(heard).all()


def test_one_click_does_not_set_the_level() -> None:
    x = tone(peak=0.02)
    clicked = x.copy()
    clicked[5_000] = 0.2
    assert level_dbfs(clicked) == pytest.approx(level_dbfs(x), abs=1.0)


def test_silence_before_and_after_does_not_count() -> None:
    assert level_dbfs(np.pad(tone(), 32_000)) == pytest.approx(level_dbfs(tone()), abs=0.2)
    assert level_dbfs(np.zeros(100)) == -np.inf

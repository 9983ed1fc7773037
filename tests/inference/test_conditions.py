"""Sound in place of a clip: what is taken away, and what must stay."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tiny import voice

from aligncap.audio.cues import measure
from aligncap.audio.files import load_audio
from aligncap.audio.level import active_energy, level_dbfs
from aligncap.inference.conditions import MADE, noise, silence, whisper


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """A made voice with a pause in its middle."""
    samples = voice(1.5, 140)
    samples[len(samples) // 2 : len(samples) // 2 + 4000] *= 1e-3
    return samples


def bands(samples: np.ndarray, width: float = 500.0) -> np.ndarray:
    """Power in bands up to 4 kHz, dB."""
    power = np.abs(np.fft.rfft(samples.astype(np.float64))) ** 2
    size = round(width * len(samples) / 16_000)
    return 10 * np.log10(power[: 8 * size].reshape(8, size).sum(axis=1))


@pytest.mark.parametrize("kind", sorted(MADE))
@pytest.mark.parametrize("length", [1, 300, 5_001, 16_000])
def test_length_and_type_are_the_clips_and_the_seed_decides(kind: str, length: int) -> None:
    samples = voice(1.2, 120)[:length]
    made = MADE[kind](samples, 1)
    assert made.shape == samples.shape and made.dtype == np.float32 and np.isfinite(made).all()
    assert (made == MADE[kind](samples, 1)).all()
    if kind != "silence" and length > 1:
        assert (made != MADE[kind](samples, 2)).any()


@pytest.mark.parametrize("kind", sorted(MADE))
def test_silence_stays_silence(kind: str) -> None:
    assert not MADE[kind](np.zeros(3_000, dtype=np.float32), 0).any()


def test_silence_is_digital(clip: np.ndarray) -> None:
    assert not silence(clip).any()


@pytest.mark.parametrize("kind", ["noise", "whisper"])
def test_level_is_the_clips_and_no_voice_is_left(kind: str, clip: np.ndarray) -> None:
    made = MADE[kind](clip, 0)
    assert measure(clip)["voiced_share"] > 0.5
    assert level_dbfs(made) == pytest.approx(level_dbfs(clip), abs=0.1)
    assert np.abs(made).max() < 1
    cues = measure(made)
    assert cues["voiced_share"] == 0 and "f0_median_hz" not in cues


def test_noise_has_the_clips_spectrum_but_neither_its_harmonics_nor_its_pauses(clip: np.ndarray) -> None:
    made = noise(clip, 0)
    gap = bands(made) - bands(clip)
    assert np.abs(gap - gap.mean()).max() < 4
    pause = slice(len(clip) // 2 + 200, len(clip) // 2 + 3_800)
    assert active_energy(made[pause]) > 0.3 * active_energy(made)

    def peak(samples: np.ndarray) -> float:  # power of 20 Hz around the F0 against that of the band
        power = np.abs(np.fft.rfft(samples)) ** 2
        at = np.fft.rfftfreq(len(samples), 1 / 16_000)
        return float(power[np.abs(at - 140) < 10].mean() / power[np.abs(at - 140) < 60].mean())

    assert peak(clip) > 3 > 2 > peak(made)


def test_a_whisper_keeps_pauses_and_formants_and_takes_a_slope_of_its_own() -> None:
    rng = np.random.default_rng(0)
    at = np.fft.rfftfreq(16_000, 1 / 16_000)

    def vowel(formant: float, slope: float) -> np.ndarray:
        pulses = np.zeros(16_000)
        pulses[::114] = 1
        shape = 1 / (1 + ((at - formant) / 80) ** 2) + 0.01
        shape = shape / (1 - slope * np.exp(-2j * np.pi * at / 16_000))
        return np.fft.irfft(np.fft.rfft(pulses + 1e-3 * rng.standard_normal(16_000)) * shape) * 0.1

    def loudest(samples: np.ndarray) -> float:
        power = np.convolve(np.abs(np.fft.rfft(samples)) ** 2, np.ones(150), "same")
        return float(at[250 + np.argmax(power[250:])])

    for formant in (700.0, 1_200.0, 2_000.0):
        assert loudest(whisper(vowel(formant, 0.5))) == pytest.approx(formant, abs=150)
    slopes = [bands(whisper(vowel(1_200.0, s)))[[0, 7]] for s in (0.3, 0.9)]
    given = [bands(vowel(1_200.0, s))[[0, 7]] for s in (0.3, 0.9)]
    fall = [np.diff(s)[0] for s in (*slopes, *given)]
    assert abs(fall[0] - fall[1]) < 0.5 * abs(fall[2] - fall[3])

    paused = np.concatenate([vowel(700.0, 0.8), np.zeros(4_000), vowel(700.0, 0.8)])
    assert active_energy(whisper(paused)[17_000:19_000]) < 1e-3 * active_energy(paused)


@pytest.mark.real
def test_an_ear_for_words_hears_the_same_words_in_a_whisper_and_none_in_noise(corpora: Path) -> None:
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder = (
        Path(os.environ.get("ALIGNCAP_HOME", Path.home() / ".cache" / "aligncap")) / "models/whisper-base"
    )
    if not folder.is_dir():
        pytest.skip("whisper-base is not at hand: run `aligncap models fetch whisper-base`")
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    clip = load_audio(corpora / "ravdess" / "Actor_21" / "03-01-05-02-01-01-21.flac")
    features = WhisperFeatureExtractor.from_pretrained(folder)(
        [clip, whisper(clip), noise(clip)], sampling_rate=16_000, return_tensors="pt"
    ).input_features
    tokens = model.generate(features, language="en", task="transcribe", max_new_tokens=20)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    words = ["".join(c for c in text.lower() if c.isalpha() or c == " ").split() for text in texts]
    assert words[0] == words[1] == "kids are talking by the door".split()
    assert not {"kids", "talking", "door"} & set(words[2])

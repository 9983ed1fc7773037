"""Faults on a clip's way to the model, as functions of samples, and checks of feature settings.

A fault is put between the reader of sound files and the model's features: what a model hears when a script
leaves out or doubles a step that `aligncap.audio.files` takes. What a fault costs tells how much depends on
that step; a fault that *helps* tells that its opposite is built into the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aligncap.audio.cues import measure
from aligncap.audio.files import SAMPLE_RATE, AudioError, info, load_audio, prepare_samples
from aligncap.audio.level import ACTIVE_RANGE_DB, FRAME
from aligncap.data.manifest import Utterance
from aligncap.models.encoders import FeatureExtractor
from aligncap.utils.io import Row, load_data

CLIPPED = 0.1  # share of the samples of speech that are clipped
QUIET_DB = 40.0
PAD_SECONDS = 4.0  # before and after
LEFT_SECONDS = 1.0  # of an utterance that a window of 30 s cuts
STEP = 2**-15  # of 16 bits
VOICE_SEMITONES = 4.5  # that voices of one gender may lie beside their norm; a wrong rate moves them by 7
QUIET_LABELS = ("neutral", "calm")  # in which voices are at their norm
VOICES = 12  # clips a gender whose pitch is measured
TONES = (500.0, 1000.0, 2000.0, 4000.0)  # Hz

Fed = np.ndarray  # samples as a model is fed them, (n,) float32


@dataclass(frozen=True)
class Fault:
    """What happens to a clip's samples; `undoes` names the mistake that this fault would cancel."""

    title: str
    apply: Callable[[np.ndarray], Fed]
    undoes: str = ""


def read_at(samples: np.ndarray, true_rate: int, taken_for: int = SAMPLE_RATE) -> Fed:
    """Samples recorded at `true_rate` and taken for others of `taken_for` Hz.

    24 kHz taken for 16 kHz is 1.5 times as long and seven semitones lower; hops of 10 ms are then 6.67 ms of
    speech.
    """
    import soxr

    heard = soxr.resample(np.asarray(samples, dtype=np.float32), taken_for, true_rate, quality="HQ")
    return np.asarray(heard, dtype=np.float32)


def clipped(samples: np.ndarray, share: float = CLIPPED) -> Fed:
    """Overdriven: of the samples that are not near silence, the loudest `share` are cut off."""
    x = np.asarray(samples, dtype=np.float32)
    loud = np.abs(x)[np.abs(x) > 0.01 * np.abs(x).max(initial=0.0)]
    if not len(loud):
        return x
    limit = float(np.quantile(loud, 1 - share))
    return np.clip(x, -limit, limit)


def quiet(samples: np.ndarray, decibels: float = QUIET_DB) -> Fed:
    """That much softer, in 16 bits."""
    x = np.asarray(samples, dtype=np.float64) * 10 ** (-decibels / 20)
    return (np.round(x / STEP) * STEP).astype(np.float32)


def padded(samples: np.ndarray, seconds: float = PAD_SECONDS) -> Fed:
    """With digital silence before and after."""
    return np.pad(np.asarray(samples, dtype=np.float32), round(seconds * SAMPLE_RATE))


def truncated(samples: np.ndarray, seconds: float = LEFT_SECONDS) -> Fed:
    """What is left of an utterance whose speech begins so long before the end of a window of 30 s.

    Speech begins with the first 20 ms that are within 30 dB of the loudest.
    """
    x = np.asarray(samples, dtype=np.float32)
    frames = x[: len(x) // FRAME * FRAME].reshape(-1, FRAME)
    energy = np.mean(frames.astype(np.float64) ** 2, axis=1)
    loud = energy >= energy.max(initial=0.0) * 10 ** (-ACTIVE_RANGE_DB / 10)
    start = int(loud.argmax()) * FRAME if len(loud) else 0
    return x[: start + round(seconds * SAMPLE_RATE)]


def interleaved(samples: np.ndarray) -> Fed:
    """Two channels' samples taken for one channel's: twice as long, an octave lower."""
    return np.repeat(np.asarray(samples, dtype=np.float32), 2)


def read_stereo(samples: np.ndarray) -> Fed:
    """Two channels, the second 6 dB softer and of opposite polarity, through the reader of sound files."""
    x = np.asarray(samples, dtype=np.float32)
    return prepare_samples(np.stack([x, -0.5 * x], axis=1), SAMPLE_RATE)


FAULTS: dict[str, Fault] = {
    "slow": Fault(
        "24 kHz read as 16 kHz (hop 6.67 ms)", lambda x: read_at(x, 24_000), "16 kHz read as 24 kHz"
    ),
    "fast": Fault("16 kHz read as 24 kHz (hop 15 ms)", lambda x: read_at(x, 10_667), "24 kHz read as 16 kHz"),
    "clipped": Fault("clipped, a tenth of the speech", clipped),
    "quiet": Fault("40 dB softer, not levelled", quiet),
    "padded": Fault("4 s of silence before and after", padded),
    "truncated": Fault("cut off 1 s into the speech (window of 30 s full)", truncated),
    "interleaved": Fault("stereo samples read as mono", interleaved),
    "stereo": Fault("stereo, out of phase, read by aligncap", read_stereo),
}


def fit(samples: Fed, max_seconds: float) -> Fed:
    """No more than the model takes."""
    return samples[: int(max_seconds * SAMPLE_RATE)]


# ---- the model's own feature settings against the audio


def check_features(extractor: FeatureExtractor, mel_bins: int | None, positions: int | None) -> list[Row]:
    """What is wrong in the settings of a log-mel feature extractor: [{"what", "found", "expected", "ok"}].

    Settings are compared with Whisper's, which all encoders that read log-mel here share, and tones are sent
    through: where the peak of a tone lies tells whether the mel filters fit the rate of the samples.

    Args:
        mel_bins, positions: of the encoder's configuration (`num_mel_bins`, `max_source_positions`); None:
            not known.
    """
    rows = [
        _row("sampling rate, Hz", getattr(extractor, "sampling_rate", None), SAMPLE_RATE),
    ]
    if not hasattr(extractor, "hop_length"):  # reads the waveform
        return rows
    hop_ms = 1000 * extractor.hop_length / SAMPLE_RATE
    rows += [
        _row("hop at 16 kHz, ms", round(hop_ms, 3), 10.0),
        _row("window at 16 kHz, ms", round(1000 * extractor.n_fft / SAMPLE_RATE, 3), 25.0),
    ]
    if mel_bins is not None:
        rows.append(_row("mel bins, as the encoder", extractor.feature_size, mel_bins))
    if positions is not None:
        frames = round(extractor.n_samples / extractor.hop_length)
        rows.append(_row("mel frames of a full window, as the encoder", frames, 2 * positions))
    for tone in TONES:
        found, expected = _tone_bin(extractor, tone), _expected_bin(extractor.feature_size, tone)
        rows.append(_row(f"mel bin of a tone of {tone:g} Hz", found, expected, 1))
    return rows


def _row(what: str, found: float | None, expected: float, within: float = 0.0) -> Row:
    ok = found is not None and abs(found - expected) <= within
    return {"what": what, "found": found, "expected": expected, "ok": ok}


def _tone_bin(extractor: FeatureExtractor, tone: float) -> int:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    wave = (0.1 * np.sin(2 * np.pi * tone * time)).astype(np.float32)
    rate = getattr(extractor, "sampling_rate", SAMPLE_RATE)
    read = extractor(wave, sampling_rate=rate, padding="longest", truncation=False, return_tensors="np")
    mel = np.asarray(read["input_features"])[0]
    return int(mel.mean(axis=1).argmax())


def _expected_bin(mel_bins: int, tone: float) -> int:
    from transformers import WhisperFeatureExtractor

    return _tone_bin(WhisperFeatureExtractor(feature_size=mel_bins), tone)


def check_audio(utterances: Sequence[Utterance], paths: Mapping[str, Path], max_seconds: float) -> Row:
    """What the clips themselves are like: rates, lengths, levels, and whether voices lie where voices lie.

    The median F0 of each gender is held against its norm (data/cues.yaml), over neutral and calm clips where
    there are any: samples of 24 kHz in a file that says 16 kHz make every voice seven semitones lower.

    Returns:
        {"rates": {Hz: clips}, "too_long", "shorter_than_1_s": shares, "level_dbfs": median,
        "voices": [{"gender", "clips", "f0_hz", "norm_hz", "semitones", "ok"}]}.
    """
    rates: dict[str, int] = {}
    seconds = []
    for u in utterances:
        heard = info(paths[u.id])
        rates[str(heard.rate)] = rates.get(str(heard.rate), 0) + 1
        seconds.append(heard.duration_s)
    levels: list[float] = []
    pitch: dict[str, list[float]] = {}
    for gender in sorted({u.gender for u in utterances if u.gender}):
        own = [u for u in utterances if u.gender == gender]
        chosen = [u for u in own if u.emotion in QUIET_LABELS] or own
        for u in chosen[:VOICES]:
            try:
                cues = measure(load_audio(paths[u.id], normalise=False))
            except AudioError:
                continue
            levels.append(cues["level_dbfs"])
            if "f0_median_hz" in cues:
                pitch.setdefault(gender, []).append(cues["f0_median_hz"])
    norm = load_data("cues.yaml")["cues"]["f0_median_hz"]["norm"]
    voices = []
    for gender, measured in pitch.items():
        usual = float(norm.get(gender, norm["any"])[0])
        away = 12 * float(np.log2(np.median(measured) / usual))
        voices.append(
            {
                "gender": gender,
                "clips": len(measured),
                "f0_hz": round(float(np.median(measured)), 1),
                "norm_hz": usual,
                "semitones": round(away, 2),
                "ok": abs(away) <= VOICE_SEMITONES,
            }
        )
    return {
        "rates": rates,
        "too_long": float(np.mean([s > max_seconds for s in seconds])),
        "shorter_than_1_s": float(np.mean([s < 1 for s in seconds])),
        "level_dbfs": round(float(np.median(levels)), 1) if levels else None,
        "voices": voices,
    }

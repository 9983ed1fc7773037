"""Made sounds in which nobody speaks: silence, noise, hum, clicks, breath, music.

They measure the voice-activity gate (`audio.speech`): `scripts/benchmarks/measures.py gate`. Each can be
made again from its kind, length and seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from aligncap.audio.files import SAMPLE_RATE
from aligncap.audio.level import normalise_level

Floats = NDArray[np.float64]
Rng = np.random.Generator

CHORDS = ((0, 4, 7), (0, 3, 7), (0, 5, 9), (2, 7, 11), (-1, 3, 7))  # semitones above the key's note
SCALE = (0, 2, 4, 5, 7, 9, 11, 12)


def nonspeech(kind: str, seconds: float, seed: int = 0) -> np.ndarray:
    """A sound without speech, (n,) float32 at 16 kHz, at the level that `load_audio` gives to clips.

    Args:
        kind: one of `KINDS`.
        seconds: its length.
        seed: same kind, length and seed, same sound.

    Raises:
        KeyError: no such kind.
    """
    rng = np.random.default_rng([list(KINDS).index(kind), seed] if kind in KINDS else seed)
    return normalise_level(KINDS[kind](round(seconds * SAMPLE_RATE), rng))


def _time(n: int) -> Floats:
    return np.arange(n) / SAMPLE_RATE


def _coloured(n: int, rng: Rng, shape: Callable[[Floats], Floats]) -> Floats:
    """Gaussian noise whose amplitude at a frequency (Hz) is `shape`; nothing below 30 Hz."""
    hertz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    gain = np.where(hertz >= 30, shape(np.maximum(hertz, 30)), 0.0)
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * gain, n=n)


def _silence(n: int, rng: Rng) -> Floats:
    return np.zeros(n)


def _white(n: int, rng: Rng) -> Floats:
    return _coloured(n, rng, np.ones_like)


def _pink(n: int, rng: Rng) -> Floats:
    return _coloured(n, rng, lambda hertz: hertz**-0.5)


def _brown(n: int, rng: Rng) -> Floats:
    return _coloured(n, rng, lambda hertz: 1 / hertz)


def _speech_shaped(n: int, rng: Rng) -> Floats:
    """The long-term spectrum of speech: level to 500 Hz, 9 dB an octave less above (Byrne et al. 1994)."""
    return _coloured(n, rng, lambda hertz: np.maximum(hertz / 500, 1) ** -1.5)


def _hum(n: int, rng: Rng) -> Floats:
    """Mains at 50 or 60 Hz with falling harmonics, and hiss 20 to 50 dB below."""
    mains = rng.choice([50.0, 60.0])
    x = _harmonics(n, mains, rng.uniform(0.8, 2.5), 12, rng)
    return x + x.std() * 10 ** (-rng.uniform(20, 50) / 20) * rng.standard_normal(n)


def _room(n: int, rng: Rng) -> Floats:
    """Room tone: noise that falls towards high frequencies and drifts in level, with a trace of hum."""
    slope = rng.uniform(0.4, 1.0)
    x = _coloured(n, rng, lambda hertz: hertz**-slope)
    drift = 1 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.05, 0.4) * _time(n) + rng.uniform(0, 6))
    return x / max(x.std(), 1e-12) * drift + rng.uniform(0, 0.5) * _harmonics(n, 50.0, 1.5, 6, rng)


def _clicks(n: int, rng: Rng) -> Floats:
    """One to eight clicks or knocks a second, each a resonance of 2 to 40 ms, over faint noise."""
    x = 1e-3 * rng.standard_normal(n)
    for start in rng.integers(0, n, max(1, rng.poisson(rng.uniform(1, 8) * n / SAMPLE_RATE))):
        _add(x, start, _struck(rng.uniform(300, 5000), rng.uniform(0.002, 0.04), rng) * rng.uniform(0.3, 1))
    return x


def _breath(n: int, rng: Rng) -> Floats:
    """In and out, 12 to 40 a minute: noise through two or three wide resonances, swelling and fading."""
    x = np.zeros(n)
    at = -round(rng.uniform(0, 0.5) * SAMPLE_RATE)
    cycle = 60 / rng.uniform(12, 40)
    while at < n:
        for share in (0.4, 0.6):  # of the cycle: in, out
            length = round(rng.uniform(0.6, 0.9) * share * cycle * SAMPLE_RATE)
            puff = rng.standard_normal(length) * np.sin(np.pi * np.linspace(0, 1, length) ** 0.7) ** 1.5
            low, high = rng.uniform(200, 900), rng.uniform(2000, 6500)
            band = signal.butter(1, [low, high], "band", fs=SAMPLE_RATE, output="sos")
            _add(x, at, signal.sosfilt(band, puff) * (rng.uniform(0.4, 0.8) if share < 0.5 else 1))
            at += round(share * cycle * SAMPLE_RATE)
    return x + 1e-3 * rng.standard_normal(n)


def _harmonics(n: int, hertz: float, slope: float, count: int, rng: Rng) -> Floats:
    """A steady tone of harmonics whose amplitudes fall as 1 / number ** slope."""
    numbers = np.arange(1, min(count, int(7500 / hertz)) + 1)[:, None]
    phases = rng.uniform(0, 2 * np.pi, numbers.shape)
    return np.sum(numbers**-slope * np.sin(2 * np.pi * hertz * numbers * _time(n) + phases), axis=0)


def _note(seconds: float, semitones: float, plucked: bool, slope: float, rng: Rng) -> Floats:
    """A note so far from A4: struck and dying away, or swelling and held."""
    n = round(seconds * SAMPLE_RATE)
    time = _time(n)
    fade = np.minimum(1, np.minimum(time / (0.005 if plucked else 0.05), (seconds - time) / 0.03))
    shape = np.exp(-time * 3 / max(seconds, 0.1)) if plucked else np.ones(n)
    return _harmonics(n, 440 * 2 ** (semitones / 12), slope, 15, rng) * shape * np.clip(fade, 0, 1)


def _melody(n: int, rng: Rng) -> Floats:
    """One voice of an instrument: notes of a major scale, plucked or held."""
    return _notes(n, rng, lambda i: (int(rng.choice(SCALE)),), rng.uniform(0.12, 0.6))


def _chords(n: int, rng: Rng) -> Floats:
    """Three notes together, changing every half to two seconds."""
    return _notes(n, rng, lambda i: CHORDS[rng.integers(len(CHORDS))], rng.uniform(0.5, 2))


def _notes(n: int, rng: Rng, choose: Callable[[int], tuple[int, ...]], seconds: float) -> Floats:
    x = np.zeros(n)
    key, plucked, slope = int(rng.integers(-24, 6)), bool(rng.random() < 0.5), rng.uniform(0.8, 2.5)
    for i, start in enumerate(range(0, n, round(seconds * SAMPLE_RATE))):
        for semitones in choose(i):
            _add(x, start, _note(seconds, key + semitones, plucked, slope, rng))
    return x


def _struck(hertz: float, decay: float, rng: Rng) -> Floats:
    time = _time(round(6 * decay * SAMPLE_RATE))
    return (np.sin(2 * np.pi * hertz * time) + 0.3 * rng.standard_normal(len(time))) * np.exp(-time / decay)


def _drums(n: int, rng: Rng) -> Floats:
    """Bass drum, snare and hi-hat in eighths at 70 to 160 beats a minute."""
    x = 1e-3 * rng.standard_normal(n)
    for i, start in enumerate(range(0, n, round(30 / rng.uniform(70, 160) * SAMPLE_RATE))):
        hat = np.diff(rng.standard_normal(1600), prepend=0.0) * np.exp(-_time(1600) / 0.02)
        _add(x, start, 0.3 * hat)
        if i % 4 == 0:
            _add(x, start, 2 * _struck(rng.uniform(50, 70), 0.08, rng))
        elif i % 4 == 2:
            _add(x, start, _struck(190, 0.04, rng) + rng.standard_normal(3840) * np.exp(-_time(3840) / 0.05))
    return x


def _band(n: int, rng: Rng) -> Floats:
    """Drums, chords and a melody at once."""
    parts = (_drums(n, rng), _chords(n, rng), _melody(n, rng))
    return np.sum([rng.uniform(0.5, 1) * x / max(x.std(), 1e-12) for x in parts], axis=0)


def _add(x: Floats, start: int, part: Floats) -> None:
    """Add `part` to `x` from `start` on; what lies outside is dropped."""
    begin, part = max(start, 0), part[max(-start, 0) :]
    part = part[: max(len(x) - begin, 0)]
    x[begin : begin + len(part)] += part


KINDS: dict[str, Callable[[int, Rng], Floats]] = {
    "silence": _silence,
    "white noise": _white,
    "pink noise": _pink,
    "brown noise": _brown,
    "speech-shaped noise": _speech_shaped,
    "hum": _hum,
    "room tone": _room,
    "clicks": _clicks,
    "breath": _breath,
    "melody": _melody,
    "chords": _chords,
    "drums": _drums,
    "music": _band,
}

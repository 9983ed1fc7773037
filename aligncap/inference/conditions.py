"""Sound in place of a clip, to see whether a model listens: silence, noise, and the words in a whisper.

Each is made of the clip's own samples, has its length, and can be made again from its seed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from aligncap.audio.files import SAMPLE_RATE
from aligncap.audio.level import PEAK_LIMIT, active_energy
from aligncap.data.manifest import Utterance

SMOOTHING = 400.0  # Hz, over which noise takes the clip's spectrum: wider than harmonics are apart
WINDOW = 512  # samples, 32 ms: the frames of the whisper
HOP = WINDOW // 2
ORDER = 18  # of linear prediction: four formants of telephone bandwidth and some for the slope, at 16 kHz
LAG_HZ = 60.0  # widening of formants, so that prediction does not follow single harmonics of high voices
FLOOR = 1e-4  # of a frame's energy, -40 dB, white: keeps the prediction stable
POLE = 0.5  # whose slope every whisper has
BROAD = 4  # cepstral coefficients that make up the long-term spectrum's broad shape, 2 kHz and wider

Floats = NDArray[np.float64]


def silence(samples: np.ndarray, seed: int = 0) -> np.ndarray:
    """Digital silence as long as `samples`, (n,) float32."""
    return np.zeros(len(samples), dtype=np.float32)


def noise(samples: np.ndarray, seed: int = 0) -> np.ndarray:
    """Steady noise of the clip's length, level and long-term spectrum, (n,) float32 at 16 kHz.

    Gaussian noise (random phases) through the clip's power spectrum, which is smoothed over 400 Hz: no words,
    no pitch, no loudness contour. What it keeps is the long-term spectrum, and with it the mean vocal effort;
    a model that still tells something of the noise tells it from that. Its RMS is that of the active speech.

    Args:
        samples: (n,) at 16 kHz.
        seed: same samples and seed, same noise.
    """
    x = _centred(samples)
    if not x.any():
        return silence(samples)
    power = np.abs(np.fft.rfft(x)) ** 2
    width = max(1, round(SMOOTHING * len(x) / SAMPLE_RATE))
    smooth = np.convolve(power, np.ones(width) / width, mode="same")[: len(power)]
    white = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(x)))
    return _at_level_of(x, np.fft.irfft(white * np.sqrt(smooth), n=len(x)))


def whisper(samples: np.ndarray, seed: int = 0) -> np.ndarray:
    """The clip's words in a whisper, (n,) float32 at 16 kHz: formants and loudness kept, voice taken away.

    Linear prediction (Makhoul 1975) in frames of 32 ms, its residual replaced by noise of the residual's
    energy: no pitch and no voicing are left. The broad shape of the clip's long-term spectrum, which
    tells vocal effort, gives way to one for all. Rate, pauses and the loudness contour stay as they are.

    Args:
        samples: (n,) at 16 kHz.
        seed: same samples and seed, same whisper.
    """
    x = _centred(samples)
    if not x.any():
        return silence(samples)
    padded = np.pad(x, (HOP, HOP + -len(x) % HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW))
    spectra = np.abs(np.fft.rfft(frames * window**2, n=2 * WINDOW)) ** 2
    lags = np.fft.irfft(spectra)[:, : ORDER + 1]
    lags = lags * np.exp(-0.5 * (2 * np.pi * LAG_HZ / SAMPLE_RATE * np.arange(ORDER + 1)) ** 2)
    lags[:, 0] *= 1 + FLOOR
    predictor, error = _predictors(lags)
    envelope = np.sqrt(error)[:, None] / np.abs(np.fft.rfft(predictor, n=WINDOW))
    envelope *= np.exp(_turn(np.log(np.mean(envelope**2, axis=0))) / 2)
    white = np.fft.rfft(np.random.default_rng(seed).standard_normal(frames.shape))
    made = np.fft.irfft(white * envelope, n=WINDOW) * window
    out = np.zeros(len(padded))
    for half in (0, 1):  # frames of one parity lie end to end
        part = made[half::2]
        out[half * HOP : half * HOP + part.size] += part.ravel()
    return _at_level_of(x, out[HOP : HOP + len(x)])


def _turn(spectrum: Floats) -> Floats:
    """What to add to a log power spectrum (bins,) so that its broad shape is that of one pole."""
    angle = np.linspace(0, np.pi, len(spectrum))
    turn = np.zeros(len(spectrum))
    for number in range(1, BROAD + 1):
        wave = np.cos(number * angle)
        turn += 2 * (POLE**number / number - np.mean(spectrum * wave)) * wave
    return turn


def _predictors(lags: Floats) -> tuple[Floats, Floats]:
    """Linear predictors of all frames, (frames, order + 1), and the energy of what they leave, (frames,).

    `lags` are autocorrelations (frames, order + 1); frames of silence give a predictor of 1 and no error.
    """
    from scipy.linalg import solve_toeplitz

    predictor = np.zeros_like(lags)
    predictor[:, 0] = 1
    for i in np.flatnonzero(lags[:, 0] > 0):
        predictor[i, 1:] = solve_toeplitz(lags[i, :-1], -lags[i, 1:])
    return predictor, np.maximum(np.einsum("fk,fk->f", predictor, lags), 0)


def _centred(samples: np.ndarray) -> Floats:
    x = np.asarray(samples, dtype=np.float64)
    return x - x.mean() if len(x) else x


def _at_level_of(clip: Floats, made: Floats) -> np.ndarray:
    """`made` with the active level of `clip`, no peak above full scale."""
    energy, peak = active_energy(made), np.abs(made).max()
    gain = np.sqrt(active_energy(clip) / energy) if energy > 0 else 1.0
    return (made * min(gain, PEAK_LIMIT / max(peak, 1e-9))).astype(np.float32)


# sound of a kind in place of a clip (n,), by a seed
MADE: dict[str, Callable[[np.ndarray, int], np.ndarray]]
MADE = {"silence": silence, "noise": noise, "whisper": whisper}


def other_clips(condition: str, utterances: Sequence[Utterance], seed: int) -> dict[str, str]:
    """For each id the clip to play in its place, drawn by `seed`; clips for which there is none are left out.

    - "same-words": the same words with another emotion, by the same speaker or else of the same gender.
    - "same-speaker": another emotion of the same speaker; without labels, any other clip.
    - "same-emotion": the same emotion by another speaker, of the same gender where there is one.
    """
    groups: dict[tuple[str | None, ...], list[Utterance]] = defaultdict(list)
    for u in utterances:
        words = "".join(c if c.isalnum() else " " for c in (u.transcript or "").casefold()).split()
        if condition == "same-words" and words and u.emotion:
            groups[u.corpus, u.language, " ".join(words)].append(u)
        elif condition == "same-speaker" and u.speaker is not None:
            groups[u.speaker,].append(u)
        elif condition == "same-emotion" and u.emotion and u.speaker is not None:
            groups[u.corpus, u.emotion].append(u)

    def choices(u: Utterance, group: Sequence[Utterance]) -> Sequence[Utterance]:
        alike = [v for v in group if u.gender is not None and v.gender == u.gender]
        if condition == "same-emotion":
            return [v for v in alike if v.speaker != u.speaker] or [
                v for v in group if v.speaker != u.speaker
            ]
        if condition == "same-speaker":
            return [v for v in group if v.id != u.id and (u.emotion is None or v.emotion != u.emotion)]
        others = [v for v in group if v.emotion != u.emotion]
        own = [v for v in others if u.speaker is not None and v.speaker == u.speaker]
        return own or [v for v in others if v in alike]

    found = {u.id: choices(u, group) for group in groups.values() for u in group}
    return {key: random.Random(f"{seed} {key}").choice(own).id for key, own in found.items() if own}

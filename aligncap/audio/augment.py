"""The same clip through another channel: equaliser, room, band limits, noise, codec, level.

What differs between corpora is mostly how they were recorded. A reading of emotions that is learnt from one
recording of each clip leans on that; heard a second time through a made channel, less (docs/log.md).
"""

from __future__ import annotations

from zlib import crc32

import numpy as np

from aligncap.audio.files import SAMPLE_RATE

CHANNEL_VERSION = 1  # part of the key under which encoded clips are kept: raise it with any change here
_MU = 255  # of the codec: G.711's µ-law


def through_channel(samples: np.ndarray, key: str) -> np.ndarray:
    """The clip as another microphone, room and line would have given it, (n,) float32.

    Who speaks and how is not touched: no change of pitch, rate or dynamics. Drawn anew for each clip: a
    smooth equaliser (6 dB at 6 points, in four of five), a room (reverberation time .1 to .7 s, in half),
    band limits (in three of ten), coloured noise 8 to 40 dB below the clip (in three of five), 8-bit µ-law
    (in three of twenty), and a level.

    Args:
        samples: (n,) at 16 kHz.
        key: whose hash seeds the draw: same samples and key, same channel.
    """
    from scipy import signal  # a third of a second that most commands need not spend

    rng = np.random.default_rng(crc32(key.encode()))
    x = np.asarray(samples, dtype=np.float64)
    if rng.random() < 0.8:
        gains = np.interp(np.linspace(0, 1, 65), np.linspace(0, 1, 6), rng.normal(0, 6, 6))
        x = signal.fftconvolve(x, signal.firwin2(129, np.linspace(0, 1, 65), 10 ** (gains / 20)), "same")
    if rng.random() < 0.5:
        x = signal.fftconvolve(x, _room(rng))[: len(x)]
    if rng.random() < 0.3:
        band = [rng.uniform(50, 300), rng.uniform(3400, 7800)]
        x = signal.sosfilt(signal.butter(4, band, "band", fs=SAMPLE_RATE, output="sos"), x)
    if rng.random() < 0.6:
        noise = signal.lfilter([1], [1, -rng.uniform(0, 0.98)], rng.normal(size=len(x)))
        level = np.sqrt(np.mean(x**2) / max(np.mean(noise**2), 1e-12))
        x = x + noise * level * 10 ** (-rng.uniform(8, 40) / 20)
    peak = max(float(np.abs(x).max(initial=0.0)), 1e-9)
    if rng.random() < 0.15:
        coded = np.sign(x) * np.log1p(_MU * np.abs(x) / peak) / np.log1p(_MU)
        coded = np.round(coded * 127) / 127
        x = peak * np.sign(coded) * np.expm1(np.abs(coded) * np.log1p(_MU)) / _MU
    x = x * min(10 ** (rng.uniform(-20, 10) / 20), 0.99 / peak)
    return x.astype(np.float32)


def _room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response of a made room: direct sound and an exponentially falling tail of noise."""
    seconds = rng.uniform(0.1, 0.7)
    time = np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    tail = rng.normal(size=len(time)) * np.exp(-6.9 * time / seconds)  # 60 dB down at its end
    tail *= rng.uniform(0.05, 0.5) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail

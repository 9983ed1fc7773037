"""How loud speech is: its level, one level for all clips, and one channel of several."""

from __future__ import annotations

import numpy as np

TARGET_DBFS = -23.0  # RMS of active speech after normalisation; leaves 23 dB for peaks
PEAK_LIMIT = 0.99
FRAME = 320  # samples at 16 kHz, 20 ms
ACTIVE_RANGE_DB = 30.0  # frames this far below the loudest ones count as speech
CANCELLED_DB = 12.0  # channels whose mean loses this much against the loudest one are not averaged


def level_dbfs(samples: np.ndarray) -> float:
    """RMS level of active speech in dB relative to full scale (a full-scale square wave is 0 dBFS).

    Active are the 20-ms frames within 30 dB of the loudest, "the loudest" being the median of the ten
    loudest frames, so that one click does not set it. Silence gives -inf.

    Args:
        samples: (n,) at 16 kHz; a constant offset is not counted.
    """
    x = np.asarray(samples, dtype=np.float64)
    if not len(x):
        return -np.inf
    energy = active_energy(x - x.mean())
    return float(10 * np.log10(energy)) if energy > 0 else -np.inf


def active_energy(samples: np.ndarray) -> float:
    """Mean square of the frames within 30 dB of the loudest ones (see `level_dbfs`)."""
    count = max(1, len(samples) // FRAME)
    frames = samples[: count * FRAME].reshape(count, -1)
    energy = np.mean(frames**2, axis=1)
    loudest = np.median(np.sort(energy)[-10:])
    return float(np.mean(energy[energy >= loudest * 10 ** (-ACTIVE_RANGE_DB / 10)]))


def normalise_level(samples: np.ndarray) -> np.ndarray:
    """Remove the constant offset and scale so that active speech has -23 dBFS and no peak exceeds 0.99.

    One gain for the whole clip: nothing is compressed, and the result does not depend on the level of the
    recording. A clip with extreme peaks comes out quieter than -23 dBFS. Silence is returned as it is.
    """
    x = np.asarray(samples, dtype=np.float64)
    if not len(x):
        return np.zeros(0, dtype=np.float32)
    x = x - x.mean()
    energy = active_energy(x)
    peak = np.abs(x).max()
    if energy > 0:
        x *= min(10 ** (TARGET_DBFS / 20) / np.sqrt(energy), PEAK_LIMIT / peak)
    return x.astype(np.float32)


def mix_down(samples: np.ndarray) -> np.ndarray:
    """Average of the channels, (frames, channels) -> (frames,).

    Where the average is more than 12 dB below the loudest channel (opposite polarity, or one voice among
    many silent channels) the loudest channel is taken.
    """
    if samples.shape[1] == 1:
        return samples[:, 0]
    mean = samples.mean(axis=1)
    energy = np.mean(samples.astype(np.float64) ** 2, axis=0)
    loudest = int(np.argmax(energy))
    if np.mean(mean.astype(np.float64) ** 2) < energy[loudest] * 10 ** (-CANCELLED_DB / 10):
        return samples[:, loudest]
    return mean

"""What can be wrong with sound: the errors, the limits, and the look at decoded samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aligncap.errors import UserError

SILENCE_DBFS = -75.0  # a file whose every sample is below this holds no speech: about 6 steps of 16 bits
MIN_SECONDS = 0.1
MIN_RATE, MAX_RATE = 4_000, 768_000  # Hz; speech needs 2 kHz of bandwidth, no recorder exceeds the upper
CLIPPED_WARN = 0.005  # share of samples at full scale
CLIPPED_REFUSE = 0.2  # such a clip is nearer to a square wave than to a voice


class AudioError(UserError):
    """A sound file that cannot be used; the message names the file, what is wrong and the remedy."""


class MissingAudio(AudioError):
    """No file there, or not one that may be read."""


class UnreadableAudio(AudioError):
    """Not sound, a format that libsndfile does not read, or corrupt."""


class TruncatedAudio(AudioError):
    """Fewer samples than the header promises."""


class NonFiniteAudio(AudioError):
    """NaN or infinite samples."""


class SilentAudio(AudioError):
    """Every sample below -75 dBFS."""


class TooShortAudio(AudioError):
    """Less than 0.1 s."""


class TooLongAudio(AudioError):
    """Longer than the caller's limit."""


class ClippedAudio(AudioError):
    """A fifth or more of the samples at full scale."""


@dataclass(frozen=True)
class Decoded:
    """Samples as they lie in a file."""

    samples: np.ndarray  # (frames, channels) float32
    rate: int
    full_scale: float  # magnitude at which this file's samples clip


def float_full_scale(samples: np.ndarray) -> float:
    """Where float samples clip: they may exceed 1.0 without loss, then it is at their own peak."""
    peak = float(np.abs(samples).max()) if samples.size else 0.0
    return max(1.0, peak) if np.isfinite(peak) else 1.0


def _clipped_share(decoded: Decoded) -> float:
    return float(np.mean(np.abs(decoded.samples).max(axis=1) >= 0.999 * decoded.full_scale))


def faults_of(decoded: Decoded, name: str, max_seconds: float | None) -> list[AudioError]:
    """Every fault for which decoded samples are refused, gravest first; `name` opens each message."""
    samples, rate = decoded.samples, decoded.rate
    if not MIN_RATE <= rate <= MAX_RATE:
        return [
            UnreadableAudio(
                f"{name}: a sample rate of {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz; "
                "record again or mend the header"
            )
        ]
    faults: list[AudioError] = []
    seconds = len(samples) / rate
    if seconds < MIN_SECONDS:
        faults.append(
            TooShortAudio(f"{name}: {seconds:.3f} s is below {MIN_SECONDS:g} s; leave the clip out")
        )
    if max_seconds is not None and seconds > max_seconds:
        faults.append(
            TooLongAudio(f"{name}: {seconds:.1f} s, the limit is {max_seconds:g} s; cut it into utterances")
        )
    bad = int(samples.size - np.count_nonzero(np.isfinite(samples)))
    if bad:
        faults.append(
            NonFiniteAudio(
                f"{name}: {bad} samples are NaN or infinite; export the file again from its source"
            )
        )
        return faults
    if not len(samples):
        return faults
    peak = float(np.abs(samples - samples.mean(axis=0)).max())
    if peak < 10 ** (SILENCE_DBFS / 20):
        faults.append(
            SilentAudio(
                f"{name}: silent, no sample above {SILENCE_DBFS:g} dBFS; record again or leave it out"
            )
        )
    share = _clipped_share(decoded)
    if share >= CLIPPED_REFUSE:
        faults.append(
            ClippedAudio(f"{name}: {share:.0%} of the samples are clipped; record again at a lower level")
        )
    return faults


def warnings_of(decoded: Decoded, name: str) -> list[str]:
    """What is doubtful about decoded samples but accepted: some clipping."""
    if not decoded.samples.size:
        return []
    share = _clipped_share(decoded)
    if CLIPPED_WARN <= share < CLIPPED_REFUSE:
        return [
            f"{name}: {share:.1%} of the samples are clipped, the voice will sound harsher than it was; "
            "record at a lower level"
        ]
    return []

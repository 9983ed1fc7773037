"""Sound files to samples: the one place that opens them.

Whatever libsndfile reads (wav, flac, ogg, mp3 and more), at any rate and with any number of channels, becomes
16 kHz mono float32, its speech at one level. A file that cannot give that is refused with an `AudioError`
that says what is wrong with it.
"""

from __future__ import annotations

import io
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    import soundfile

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


def errors_of(decoded: Decoded, name: str, max_seconds: float | None) -> list[AudioError]:
    """Every error for which decoded samples are refused, gravest first; `name` opens each message."""
    samples, rate = decoded.samples, decoded.rate
    if not MIN_RATE <= rate <= MAX_RATE:
        return [
            UnreadableAudio(
                f"{name}: a sample rate of {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz; "
                "record again or mend the header"
            )
        ]
    errors: list[AudioError] = []
    seconds = len(samples) / rate
    if seconds < MIN_SECONDS:
        errors.append(
            TooShortAudio(f"{name}: {seconds:.3f} s is below {MIN_SECONDS:g} s; leave the clip out")
        )
    if max_seconds is not None and seconds > max_seconds:
        errors.append(
            TooLongAudio(f"{name}: {seconds:.1f} s, the limit is {max_seconds:g} s; cut it into utterances")
        )
    bad = int(samples.size - np.count_nonzero(np.isfinite(samples)))
    if bad:
        errors.append(
            NonFiniteAudio(
                f"{name}: {bad} samples are NaN or infinite; export the file again from its source"
            )
        )
        return errors
    if not len(samples):
        return errors
    peak = float(np.abs(samples - samples.mean(axis=0)).max())
    if peak < 10 ** (SILENCE_DBFS / 20):
        errors.append(
            SilentAudio(
                f"{name}: silent, no sample above {SILENCE_DBFS:g} dBFS; record again or leave it out"
            )
        )
    share = _clipped_share(decoded)
    if share >= CLIPPED_REFUSE:
        errors.append(
            ClippedAudio(f"{name}: {share:.0%} of the samples are clipped; record again at a lower level")
        )
    return errors


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


SAMPLE_RATE = 16_000  # Hz, of all sound inside the package
TARGET_DBFS = -23.0  # RMS of active speech after normalisation; leaves 23 dB for peaks
PEAK_LIMIT = 0.99
FRAME = SAMPLE_RATE // 50  # 320 samples = 20 ms
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


__all__ = [
    "SAMPLE_RATE",
    "AudioError",
    "AudioInfo",
    "array_to_16k",
    "check",
    "info",
    "inspect",
    "level_dbfs",
    "load_audio",
    "load_bytes",
    "normalise_level",
]

_BLOCK = 1 << 20  # frames read at a time, so that a lying header cannot reserve memory
_UNKNOWN_LENGTH = 0x7FFFFF00  # streamed wav files carry this size or more

_log = logging.getLogger(__name__)


class AudioInfo(NamedTuple):
    """What the header of a sound file says."""

    duration_s: float
    rate: int  # Hz
    channels: int


def load_audio(path: str | Path, *, normalise: bool = True, max_seconds: float | None = None) -> np.ndarray:
    """Samples of a sound file, (n,) float32 at 16 kHz, mono.

    Channels are averaged, unless they cancel each other (see `mix_down`). With `normalise`, the RMS of
    active speech becomes -23 dBFS (see `normalise_level`); without, the level is the file's own. Clipping
    of 0.5 % of the samples or more is a warning in the log, of 20 % an error.

    Raises:
        AudioError: the subclass says which error; `check` lists all errors of a file instead.
    """
    return _finish(_decode(path, str(path), max_seconds), str(path), normalise, max_seconds)


def load_bytes(
    data: bytes, *, name: str = "audio", normalise: bool = True, max_seconds: float | None = None
) -> np.ndarray:
    """Like `load_audio`, for the content of a sound file held in memory; `name` stands in messages."""
    return _finish(_decode(io.BytesIO(data), name, max_seconds), name, normalise, max_seconds)


def array_to_16k(
    samples: np.ndarray,
    rate: int,
    *,
    name: str = "audio array",
    normalise: bool = True,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Samples given in Python to (n,) float32 at 16 kHz, with the same checks as a file.

    Args:
        samples: (frames,), (frames, channels) or (channels, frames), the longer axis being time; floats with
            full scale 1.0, or int16, int32, int8 or uint8.
        rate: Hz.

    Raises:
        AudioError: as `load_audio`, or the array has another shape or type.
    """
    array = np.asarray(samples)
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        raise UnreadableAudio(
            f"{name}: shape {array.shape} is not sound; give (frames,) or (frames, channels)"
        )
    if array.dtype in (np.int8, np.int16, np.int32):
        array = array / -float(np.iinfo(array.dtype).min)
        clips_at = 1.0
    elif array.dtype == np.uint8:
        array = (array - 128.0) / 128.0
        clips_at = 1.0
    elif np.issubdtype(array.dtype, np.floating):
        clips_at = float_full_scale(array)
    else:
        raise UnreadableAudio(
            f"{name}: samples of type {array.dtype} have no known full scale; "
            "give floats within -1 to 1 or int16"
        )
    with np.errstate(over="ignore"):
        frames = (array if array.ndim == 2 else array[:, None]).astype(np.float32)
    return _finish(Decoded(frames, int(rate), clips_at), name, normalise, max_seconds)


def info(path: str | Path) -> AudioInfo:
    """Duration (s), rate (Hz) and number of channels as the header states them; no samples are read.

    Raises:
        MissingAudio, UnreadableAudio
    """
    with _open(path, str(path)) as file:
        return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels)


def check(path: str | Path, *, max_seconds: float | None = None) -> list[str]:
    """All errors of a file for which `load_audio` would refuse it, as "file: what is wrong; remedy"."""
    return inspect(path, max_seconds=max_seconds)[0]


def inspect(path: str | Path, *, max_seconds: float | None = None) -> tuple[list[str], list[str]]:
    """UserErrors of a file (as `check`) and warnings: what is doubtful but accepted, such as clipping."""
    name = str(path)
    try:
        decoded = _decode(path, name, None)
    except AudioError as error:
        return [str(error)], []
    return [str(error) for error in errors_of(decoded, name, max_seconds)], warnings_of(decoded, name)


def _open(source: str | Path | io.BytesIO, name: str) -> soundfile.SoundFile:
    import soundfile

    if not isinstance(source, io.BytesIO):
        path = Path(source)
        if path.is_dir():
            raise MissingAudio(f"{name}: is a folder; give a sound file")
        if not path.is_file():
            raise MissingAudio(f"{name}: no such file; check the path and the root in the manifest")
        if not os.access(path, os.R_OK):
            raise MissingAudio(f"{name}: may not be read; change its permissions")
        if path.stat().st_size == 0:
            raise UnreadableAudio(f"{name}: the file is empty; copy it again from the corpus")
    try:
        return soundfile.SoundFile(str(source) if not isinstance(source, io.BytesIO) else source)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise UnreadableAudio(
            f"{name}: not a sound file that can be read, or corrupt ({_reason(error)}); "
            "convert it to wav, flac, ogg or mp3, or copy it again"
        ) from None


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or "unknown format"
    return str(text).removeprefix("Error : ").rstrip(".")


def _decode(source: str | Path | io.BytesIO, name: str, max_seconds: float | None) -> Decoded:
    import soundfile

    with _open(source, name) as file:
        promised, rate = file.frames, file.samplerate
        _refuse_long(promised / rate, name, max_seconds)
        _refuse_cut(file, name)
        blocks: list[np.ndarray] = []
        try:
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise TruncatedAudio(
                f"{name}: corrupt or cut off after {sum(map(len, blocks)) / rate:.2f} s at the least "
                f"({_reason(error)}); copy it again from the corpus"
            ) from None
        samples = np.concatenate(blocks) if blocks else np.zeros((0, file.channels), dtype=np.float32)
        if len(samples) < promised < _UNKNOWN_LENGTH:
            raise _cut(name, len(samples) / rate, promised / rate)
        float_file = file.subtype in ("FLOAT", "DOUBLE")
    return Decoded(samples, rate, float_full_scale(samples) if float_file else 1.0)


def _refuse_long(seconds: float, name: str, max_seconds: float | None) -> None:
    if max_seconds is not None and seconds > max_seconds:
        raise TooLongAudio(f"{name}: {seconds:.1f} s, the limit is {max_seconds:g} s; cut it into utterances")


def _cut(name: str, found: float, promised: float) -> TruncatedAudio:
    return TruncatedAudio(
        f"{name}: cut off, {found:.2f} s of the {promised:.2f} s that its header promises; "
        "copy it again from the corpus"
    )


def _refuse_cut(file: soundfile.SoundFile, name: str) -> None:
    # libsndfile mends the length of a cut wav, aiff or ogg in silence and says so only in its log.
    log = file.extra_info
    sizes = re.search(r"(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", log)
    if sizes and int(sizes[2]) < int(sizes[1]) < _UNKNOWN_LENGTH:
        found = file.frames / file.samplerate
        raise _cut(name, found, found * int(sizes[1]) / max(int(sizes[2]), 1))
    if "lacks an end-of-stream bit" in log:
        raise TruncatedAudio(
            f"{name}: cut off after {file.frames / file.samplerate:.2f} s, the stream has no end; "
            "copy it again from the corpus"
        )


def _finish(decoded: Decoded, name: str, normalise: bool, max_seconds: float | None) -> np.ndarray:
    import soxr

    for error in errors_of(decoded, name, max_seconds):
        raise error
    for warning in warnings_of(decoded, name):
        _log.warning(warning)
    samples = mix_down(decoded.samples)
    if decoded.rate != SAMPLE_RATE:
        samples = soxr.resample(samples, decoded.rate, SAMPLE_RATE, quality="HQ")
    return normalise_level(samples) if normalise else np.ascontiguousarray(samples, dtype=np.float32)

"""Sound files to samples: the one place that opens them.

Whatever libsndfile reads (wav, flac, ogg, mp3 and more), at any rate and with any number of channels, becomes
16 kHz mono float32, its speech at one level. A file that cannot give that is refused with an `AudioError`
that says what is wrong with it. A path may be that of a file in a tar shard (`members.py`).
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import logging
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from aligncap.audio.level import mix_down, normalise_level
from aligncap.audio.members import Member, MemberError, member_of, read_member
from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE = 16_000  # Hz, of all sound inside the package
SILENCE_DBFS = -75.0  # a file whose every sample is below this holds no speech: about 6 steps of 16 bits
MIN_SECONDS = 0.1
MIN_RATE, MAX_RATE = 4_000, 768_000  # Hz; speech needs 2 kHz of bandwidth, no recorder exceeds the upper
LOUDEST_FLOAT = 10.0  # of float arrays, full scale being 1: more are integers that were not divided
CLIPPED_WARN = 0.005  # share of samples at full scale
CLIPPED_REFUSE = 0.2  # such a clip is nearer to a square wave than to a voice

_BLOCK = 1 << 20  # frames read at a time, so that a lying header cannot reserve memory
_UNKNOWN_LENGTH = 0x7FFFFF00  # streamed wav files carry this size or more

_log = logging.getLogger(__name__)


Kind = Literal[
    "missing",  # no file there, or not one that may be read
    "unreadable",  # not sound, a format that libsndfile does not read, or corrupt
    "truncated",  # fewer samples than the header promises
    "not finite",  # NaN or infinite samples
    "silent",  # every sample below -75 dBFS
    "short",  # less than 0.1 s
    "long",  # longer than the caller's limit
    "clipped",  # a fifth or more of the samples at full scale
]


class AudioError(UserError):
    """A sound file that cannot be used; the message names the file, what is wrong and the remedy."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class AudioInfo(NamedTuple):
    """What the header of a sound file says."""

    duration_s: float
    rate: int  # Hz
    channels: int


class Fingerprint(NamedTuple):
    """A file's duration and what tells it from others: size, time, hashes of its bytes and of its samples."""

    duration_s: float  # as its header says
    bytes: int
    mtime_ns: int  # time of the last change, nanoseconds
    sha256: str
    samples_sha256: str  # of 16-bit samples at 16 kHz: equal in every lossless format


class _Decoded(NamedTuple):
    """Samples as they lie in a file."""

    samples: np.ndarray  # (frames, channels) float32
    rate: int
    full_scale: float  # magnitude at which this file's samples clip
    duration_s: float = 0.0  # as the header says


def load_audio(
    source: str | Path | bytes,
    *,
    name: str | None = None,
    normalise: bool = True,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Samples of a sound file, (n,) float32 at 16 kHz, mono.

    Channels are averaged, unless they cancel each other (see `mix_down`). With `normalise`, the RMS of
    active speech becomes -23 dBFS (see `normalise_level`); without, the level is the file's own. Clipping
    of 0.5 % of the samples or more is a warning in the log, of 20 % an error.

    Args:
        source: path of a file, or its content.
        name: of the file in messages; its path when None.

    Raises:
        AudioError: its `kind` says which error; `check` lists all errors of a file instead.
    """
    name = name or ("audio" if isinstance(source, bytes) else str(source))
    return _finish(_decode(source, name, max_seconds), name, normalise, max_seconds)


def prepare_samples(
    samples: np.ndarray,
    sampling_rate: int,
    *,
    name: str = "audio array",
    normalise: bool = True,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Samples given in Python to (n,) float32 at 16 kHz: the same checks, level and resampling as a file's.

    Args:
        samples: (frames,), (frames, channels) or (channels, frames), the longer axis being time; floats with
            full scale 1.0, or int8, int16, int32 or uint8.
        sampling_rate: Hz.

    Raises:
        AudioError: as `load_audio`, or the array has another shape, type or scale.
    """
    array = np.asarray(samples)
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        what = f"shape {array.shape} is not sound; give (frames,) or (frames, channels)"
        raise AudioError("unreadable", f"{name}: {what}")
    clips_at = 1.0
    if array.dtype in (np.int8, np.int16, np.int32):
        array = array / -float(np.iinfo(array.dtype).min)
    elif array.dtype == np.uint8:
        array = (array - 128.0) / 128.0
    elif np.issubdtype(array.dtype, np.floating):
        clips_at = _float_full_scale(array)
    else:
        what = f"samples of type {array.dtype} have no known full scale; give floats within -1 to 1 or int16"
        raise AudioError("unreadable", f"{name}: {what}")
    if clips_at > LOUDEST_FLOAT:
        raise AudioError(
            "unreadable", f"{name}: floats up to {clips_at:g}, full scale is 1; divide them by their own"
        )
    with np.errstate(over="ignore"):
        frames = (array if array.ndim == 2 else array[:, None]).astype(np.float32)
    return _finish(_Decoded(frames, int(sampling_rate), clips_at), name, normalise, max_seconds)


def info(path: str | Path) -> AudioInfo:
    """Duration (s), rate (Hz) and number of channels as the header states them; no samples are read.

    Raises:
        AudioError: no file there that may be read, or not a sound file.
    """
    with open_sound(path, str(path)) as file:
        return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels)


def fingerprint(path: str | Path) -> Fingerprint:
    """What a manifest keeps of a sound file; the file is read once.

    Raises:
        AudioError: as `load_audio`.
    """
    data, stat = read_bytes(path)
    decoded = _decode(data, str(path), None)
    pcm = np.round(_finish(decoded, str(path), False, None) * 32768).astype("<i4")
    of_file, of_samples = (hashlib.sha256(part).hexdigest() for part in (data, pcm.tobytes()))
    return Fingerprint(round(decoded.duration_s, 4), len(data), stat.st_mtime_ns, of_file, of_samples)


def read_bytes(path: str | Path) -> tuple[bytes, os.stat_result]:
    """Content of a sound file, and its size and time from before it was read.

    Raises:
        AudioError: not there, not readable, or empty.
    """
    if (member := member_of(path)) is not None:
        return _read(member), os.stat(member.tar)
    _refuse_no_file(path)
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        return file.read(), stat


def _read(member: Member) -> bytes:
    try:
        return read_member(member)
    except MemberError as error:
        raise AudioError("missing", str(error)) from None


def check(path: str | Path, *, max_seconds: float | None = None, data: bytes | None = None) -> list[str]:
    """All errors of a file for which `load_audio` would refuse it, as "file: what is wrong; remedy".

    Args:
        data: the file's content, where it has been read already.
    """
    try:
        decoded = _decode(path if data is None else data, str(path), None)
    except AudioError as error:
        return [str(error)]
    return [str(error) for error in _errors_of(decoded, str(path), max_seconds)]


def _refuse_no_file(path: str | Path) -> None:
    if os.path.isdir(path):
        raise AudioError("missing", f"{path}: is a folder; give a sound file")
    if not os.path.isfile(path):
        raise AudioError("missing", f"{path}: no such file; check the path and the root in the manifest")
    if not os.access(path, os.R_OK):
        raise AudioError("missing", f"{path}: may not be read; change its permissions")
    if not os.path.getsize(path):
        raise AudioError("unreadable", f"{path}: the file is empty; copy it again from the corpus")


_guard = threading.Lock()
_decoding = 0  # files being decoded at the moment, by all threads


@cache
def _c_stderr() -> tuple[ctypes.c_void_p, int | None, int] | None:
    """The C library's variable `stderr`, its value, and that of a stream to nowhere; None where unknown."""
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    if (name := "stderr" if glibc else {"darwin": "__stderrp"}.get(sys.platform)) is None:
        return None
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    variable = ctypes.c_void_p.in_dll(library, name)
    return variable, variable.value, library.fopen(os.fsencode(os.devnull), b"w")


@contextmanager
def _quiet_decoder() -> Iterator[None]:
    """Keep from the terminal what libsndfile's mp3 decoder prints about damaged files.

    It prints to the C library's `stderr`, which leads nowhere meanwhile. Python's own standard error, which
    is another object on the same descriptor, goes on in every thread.
    """
    global _decoding
    if (found := _c_stderr()) is None:
        yield
        return
    variable, terminal, nowhere = found
    with _guard:
        _decoding += 1
        variable.value = nowhere
    try:
        yield
    finally:
        with _guard:
            _decoding -= 1
            if not _decoding:
                variable.value = terminal


@contextmanager
def open_sound(source: str | Path | bytes, name: str) -> Iterator[soundfile.SoundFile]:
    """A sound file for reading, what its decoder prints kept from the terminal; `name` is for messages.

    Raises:
        AudioError: nothing there, or not a sound file.
    """
    import soundfile

    if not isinstance(source, bytes):
        if (member := member_of(source)) is not None:
            source = _read(member)
        else:
            _refuse_no_file(source)
    with _quiet_decoder():
        try:
            file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
        except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
            what = f"{name}: not a sound file that can be read, or corrupt ({_reason(error)})"
            remedy = "convert it to wav, flac, ogg or mp3, or copy it again"
            raise AudioError("unreadable", f"{what}; {remedy}") from None
        with file:
            yield file


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or "unknown format"
    return str(text).removeprefix("Error : ").rstrip(".")


def _decode(source: str | Path | bytes, name: str, max_seconds: float | None) -> _Decoded:
    import soundfile

    with open_sound(source, name) as file:
        promised, rate = file.frames, file.samplerate
        if max_seconds is not None and promised / rate > max_seconds:
            raise _too_long(name, promised / rate, max_seconds)
        refuse_cut(file, name)
        blocks: list[np.ndarray] = []
        try:
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
                if max_seconds is not None and sum(map(len, blocks)) / rate > max_seconds:
                    raise _too_long(name, sum(map(len, blocks)) / rate, max_seconds)  # a header that lied
        except (soundfile.LibsndfileError, RuntimeError) as error:
            what = f"corrupt or cut off after {sum(map(len, blocks)) / rate:.2f} s at the least"
            remedy = f"({_reason(error)}); copy it again from the corpus"
            raise AudioError("truncated", f"{name}: {what} {remedy}") from None
        samples = np.concatenate(blocks) if blocks else np.zeros((0, file.channels), dtype=np.float32)
        if len(samples) < promised < _UNKNOWN_LENGTH:
            raise _cut(name, len(samples) / rate, promised / rate)
        clips_at = _float_full_scale(samples) if file.subtype in ("FLOAT", "DOUBLE") else 1.0
    return _Decoded(samples, rate, clips_at, promised / rate)


def refuse_cut(file: soundfile.SoundFile, name: str) -> None:
    """
    Raises:
        AudioError: the header promises more than the file holds, where libsndfile mends that in silence.
    """
    # libsndfile mends the length of a cut wav, aiff or ogg in silence and says so only in its log.
    log, found = file.extra_info, file.frames / file.samplerate
    sizes = re.search(r"(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", log)
    if sizes and int(sizes[2]) < int(sizes[1]) < _UNKNOWN_LENGTH:
        raise _cut(name, found, found * int(sizes[1]) / max(int(sizes[2]), 1))
    if "lacks an end-of-stream bit" in log:
        what = f"cut off after {found:.2f} s, the stream has no end"
        raise AudioError("truncated", f"{name}: {what}; copy it again from the corpus")


def _cut(name: str, found: float, promised: float) -> AudioError:
    what = f"cut off, {found:.2f} s of the {promised:.2f} s that its header promises"
    return AudioError("truncated", f"{name}: {what}; copy it again from the corpus")


def _too_long(name: str, seconds: float, limit: float) -> AudioError:
    return AudioError("long", f"{name}: {seconds:.1f} s, the limit is {limit:g} s; cut it into utterances")


def _float_full_scale(samples: np.ndarray) -> float:
    """Where float samples clip: they may exceed 1.0 without loss, then it is at their own peak."""
    peak = float(np.abs(samples).max()) if samples.size else 0.0
    return max(1.0, peak) if np.isfinite(peak) else 1.0


def _clipped_share(decoded: _Decoded) -> float:
    return float(np.mean(np.abs(decoded.samples).max(axis=1) >= 0.999 * decoded.full_scale))


def _errors_of(decoded: _Decoded, name: str, max_seconds: float | None) -> list[AudioError]:
    """Every error for which decoded samples are refused, gravest first; `name` opens each message."""
    samples, rate = decoded.samples, decoded.rate
    if not MIN_RATE <= rate <= MAX_RATE:
        what = f"a sample rate of {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz"
        return [AudioError("unreadable", f"{name}: {what}; record again or mend the header")]
    errors: list[AudioError] = []
    if (seconds := len(samples) / rate) < MIN_SECONDS:
        what = f"{name}: {seconds:.3f} s is below {MIN_SECONDS:g} s; leave the clip out"
        errors.append(AudioError("short", what))
    if max_seconds is not None and seconds > max_seconds:
        errors.append(_too_long(name, seconds, max_seconds))
    if bad := int(samples.size - np.count_nonzero(np.isfinite(samples))):
        what = f"{name}: {bad} samples are NaN or infinite; export the file again from its source"
        return [*errors, AudioError("not finite", what)]
    if not len(samples):
        return errors
    if float(np.abs(samples - samples.mean(axis=0)).max()) < 10 ** (SILENCE_DBFS / 20):
        what = f"{name}: silent, no sample above {SILENCE_DBFS:g} dBFS; record again or leave it out"
        errors.append(AudioError("silent", what))
    if (share := _clipped_share(decoded)) >= CLIPPED_REFUSE:
        what = f"{name}: {share:.0%} of the samples are clipped; record again at a lower level"
        errors.append(AudioError("clipped", what))
    return errors


def _finish(decoded: _Decoded, name: str, normalise: bool, max_seconds: float | None) -> np.ndarray:
    import soxr

    if errors := _errors_of(decoded, name, max_seconds):
        raise errors[0]
    if (share := _clipped_share(decoded)) >= CLIPPED_WARN:
        what = "of the samples are clipped, the voice will sound harsher than it was; record at a lower level"
        _log.warning(f"{name}: {share:.1%} {what}")
    samples = mix_down(decoded.samples)
    if decoded.rate != SAMPLE_RATE:
        samples = soxr.resample(samples, decoded.rate, SAMPLE_RATE, quality="HQ")
    return normalise_level(samples) if normalise else np.ascontiguousarray(samples, dtype=np.float32)

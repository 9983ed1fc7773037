"""How a voice sounds, measured from samples: pitch, movement, effort, rate, pauses, steadiness.

F0 comes from swift-f0 (MIT, a 135 kB network), chosen of four libraries by a benchmark in `scripts`: on 255
synthetic sounds of known F0 it is off by more than 20 % in 0.03 % of the frames and by 2 cents in the median.
"""

from __future__ import annotations

import math
import multiprocessing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aligncap.audio.files import SAMPLE_RATE, load_audio
from aligncap.audio.level import level_dbfs, normalise_level
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, load_data
from aligncap.utils.progress import track

if TYPE_CHECKING:
    from swift_f0 import SwiftF0

HOP = 256  # samples, 16 ms: the frames of swift-f0
WINDOW = 2 * HOP
F0_MIN, F0_MAX = 60.0, 700.0  # Hz; screamed vowels of women reach 600
MIN_RUN = 3  # frames; shorter voiced stretches are clicks and closures
MIN_VOICED = 5  # frames, 80 ms of voice, before anything is said of it
MIN_PAUSE = 10  # frames, 160 ms; shorter gaps are closures of stops
MIN_SPEECH = 0.3  # seconds, before a rate is stated
F0_TURN_ST, LEVEL_TURN_DB = 0.03, 1.0  # smallest turns that count as unsteady, per frame
NUCLEUS_SIGMA = 0.02  # seconds, smoothing of the syllable envelope
NUCLEUS_DIP_DB, NUCLEUS_RANGE_DB = 2.0, 25.0
_IN_PROCESS = 16  # fewer files than this are not worth starting processes for


def _scaled(norm: Row, value: float) -> float:
    """A raw value on the scale of data/cues.yaml on which differences are counted."""
    if norm["scale"] == "linear":
        return value
    return (12 if norm["scale"] == "semitones" else 1) * math.log2(max(value, norm["smallest"]))


def relative(
    utterances_cues: Sequence[Mapping[str, float]],
    speakers: Sequence[str | None],
    genders: Sequence[str | None],
) -> list[dict[str, float]]:
    """Cues of each clip as distances from a norm, about one unit per usual deviation (like a z-score).

    The norm of a cue is the speaker's own, median and 1.4826 times the median absolute deviation, where the
    cue was measured in at least 8 of the speaker's clips; else the gender's from data/cues.yaml, or that of
    both genders when it is unknown. The speaker's own norm is that of the clips given: where those are all
    angry, angry is usual. F0 is compared in semitones, movement and rate in octaves, the rest as it is.

    Returns:
        One dict a clip, keys as `measure` less `duration_s` and `level_dbfs`; absent cues stay absent.

    Raises:
        ValueError: the three sequences differ in length.
    """
    if not len(utterances_cues) == len(speakers) == len(genders):
        raise ValueError(
            f"{len(utterances_cues)} cues, {len(speakers)} speakers, {len(genders)} genders: lengths differ"
        )
    clips: dict[str, list[int]] = defaultdict(list)
    for index, speaker in enumerate(speakers):
        if speaker is not None:
            clips[speaker].append(index)
    data = load_data("cues.yaml")
    result: list[dict[str, float]] = [{} for _ in utterances_cues]
    for cue, norm in data["cues"].items():
        values = {i: _scaled(norm, c[cue]) for i, c in enumerate(utterances_cues) if cue in c}
        own: dict[str | None, tuple[float, float]] = {}
        for speaker, indices in clips.items():
            measured = np.array([values[i] for i in indices if i in values])
            if len(measured) >= data["min_clips"]:
                centre = float(np.median(measured))
                width = 1.4826 * float(np.median(np.abs(measured - centre)))
                own[speaker] = centre, max(width, norm["min_spread"])
        for i, value in values.items():
            usual, width = norm["norm"].get(genders[i] or "any", norm["norm"]["any"])
            centre, width = own.get(speakers[i]) or (_scaled(norm, usual), width)
            result[i][cue] = round((value - centre) / width, 4)
    return result


def measure(samples: np.ndarray) -> dict[str, float]:
    """Cues of one clip. A cue that cannot be measured, such as the pitch of a whisper, is absent.

    All but `level_dbfs` are independent of the recording level. Frames are 16 ms; "active" are those within
    30 dB of the loudest or above the noise floor, "voiced" the active ones with a sure F0.

    - `f0_median_hz`: median F0 of voiced frames.
    - `f0_movement_st`: 5th to 95th percentile of F0 in semitones.
    - `effort_db`: median over voiced frames of energy at 1 to 5 kHz against 50 to 1000 Hz, dB: the alpha
      ratio of GeMAPS (Eyben et al. 2016, doi:10.1109/TAFFC.2015.2457417). A pressed voice has a flatter
      spectrum than a soft one.
    - `rate_sps`: syllable nuclei per second of speech, pauses excluded, after de Jong & Wempe 2009
      (doi:10.3758/BRM.41.2.385): voiced peaks of the 300 to 3300 Hz envelope at least 2 dB above the dips
      beside them and within 25 dB of the loudest.
    - `pause_share`: share of gaps of 160 ms and more between the first and the last active frame.
    - `unsteadiness`: percent of voiced frames at which F0 turns back by more than 0.03 semitones, averaged
      with the percent at which level does by more than 1 dB. Like jitter and shimmer it grows with
      frame-to-frame perturbation; unlike their mean size it ignores smooth movement and octave jumps.
    - `voiced_share`: voiced part of active frames.
    - `duration_s`, `level_dbfs` (RMS of active speech): of the samples as given.

    Args:
        samples: (n,) at 16 kHz, mono, best read with `load_audio(path, normalise=False)`.

    Raises:
        ValueError: another shape, or samples that are not finite.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"measure needs finite mono samples of shape (n,), got {samples.shape}")
    cues = {"duration_s": len(samples) / SAMPLE_RATE}
    level = level_dbfs(samples)
    if not np.isfinite(level):
        return cues
    cues["level_dbfs"] = level
    x = normalise_level(samples)
    if len(x) < WINDOW:
        return cues
    f0, spectra, energy, active, voiced = _frames(x)
    first, last = np.flatnonzero(active)[[0, -1]]
    span = active[first : last + 1]
    pauses = int(_longer(~span, MIN_PAUSE).sum())
    cues["pause_share"] = pauses / len(span)
    cues["voiced_share"] = float(voiced.sum() / active.sum())
    if voiced.sum() >= MIN_VOICED:
        semitones = 12 * np.log2(f0 / 100)
        cues["f0_median_hz"] = float(np.median(f0[voiced]))
        cues["f0_movement_st"] = float(np.ptp(np.percentile(semitones[voiced], [5, 95])))
        cues["effort_db"] = float(np.median(_efforts(spectra[voiced])))
        if (unsteadiness := _unsteadiness(semitones, energy, voiced)) is not None:
            cues["unsteadiness"] = unsteadiness
        speech = (len(span) - pauses) * HOP / SAMPLE_RATE
        nuclei = _nuclei(x, voiced)
        if nuclei and speech >= MIN_SPEECH:
            cues["rate_sps"] = nuclei / speech
    return {key: round(float(value), 4) for key, value in cues.items()}


class Contours(NamedTuple):
    """How a voice moves, a value every 16 ms, NaN where there is no voice: F0 in Hz, effort in dB."""

    f0_hz: np.ndarray
    effort_db: np.ndarray


def contours(samples: np.ndarray) -> Contours:
    """F0 and effort of each frame of a clip, (frames,) each; see `measure`.

    Args:
        samples: (n,) at 16 kHz, mono, finite.
    """
    x = normalise_level(samples)
    if len(x) < WINDOW or not np.isfinite(level_dbfs(x)):
        return Contours(np.zeros(0), np.zeros(0))
    f0, spectra, _, _, voiced = _frames(x)
    effort = np.full(len(f0), np.nan)
    effort[voiced] = _efforts(spectra[voiced])
    return Contours(np.where(voiced, f0, np.nan), effort)


def _frames(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """F0 (Hz), power spectrum, energy (dB), whether active and whether voiced, of each frame."""
    result = _detector().detect(x, SAMPLE_RATE, fmin=F0_MIN, fmax=F0_MAX)
    spectra = _spectra(x, len(result.pitch_hz))
    energy = 10 * np.log10(spectra.sum(axis=1) + 1e-9)
    active = _active(energy)
    voiced = _longer(active & (result.confidence >= 0.5), MIN_RUN)
    return result.pitch_hz, spectra, energy, active, voiced


def measure_many(paths: Sequence[Path], workers: int = 2) -> list[dict[str, float] | str]:
    """Cues of many files in their order; for a file that cannot be read, the error's message instead.

    Args:
        workers: processes, each with one thread; 1, or a handful of files, stays in this process.

    Raises:
        UserError: a worker process was killed.
    """
    if workers <= 1 or len(paths) < _IN_PROCESS:
        return list(track(map(_measure_file, paths), len(paths), "measuring"))
    # Processes are started afresh: a fork would copy the locks of threads that torch may have started.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            return list(track(pool.map(_measure_file, paths, chunksize=8), len(paths), "measuring"))
    except BrokenProcessPool:
        raise UserError(
            "a process that measured audio was killed, perhaps for lack of memory; measure with workers=1"
        ) from None


def _measure_file(path: Path) -> dict[str, float] | str:
    try:
        return measure(load_audio(path, normalise=False))
    except UserError as error:
        return str(error)


@cache
def _detector() -> SwiftF0:
    from swift_f0 import SwiftF0

    return SwiftF0(threads=1, spin=False)


def _spectra(x: np.ndarray, frames: int) -> np.ndarray:
    """Power spectra of Hann windows centred on the F0 frames, (frames, WINDOW // 2 + 1)."""
    padded = np.pad(x, (HOP, WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:frames]
    return np.abs(np.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1])) ** 2


def _active(energy: np.ndarray) -> np.ndarray:
    """Frames that belong to speech, from their energy in dB.

    30 dB below the loudest, or 6 dB above the noise floor where the recording is noisier than that, but
    never nearer than 15 dB to the loudest.
    """
    loudest = np.median(np.sort(energy)[-10:])
    floor = np.percentile(energy, 5)
    return energy >= max(loudest - 30, min(floor + 6, loudest - 15))


def _longer(mask: np.ndarray, frames: int) -> np.ndarray:
    """The stretches of True in `mask` that are at least `frames` long."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_opening(mask, np.ones(frames)))


def _efforts(spectra: np.ndarray) -> np.ndarray:
    """Energy at 1 to 5 kHz against 50 to 1000 Hz of each frame, dB."""
    hertz = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    low = spectra[:, (hertz >= 50) & (hertz < 1000)].sum(axis=1)
    high = spectra[:, (hertz >= 1000) & (hertz < 5000)].sum(axis=1)
    return 10 * np.log10((high + 1e-9) / (low + 1e-9))


def _unsteadiness(semitones: np.ndarray, energy: np.ndarray, voiced: np.ndarray) -> float | None:
    from scipy import ndimage

    # The outermost steps of a stretch are onset and release, not perturbation.
    inner = np.flatnonzero(ndimage.binary_erosion(voiced, np.ones(5)))
    if len(inner) < MIN_VOICED:
        return None
    shares = []
    for values, smallest in ((semitones, F0_TURN_ST), (energy, LEVEL_TURN_DB)):
        before, after = values[inner] - values[inner - 1], values[inner + 1] - values[inner]
        size = np.minimum(np.abs(before), np.abs(after))
        shares.append(100 * np.mean((before * after < 0) & (size > smallest)))
    return float(np.mean(shares))


@cache
def _syllable_filter() -> tuple[np.ndarray, np.ndarray]:
    from scipy import signal

    band = signal.butter(4, [300, 3300], btype="bandpass", fs=SAMPLE_RATE, output="sos")
    half = int(3 * NUCLEUS_SIGMA * SAMPLE_RATE)
    smooth = signal.windows.gaussian(2 * half + 1, NUCLEUS_SIGMA * SAMPLE_RATE)
    return band, smooth / smooth.sum()


def _nuclei(x: np.ndarray, voiced: np.ndarray) -> int:
    """Number of syllable nuclei."""
    from scipy import signal

    band, smooth = _syllable_filter()
    step = SAMPLE_RATE // 100
    power = signal.sosfilt(band, x.astype(np.float64)) ** 2
    envelope = 10 * np.log10(np.maximum(signal.fftconvolve(power, smooth, "same")[::step], 1e-12))
    loudest = np.percentile(envelope, 99)
    # The clip's ends are dips, so that a vowel that starts or ends it is a peak too.
    padded = np.concatenate([[-120.0], envelope, [-120.0]])
    peaks, _ = signal.find_peaks(padded, height=loudest - NUCLEUS_RANGE_DB, prominence=NUCLEUS_DIP_DB)
    frames = ((peaks - 1) * step + HOP // 2) // HOP
    near = np.pad(voiced, 1)
    near = near[:-2] | near[1:-1] | near[2:]
    return int(near[np.minimum(frames, len(near) - 1)].sum())

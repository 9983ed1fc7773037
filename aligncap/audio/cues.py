"""How a voice sounds, measured from samples: pitch, movement, effort, rate, pauses, steadiness.

F0 comes from swift-f0 (MIT, a 135 kB network). `scripts/bench_f0.py` made the choice, on 255 made sounds of
known F0 (sines, pulse trains and vowels, 70 to 500 Hz, sweeps, vibrato; clean, 20 and 10 dB SNR):

| library         | off by > 20 % | octave errors | median error | missed | false | CPU s per s |
|-----------------|---------------|---------------|--------------|--------|-------|-------------|
| swift-f0        | 0.03 %        | 0.03 %        | 2.1 cents    | 1.9 %  | 0.0 % | 0.006       |
| pyworld dio     | 0.04 %        | 0.00 %        | 1.3 cents    | 0.9 %  | 0.1 % | 0.005       |
| pyworld harvest | 0.17 %        | 0.01 %        | 0.4 cents    | 4.1 %  | 11.7 % | 0.118      |
| librosa pYIN    | 1.18 %        | 0.00 %        | 3.1 cents    | 0.0 %  | 12.6 % | 0.075      |

dio is as good on these, but loses 13 % of the frames of a pulse train at 10 dB SNR (swift-f0: 4 %), and
pyworld needs `pkg_resources`, which setuptools has given up. swift-f0 misses a quarter of the frames of
noiseless sines, which no voice is; 2 cents are far below what is worded.
"""

from __future__ import annotations

import math
import multiprocessing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.audio.files import SAMPLE_RATE, level_dbfs, load_audio, normalise_level
from aligncap.utils.errors import UserError
from aligncap.utils.io import data_path, load_data

if TYPE_CHECKING:
    from swift_f0 import SwiftF0

FILE = "cues.yaml"


@dataclass(frozen=True, slots=True)
class CueNorm:
    """How one cue is compared: its scale, the narrowest spread, (centre, spread) by gender in raw units.

    Spreads are in units of the scale: semitones, octaves (factors of two), or raw units for `linear`.
    """

    scale: str
    smallest: float  # raw values below are taken as this, so that a logarithm exists
    min_spread: float
    genders: Mapping[str, tuple[float, float]]  # "female", "male", "any"

    def scaled(self, value: float) -> float:
        """The value on the scale on which differences are counted."""
        if self.scale == "linear":
            return value
        steps = 12 if self.scale == "semitones" else 1
        return steps * math.log2(max(value, self.smallest))


@cache
def norms() -> dict[str, CueNorm]:
    """Norms of data/cues.yaml by cue.

    Raises:
        UserError: an unknown scale or a spread that is not positive.
    """
    data: dict[str, Any] = load_data(FILE)
    found: dict[str, CueNorm] = {}
    for cue, entry in data["cues"].items():
        genders = {name: (float(pair[0]), float(pair[1])) for name, pair in entry["norm"].items()}
        spreads = [float(entry["min_spread"]), *(spread for _, spread in genders.values())]
        if entry["scale"] not in ("linear", "semitones", "octaves") or min(spreads) <= 0:
            raise UserError(
                f"{data_path(FILE)}: {cue}: scale must be linear, semitones or octaves, spreads above 0"
            )
        found[cue] = CueNorm(
            entry["scale"], float(entry.get("smallest", 0.0)), float(entry["min_spread"]), genders
        )
    return found


def min_clips() -> int:
    """Clips of a speaker needed before the speaker's own norm is used."""
    return int(load_data(FILE)["min_clips"])


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
    needed = min_clips()
    result: list[dict[str, float]] = [{} for _ in utterances_cues]
    for cue, norm in norms().items():
        values = {i: norm.scaled(c[cue]) for i, c in enumerate(utterances_cues) if cue in c}
        own: dict[str, tuple[float, float]] = {}
        for speaker, indices in clips.items():
            measured = np.array([values[i] for i in indices if i in values])
            if len(measured) >= needed:
                centre = float(np.median(measured))
                spread = 1.4826 * float(np.median(np.abs(measured - centre)))
                own[speaker] = centre, max(spread, norm.min_spread)
        for i, value in values.items():
            speaker = speakers[i]
            if speaker in own:
                centre, spread = own[speaker]
            else:
                raw, spread = norm.genders.get(genders[i] or "any", norm.genders["any"])
                centre = norm.scaled(raw)
            result[i][cue] = round((value - centre) / spread, 4)
    return result


__all__ = ["measure", "measure_many", "relative"]

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
    result = _detector().detect(x, SAMPLE_RATE, fmin=F0_MIN, fmax=F0_MAX)
    f0, spectra = result.pitch_hz, _spectra(x, len(result.pitch_hz))
    energy = 10 * np.log10(spectra.sum(axis=1) + 1e-9)
    active = _active(energy)
    voiced = active & (result.confidence >= 0.5)
    for start, end in _runs(voiced):
        if end - start < MIN_RUN:
            voiced[start:end] = False

    first, last = np.flatnonzero(active)[[0, -1]]
    span = active[first : last + 1]
    pauses = sum(end - start for start, end in _runs(~span) if end - start >= MIN_PAUSE)
    cues["pause_share"] = pauses / len(span)
    cues["voiced_share"] = float(voiced.sum() / active.sum())
    if voiced.sum() >= MIN_VOICED:
        semitones = 12 * np.log2(f0 / 100)
        cues["f0_median_hz"] = float(np.median(f0[voiced]))
        cues["f0_movement_st"] = float(np.ptp(np.percentile(semitones[voiced], [5, 95])))
        cues["effort_db"] = _effort(spectra[voiced])
        unsteadiness = _unsteadiness(semitones, energy, voiced)
        if unsteadiness is not None:
            cues["unsteadiness"] = unsteadiness
        speech = (len(span) - pauses) * HOP / SAMPLE_RATE
        nuclei = _nuclei(x, voiced)
        if nuclei and speech >= MIN_SPEECH:
            cues["rate_sps"] = nuclei / speech
    return {key: round(float(value), 4) for key, value in cues.items()}


def measure_many(
    paths: Sequence[Path], workers: int = 2, progress: bool = True
) -> list[dict[str, float] | str]:
    """Cues of many files in their order; for a file that cannot be read, the error's message instead.

    Args:
        workers: processes, each with one thread; 1, or a handful of files, stays in this process.
        progress: a bar on the error stream, only where that is a terminal.

    Raises:
        UserError: a worker process was killed.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    show = partial(
        track,
        description="measuring",
        total=len(paths),
        console=console,
        disable=not (progress and console.is_terminal),
    )
    if workers <= 1 or len(paths) < _IN_PROCESS:
        return [_measure_file(path) for path in show(paths)]
    # Processes are started afresh: a fork would copy the locks of threads that torch may have started.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            return list(show(pool.map(_measure_file, paths, chunksize=8)))
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


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _effort(spectra: np.ndarray) -> float:
    hertz = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    low = spectra[:, (hertz >= 50) & (hertz < 1000)].sum(axis=1)
    high = spectra[:, (hertz >= 1000) & (hertz < 5000)].sum(axis=1)
    return float(np.median(10 * np.log10((high + 1e-9) / (low + 1e-9))))


def _unsteadiness(semitones: np.ndarray, energy: np.ndarray, voiced: np.ndarray) -> float | None:
    shares = []
    for track, smallest in ((semitones, F0_TURN_ST), (energy, LEVEL_TURN_DB)):
        turns: list[np.ndarray] = []
        for start, end in _runs(voiced):
            # The outermost steps of a stretch are onset and release, not perturbation.
            steps = np.diff(track[start:end])[1:-1]
            before, after = steps[:-1], steps[1:]
            size = np.minimum(np.abs(before), np.abs(after))
            turns.append((before * after < 0) & (size > smallest))
        counted = np.concatenate(turns)
        if len(counted) < MIN_VOICED:
            return None
        shares.append(100 * counted.mean())
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

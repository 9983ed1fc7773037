"""Compare F0 libraries on made sounds of known F0: accuracy, octave errors and cost.

    python scripts/bench_f0.py                # all libraries that are installed, 3 to 4 minutes of CPU
    python scripts/bench_f0.py --only swift-f0    # some seconds

Every sound is 2 s at 16 kHz: sines, pulse trains and vowels (pulse trains through three formants) at 70 to
500 Hz, sweeps and vibrato, each clean (60 dB SNR) and with white noise at 20 and 10 dB SNR. The 0.2 s before
and after each hold the noise alone, to count frames called voiced where there is no voice.

Columns: gross = voiced frames off by more than 20 %; octave = those within 3 % of half or double the truth;
cents = median absolute error of the other frames; missed = voiced frames called unvoiced; false = unvoiced
frames called voiced; cost = CPU seconds per second of sound, best of three.

librosa and pyworld are not dependencies of the package: `pip install librosa pyworld` to have their rows;
pyworld 0.3.5 imports `pkg_resources`, so it needs `pip install "setuptools<81"` beside it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

RATE = 16_000
SECONDS = 2.0
F0_MIN, F0_MAX = 60.0, 700.0
Track = tuple[np.ndarray, np.ndarray]  # times in seconds, F0 in Hz with 0 for unvoiced
FORMANTS = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240)}


@dataclass
class Sound:
    """A made sound, its F0 at every sample (Hz, 0 where there is no voice) and the group it belongs to."""

    group: str
    samples: np.ndarray
    f0: np.ndarray


@dataclass
class Score:
    """Counts of frames over the sounds of one group."""

    voiced: int = 0
    found: int = 0
    gross: int = 0
    octave: int = 0
    unvoiced: int = 0
    false: int = 0
    cents: list[np.ndarray] = field(default_factory=list)


def pulses(f0: np.ndarray) -> np.ndarray:
    """Band-limited pulse train: one equal harmonic for every multiple of F0 below 7 kHz."""
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    out = np.zeros_like(f0)
    for k in range(1, int(7000 / f0.min()) + 1):
        out += np.cos(k * phase) * (k * f0 < 7000)
    return out / np.abs(out).max()


def vowel(f0: np.ndarray, formants: tuple[int, ...]) -> np.ndarray:
    """Harmonics at -12 dB/octave shaped by three resonances of 80 to 120 Hz bandwidth."""
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    out = np.zeros_like(f0)
    for k in range(1, int(7000 / f0.min()) + 1):
        hertz = k * f0
        gain = k**-1.0 * (hertz < 7000)
        for centre, width in zip(formants, (80, 100, 120), strict=True):
            gain = gain + 2.0 * k**-1.0 / (1 + ((hertz - centre) / width) ** 2) * (hertz < 7000)
        out += gain * np.cos(k * phase)
    return out / np.abs(out).max()


def contours() -> Iterator[tuple[str, np.ndarray]]:
    """Name of the group and F0 in Hz at every sample."""
    t = np.arange(int(SECONDS * RATE)) / RATE
    for hertz in (70, 90, 120, 160, 220, 300, 400, 500):
        yield "steady", np.full_like(t, float(hertz))
    for low, high in ((80, 200), (150, 400), (250, 500)):
        yield "sweep", low * (high / low) ** (t / SECONDS)
        yield "sweep", high * (low / high) ** (t / SECONDS)
    for hertz in (110, 220, 350):
        yield "vibrato", hertz * 2 ** (np.sin(2 * np.pi * 6 * t) / 12)


def sounds() -> list[Sound]:
    """All sounds, with silence before and after the voice (0.2 s)."""
    random = np.random.default_rng(0)
    made: list[Sound] = []
    rest = np.zeros(int(0.2 * RATE))
    for _, f0 in contours():
        kinds = {"sine": np.sin(2 * np.pi * np.cumsum(f0) / RATE), "pulses": pulses(f0)}
        kinds |= {f"vowel {name}": vowel(f0, formants) for name, formants in FORMANTS.items()}
        for kind, wave in kinds.items():
            clean = np.concatenate([rest, wave, rest])
            truth = np.concatenate([rest, f0, rest])
            power = np.mean(wave**2)
            for snr, name in ((60, "clean"), (20, "20 dB"), (10, "10 dB")):
                noise = random.standard_normal(len(clean)) * np.sqrt(power / 10 ** (snr / 10))
                mixed = clean + noise
                mixed *= 0.5 / np.abs(mixed).max()
                made.append(Sound(f"{kind.split()[0]:6} {name}", mixed.astype(np.float32), truth))
    return made


def swift() -> Callable[[np.ndarray], Track]:
    from swift_f0 import SwiftF0

    detector = SwiftF0(threads=1, spin=False)

    def track(samples: np.ndarray) -> Track:
        result = detector.detect(samples, RATE, fmin=F0_MIN, fmax=F0_MAX)
        return result.timestamps, np.where(result.confidence >= 0.5, result.pitch_hz, 0.0)

    return track


def dio() -> Callable[[np.ndarray], Track]:
    import pyworld

    def track(samples: np.ndarray) -> Track:
        x = samples.astype(np.float64)
        f0, times = pyworld.dio(x, RATE, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=16.0)
        return times, pyworld.stonemask(x, f0, times, RATE)

    return track


def harvest() -> Callable[[np.ndarray], Track]:
    import pyworld

    def track(samples: np.ndarray) -> Track:
        f0, times = pyworld.harvest(
            samples.astype(np.float64), RATE, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=16.0
        )
        return times, f0

    return track


def pyin() -> Callable[[np.ndarray], Track]:
    import librosa

    def track(samples: np.ndarray) -> Track:
        f0, voiced, _ = librosa.pyin(samples, fmin=F0_MIN, fmax=F0_MAX, sr=RATE, hop_length=256)
        return np.arange(len(f0)) * 256 / RATE, np.where(voiced, f0, 0.0)

    return track


LIBRARIES: dict[str, Callable[[], Callable[[np.ndarray], Track]]] = {
    "swift-f0": swift,
    "pyworld-dio": dio,
    "pyworld-harvest": harvest,
    "librosa-pyin": pyin,
}


def add(score: Score, sound: Sound, track: Track) -> None:
    """Count the frames of one sound, leaving out 50 ms round the edges of the voice."""
    times, found = track
    centre = np.minimum((times * RATE).astype(int), len(sound.f0) - 1)
    margin = int(0.05 * RATE)
    before, after = np.maximum(centre - margin, 0), np.minimum(centre + margin, len(sound.f0) - 1)
    truth = sound.f0[centre]
    steady = (sound.f0[before] > 0) == (sound.f0[after] > 0)
    voiced, silent = steady & (truth > 0), steady & (truth == 0)
    both = voiced & (found > 0)
    ratio = found[both] / truth[both]
    gross = np.abs(ratio - 1) > 0.2
    score.voiced += int(voiced.sum())
    score.found += int(both.sum())
    score.gross += int(gross.sum())
    score.octave += int((gross & ((np.abs(ratio - 2) < 0.06) | (np.abs(ratio - 0.5) < 0.015))).sum())
    score.unvoiced += int(silent.sum())
    score.false += int((silent & (found > 0)).sum())
    score.cents.append(1200 * np.abs(np.log2(ratio[~gross])))


def show(name: str, group: str, score: Score, cost: float | None) -> None:
    cents = np.concatenate(score.cents)
    print(
        f"{name:16} {group:14} {100 * score.gross / max(score.found, 1):7.2f} "
        f"{100 * score.octave / max(score.found, 1):8.2f} "
        f"{np.median(cents) if len(cents) else np.nan:7.1f} "
        f"{100 * (1 - score.found / score.voiced):8.1f} {100 * score.false / score.unvoiced:7.1f} "
        + (f"{cost:9.4f}" if cost is not None else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES))
    args = parser.parse_args()
    made = sounds()
    print(f"{len(made)} sounds of {len(made[0].samples) / RATE:.1f} s")
    print(
        f"{'library':16} {'sounds':14} {'gross %':>7} {'octave %':>8} {'cents':>7} "
        f"{'missed %':>8} {'false %':>7} {'CPU s/s':>9}"
    )
    for name in args.only:
        try:
            track = LIBRARIES[name]()
        except ImportError as error:
            print(f"{name:16} not installed ({error.name})")
            continue
        track(made[0].samples)  # first call compiles or allocates
        cost = best_of_three(track, [sound.samples for sound in made[::15]])
        total, groups = Score(), {sound.group: Score() for sound in made}
        for sound in made:
            found = track(sound.samples)
            add(groups[sound.group], sound, found)
            add(total, sound, found)
        for group, score in groups.items():
            show(name, group, score, None)
        show(name, "all", total, cost)


def best_of_three(track: Callable[[np.ndarray], Track], clips: list[np.ndarray]) -> float:
    """CPU seconds per second of sound, all threads counted."""
    seconds = sum(len(clip) for clip in clips) / RATE
    runs = []
    for _ in range(3):
        start = time.process_time()
        for clip in clips:
            track(clip)
        runs.append((time.process_time() - start) / seconds)
    return min(runs)


if __name__ == "__main__":
    main()

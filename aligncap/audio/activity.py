"""Where in a recording of any length somebody speaks, and its utterances: segments that end at pauses.

A recording is read in blocks, so memory does not grow with its length but for one probability every 32 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligncap.audio import speech
from aligncap.audio.files import MAX_RATE, MIN_RATE, SAMPLE_RATE, AudioError, open_sound, refuse_cut
from aligncap.audio.level import mix_down
from aligncap.audio.speech import FRAME, MARGIN, THRESHOLD

BLOCK = 1024 * FRAME  # samples, 32.8 s: what is held of a recording at a time
BEFORE = 64 * FRAME  # samples of the block before, 2 s, from which the network's state settles
FRAME_SECONDS = FRAME / SAMPLE_RATE  # 0.032 s
RELEASE = 0.35  # probability below which speech ends that began at THRESHOLD: silero-vad's own rule
CLOSURE = 5  # frames, 160 ms; shorter gaps are closures of stops, as in `audio.cues`
SHORTEST, LONGEST = 2.0, 12.0  # seconds of a segment
PAUSE = 0.3  # seconds of silence at which a segment of SHORTEST may end
APART = 2.0  # seconds of silence that end any segment
MARGIN_SECONDS = 0.5  # of the silence on either side that belong to a segment


class Segment(NamedTuple):
    """A stretch of a recording, in seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


def read_blocks(path: str | Path) -> Iterator[np.ndarray]:
    """A sound file as consecutive blocks of BLOCK samples, the last one shorter, mono float32 at 16 kHz.

    The level is the file's own. Channels are mixed block by block, see `audio.level.mix_down`.

    Raises:
        AudioError: not a sound file, cut off or corrupt, of a rate that no recorder has, or not finite.
    """
    import soundfile
    import soxr

    with open_sound(path, str(path)) as file:
        rate = file.samplerate
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(
                "unreadable", f"{path}: {rate} Hz is no rate of speech; export the file again from its source"
            )
        refuse_cut(file, str(path))
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        held = np.zeros(0, dtype=np.float32)
        size, done = max(1, BLOCK * rate // SAMPLE_RATE), False
        while not done:
            try:
                read = file.read(size, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise AudioError("truncated", f"{path}: corrupt or cut off; copy it again") from error
            if not np.isfinite(read).all():
                raise AudioError("not finite", f"{path}: NaN or infinite samples; export the file again")
            done = len(read) < size
            mono = np.ascontiguousarray(mix_down(read)) if len(read) else np.zeros(0, dtype=np.float32)
            made = stream.resample_chunk(mono, last=done) if rate != SAMPLE_RATE else mono
            held = np.concatenate([held, made])
            while len(held) >= BLOCK:
                yield held[:BLOCK]
                held = held[BLOCK:]
        if len(held):
            yield held


def activity(blocks: Iterable[np.ndarray]) -> NDArray[np.float32]:
    """Probability of speech in every 32 ms of a recording, (frames,) float32.

    Each block is brought to one level and heard with the 2 s before it, as `speech.speech_probabilities`
    hears a clip: the network's state is that of two seconds, not of the whole recording.

    Args:
        blocks: those of `read_blocks`.
    """
    found = [np.zeros(0, dtype=np.float32)]
    before = np.zeros(0, dtype=np.float32)
    for block in blocks:
        frames = -(-len(block) // FRAME)
        heard = speech.speech_probabilities(np.concatenate([before, block]))
        start = (MARGIN + len(before)) // FRAME
        own = heard[start : start + frames]
        found.append(np.pad(own, (0, frames - len(own))))  # none for silence
        before = block[-BEFORE:]
    return np.concatenate(found)


def segments_of(
    probabilities: NDArray[np.float32],
    seconds: float,
    shortest: float = SHORTEST,
    longest: float = LONGEST,
) -> list[Segment]:
    """Utterances of a recording, in order, without overlap.

    A segment ends at the first pause of 0.3 s once it has `shortest` seconds, at any silence of 2 s, and
    before it passes `longest`: there at the longest pause it holds, or where speech is least likely. Of the
    silence around it half a second belongs to it, or half of a shorter pause; more where it would be
    shorter than `shortest` otherwise. Speech with too much silence around it to be joined with other speech
    stays as short as it is where the recording ends.

    Args:
        probabilities: those of `activity`.
        seconds: length of the recording.
    """
    pieces = [part for run in _runs(probabilities) for part in _split(run, probabilities, longest)]
    groups: list[list[tuple[float, float]]] = []
    for piece in pieces:
        if not groups:
            groups.append([piece])
            continue
        own = groups[-1]
        gap, length = piece[0] - own[-1][1], own[-1][1] - own[0][0]
        margins = 2 * min(MARGIN_SECONDS, gap / 2)
        full = length + margins >= shortest and gap >= PAUSE
        if full or gap >= APART or piece[1] - own[0][0] + 2 * MARGIN_SECONDS > longest:
            groups.append([piece])
        else:
            own.append(piece)
    return _with_margins([(g[0][0], g[-1][1]) for g in groups], seconds, shortest, longest)


def _runs(probabilities: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Stretches of speech in seconds, shorter gaps than CLOSURE closed."""
    likely = probabilities >= RELEASE
    edges = np.flatnonzero(np.diff(np.concatenate([[False], likely, [False]]).astype(np.int8)))
    runs: list[tuple[int, int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if runs and start - runs[-1][1] < CLOSURE:
            runs[-1] = runs[-1][0], end
        else:
            runs.append((start, end))
    kept = [(a, b) for a, b in runs if (probabilities[a:b] >= THRESHOLD).sum() >= 2]
    return [(a * FRAME_SECONDS, b * FRAME_SECONDS) for a, b in kept]


def _split(
    run: tuple[float, float], probabilities: NDArray[np.float32], longest: float
) -> Iterator[tuple[float, float]]:
    """A stretch without pause in parts of `longest` at the most, cut where speech is least likely."""
    start, end = run
    room = longest - 2 * MARGIN_SECONDS
    if end - start <= room:
        yield run
        return
    parts = int(np.ceil((end - start) / room))
    middle = start + (end - start) / parts
    low, high = start + 0.6 * (middle - start), min(middle, start + room)
    a, b = int(low / FRAME_SECONDS), max(int(low / FRAME_SECONDS) + 1, int(high / FRAME_SECONDS))
    cut = (a + int(np.argmin(probabilities[a:b]))) * FRAME_SECONDS
    yield start, cut
    yield from _split((cut, end), probabilities, longest)


def _with_margins(
    speech: Sequence[tuple[float, float]], seconds: float, shortest: float, longest: float
) -> list[Segment]:
    """Stretches of speech with their share of the silence around them."""
    found = []
    for place, (start, end) in enumerate(speech):
        before = (start - speech[place - 1][1]) / 2 if place else start
        after = (speech[place + 1][0] - end) / 2 if place + 1 < len(speech) else seconds - end
        wanted = max(MARGIN_SECONDS, (shortest - (end - start)) / 2)
        room = max(0.0, longest - (end - start)) / 2
        left, right = (min(max(0.0, side), wanted, room) for side in (before, after))
        found.append(Segment(round(start - left, 3), round(min(end + right, seconds), 3)))
    return found


def cut(blocks: Iterable[np.ndarray], segments: Sequence[Segment]) -> Iterator[np.ndarray]:
    """The samples of each segment, in order, from a recording read once more in blocks.

    Args:
        blocks: those of `read_blocks`; segments: in order and without overlap.
    """
    left = iter(segments)
    wanted = next(left, None)
    held, offset = np.zeros(0, dtype=np.float32), 0  # samples that a segment may still need, and their place
    for block in blocks:
        held = np.concatenate([held, block])
        while wanted is not None:
            first, last = (round(t * SAMPLE_RATE) - offset for t in wanted)
            if last > len(held):
                break
            yield held[first:last].copy()
            wanted = next(left, None)
        if wanted is None:
            return
        keep = min(max(0, round(wanted.start * SAMPLE_RATE) - offset), len(held))
        held, offset = held[keep:], offset + keep
    while wanted is not None:  # rounding may put the last end a sample behind the recording's
        first = max(0, round(wanted.start * SAMPLE_RATE) - offset)
        yield held[first : max(first, round(wanted.end * SAMPLE_RATE) - offset)].copy()
        wanted = next(left, None)

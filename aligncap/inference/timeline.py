"""`aligncap timeline`: how a voice changes through a recording of any length.

Speech is cut into utterances at pauses (`audio.activity`), who speaks is told apart where asked, utterances
are captioned in batches, each beside what was heard of its speaker so far, and what is read of them is
smoothed (`inference.smoothing`). The recording is read in blocks, twice or three times; what is finished is
kept on disk, so that a stopped command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from aligncap.audio.activity import LONGEST, SHORTEST, Segment, activity, cut, read_blocks, segments_of
from aligncap.audio.files import SAMPLE_RATE, AudioError, prepare_samples
from aligncap.inference.captioner import Captioner
from aligncap.inference.smoothing import DWELL, likeliest_path, speakers_of
from aligncap.inference.timeline_files import Change, Stretch, Timeline, Utterance, write_timeline
from aligncap.models.checkpoints import model_key
from aligncap.models.context import offset
from aligncap.models.precision import dtype_name
from aligncap.text.emotions import affect, emotion_of, labels
from aligncap.utils.distributed import ALONE
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row
from aligncap.utils.journal import Journal, journaled
from aligncap.utils.options import Config, NaturalInt, PositiveFloat, PositiveInt, Range, option
from aligncap.utils.progress import track
from aligncap.utils.run_record import write_run_record
from aligncap.utils.statistics import Floats

T = TypeVar("T")
VOICE_LAYERS = slice(0, 3)  # of the encoder: the first tell voices apart, later ones words


@dataclass
class TimelineConfig(Config):
    """Follow emotion through a long recording: captions of its utterances, and where the voice changes.

    Written are timeline.json, .srt, .vtt, .csv and .png, and run.json. A command that was stopped goes on
    where it was when it is given again.

    Examples:
        aligncap timeline talk.mp3 --model runs/model --out talk
        aligncap timeline interview.wav --model runs/model --out interview --speakers 2
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("file",)

    file: str = option(help="Sound file of any length: wav, flac, ogg, mp3.")
    model: str = option(help="Folder of a merged model or of a training run.")
    out: str = option(help="Folder to write.")
    speakers: NaturalInt = option(1, "How many speak; 0: find it out.")
    dwell: PositiveFloat = option(DWELL, "Seconds that an emotion lasts on average; more smooths more.")
    shortest: PositiveFloat = option(SHORTEST, "Seconds of speech from which a pause ends an utterance.")
    longest: Annotated[float, Range(4, 29)] = option(LONGEST, "Seconds of the longest utterance.")
    centre: bool = option(True, "Hear each utterance beside what was heard of its speaker so far.")
    batch_size: PositiveInt = option(16, "Utterances that are decoded at a time.")
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "Precision of the model.")
    device: str = option("auto", "auto (the GPU where there is one), cpu, cuda or cuda:NUMBER.")

    def own_errors(self) -> list[str]:
        if self.shortest > self.longest / 2:
            return [f"shortest={self.shortest}: must be at most half of longest={self.longest}"]
        return []


@dataclass(frozen=True)
class Options:
    """What a timeline depends on beside the recording and the model; see `TimelineConfig`."""

    speakers: int = 1
    dwell: float = DWELL
    shortest: float = SHORTEST
    longest: float = LONGEST
    batch_size: int = 16


class Reader(Protocol):
    """What listens to utterances: a `CaptionReader`, or another in tests."""

    @property
    def emotions(self) -> Sequence[str]:
        """The labels that it tells apart."""

    def voices(self, clips: Sequence[np.ndarray]) -> Floats:
        """What tells speakers apart, (clips, width)."""

    def read(self, clips: Sequence[np.ndarray], speakers: Sequence[int]) -> list[Row]:
        """{"caption", "probabilities" by emotion or None, …} of each clip, in the order of the recording."""

    def remember(self, rows: Sequence[Row], speakers: Sequence[int]) -> None:
        """Take up rows that were read before the command was stopped."""


class Call(Protocol):
    """Does some work, in this thread or another."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """The work's result."""


def here(work: Callable[[], T], /) -> T:
    """The work done in this thread."""
    return work()


@dataclass
class CaptionReader:
    """Utterances read by a captioner; with `centre`, beside what was heard of their speaker so far.

    Probabilities are those of the model's emotion token where it has one, which the smoothing can use better
    than those at the caption's own word (docs/timeline.md); else the latter.
    """

    captioner: Captioner
    centre: bool = True
    call: Call = here
    _heard: dict[int, list[list[float]]] = field(default_factory=dict)

    @property
    def emotions(self) -> Sequence[str]:
        """Those that the model knows, else all that have words."""
        return list(self.captioner.model.config.emotions) or labels()

    def voices(self, clips: Sequence[np.ndarray]) -> Floats:
        """Mean and standard deviation over time of the encoder's first layers, (clips, width)."""
        return self.call(lambda: self._voices(clips))

    @torch.inference_mode()
    def _voices(self, clips: Sequence[np.ndarray]) -> Floats:
        inputs = self.captioner.heard(clips)
        frames, mask = inputs["audio_frames"].float(), inputs["audio_frames_mask"]
        if frames.dim() == 4:
            frames = frames[:, :, VOICE_LAYERS].flatten(2)
        weight = mask[..., None].float()
        number = weight.sum(1).clamp(min=1)
        mean = (frames * weight).sum(1) / number
        variance = (((frames - mean[:, None]) * weight) ** 2).sum(1) / number
        return torch.cat([mean, variance.sqrt()], 1).double().cpu().numpy()

    def read(self, clips: Sequence[np.ndarray], speakers: Sequence[int]) -> list[Row]:
        """As `Reader.read`; `call` decides in which thread."""
        return self.call(lambda: self._read(clips, speakers))

    @torch.inference_mode()
    def _read(self, clips: Sequence[np.ndarray], speakers: Sequence[int]) -> list[Row]:
        inputs = self.captioner.heard(clips)
        projector = self.captioner.model.model.multi_modal_projector
        if projector.emotion is None:
            said = self.captioner.sure_captions(inputs)
            return [
                {"caption": c, "named": n and n.emotion, "probabilities": n and n.probabilities}
                for c, n in said
            ]
        logits = projector.emotion_logits(inputs["audio_frames"], inputs["audio_frames_mask"]).cpu()
        self.remember([{"logits": row} for row in logits.tolist()], speakers)
        context = torch.zeros_like(logits)
        if self.centre:
            usual = projector.emotion.usual.cpu()
            known = {speaker: self._offset(speaker, usual) for speaker in set(speakers)}
            context = torch.stack([known[speaker] for speaker in speakers])
        # In place of a prior: utterances are weighed together.
        inputs["context"] = context.to(self.captioner.model.device)
        shares = (logits - context).softmax(-1).tolist()
        captions = self.captioner.said(inputs)
        return [
            {
                "caption": c,
                "named": emotion_of(c),
                "probabilities": dict(zip(self.emotions, p, strict=True)),
                "logits": row,
            }
            for c, p, row in zip(captions, shares, logits.tolist(), strict=True)
        ]

    def _offset(self, speaker: int, usual: Tensor) -> Tensor:
        return offset(torch.tensor(self._heard[speaker]), usual, "speaker")

    def remember(self, rows: Sequence[Row], speakers: Sequence[int]) -> None:
        for row, speaker in zip(rows, speakers, strict=True):
            if row.get("logits"):
                self._heard.setdefault(speaker, []).append(row["logits"])


def run_timeline(config: TimelineConfig) -> int:
    """`aligncap timeline`: write the files and print the summary."""
    out, path = Path(config.out), Path(config.file)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a sound file")
    dtype = dtype_name(config.dtype, config.device)
    captioner = Captioner.from_pretrained(config.model, config.device, dtype)
    limit = captioner.processor.max_seconds
    if config.longest > limit:
        raise UserErrors([f"longest={config.longest}: the model hears {limit:g} s at the most"])
    options = Options(
        **{name: getattr(config, name) for name in ("speakers", "dwell", "shortest", "longest", "batch_size")}
    )
    stat = path.stat()
    settings = {
        "model": model_key(config.model),
        "file": [str(path.resolve()), stat.st_size, stat.st_mtime_ns],
        **{name: getattr(config, name) for name in ("shortest", "longest", "speakers", "batch_size")},
        "centre": config.centre,
        "dtype": dtype,
        "calibration": asdict(captioner.calibration),
    }
    reader = CaptionReader(captioner, config.centre)
    with journaled(out / "timeline.json", settings, ALONE) as journal:
        found = make_timeline(path, reader, options, journal)
        write_timeline(out, found)
    write_run_record(out, "timeline", asdict(config), [path])
    print(found.summary)
    for line in (f"{len(found.utterances)} utterances, {len(found.changes)} changes", f"files: {out}"):
        print(line)
    return 0


def make_timeline(
    path: str | Path, reader: Reader, options: Options | None = None, journal: Journal | None = None
) -> Timeline:
    """The timeline of a recording.

    Args:
        journal: keeps what is finished; what it holds already is not read again.

    Raises:
        UserError: the file cannot be read.
    """
    options = options or Options()
    journal = journal or Journal(None, {})
    if "segments" not in journal:
        probabilities, seconds = _activity(path)
        found = segments_of(probabilities, seconds, options.shortest, options.longest)
        journal.write({"segments": [list(segment) for segment in found], "seconds": seconds})
    segments = [Segment(*pair) for pair in journal["segments"]]
    speakers = [0] * len(segments)
    if options.speakers != 1 and segments:
        speakers = _tell_apart(path, segments, reader, options, journal)
    rows = _read_all(path, segments, speakers, reader, options, journal)
    return assemble(segments, speakers, rows, reader.emotions, journal["seconds"], options.dwell)


def _activity(path: str | Path) -> tuple[np.ndarray, float]:
    samples = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in track(read_blocks(path), None, "listening for speech"):
            samples += len(block)
            yield block

    return activity(counted()), samples / SAMPLE_RATE


def _batches(
    path: str | Path, segments: Sequence[Segment], size: int, first: int, title: str
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """(places, clips) of consecutive segments from place `first` on, in batches that the data alone fix."""
    sounds = cut(read_blocks(path), segments[first:])
    starts = range(first, len(segments), size)
    for start in track(starts, len(starts), title):
        places = list(range(start, min(start + size, len(segments))))
        yield places, [next(sounds) for _ in places]


def _tell_apart(
    path: str | Path, segments: Sequence[Segment], reader: Reader, options: Options, journal: Journal
) -> list[int]:
    if "speakers" not in journal:
        voices = []
        for _, sounds in _batches(path, segments, options.batch_size, 0, "telling voices apart"):
            voices.append(reader.voices([_levelled(sound) for sound in sounds]))
        journal.write({"speakers": speakers_of(np.concatenate(voices), options.speakers).tolist()})
    return list(journal["speakers"])


def _levelled(sound: np.ndarray) -> np.ndarray:
    """A clip as a captioner hears it; as it is where it would be refused."""
    try:
        return prepare_samples(sound, SAMPLE_RATE)
    except AudioError:
        return sound


def _read_all(
    path: str | Path,
    segments: Sequence[Segment],
    speakers: Sequence[int],
    reader: Reader,
    options: Options,
    journal: Journal,
) -> list[Row]:
    size, first = options.batch_size, 0
    while first < len(segments) and all(
        str(i) in journal for i in range(first, min(first + size, len(segments)))
    ):
        first += size
    first = min(first, len(segments))
    reader.remember([journal[str(i)] for i in range(first)], speakers[:first])
    for places, sounds in _batches(path, segments, size, first, "captioning"):
        clips, errors = {}, {}
        for place, sound in zip(places, sounds, strict=True):
            try:
                clips[place] = prepare_samples(sound, SAMPLE_RATE)
            except AudioError as error:
                errors[place] = {"caption": None, "probabilities": None, "error": error.kind}
        rows = reader.read(list(clips.values()), [speakers[i] for i in clips]) if clips else []
        done = errors | dict(zip(clips, rows, strict=True))
        journal.write({str(place): done[place] for place in places})
    return [journal[str(i)] for i in range(len(segments))]


def assemble(
    segments: Sequence[Segment],
    speakers: Sequence[int],
    rows: Sequence[Row],
    emotions: Sequence[str],
    seconds: float,
    dwell: float = DWELL,
) -> Timeline:
    """Utterances, stretches of one emotion and changes, from what was read of each segment.

    Args:
        speakers: of each segment; rows: of `Reader.read`; emotions: that are told apart.
        seconds: length of the recording; dwell: see `inference.smoothing`.
    """
    shares = np.full((len(rows), len(emotions)), 1 / max(1, len(emotions)))
    for place, row in enumerate(rows):
        if row["probabilities"]:
            own = np.array([row["probabilities"].get(emotion, 0.0) for emotion in emotions])
            if own.sum() > 0:
                shares[place] = own / own.sum()
    centres = np.array([(segment.start + segment.end) / 2 for segment in segments])
    smoothed = np.zeros(len(rows), dtype=np.int64)
    named: set[int] = {speaker for speaker, row in zip(speakers, rows, strict=True) if row["probabilities"]}
    owners = np.array(speakers, dtype=np.int64)
    for speaker in sorted(set(speakers)):
        own = np.flatnonzero(owners == speaker)
        smoothed[own] = likeliest_path(shares[own], centres[own], dwell)
    places = np.array([affect(emotion) for emotion in emotions]).reshape(-1, 2)
    utterances = []
    for i, (segment, row) in enumerate(zip(segments, rows, strict=True)):
        valence, arousal = (round(float(x), 3) for x in shares[i] @ places)
        utterances.append(
            Utterance(
                start=segment.start,
                end=segment.end,
                speaker=speakers[i] + 1,
                caption=row["caption"],
                emotion=emotions[smoothed[i]] if speakers[i] in named else None,
                heard=row.get("named"),
                confidence=round(float(shares[i, smoothed[i]]), 4) if row["probabilities"] else None,
                valence=valence if row["probabilities"] else None,
                arousal=arousal if row["probabilities"] else None,
            )
        )
    stretches = stretches_of(utterances)
    return Timeline(round(seconds, 3), utterances, stretches, changes_of(stretches))


def stretches_of(utterances: Sequence[Utterance]) -> list[Stretch]:
    """Utterances of one speaker and emotion in a row, each with its most telling caption."""
    found: list[list[Utterance]] = []
    last: dict[int, list[Utterance]] = {}
    for one in utterances:
        own = last.get(one.speaker)
        if own is not None and own is found[-1] and own[-1].emotion == one.emotion:
            own.append(one)
        else:
            last[one.speaker] = [one]
            found.append(last[one.speaker])
    return [Stretch.of(own) for own in found]


def changes_of(stretches: Sequence[Stretch]) -> list[Change]:
    """Where a speaker's emotion is another than in the speaker's stretch before.

    The time is the middle of the pause, or where the speaker begins if others have spoken in between.
    """
    found = []
    before: dict[int, tuple[int, Stretch]] = {}
    for place, stretch in enumerate(stretches):
        if stretch.emotion is None:
            continue
        known = before.get(stretch.speaker)
        before[stretch.speaker] = place, stretch
        if known is None or known[1].emotion == stretch.emotion:
            continue
        time = (known[1].end + stretch.start) / 2 if known[0] == place - 1 else stretch.start
        found.append(Change(round(time, 2), stretch.speaker, str(known[1].emotion), stretch.emotion))
    return found

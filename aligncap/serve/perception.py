"""What is perceived of a turn: at once by the captioner, in its own thread by the senses and by Whisper.

The two do not wait for each other: the captioner has the service's queue, words and senses one thread here.
"""

from __future__ import annotations

import io
import logging
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from aligncap.audio.files import SAMPLE_RATE
from aligncap.inference.confidence import Calibration
from aligncap.models.hub import load_pretrained, resolve
from aligncap.models.model_card import read_record
from aligncap.senses.fusion import fuse, load_fusion
from aligncap.senses.moments import SEVEN, Moment, senses_of
from aligncap.senses.pictures import read_picture
from aligncap.senses.sense import FILE, KINDS, Sense, fold_labels, load_sense
from aligncap.serve.batching import Options
from aligncap.serve.listening import cues_of
from aligncap.serve.personas import clean
from aligncap.serve.service import Service
from aligncap.serve.talk_prompt import Perception, Trust
from aligncap.serve.uploads import Refused
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row

MOST_PICTURES = 5  # of a turn
MOST_PIXELS = 40_000_000
PICTURES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
TOKENS_A_SECOND = 20  # of a transcript, at most; more is no speech
BABBLE = 2.4  # text that zlib makes this much shorter repeats itself: Whisper's own limit
CAPTIONER = "captioner"  # its name among the senses
Scores = Mapping[str, np.ndarray]  # (7,) by the name of the sense
_FOLDER = re.compile(r"\S*/talk-[^/\s]*/")  # temporary ones, which mean nothing to a client
_log = logging.getLogger(__name__)


@dataclass
class Said:
    """What a client sends in a turn; `clip` is the file `sound` in samples, None where nobody speaks."""

    text: str = ""
    sound: bytes | None = None
    clip: np.ndarray | None = None
    pictures: list[bytes] = field(default_factory=list)
    video: bytes | None = None


class Whisper:
    """A Whisper model that is loaded when it is first asked."""

    def __init__(self, name: str) -> None:
        self.folder = resolve(name)

    @cached_property
    def parts(self) -> tuple[Callable[..., Row], Callable[[np.ndarray, int], list[str]]]:
        """Features of samples, and texts of features with a limit of tokens."""
        import torch
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        model = load_pretrained(WhisperForConditionalGeneration, self.folder).eval()
        tokenizer = load_pretrained(AutoTokenizer, self.folder)

        @torch.inference_mode()
        def texts(features: np.ndarray, most: int) -> list[str]:
            # without the task, transformers 5 leaves the prompt of the decoder unfinished, which then babbles
            made = model.generate(torch.as_tensor(features), task="transcribe", max_new_tokens=most)
            return list(tokenizer.batch_decode(made, skip_special_tokens=True))

        return load_pretrained(WhisperFeatureExtractor, self.folder), texts

    def __call__(self, samples: np.ndarray) -> str:
        extract, texts = self.parts
        features = extract(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"]
        most = 10 + round(TOKENS_A_SECOND * len(samples) / SAMPLE_RATE)
        return texts(features, most)[0].strip()


def mean(scores: Scores) -> np.ndarray:
    """(7,): the mean of the senses."""
    return np.mean(list(scores.values()), axis=0)


@dataclass
class Fuser:
    """How the scores of senses become one: `fuse` takes those of `senses` (or all) that there are."""

    fuse: Callable[[Scores], np.ndarray] = mean
    senses: Sequence[str] = ()
    how: str = "mean, no weights were fitted"
    trust: Mapping[str, Trust] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Fuser:
        """Weights and measured accuracies that late fusion has written: `fusion.json`, or its folder.

        Raises:
            UserError: there are none.
        """
        found = load_fusion(Path(path).parent if Path(path).is_file() else path)
        trust = {name: row.get("accuracy") for name, row in found.measured.items()}
        known = {name: own for name, row in trust.items() if (own := trust_in(row)) is not None}
        return cls(partial(fuse, fusion=found), found.senses, "late fusion, weights fitted", known)


def trust_in(row: object) -> Trust | None:
    """The accuracy that a record holds as {"value", "low", "high"}; None: it holds none."""
    if not isinstance(row, dict) or not isinstance(row.get("value"), float):
        return None
    return Trust(row["value"], row.get("low"), row.get("high"))


def measured(folder: str | Path) -> Trust | None:
    """The accuracy that `metrics.json` in the folder of a model or a sense holds; None: not measured."""
    record = read_record(Path(folder) / "metrics.json")
    if isinstance(systems := record.get("systems"), dict):  # of which the sense's settings name its own
        record = systems.get(read_record(Path(folder) / FILE).get("scores")) or {}
    found = (trust_in(record.get(name)) for name in ("emotion_accuracy", "test_accuracy", "accuracy"))
    return next((trust for trust in found if trust is not None), None)


class Perceiver:
    """Captioner, Whisper and senses.

    Args:
        senses: by kind ("text", "voice", "face").
        trust: measured accuracies by sense, the captioner's among them.
        transcribe: None: nothing is written down.
    """

    def __init__(
        self,
        service: Service,
        senses: Mapping[str, Sense] | None = None,
        fusion: Fuser | None = None,
        trust: Mapping[str, Trust] | None = None,
        transcribe: Callable[[np.ndarray], str] | None = None,
    ) -> None:
        self.service, self.senses, self.fusion = service, dict(senses or {}), fusion or Fuser()
        self.trust = {**(trust or {}), **self.fusion.trust}
        self.transcribe = transcribe
        self.model = service.name_of(None)
        self._thread = ThreadPoolExecutor(1, "aligncap-senses")

    def caption(self, clip: np.ndarray) -> Future[Row]:
        """The captioner's row, from the service's queue; `with_caption` takes it.

        Raises:
            Refused: 503, the server is shutting down.
        """
        return self.service.caption(clip, Options(self.model))

    def with_caption(self, seen: Perception, clip: np.ndarray, row: Row) -> None:
        """Put the caption, how sure it is, and measured cues into a perception."""
        captioner = self.service.captioners[self.model]
        seen.caption, seen.emotion, seen.confidence = row["caption"], row["emotion"], row["confidence"]
        seen.calibrated = captioner.calibration != Calibration()
        seen.cues = cues_of(clip, row["caption"])["words"]
        seven = fold_labels(row.get("probabilities") or {})
        if seven is None:
            seen.missing[CAPTIONER] = "the caption names none of the seven emotions"
        else:
            seen.scores = {CAPTIONER: _named(seven), **seen.scores}

    def deep(self, said: Said) -> Future[Perception]:
        """Words and senses of a turn, in their own thread, one turn after the other."""
        return self._thread.submit(self._deep, said)

    def _deep(self, said: Said) -> Perception:
        seen = Perception()
        if said.clip is not None and self.transcribe is not None:
            try:
                words = clean(self.transcribe(said.clip))
                babbles = len(words) / len(zlib.compress(words.encode())) > BABBLE
                if babbles:
                    seen.missing["words"] = "could not be made out"
                seen.transcript = None if babbles else words or None
            except Exception as error:
                _log.error("words could not be written down: %s", type(error).__name__)
                seen.missing["words"] = "could not be written down"
        with tempfile.TemporaryDirectory(prefix="talk-") as folder:
            moment = _moment(Path(folder), said, seen.transcript)
            there = senses_of(moment)
            for name, sense in self.senses.items():
                if name in there:
                    self._read(name, sense, moment, seen)
                else:
                    seen.missing[name] = "nothing was sent for it"
        if "face" in there and "face" not in self.senses:
            seen.missing["face"] = "no face sense is loaded (--senses)"
        return seen

    def _read(self, name: str, sense: Sense, moment: Moment, seen: Perception) -> None:
        try:
            (scores,) = sense.read([moment]).scores
            if name == "face" and moment.pictures:
                seen.box = face_box(sense, moment.pictures[-1])
        except UserError as error:
            seen.missing[name] = clean(_FOLDER.sub("", str(error)), 150)
            return
        except Exception as error:
            _log.error("the sense %s failed: %s", name, type(error).__name__)
            seen.missing[name] = "it failed"
            return
        if np.isnan(scores).any():
            seen.missing[name] = {"face": "no face was found"}.get(name, "it found nothing to go on")
        else:
            seen.scores[name] = _named(scores)

    def fused(self, seen: Perception) -> None:
        """Put what the senses say together into a perception."""
        scores = {name: np.array([row[e] for e in SEVEN]) for name, row in seen.scores.items()}
        fusion = self.fusion
        known = {name: row for name, row in scores.items() if name in fusion.senses or not fusion.senses}
        if not known:  # the fusion knows none of what is there
            known, fusion = scores, Fuser()
        if known:
            names = ", ".join(known)
            seen.how = f"{names}: {fusion.how}" if len(scores) > 1 else f"{names} alone"
            seen.fused = _named(fusion.fuse(known))

    def close(self) -> None:
        """Begin nothing new."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def load_perceiver(
    service: Service, folder: Path, senses: Sequence[str], fusion: str | None, words: str | None
) -> Perceiver:
    """Senses, fusion and Whisper of the options.

    Args:
        folder: of the first model, which may hold metrics.json.

    Raises:
        UserError: one of them cannot be loaded, or two are of a kind.
    """
    found: dict[str, Sense] = {}
    trust = {CAPTIONER: measured(folder)}
    for name in senses:
        sense = load_sense(name)
        if sense.kind in found:
            raise UserError(f"{name}: a second sense of {sense.kind}; one of each of {', '.join(KINDS)}")
        found[sense.kind], trust[sense.kind] = sense, measured(name)
    known = {name: t for name, t in trust.items() if t is not None}
    read = Fuser.read(fusion) if fusion else None
    return Perceiver(service, found, read, known, Whisper(words) if words else None)


def check_picture(data: bytes) -> str:
    """The ending of a picture's kind.

    Raises:
        Refused: 415, it is none of PICTURES, broken, or has too many pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=list(PICTURES)) as picture:  # reads the header alone
            width, height = picture.size
            kind = str(picture.format)
    except Exception:  # Pillow's own, and those of its readers
        raise Refused(415, f"a picture that is none; send {', '.join(PICTURES)}") from None
    if width * height > MOST_PIXELS:
        raise Refused(413, f"a picture of {width} x {height}; {MOST_PIXELS / 1e6:g} megapixels at the most")
    return PICTURES[kind]


def face_box(sense: Sense, picture: Path) -> tuple[float, float, float, float] | None:
    """Left, top, width and height of the largest face, as shares of the picture; None: no face, or a sense
    that has no `boxes` (of pixels: rows of score, left, top, right, bottom, the largest first)."""
    boxes = getattr(sense, "boxes", None)
    if boxes is None:
        return None
    pixels = read_picture(picture)
    height, width = pixels.shape[:2]
    for _, left, top, right, bottom in boxes(pixels)[:1].tolist():
        return left / width, top / height, (right - left) / width, (bottom - top) / height
    return None


def _moment(folder: Path, said: Said, transcript: str | None) -> Moment:
    """The turn as files, which senses read."""

    def put(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    sound = put("sound", said.sound) if said.sound and said.clip is not None else None
    return Moment(
        "turn",
        text=clean(f"{said.text} {transcript or ''}") or None,
        audio=str(sound) if sound else None,
        pictures=[put(f"{n}{check_picture(p)}", p) for n, p in enumerate(said.pictures[:MOST_PICTURES])],
        video=put("video", said.video) if said.video else None,
    )


def _named(scores: np.ndarray) -> dict[str, float]:
    return {name: round(float(p), 4) for name, p in zip(SEVEN, scores, strict=True)}

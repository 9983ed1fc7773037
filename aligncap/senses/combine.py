"""`aligncap senses combine`: moments of words, voice and face made of three corpora.

For where no corpus with all three is at hand. A moment is a clip with a comment and a subject's pictures of
the same emotion. Senses are then independent given the emotion, which those of a real person at one time are
not: what is measured on such moments is how fusion works, not how well it would do among people.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aligncap.senses.measures import refuse_absent
from aligncap.senses.moments import SEVEN, Moment, read_moments
from aligncap.utils.errors import UserError, UserErrors, natural
from aligncap.utils.io import Row, write_jsonl
from aligncap.utils.options import Config, NaturalInt, PositiveInt, option


@dataclass
class CombineConfig(Config):
    """Draw for each clip of a voice corpus a comment and a subject's pictures of the same emotion.

    Run it once a part, with that part of each corpus. Subjects are dealt out to the speakers of the clips, so
    that no two speakers of the new moments, "ravdess-21+S010+S055", share a voice or a face; a clip whose
    speaker's subjects do not show its emotion is left out and counted.

    Examples:
        aligncap senses combine --text text.jsonl --voice voice.jsonl --face ck.jsonl --out made.jsonl
    """

    text: str = option(help="Moments with what was said.")
    voice: str = option(help="Moments with sound files, labels and speakers.")
    face: str = option(help="Moments with pictures or videos, labels and speakers.")
    out: str = option(help="File of moments to write.")
    repeats: PositiveInt = option(1, "Moments of each clip, with other comments and pictures.")
    seed: NaturalInt = option(0, "Seed of what is drawn.")


def run_combine(config: CombineConfig) -> int:
    """`aligncap senses combine`. Raises UserError: no speakers, or too few subjects or emotions in common."""
    files = {"text": config.text, "voice": config.voice, "face": config.face}
    refuse_absent(*files.values())
    parts = {sense: [m for m in read_moments(path, [sense]) if m.label] for sense, path in files.items()}
    if errors := [
        f"{files[sense]}: {m.id} has no speaker"
        for sense in ("voice", "face")
        for m in parts[sense]
        if not m.speaker
    ]:
        raise UserErrors(errors[:20])
    common = set(SEVEN).intersection(*({m.label for m in part} for part in parts.values()))
    if not common:
        raise UserError(f"{', '.join(files.values())}: no emotion is in all three")
    made, left = combine(parts["text"], parts["voice"], parts["face"], common, config.repeats, config.seed)
    out = Path(config.out)
    root = os.path.commonpath([os.path.dirname(path) for m in made for path in _files(m)])
    write_jsonl(out, [_row(m, root, out) for m in made])
    speakers = len({m.speaker for m in made})
    print(f"{out}: {len(made)} moments of {speakers} speakers, of {', '.join(sorted(common))}")
    others = sum(m.label not in common for m in parts["voice"])
    print(f"left out: {others} clips of emotions that a corpus lacks, {left} for which there was no face")
    return 0


def combine(
    texts: Sequence[Moment],
    voices: Sequence[Moment],
    faces: Sequence[Moment],
    labels: set[str],
    repeats: int = 1,
    seed: int = 0,
) -> tuple[list[Moment], int]:
    """Moments of clips, comments and pictures, all of a label of `labels`; and how many clips found no face.

    Raises:
        UserError: fewer subjects than speakers.
    """
    rng = random.Random(seed)
    comments = {label: [m for m in texts if m.label == label] for label in sorted(labels)}
    for own in comments.values():
        rng.shuffle(own)
    speakers = sorted({str(m.speaker) for m in voices if m.label in labels}, key=natural)
    shown: dict[str, dict[str, list[Moment]]] = defaultdict(lambda: defaultdict(list))
    for face in faces:
        if face.label in labels:
            shown[str(face.speaker)][str(face.label)].append(face)
    if len(shown) < len(speakers):
        raise UserError(
            f"{len(shown)} subjects for {len(speakers)} speakers: each speaker needs one of their own"
        )
    subjects = sorted(shown)
    rng.shuffle(subjects)
    subjects.sort(key=lambda subject: -len(shown[subject]))  # who shows much is dealt first, to all alike
    dealt = {speaker: sorted(subjects[k :: len(speakers)], key=natural) for k, speaker in enumerate(speakers)}
    made, left, used = [], 0, dict.fromkeys(comments, 0)
    for voice in voices:
        if (label := voice.label) not in labels or label is None:
            continue
        cast = dealt[str(voice.speaker)]
        choices = [face for subject in cast for face in shown[subject][label]]
        left += not choices
        for k in range(repeats if choices else 0):
            face, text = rng.choice(choices), comments[label][used[label] % len(comments[label])]
            used[label] += 1
            name = voice.id if not k else f"{voice.id}-{k + 1}"
            speaker = "+".join([str(voice.speaker), *cast])
            row = (name, label, speaker, text.language, text.text, voice.audio, face.pictures, face.video)
            made.append(Moment(*row))
    return made, left


def _files(moment: Moment) -> list[str]:
    return [str(path) for path in (moment.audio, *moment.pictures, moment.video) if path]


def _row(moment: Moment, root: str, out: Path) -> Row:
    def inside(path: object) -> str:
        return Path(os.path.relpath(str(path), root)).as_posix()

    row: Row = {
        "id": moment.id,
        "root": Path(os.path.relpath(root, os.path.realpath(out.parent))).as_posix(),
        "audio": inside(moment.audio),
        "corpus": "made",
        "speaker": moment.speaker,
        "language": moment.language,
        "transcript": moment.text,
        "emotion": moment.label,
        "pictures": [inside(path) for path in moment.pictures],
    }
    return row | ({"video": inside(moment.video)} if moment.video else {})

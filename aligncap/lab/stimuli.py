"""Clips and trials of the conflict study: what is heard, what is told, and how it is asked.

A is the emotion of the voice, T the one that the text tells. T stands in the instruction ("judge it as sad")
or in the transcript, as emotional words that the speaker is said to speak.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aligncap.data.manifest import audio_path, read_manifest
from aligncap.lab.models import Question
from aligncap.text.prompts import Language
from aligncap.text.questions import label_word
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import load_data

FILE = "conflict.yaml"
Condition = Literal["audio", "conflict", "consistent"]
Place = Literal["instruction", "transcript"]
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus")


@dataclass
class Stimulus:
    """One clip whose words carry no emotion, and who speaks it; `corpus` as in a manifest."""

    id: str
    path: Path
    corpus: str
    speaker: str | None
    emotion: str
    intensity: str
    language: str


@dataclass(frozen=True)
class Trial:
    """One prompt about one clip.

    told: T; of "audio", where only the audio counts, the T that is not told but compared.
    wording: index of the lists in data/conflict.yaml.
    remedy: index of a prompt that may make the voice win; None: the plain question.
    """

    clip: Stimulus
    condition: Condition
    language: Language
    wording: int
    place: Place = "instruction"
    told: str | None = None
    remedy: int | None = None

    @property
    def key(self) -> str:
        """What the trial's row is called in the journal."""
        parts = (
            self.clip.id,
            self.condition,
            self.place,
            self.told,
            self.language,
            self.wording,
            self.remedy,
        )
        return "|".join("-" if part is None else str(part) for part in parts)

    def question(self, begun: str = "") -> Question:
        """The prompt, with the answer's beginning where the model needs one."""
        words = load_data(FILE)[self.language]
        told = None if self.condition == "audio" else self.told
        kind = "told" if told and self.place == "instruction" else "audio"
        named = label_word(told, self.language) if told else ""
        text = str(words[kind][self.wording]).format(emotion=named)
        if self.remedy is not None:
            text = str(words["remedies"][self.remedy]).format(question=text)
        said = str(words["words"][told]) if told and self.place == "transcript" else None
        return Question(text, said, begun)

    @property
    def named(self) -> str:
        """The text that tells T, as it stands in the prompt; "" where nothing does."""
        if self.told is None or self.condition == "audio":
            return ""
        if self.place == "transcript":
            return str(load_data(FILE)[self.language]["words"][self.told])
        return label_word(self.told, self.language)


def wordings(language: Language) -> int:
    return len(load_data(FILE)[language]["audio"])


def remedies(language: Language) -> int:
    return len(load_data(FILE)[language]["remedies"])


# ---- clips


def read_stimuli(source: Path, emotions: Sequence[str]) -> list[Stimulus]:
    """Clips of a manifest, or of a folder by the names of its files, that have one of `emotions`.

    A folder's files are named EMOTION[-strong]_LANGUAGE_VOICE[_ANYTHING].wav, as happy-strong_en_anna.wav.

    Raises:
        UserError: neither, or fewer than two of the emotions in it.
        UserErrors: every file whose name says no emotion; clips without a label.
    """
    found = _of_folder(source) if source.is_dir() else _of_manifest(source)
    kept = [s for s in found if s.emotion in emotions]
    if len({s.emotion for s in kept}) < 2:
        has = ", ".join(sorted({s.emotion for s in found})) or "none"
        raise UserError(f"{source}: a conflict needs two of {', '.join(emotions)}; its labels are {has}")
    return kept


def _of_manifest(manifest: Path) -> list[Stimulus]:
    found = []
    for u in read_manifest(manifest):
        if u.emotion:
            who = (u.corpus, u.speaker, u.emotion, u.intensity or "normal", u.language)
            found.append(Stimulus(u.id, audio_path(manifest, u), *who))
    return found


def _of_folder(folder: Path) -> list[Stimulus]:
    known, found, errors = load_data("labels.yaml")["labels"], [], []
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SOUNDS)
    for path in files:
        name = path.stem.split("_")
        emotion, _, strength = name[0].partition("-")
        if len(name) < 3 or emotion not in known or strength not in ("", "normal", "strong"):
            errors.append(
                f"{path}: name it EMOTION[-strong]_LANGUAGE_VOICE{path.suffix}, as happy_en_anna.wav"
            )
            continue
        who = (folder.name, name[2], emotion, strength or "normal", name[1])
        found.append(Stimulus(path.relative_to(folder).with_suffix("").as_posix(), path, *who))
    if errors:
        raise UserErrors(errors)
    if not files:
        raise UserError(f"{folder}: no sound file in it ({', '.join(SOUNDS)})")
    return found


def choose_stimuli(stimuli: Sequence[Stimulus], each: int, seed: int) -> list[Stimulus]:
    """Up to `each` clips of every speaker and emotion, drawn by `seed`, intensities in turn."""
    groups: dict[tuple[str, str], list[Stimulus]] = {}
    for s in sorted(stimuli, key=lambda s: s.id):
        groups.setdefault((s.speaker or s.id, s.emotion), []).append(s)
    rng, chosen = random.Random(seed), []
    for number, name in enumerate(sorted(groups)):
        group = groups[name]
        rng.shuffle(group)
        kinds = sorted({s.intensity for s in group})
        queues = [[s for s in group if s.intensity == kind] for kind in kinds]
        for turn in range(each):
            queue = queues[(number + turn) % len(queues)] or max(queues, key=len)
            if queue:
                chosen.append(queue.pop())
    return chosen


def many_voices(stimuli: Iterable[Stimulus]) -> list[str]:
    """Names of the speakers, sorted; a clip of unknown speaker stands for one."""
    return sorted({voice_of(s) for s in stimuli})


def voice_of(stimulus: Stimulus) -> str:
    """Who speaks, told apart over corpora."""
    return f"{stimulus.corpus}/{stimulus.speaker or stimulus.id}"


# ---- trials


def make_trials(
    clips: Sequence[Stimulus],
    emotions: Sequence[str],
    languages: Sequence[Language],
    places: Sequence[Place],
    conflicts: int,
    seed: int,
) -> list[Trial]:
    """Of each clip one question about the audio alone in each language, `conflicts` that tell another emotion
    (places, languages, told emotions and wordings in turn), and one that tells its own for each place.

    Every told emotion, place, language and wording comes as often as others over the clips of an emotion.
    """
    rng = random.Random(seed)
    turns: dict[str, int] = {}
    trials: list[Trial] = []
    cells: dict[str, list[tuple[str, Place, Language, int]]] = {}
    for emotion in emotions:
        others = [e for e in emotions if e != emotion]
        grid = [
            (told, place, language, wording)
            for wording in range(wordings("en"))
            for told in others
            for place in places
            for language in languages
        ]
        rng.shuffle(grid)
        # in turn over places and languages, so that a few trials of a clip have them all
        kinds = [(p, la) for p in places for la in languages]
        queues = {k: [c for c in grid if (c[1], c[2]) == k] for k in kinds}
        cells[emotion] = [queues[k][i] for i in range(len(grid) // len(kinds)) for k in kinds]
    for clip in clips:
        turn = turns.get(clip.emotion, 0)
        own = cells[clip.emotion]
        untold = own[turn * conflicts % len(own)][0]
        for i, language in enumerate(languages):
            trials.append(Trial(clip, "audio", language, (turn + i) % wordings(language), told=untold))
        for i in range(min(conflicts, len(own))):  # no prompt twice
            told, place, language, wording = own[(turn * conflicts + i) % len(own)]
            trials.append(Trial(clip, "conflict", language, wording, place, told))
        for i, place in enumerate(places):
            language = languages[(turn + i) % len(languages)]
            wording = turn % wordings(language)
            trials.append(Trial(clip, "consistent", language, wording, place, clip.emotion))
        turns[clip.emotion] = turn + 1
    return trials


def halves(voices: Sequence[str], seed: int) -> tuple[set[str], set[str]]:
    """Speakers to choose a remedy on, and those to measure it on."""
    shuffled = list(voices)
    random.Random(seed).shuffle(shuffled)
    cut = len(shuffled) // 2
    return set(shuffled[:cut]), set(shuffled[cut:])


def counts(trials: Sequence[Trial]) -> Mapping[str, int]:
    """How many trials there are of each condition."""
    return {c: sum(t.condition == c for t in trials) for c in ("audio", "conflict", "consistent")}

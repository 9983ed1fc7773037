"""The parts of a diagnosis that ask a model: which questions, about which sounds, kept row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from aligncap.audio.files import SAMPLE_RATE, load_audio
from aligncap.data.manifest import Utterance
from aligncap.inference.captioner import batches_by_size
from aligncap.inference.conditions import noise
from aligncap.lab.asking import Asked, Reply, Subject
from aligncap.lab.faults import FAULTS, fit
from aligncap.lab.label_answers import read_said
from aligncap.text.answers import NONE
from aligncap.text.prompts import Language
from aligncap.text.questions import label_question, label_word
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, load_data
from aligncap.utils.journal import Journal
from aligncap.utils.progress import track

FILE = "diagnose.yaml"
LABEL_TOKENS, ANSWER_TOKENS, DESCRIPTION_TOKENS = 12, 30, 40  # of answers, at most
HOP = "hop"
HOP_SHARE = 2 / 3  # 6.67 ms instead of 10
HOP_TITLE = "mel frames every 6.67 ms"
PRIOR_SECONDS = 3.0  # of silence
OWN = "own description"

Work = Callable[[Sequence[Utterance], Sequence[np.ndarray]], list[Row]]


@dataclass(frozen=True)
class Wording:
    """One way to ask for a label; `question` None: the model's own description, whose emotion counts."""

    name: str
    language: Language
    question: str | None

    @property
    def own(self) -> bool:
        return self.question is None


@dataclass(frozen=True)
class Collector:
    """The model, the clips' files and what is known already."""

    subject: Subject
    paths: Mapping[str, Path]
    journal: Journal
    batch_size: int = 8

    def over(self, kind: str, clips: Sequence[Utterance], work: Work, title: str = "") -> list[Row]:
        """A row of `kind` for each clip, those that are missing made by `work` of a batch."""
        missing = [u for u in clips if f"{kind}\t{u.id}" not in self.journal]
        batches = batches_by_size([self.paths[u.id] for u in missing], self.batch_size)
        for batch in track(batches, None, title or kind):
            chosen = [missing[i] for i in batch]
            rows = work(chosen, [self.samples(u) for u in chosen])
            self.journal.write({f"{kind}\t{u.id}": row for u, row in zip(chosen, rows, strict=True)})
        return [self.journal[f"{kind}\t{u.id}"] for u in clips]

    def samples(self, u: Utterance) -> np.ndarray:
        """The clip at 16 kHz, levelled, no longer than the model takes."""
        return fit(load_audio(self.paths[u.id]), self.subject.max_seconds)


def wordings(labels: Sequence[str], languages: Sequence[Language]) -> list[Wording]:
    """The labels to choose from given and not given, in each language, and the model's own question."""
    choices = [Wording(f"choice, {lang}", lang, label_question(labels, lang)) for lang in languages]
    free = [Wording(f"label, {lang}", lang, _asks_for_a_label(lang)) for lang in languages]
    return [*choices, *free, Wording(OWN, languages[0], None)]


def _asks_for_a_label(language: Language) -> str:
    return str(load_data("instructions.yaml")[language]["label"][0])


def askable(subject: Subject) -> str:
    """Why the model cannot be asked anything but its own question; "": it can."""
    sound = np.zeros(SAMPLE_RATE, dtype=np.float32)
    try:
        subject.ask([sound], [Asked([_asks_for_a_label("en")], 1)])
    except UserError as error:
        return str(error)
    return ""


def asked_of(subject: Subject, wording: Wording, clips: int, samples: int = 0) -> list[Asked]:
    """What is asked for one wording: of a description also its next word after "The speaker sounds"."""
    if not wording.own:
        return [Asked([wording.question] * clips, LABEL_TOKENS, samples)]
    begun = str(load_data(FILE)[subject.language]["begun"])
    return [Asked([None] * clips, DESCRIPTION_TOKENS), Asked([None] * clips, 1, begun=begun)]


def _answer(replies: Sequence[Reply]) -> Row:
    row: Row = {"said": replies[0].said, "scores": replies[-1].scores.round(4).tolist()}
    return row | ({"samples": replies[0].samples} if replies[0].samples else {})


def ask_wordings(
    subject: Subject, clips: Sequence[np.ndarray], chosen: Sequence[Wording], samples: int = 0
) -> list[dict[str, Row]]:
    """Of each clip by wording {"said", "scores"}; the first wording's with "samples"."""
    asked = [asked_of(subject, w, len(clips), 0 if place else samples) for place, w in enumerate(chosen)]
    found = subject.ask(clips, [one for part in asked for one in part])
    rows = []
    for replies in found:
        rest = list(replies)
        row = {}
        for wording, part in zip(chosen, asked, strict=True):
            row[wording.name] = _answer(rest[: len(part)])
            rest = rest[len(part) :]
        rows.append(row)
    return rows


# ---- labels


def collect_labels(
    about: Collector, clips: Sequence[Utterance], chosen: Sequence[Wording], samples: int
) -> list[Row]:
    """Of each clip by wording the answer, the scores of labels, and of the first wording drawn answers."""

    def work(_: Sequence[Utterance], sounds: Sequence[np.ndarray]) -> list[Row]:
        return list(ask_wordings(about.subject, sounds, chosen, samples))

    return about.over("labels", clips, work, "labels")


def collect_priors(about: Collector, chosen: Sequence[Wording]) -> Row:
    """Where there is nothing to hear: {"silence": {wording: {"said", "scores"}}, "contentless": …}.

    "silence" is the question asked of silence; "contentless" asks "N/A" of silence, and for a description
    nothing at all.
    """
    if "priors" not in about.journal:
        sound = np.zeros(round(PRIOR_SECONDS * SAMPLE_RATE), dtype=np.float32)
        silent = ask_wordings(about.subject, [sound], chosen)[0]
        named = [w for w in chosen if not w.own]
        empty: Row = {}
        if named:
            nothing = str(load_data(FILE)["contentless"])
            reply = about.subject.ask([sound], [Asked([nothing], 1)])[0]
            empty = {w.name: _answer(reply) for w in named}
        about.journal.write({"priors": {"silence": silent, "contentless": empty}})
    found: Row = about.journal["priors"]
    return found


def main_wording(chosen: Sequence[Wording], rows: Sequence[Row], labels: Sequence[str]) -> Wording:
    """The wording that the other parts use: the first that is mostly answered with a label, else the one
    with the fewest invalid answers. Whether answers are right plays no part."""
    invalid = {}
    for wording in chosen:
        said = read_said([row[wording.name]["said"] for row in rows], labels, lenient=wording.own)
        invalid[wording.name] = said.count(NONE) / max(1, len(said))
    answered = (w for w in chosen if invalid[w.name] < 0.5)
    return next(answered, min(chosen, key=lambda w: invalid[w.name]))


# ---- prompts


def collect_prompts(about: Collector, clips: Sequence[Utterance], main: Wording, can_ask: bool) -> list[Row]:
    """Of each clip what is said to other questions, and to noise in its place.

    Returns:
        "own", "noise" (the main wording, of noise with the clip's spectrum) and "suggested", a label; of a
        model that can be asked also "none", "unrelated", and "leading", which suggests that label.
    """
    subject = about.subject

    def work(own: Sequence[Utterance], sounds: Sequence[np.ndarray]) -> list[Row]:
        words, number = load_data(FILE)[main.language], len(own)
        asked = {"own": Asked([None] * number, DESCRIPTION_TOKENS)}
        suggested = [_other_label(u, subject.labels) for u in own]
        if can_ask:
            leading = [leading_question(label, subject.labels, main.language) for label in suggested]
            asked |= {
                "none": Asked([""] * number, DESCRIPTION_TOKENS),
                "unrelated": Asked([str(words["unrelated"])] * number, ANSWER_TOKENS),
                "leading": Asked(leading, LABEL_TOKENS),
            }
        replies = subject.ask(sounds, list(asked.values()))
        made = [noise(x, crc32(u.id.encode())) for u, x in zip(own, sounds, strict=True)]
        noisy = ask_wordings(subject, made, [main])
        rows = []
        for reply, other, label in zip(replies, noisy, suggested, strict=True):
            row: Row = {name: one.said for name, one in zip(asked, reply, strict=True)}
            rows.append(row | {"noise": other[main.name]["said"], "suggested": label})
        return rows

    return about.over("prompts", clips, work, "prompts")


def _other_label(u: Utterance, labels: Sequence[str]) -> str:
    others = [label for label in labels if label != u.emotion]
    return others[crc32(u.id.encode()) % len(others)]


def leading_question(label: str, labels: Sequence[str], language: Language) -> str:
    """The question for a label that gives an answer away, which may be wrong."""
    listed = load_data("instructions.yaml")[language]["separator"].join(
        label_word(name, language) for name in labels
    )
    return str(load_data(FILE)[language]["leading"]).format(label=label_word(label, language), labels=listed)


# ---- faults


def collect_faults(
    about: Collector, clips: Sequence[Utterance], main: Wording, chosen: Sequence[str]
) -> dict[str, list[Row]]:
    """Of each chosen fault the answers and scores of the main wording; one that the features cannot have is
    left out."""
    subject = about.subject

    def asking(change: Callable[[np.ndarray], np.ndarray]) -> Work:
        def work(_: Sequence[Utterance], sounds: Sequence[np.ndarray]) -> list[Row]:
            heard = [fit(change(x), subject.max_seconds) for x in sounds]
            return [row[main.name] for row in ask_wordings(subject, heard, [main])]

        return work

    found = {}
    for name, fault in FAULTS.items():
        if name not in chosen:
            continue
        found[name] = about.over(f"fault {name}", clips, asking(fault.apply), f"fault: {fault.title}")
    if HOP in chosen and subject.with_hop(HOP_SHARE) is not None:

        def longer(x: np.ndarray) -> np.ndarray:  # as long as its frames will say that it is
            return np.pad(x, (0, round(len(x) / HOP_SHARE) - len(x)))

        with subject.with_hop(HOP_SHARE) or nullcontext():
            found[HOP] = about.over(f"fault {HOP}", clips, asking(longer), f"fault: {HOP_TITLE}")
    return found


# ---- words


def transcribing(language: str) -> str:
    """The instruction to write down the words."""
    return str(load_data(FILE)["zh" if language.startswith("zh") else "en"]["transcribe"])


def collect_words(about: Collector, clips: Sequence[Utterance]) -> list[Row]:
    """Of each clip {"said"}: what the model writes when it is asked for the words."""

    def work(own: Sequence[Utterance], sounds: Sequence[np.ndarray]) -> list[Row]:
        asked = Asked([transcribing(u.language) for u in own], DESCRIPTION_TOKENS)
        return [{"said": reply.said} for (reply,) in about.subject.ask(sounds, [asked])]

    return about.over("words", clips, work, "words")

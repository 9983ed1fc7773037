"""From a corpus folder to a manifest."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from aligncap.audio.files import Fingerprint, fingerprint
from aligncap.data.corpora.registry import Problem, read_corpus
from aligncap.data.manifest import Utterance, audio_path, write_manifest
from aligncap.data.split import duplicates
from aligncap.utils.errors import UserError, UserErrors, natural
from aligncap.utils.options import Config, named_values, option
from aligncap.utils.progress import track

_SHOWN = 5  # examples of each kind of problem in the summary
_KINDS = {
    "missing": "listed but not there",
    "name": "names not understood or not listed",
    "label": "labels not understood",
    "audio": "sound files that cannot be used",
}


@dataclass
class PrepareReport:
    """What `prepare` found. Counts are of clips; "?" counts those of which the corpus does not say it."""

    corpus: str
    out: Path
    clips: int
    hours: float
    emotions: dict[str, int]
    speakers: dict[str, int]
    genders: dict[str, int]
    languages: dict[str, int]
    problems: list[Problem]
    duplicates: list[list[str]]

    def of_kind(self, kind: str) -> list[str]:
        """Problems of one kind: "missing", "name", "label" or "audio"."""
        return [problem.what for problem in self.problems if problem.kind == kind]

    def summary(self) -> str:
        """The report for people, a few lines."""
        emotions, genders, languages = (
            ", ".join(f"{key} {value}" for key, value in counts.items())
            for counts in (self.emotions, self.genders, self.languages)
        )
        size = f"{self.clips} clips of {self.corpus}, {self.hours:.2f} hours, {len(self.speakers)} speakers"
        lines = [
            f"{self.out}: {size}",
            f"emotions: {emotions}",
            f"genders: {genders}; languages: {languages}",
        ]
        for kind, meaning in _KINDS.items():
            if found := self.of_kind(kind):
                more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                lines.append(f"left out, {meaning}: {len(found)} ({'; '.join(found[:_SHOWN])}{more})")
        return "\n".join([*lines, *(f"identical clips: {', '.join(ids)}" for ids in self.duplicates)])


@dataclass
class PrepareConfig(Config):
    """Write the manifest of a corpus folder: who speaks which words in which emotion, for every sound file.

    Corpora are ravdess, nemo, crema-d, emodb, emovo, esd, jl-corpus, savee, tess, meld, iemocap, secap,
    emosec, librittsp, csv and jsonl (a table of your own), synthetic (speech that is made on your machine),
    and those that installed packages add. Files that are listed but absent, or cannot be decoded, are left
    out and named.

    Examples:
        aligncap prepare ravdess ~/corpora/ravdess --out ravdess.jsonl
        aligncap prepare synthetic runs/speech --out synthetic.jsonl
        aligncap prepare csv clips.csv --columns audio=clip captions=one+two --out clips.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("corpus", "folder")

    corpus: str = option(help="Name of the corpus.")
    folder: str = option(help="Its folder; of csv and jsonl the table itself or its folder.")
    out: str = option(help="Manifest to write.")
    columns: list[str] = option([], "FIELD=COLUMN of csv and jsonl; COLUMN+COLUMN for several captions.")


def run_prepare(config: PrepareConfig) -> int:
    """`aligncap prepare`."""
    columns = dict(named_values(config.columns, "columns"))
    print(prepare(config.corpus, config.folder, config.out, columns=columns).summary())
    return 0


def prepare(
    corpus: str, folder: str | Path, out: str | Path, *, columns: Mapping[str, str] | None = None
) -> PrepareReport:
    """Write the manifest of a corpus and report what is in it.

    Supports: every name of `aligncap.data.corpora.corpora()`. Clips that are listed but absent, named
    otherwise or not decodable are left out and reported.

    Args:
        folder: where the corpus lies; for csv and jsonl the table itself or its folder.
        out: the manifest to write. If its folder holds the corpus, `root` is relative and both can be moved.
        columns: field -> column, for csv and jsonl only.

    Raises:
        UserError: unknown corpus, or the folder is not that corpus; nothing is written.
        UserErrors: two clips with the same id; nothing is written.
    """
    utterances, problems = read_corpus(corpus, folder, columns)
    _refuse_equal_ids(utterances)
    beside = Path(out).resolve().parent
    for u in utterances:
        if Path(u.root).is_relative_to(beside):
            u.root = Path(u.root).relative_to(beside).as_posix()
    utterances.sort(key=lambda u: natural(u.id))
    kept: list[Utterance] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        facts = pool.map(lambda u: _facts(u, out), utterances)
        for u, found in zip(utterances, track(facts, len(utterances), "reading clips"), strict=True):
            if isinstance(found, str):
                problems.append(Problem("audio", found))
                continue
            u.duration, u.bytes, u.mtime_ns, u.sha256, u.extra["samples_sha256"] = found
            kept.append(u)
    if not kept:
        why = problems[-1].what
        raise UserError(f"{folder}: no clip of {len(utterances)} can be used: {why}. Nothing was written")
    write_manifest(out, kept)
    return PrepareReport(
        corpus=corpus,
        out=Path(out),
        clips=len(kept),
        hours=sum(u.duration or 0.0 for u in kept) / 3600,
        emotions=_count(u.emotion for u in kept),
        speakers=_count(u.speaker for u in kept),
        genders=_count(u.gender for u in kept),
        languages=_count(u.language for u in kept),
        problems=problems,
        duplicates=duplicates(kept),
    )


def _facts(utterance: Utterance, out: str | Path) -> Fingerprint | str:
    """What the sound file says, or why the clip is unusable."""
    try:
        return fingerprint(audio_path(out, utterance))
    except UserError as error:
        return str(error)


def _refuse_equal_ids(utterances: Iterable[Utterance]) -> None:
    audio: dict[str, list[str]] = defaultdict(list)
    for u in utterances:
        audio[u.id].append(u.audio)
    errors = [f"{id}: {' and '.join(paths)} have this id" for id, paths in audio.items() if len(paths) > 1]
    if errors:
        many = f"{len(errors)} ids are used twice; nothing was written: leave one copy of each out"
        raise UserErrors([*errors[:20], many])


def _count(values: Iterable[str | None]) -> dict[str, int]:
    counts = Counter("?" if value is None else value for value in values)
    return {key: counts[key] for key in sorted(counts, key=natural)}

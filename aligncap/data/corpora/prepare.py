"""From a corpus folder to a manifest."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.data.corpora.common import Problem
from aligncap.data.corpora.registry import is_folder, reader, takes_columns
from aligncap.data.manifest import Utterance, audio_path, write_manifest
from aligncap.data.split import duplicates
from aligncap.utils.errors import UserError, UserErrors, natural
from aligncap.utils.io import file_sha256
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
        lines = [
            f"{self.out}: {self.clips} clips of {self.corpus}, {self.hours:.2f} hours, "
            f"{len(self.speakers)} speakers",
            "emotions: " + _counts(self.emotions),
            "genders: " + _counts(self.genders) + "; languages: " + _counts(self.languages),
        ]
        for kind, meaning in _KINDS.items():
            found = self.of_kind(kind)
            if found:
                more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                lines.append(f"left out, {meaning}: {len(found)} ({'; '.join(found[:_SHOWN])}{more})")
        lines += [f"identical clips: {', '.join(ids)}" for ids in self.duplicates]
        return "\n".join(lines)


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
    out = Path(out)
    folder = is_folder(corpus, Path(folder))
    if columns and not takes_columns(corpus):
        raise UserError(f"{corpus} has a fixed layout; columns are for csv and jsonl")
    read = reader(corpus)
    utterances, problems = read(folder, columns) if takes_columns(corpus) else read(folder)
    _refuse_equal_ids(utterances)
    manifest_folder = out.resolve().parent
    for u in utterances:
        root = Path(u.root)
        u.root = (
            root.relative_to(manifest_folder).as_posix()
            if root.is_relative_to(manifest_folder)
            else str(root)
        )
    utterances.sort(key=lambda u: natural(u.id))
    kept, silent = _listen(utterances, out)
    problems = [*problems, *silent]
    if not kept:
        raise UserError(
            f"{folder}: none of the {len(utterances)} clips can be used: {silent[0].what}. "
            "Nothing was written"
        )
    write_manifest(out, kept)
    return PrepareReport(
        corpus=corpus,
        out=out,
        clips=len(kept),
        hours=sum(u.duration or 0.0 for u in kept) / 3600,
        emotions=_count(u.emotion for u in kept),
        speakers=_count(u.speaker for u in kept),
        genders=_count(u.gender for u in kept),
        languages=_count(u.language for u in kept),
        problems=problems,
        duplicates=duplicates(kept),
    )


def _refuse_equal_ids(utterances: list[Utterance]) -> None:
    audio: dict[str, list[str]] = defaultdict(list)
    for u in utterances:
        audio[u.id].append(u.audio)
    errors = [f"{id}: {' and '.join(paths)} have this id" for id, paths in audio.items() if len(paths) > 1]
    if errors:
        raise UserErrors(
            [
                *errors[:20],
                f"{len(errors)} ids are used twice; nothing was written: leave one copy of each out",
            ]
        )


def _listen(utterances: list[Utterance], out: Path) -> tuple[list[Utterance], list[Problem]]:
    """Fill duration and hashes from the sound files; those that cannot be used become problems."""
    kept: list[Utterance] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        heard = pool.map(lambda u: _hear(u, out), utterances)
        for u, found in zip(utterances, track(heard, len(utterances), "reading clips"), strict=True):
            if isinstance(found, str):
                problems.append(Problem("audio", found))
                continue
            u.duration, u.sha256, u.extra["samples_sha256"] = found
            kept.append(u)
    return kept, problems


def _hear(utterance: Utterance, out: Path) -> tuple[float, str, str] | str:
    """Duration (s), hash of the bytes, hash of the 16-bit samples at 16 kHz; or why the clip is unusable."""
    from aligncap.audio.files import info, load_audio

    try:
        path = audio_path(out, utterance)
        samples = load_audio(path, normalise=False)
        pcm = np.round(samples * 32768).astype("<i4")
        return round(info(path).duration_s, 4), file_sha256(path), hashlib.sha256(pcm.tobytes()).hexdigest()
    except UserError as error:
        return str(error)


def _count(values: Any) -> dict[str, int]:
    counts = Counter("?" if value is None else value for value in values)
    return {key: counts[key] for key in sorted(counts, key=natural)}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in counts.items())

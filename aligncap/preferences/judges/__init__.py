"""Judges: what they read (items), what they give (verdicts), and the files that carry both.

A candidates file has one row a caption:
    {"id", "audio", "candidate": 0.., "caption", "model", "seed", "settings", "manifest"}
where "manifest" is relative to the file's own folder. A scored file has the same rows with "kind"
("candidate" or "reference") and "verdict"; a reference has "candidate": null and "reference": its index.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from aligncap.data.manifest import Utterance, read_manifest, refuse_answers
from aligncap.text.claims import relative_cues
from aligncap.text.rubric import CRITERIA
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, load_data

LOWEST, HIGHEST = 0, 10
Score = Annotated[float, Field(strict=True, ge=LOWEST, le=HIGHEST, allow_inf_nan=False)]
Number = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True)
class Verdict:
    """One judge's word on one caption.

    `scores` are 0 (worst) to 10 by criterion, of `CRITERIA`; a judge leaves out what it cannot judge.
    `overall` is 0 to 10. `judge` is "rubric", "openai:MODEL" or "human:NAME"; `prompt_hash` changes with
    whatever the judge was told, `version` with the judge's own code or data.
    """

    scores: Mapping[Literal[CRITERIA], Score]  # type: ignore[valid-type]
    overall: Score
    reason: str
    judge: str
    version: str
    prompt_hash: str


class _Caption(BaseModel):
    id: str
    audio: str
    caption: str
    manifest: str | None = None


class _Candidate(_Caption):
    candidate: Number
    kind: Literal["candidate"] = "candidate"


class _ScoredCandidate(_Candidate):
    verdict: Verdict


class _ScoredReference(_Caption):
    reference: Number
    kind: Literal["reference"]
    verdict: Verdict


_SCORED = Annotated[_ScoredCandidate | _ScoredReference, Field(discriminator="kind")]
_CHECKS: dict[bool, TypeAdapter[Any]] = {False: TypeAdapter(_Candidate), True: TypeAdapter(_SCORED)}


@dataclass(frozen=True)
class Item:
    """A caption to judge and the evidence about its clip.

    `number` is the candidate's or the reference's index. `references` are the clip's other reference
    captions: a reference is never evidence for itself. `relative` are the clip's cues against the speaker's
    norm in the manifest (see aligncap.audio.cues), empty where none were measured; `labels` are the emotions
    that the manifest tells apart. `row` is the line of the scored file to be, less its verdict.
    """

    id: str
    caption: str
    kind: str  # "candidate" or "reference"
    number: int
    references: tuple[str, ...]
    utterance: Utterance
    manifest: Path
    relative: Mapping[str, float] = field(default_factory=dict)
    labels: frozenset[str] = frozenset()
    row: Row = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


def weighted_overall(scores: Mapping[str, float]) -> float:
    """Mean of the criteria that were scored, weighted as in data/rubric.yaml, to two decimals.

    Raises:
        ValueError: no score at all.
    """
    if not scores:
        raise ValueError("no criterion was scored")
    weights: dict[str, float] = load_data("rubric.yaml")["weights"]
    total = sum(weights[name] for name in scores)
    return round(sum(weights[name] * score for name, score in scores.items()) / total, 2)


def manifest_of(row: Row, path: str | Path, override: str | Path | None = None) -> Path:
    """The manifest that a row of the file `path` was made from.

    Raises:
        UserError: the row names none and `override` is None, or there is no such file.
    """
    if override is None and not row.get("manifest"):
        raise UserError(f"{path}: {row.get('id')}: no manifest is named; give it with --manifest")
    found = Path(override) if override is not None else Path(path).parent / row["manifest"]
    if not found.is_file():
        remedy = "check --manifest" if override is not None else "say where it is with --manifest"
        raise UserError(f"{found}: no such manifest (named by {path}); {remedy}")
    return found


def relative_name(source: Path, file: str | Path) -> str:
    """How a row of `file` names the manifest `source`."""
    return Path(os.path.relpath(source.resolve(), Path(file).resolve().parent)).as_posix()


def read_items(
    path: str | Path, manifest: str | Path | None = None, references: int = 0, out: str | Path | None = None
) -> list[Item]:
    """Items of a candidates file in its order, each clip's references after its last candidate.

    Args:
        manifest: instead of the manifest that the rows name.
        references: how many of each clip's reference captions are judged beside the candidates.
        out: file that the rows are for; their "manifest" is made relative to its folder.

    Raises:
        UserError: a file is missing.
        UserErrors: rows that are no candidates, or of clips that the manifest does not hold.
    """
    path = Path(path)
    lines = _read(path, scored=False)
    last = {row["id"]: line for line, row in lines.items()}
    clips: dict[Path, dict[str, Item]] = {}
    items: list[Item] = []
    errors: list[str] = []
    for line, row in lines.items():
        source = manifest_of(row, path, manifest)
        if source not in clips:
            clips[source] = _clips(source)
        if (clip := clips[source].get(row["id"])) is None:
            errors.append(f'{path}:{line}: {source} holds no clip "{row["id"]}"; name its manifest')
            continue
        row = row | {"kind": "candidate", "manifest": relative_name(source, out or path)}
        items.append(replace(clip, caption=row["caption"], number=row["candidate"], row=row))
        if last[row["id"]] == line:
            items += [_reference(items[-1], n) for n in range(min(references, len(clip.references)))]
    if errors:
        raise UserErrors(errors)
    return items


def _clips(manifest: Path) -> dict[str, Item]:
    """What is known of each clip of a manifest, as an item without a caption."""
    utterances = read_manifest(manifest)
    refuse_answers(manifest, utterances)
    labels = frozenset(u.emotion for u in utterances if u.emotion)
    return {
        u.id: Item(u.id, "", "candidate", 0, tuple(u.captions), u, manifest, relative, labels)
        for u, relative in zip(utterances, relative_cues(utterances), strict=True)
    }


def _reference(item: Item, number: int) -> Item:
    caption = item.references[number]
    row = {name: item.row[name] for name in ("id", "audio", "manifest")}
    row |= {"candidate": None, "reference": number, "caption": caption, "kind": "reference"}
    others = item.references[:number] + item.references[number + 1 :]
    return replace(item, caption=caption, kind="reference", number=number, references=others, row=row)


def read_scored(path: str | Path) -> list[Row]:
    """Rows of a scored file, in its order; "verdict" is checked and left a dict.

    Raises:
        UserError: no such file, or an empty one.
        UserErrors: every line that is no scored caption, or the same caption as an earlier line.
    """
    return list(_read(Path(path), scored=True).values())


def _read(path: Path, *, scored: bool) -> dict[int, Row]:
    """Row by line number; all errors at once."""
    command = "judge" if scored else "candidates"
    if not path.is_file():
        raise UserError(f"{path}: no such file; `aligncap {command}` writes it")
    content = path.read_bytes()
    if scored and content.strip() and b'"verdict"' not in content:
        raise UserError(f"{path}: holds no verdict; `aligncap judge` writes a scored file")
    rows: dict[int, Row] = {}
    errors: list[str] = []
    first: dict[tuple[str, str, int], int] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            _CHECKS[scored].validate_python(row)
        except ValidationError as error:
            for found in error.errors(include_url=False, include_context=False):
                where = ".".join(map(str, found["loc"][scored:]))  # the first of a scored row is its kind
                what = f"{where}: {found['msg']}, found {found['input']!r:.40}".removeprefix(": ")
                errors.append(f"{path}:{number}: {what}; mend or delete the line")
        except ValueError as error:
            errors.append(f"{path}:{number}: broken JSON ({error}); mend or delete the line")
        else:
            kind = row.get("kind", "candidate")
            place = first.setdefault((row["id"], kind, row[kind]), number)
            if place != number:
                double = f'{kind} {row[kind]} of "{row["id"]}" is on line {place} already'
                errors.append(f"{path}:{number}: {double}; delete one")
            rows[number] = row
    if errors:
        raise UserErrors(errors)
    if not rows:
        raise UserError(f"{path}: holds no row; write it again with `aligncap {command}`")
    return rows

"""What a judge reads and says: items, verdicts, and the files that carry them.

A candidates file has one row a caption:
    {"id", "audio", "candidate": 0.., "caption", "model", "seed", "settings", "manifest"}
where "manifest" is relative to the file's own folder. A scored file has the same rows with "kind"
("candidate" or "reference") and "verdict"; a reference has "candidate": null and "reference": its index.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from aligncap.data.manifest import Utterance, read_manifest
from aligncap.text.claims import relative_cues
from aligncap.text.rubric import CRITERIA
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import load_data

KINDS = ("candidate", "reference")
LOWEST, HIGHEST = 0, 10


@dataclass(frozen=True)
class Verdict:
    """One judge's word on one caption.

    `scores` are 0 (worst) to 10 by criterion, of `CRITERIA`; a judge leaves out what it cannot judge.
    `overall` is 0 to 10. `judge` is "rubric", "openai:MODEL" or "human:NAME"; `prompt_hash` changes with
    whatever the judge was told, `version` with the judge's own code or data.
    """

    scores: Mapping[str, float]
    overall: float
    reason: str
    judge: str
    version: str
    prompt_hash: str

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"scores": dict(self.scores)}

    @staticmethod
    def from_dict(value: Any) -> Verdict:
        """Verdict of parsed JSON.

        Raises:
            ValueError: what is missing or out of range, all of it, separated by "; ".
        """
        if not isinstance(value, dict):
            raise ValueError(f'"verdict" must be an object, found {json.dumps(value):.40}')
        errors = []
        scores = value.get("scores")
        if not isinstance(scores, dict):
            errors.append('"scores" must be an object of numbers by criterion')
            scores = {}
        for name, score in scores.items():
            if name not in CRITERIA:
                errors.append(f'unknown criterion "{name}"; the criteria are {", ".join(CRITERIA)}')
            elif not in_range(score):
                errors.append(f'"{name}" must be a number of {LOWEST} to {HIGHEST}, found {score!r}')
        if not in_range(value.get("overall")):
            errors.append(
                f'"overall" must be a number of {LOWEST} to {HIGHEST}, found {value.get("overall")!r}'
            )
        texts: dict[str, Any] = {
            name: value.get(name) for name in ("reason", "judge", "version", "prompt_hash")
        }
        errors += [f'"{k}" must be text, found {v!r}' for k, v in texts.items() if not isinstance(v, str)]
        if errors:
            raise ValueError("; ".join(errors))
        return Verdict(scores=dict(scores), overall=value["overall"], **texts)


@dataclass(frozen=True)
class Item:
    """A caption to judge and the evidence about its clip.

    `number` is the candidate's or the reference's index. `references` are the clip's other reference
    captions: a reference is never evidence for itself. `relative` are the clip's cues against the speaker's
    norm in the manifest (see aligncap.audio.cues), empty where none were measured. `row` is the line of the
    scored file to be, less its verdict.
    """

    id: str
    audio: str
    caption: str
    kind: str
    number: int
    references: tuple[str, ...]
    utterance: Utterance
    manifest: Path
    instruction: str
    relative: Mapping[str, float] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells the items of one file apart."""
        return self.id, self.kind, self.number


def in_range(score: Any) -> bool:
    """Whether a value is a usable score."""
    return (
        isinstance(score, (int, float))
        and not isinstance(score, bool)
        and math.isfinite(score)
        and LOWEST <= score <= HIGHEST
    )


def weighted_overall(scores: Mapping[str, float]) -> float:
    """Mean of the criteria that were scored, weighted as in data/rubric.yaml, to two decimals.

    Raises:
        ValueError: no score at all.
    """
    weights: dict[str, float] = load_data("rubric.yaml")["weights"]
    total = sum(weights[name] for name in scores)
    if not total:
        raise ValueError("no criterion was scored")
    return round(sum(weights[name] * score for name, score in scores.items()) / total, 2)


def read_candidates(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a candidates file, in its order.

    Raises:
        UserError: no such file, or an empty one.
        UserErrors: every line that is no candidate, or the same candidate as an earlier line.
    """
    return [row for _, row in _numbered(Path(path), scored=False)]


def read_scored(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a scored file, in its order; "verdict" is checked and left a dict (see `Verdict.from_dict`).

    Raises:
        UserError: no such file, or an empty one.
        UserErrors: every line that is no scored caption, or the same caption as an earlier line.
    """
    return [row for _, row in _numbered(Path(path), scored=True)]


def manifest_of(row: Mapping[str, Any], path: str | Path, override: str | Path | None = None) -> Path:
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


def read_items(
    path: str | Path,
    manifest: str | Path | None = None,
    references: int = 0,
    out: str | Path | None = None,
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
    numbered = _numbered(path, scored=False)
    tables: dict[Path, dict[str, tuple[Utterance, dict[str, float]]]] = {}
    names: dict[Path, str] = {}
    folder = Path(out or path).resolve().parent
    last = {row["id"]: index for index, (_, row) in enumerate(numbered)}
    items: list[Item] = []
    errors: list[str] = []
    for index, (line, row) in enumerate(numbered):
        source = manifest_of(row, path, manifest)
        if source not in tables:
            tables[source] = _table(source)
            names[source] = Path(os.path.relpath(source.resolve(), folder)).as_posix()
        if row["id"] not in tables[source]:
            errors.append(f'{path}:{line}: {source} holds no clip "{row["id"]}"; name its manifest')
            continue
        utterance, relative = tables[source][row["id"]]
        item = Item(
            id=row["id"],
            audio=row["audio"],
            caption=row["caption"],
            kind="candidate",
            number=row["candidate"],
            references=tuple(utterance.captions),
            utterance=utterance,
            manifest=source,
            instruction=load_data("templates.yaml")["instruction"],
            relative=relative,
            row=row | {"kind": "candidate", "manifest": names[source]},
        )
        items.append(item)
        if last[row["id"]] == index:
            items += [_reference(item, number) for number in range(min(references, len(utterance.captions)))]
    if errors:
        raise UserErrors(errors)
    return items


def _reference(item: Item, number: int) -> Item:
    captions = item.utterance.captions
    row = {name: item.row[name] for name in ("id", "audio", "manifest")}
    row |= {"candidate": None, "reference": number, "caption": captions[number], "kind": "reference"}
    others = tuple(caption for i, caption in enumerate(captions) if i != number)
    return replace(
        item, caption=captions[number], kind="reference", number=number, references=others, row=row
    )


def _table(manifest: Path) -> dict[str, tuple[Utterance, dict[str, float]]]:
    """Utterance and relative cues by id."""
    utterances = read_manifest(manifest)
    return {u.id: (u, cues) for u, cues in zip(utterances, relative_cues(utterances), strict=True)}


def _numbered(path: Path, *, scored: bool) -> list[tuple[int, dict[str, Any]]]:
    """(line number, row) of every line; all errors at once."""
    verb = "judge" if scored else "candidates"
    if not path.is_file():
        raise UserError(f"{path}: no such file; `aligncap {verb}` writes it")
    content = path.read_bytes()
    if scored and content.strip() and b'"verdict"' not in content:
        raise UserError(f"{path}: holds no verdict; `aligncap judge` writes a scored file")
    rows: list[tuple[int, dict[str, Any]]] = []
    errors: list[str] = []
    first: dict[tuple[Any, ...], int] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            errors.append(f"{path}:{number}: broken JSON ({error}); mend or delete the line")
            continue
        if not isinstance(row, dict):
            errors.append(f"{path}:{number}: a JSON object is needed, found {type(row).__name__}")
            continue
        found = _row_errors(row, scored)
        if not found:
            kind = row.get("kind", "candidate")
            key = (row["id"], kind, row["reference" if kind == "reference" else "candidate"])
            if key in first:
                found.append(f'{kind} {key[2]} of "{row["id"]}" is on line {first[key]} already; delete one')
            first.setdefault(key, number)
            rows.append((number, row))
        errors += [f"{path}:{number}: {error}" for error in found]
    if errors:
        raise UserErrors(errors)
    if not rows:
        raise UserError(f"{path}: holds no row; write it again with `aligncap {verb}`")
    return rows


def _row_errors(row: dict[str, Any], scored: bool) -> list[str]:
    errors = [
        f'"{name}" must be text, found {row.get(name)!r}'
        for name in ("id", "audio", "caption")
        if not isinstance(row.get(name), str)
    ]
    if row.get("manifest") is not None and not isinstance(row["manifest"], str):
        errors.append(f'"manifest" must be a path, found {row["manifest"]!r}')
    kind = row.get("kind", "candidate")
    if scored and row.get("kind") not in KINDS:
        errors.append(f'"kind" must be "candidate" or "reference", found {row.get("kind")!r}')
        kind = None
    elif not scored and kind != "candidate":
        errors.append("a reference; a candidates file holds candidates alone")
        kind = None
    number = row.get(kind) if kind else 0
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        errors.append(f'"{kind}" must be a number from 0, found {number!r}')
    if scored:
        try:
            Verdict.from_dict(row.get("verdict"))
        except ValueError as error:
            errors.append(f"{error}; `aligncap judge` writes it")
    return errors

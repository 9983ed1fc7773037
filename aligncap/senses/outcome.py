"""What every sense's training begins with and ends in: checked files of moments; scores, F1 and a picture."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from aligncap.audio.members import is_there
from aligncap.senses.moments import SEVEN, Moment, read_moments, senses_of
from aligncap.senses.sense import Sense, write_scores
from aligncap.utils.drawing import confusion_picture
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.f1 import f1_sums, macro_f1, weighted_f1
from aligncap.utils.io import Row, atomic_open, write_json
from aligncap.utils.run_record import write_run_record
from aligncap.utils.statistics import Clusters, Interval, Statistic, clusters_of, intervals, recall_sums, uar

TITLES = {"macro_f1": "macro F1", "weighted_f1": "weighted F1", "uar": "UAR", "accuracy": "accuracy"}
_SHOWN = 10  # missing files that are told; the others are counted
_log = logging.getLogger(__name__)

Parts = dict[str, list[Moment]]  # by "train", "dev", "test"


@dataclass
class Unit:
    """A moment as `clusters_of` takes it; a manifest's speakers carry the name of their corpus."""

    speaker: str | None
    corpus: str = ""


def read_parts(files: Mapping[str, str | None], sense: str) -> Parts:
    """The labelled moments of each part that have something for `sense`; how many have not is logged.

    Args:
        files: by "train", "dev", "test"; None: no such part.
        sense: "text", "voice" or "face".

    Raises:
        UserErrors: all at once: files that cannot be read or hold nothing to learn, an emotion without an
            example to learn it from, ids or speakers in two parts, sound files that are not there.
    """
    parts: Parts = {}
    errors: list[str] = []
    for name, path in files.items():
        if path is None:
            continue
        try:
            every = read_moments(path)
        except UserError as error:
            errors.append(str(error))
            continue
        parts[name] = [m for m in every if sense in senses_of(m) and m.label]
        if not parts[name]:
            errors.append(f"{path}: no moment with {sense} and one of {', '.join(SEVEN)}")
        elif left := len(every) - len(parts[name]):
            told = f"{left} of {len(every)} moments have no {sense} or no emotion; left out"
            _log.info("%s: %s", path, told)
    if errors:
        raise UserErrors(errors)
    known = Counter(m.label for m in parts["train"])
    if len(known) < 2:
        errors.append(
            f"{files['train']}: every moment is {next(iter(known))}; two emotions or more are needed"
        )
    for name in [name for name in parts if name != "train"]:
        if unknown := {str(m.label) for m in parts[name]} - {*known}:
            missing = ", ".join(sorted(unknown))
            errors.append(f"{files[name]}: {missing}: no example in {files['train']} to learn it from")
    errors += shared(parts, files)
    if sense == "voice":
        absent = [m.audio for part in parts.values() for m in part if m.audio and not is_there(m.audio)]
        errors += [f"{path}: no such file" for path in absent[:_SHOWN]]
        errors += [f"and {len(absent) - _SHOWN} more sound files are not there"] * (len(absent) > _SHOWN)
    if errors:
        raise UserErrors(errors)
    return parts


def shared(parts: Parts, files: Mapping[str, str | None]) -> list[str]:
    """A line for each two parts that share ids or speakers."""
    errors, names = [], list(parts)
    for place, one in enumerate(names):
        for two in names[place + 1 :]:
            ids = {m.id for m in parts[one]} & {m.id for m in parts[two]}
            people = {m.speaker for m in parts[one]} & {m.speaker for m in parts[two]} - {None}
            for what, both in (("id", ids), ("speaker", people)):
                if both:
                    some = ", ".join(sorted(map(str, both))[:3])
                    remedy = "split by speaker with `aligncap split`"
                    errors.append(
                        f"{files[one]} and {files[two]} share {len(both)} {what}(s): {some}; {remedy}"
                    )
    return errors


def named(scores: np.ndarray) -> list[str | None]:
    """The likeliest emotion of each row (n, 7); None of a row of nan."""
    return [None if np.isnan(row).any() else SEVEN[int(row.argmax())] for row in scores]


def statistics_of(moments: Sequence[Moment], scores: np.ndarray) -> dict[str, Statistic]:
    """Macro F1, weighted F1, UAR and accuracy of labelled moments; one without a score counts as wrong."""
    truth, said = [m.label for m in moments], named(scores)
    sums, recalls = f1_sums(truth, said, SEVEN), recall_sums(truth, said, SEVEN)
    hits = np.column_stack([sums[:, :7].sum(1), np.ones(len(sums))])
    return {
        "macro_f1": Statistic(sums, macro_f1, 1.0),
        "weighted_f1": Statistic(sums, weighted_f1, 1.0),
        "uar": Statistic(recalls, uar, 1.0),
        "accuracy": Statistic(hits, lambda s: s[..., 0] / s[..., 1], 1.0),
    }


def units_of(moments: Sequence[Moment]) -> Clusters:
    """Speakers as units of intervals; moments of unknown speaker stand for themselves."""
    return clusters_of([Unit(m.speaker) for m in moments])


def measure(moments: Sequence[Moment], scores: np.ndarray) -> tuple[dict[str, Interval], str]:
    """The scores of TITLES with 95 % intervals, and what their units are, in words."""
    units = units_of(moments)
    return intervals(statistics_of(moments, scores), units), units.note


def macro_f1_of(moments: Sequence[Moment], scores: np.ndarray) -> float:
    """What dev sets choose by."""
    return statistics_of(moments, scores)["macro_f1"].value


def write_outcome(
    out: Path, command: str, config: Row, files: Mapping[str, str | None], parts: Parts, sense: Sense
) -> dict[str, np.ndarray]:
    """Let the trained sense read dev and test; write and print what it makes of them.

    Writes `scores/dev.jsonl`, `scores/test.jsonl`, `metrics.json` (flat names with intervals),
    `confusion.png` (of test, else dev) and `run.json`.

    Returns:
        scores (n, 7) of each part but "train".
    """
    found, metrics, notes = {}, Row(), []
    table = Table("set", "moments", *TITLES.values(), title=command)
    for name in [name for name in parts if name != "train"]:
        moments = parts[name]
        scores = found[name] = sense.read(moments).scores
        write_scores(out / "scores" / f"{name}.jsonl", moments, scores)
        cells, note = measure(moments, scores)
        notes.append(f"intervals of {name}: {note}")
        metrics |= {f"{name}_{key}": {**cell, "units": note} for key, cell in cells.items()}
        table.add_row(name, str(len(moments)), *map(shown, cells.values()))
        matrix = np.array([[0] * 7] * 7, np.int64)
        for m, said in zip(moments, named(scores), strict=True):
            if said is not None:
                matrix[SEVEN.index(str(m.label)), SEVEN.index(said)] += 1
        with atomic_open(out / "confusion.png", "wb") as file:
            title, what = f"{command}: {name}", "likeliest emotion"
            file.write(confusion_picture(matrix, SEVEN, SEVEN, title, what))
    write_json(out / "metrics.json", metrics)
    data = [path for path in files.values() if path]
    write_run_record(out, command, config, data, seed=config.get("seed"))
    Console().print(table)
    print(*notes, sep="\n")
    print(f"{out}: the sense, scores/, metrics.json, confusion.png")
    return found


def shown(cell: Interval) -> str:
    """A value with its interval, for a table."""
    if cell["value"] is None:
        return "–"
    ends = "" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]"
    return f"{cell['value']:.3f}{ends}"

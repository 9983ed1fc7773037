"""`aligncap evaluate --answers`: answers to an instruction for a label, counted as a classifier's.

An answer counts if it is one emotion word, English or Chinese, of a label that the test set has. Anything
else, a sentence around the word too, is an invalid answer and wrong; they are listed by frequency.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics.emotion import NONE, Emotions, emotion_statistics
from aligncap.evaluation.scoring import Baseline, Rows, pair_up
from aligncap.text.answers import plain, read_answer
from aligncap.utils.drawing import confusion_picture
from aligncap.utils.errors import UserError
from aligncap.utils.f1 import f1_sums, macro_f1, weighted_f1
from aligncap.utils.io import Row, atomic_open, read_jsonl, write_json
from aligncap.utils.statistics import (
    Interval,
    Statistic,
    clusters_of,
    compared,
    mean,
    over_seeds,
    paired_differences,
    pooled,
)

TITLES = {
    "answer_accuracy": "accuracy",
    "answer_uar": "UAR",
    "answer_weighted_f1": "weighted F1",
    "answer_macro_f1": "macro F1",
    "answer_invalid": "invalid answers",
}
_SHOWN = 10  # invalid answers that are listed


@dataclass(frozen=True)
class Answered:
    """Answers of one training seed beside the labels of their clips, and the invalid ones among them."""

    clips: list[Utterance]
    emotions: Emotions
    invalid: list[str]
    statistics: dict[str, Statistic]


def score_answers(
    rows: Rows,
    clips: Sequence[Utterance],
    labels: Sequence[str],
    *,
    allow_missing: bool = False,
    label_map: Mapping[str, str] | None = None,
) -> Answered:
    """The clips that have answers, and what their answers say.

    Raises:
        UserErrors: answers and clips do not match; all mismatches at once.
    """
    # the label stands for the reference caption, which answers need not have
    labelled = [replace(u, captions=[str(u.emotion)], instructions=[], clues=[], p_act=[]) for u in clips]
    chosen, texts = pair_up(rows, labelled, allow_missing=allow_missing)
    said = [read_answer(text, labels, label_map) for text in texts]
    emotions = Emotions([u.emotion for u in chosen], said)
    named = emotion_statistics(emotions)
    sums = f1_sums(emotions.truth, emotions.said, emotions.labels)
    statistics = {
        "answer_accuracy": named["emotion_accuracy"],
        "answer_uar": named["emotion_uar"],
        "answer_weighted_f1": Statistic(sums, weighted_f1, 1.0),
        "answer_macro_f1": Statistic(sums, macro_f1, 1.0),
        "answer_invalid": mean(np.array([label == NONE for label in said], dtype=np.float64)),
    }
    invalid = [text for text, label in zip(texts, said, strict=True) if label == NONE]
    return Answered(chosen, emotions, invalid, statistics)


def invalid_answers(runs: Sequence[Answered]) -> list[Row]:
    """The commonest invalid answers: [{"answer", "count"}]."""
    counts = Counter(plain(text) for run in runs for text in run.invalid)
    return [{"answer": text, "count": n} for text, n in counts.most_common(_SHOWN)]


def evaluate_answers(
    utterances: Sequence[Utterance],
    files: Mapping[str, Sequence[str]],
    out: Path,
    *,
    against: str | None = None,
    allow_missing: bool = False,
    label_map: Mapping[str, str] | None = None,
    baselines: Sequence[Baseline] = (),
) -> None:
    """Score answers, compare systems, write OUT/metrics.json and confusion pictures, print a table.

    Args:
        files: answers of each system by training seed; the last system is what the report is about.
        against: the system that differences are to; by default the last.

    Raises:
        UserError: no clip has a label.
        UserErrors: answers and clips do not match.
    """
    clips = [u for u in utterances if u.emotion]
    if not clips:
        raise UserError("no clip has an emotion label to hold answers against; label the manifest")
    left_out = {u.id for u in utterances} - {u.id for u in clips}
    labels = sorted({str(u.emotion) for u in clips})
    answers = {
        name: [[row for row in read_jsonl(path) if row.get("id") not in left_out] for path in paths]
        for name, paths in files.items()
    }
    if allow_missing:  # every system on the same clips
        there = [{row.get("id") for row in rows} for runs in answers.values() for rows in runs]
        clips = [u for u in clips if u.id in set.intersection(*there)]
    systems: dict[str, list[Answered]] = {}
    for name, files_of in answers.items():
        for rows in files_of:
            found = score_answers(rows, clips, labels, allow_missing=allow_missing, label_map=label_map)
            systems.setdefault(name, []).append(found)
    last = list(systems)[-1]
    units = {name: clusters_of(runs[0].clips) for name, runs in systems.items()}
    cells = {n: pooled([run.statistics for run in runs], units[n]) for n, runs in systems.items()}
    seeds = {name: over_seeds([run.statistics for run in runs]) for name, runs in systems.items()}
    gaps = compared(seeds, last, against, lambda a, b: paired_differences(a, b, units[last]))
    for number, (name, runs) in enumerate(systems.items()):
        emotions = runs[0].emotions
        with atomic_open(out / f"confusion_{number}.png", "wb") as file:
            file.write(confusion_picture(emotions.confusion(), labels, emotions.columns, name))
    counted = {
        "clips": len(systems[last][0].clips),
        "labels": labels,
        "unit": units[last].note,
        "renamed": dict(label_map or {}),
    }
    invalid = {name: invalid_answers(runs) for name, runs in systems.items()}
    own = {name: {**cells[name], "invalid": rows} for name, rows in invalid.items()}
    metrics = {"system": last, **cells[last], "signature": counted, "systems": own, "differences": gaps}
    write_json(out / "metrics.json", metrics | {"baselines": {b.name: b.cells for b in baselines}})
    console = Console()
    console.print(
        _table(cells, baselines, f"{counted['clips']} clips, {len(labels)} labels, {counted['unit']}")
    )
    for name, listed in invalid.items():
        for row in listed:
            console.print(Text(f"invalid answer of {name}, {row['count']} times: {row['answer']}"))
    print(f"report: {out / 'metrics.json'}, {out / 'confusion_0.png'}")


def _table(cells: Mapping[str, Mapping[str, Interval]], baselines: Sequence[Baseline], title: str) -> Table:
    sheet = Table("metric", title=title)
    for name in [*cells, *(b.name for b in baselines)]:
        sheet.add_column(Text(name), justify="right")
    for name, heading in TITLES.items():
        row = [Text(heading)]
        for own in cells.values():
            cell = own[name]
            row.append(Text(f"{cell['value']:.3f}"))
            if cell["low"] is not None:
                row[-1].append(f" [{cell['low']:.2f}, {cell['high']:.2f}]", style="dim")
        known = [b.values.get(name.replace("answer", "emotion")) for b in baselines]
        sheet.add_row(*row, *(Text("–" if value is None else f"{value:.3f}") for value in known))
    return sheet

"""The report of an evaluation: metrics.json, report.html and its pictures, for people at a glance.

Captions, references and names come from outside and are escaped by the template engine; the page loads
nothing from anywhere but its own folder.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.errors import UserError
from aligncap.evaluation import listening_words, wording
from aligncap.evaluation.listening import Listening
from aligncap.evaluation.pictures import confusion_picture, speakers_picture
from aligncap.evaluation.samples import Audio, attach_audio, choose_samples
from aligncap.evaluation.systems import (
    MEANINGS,
    TITLES,
    Cell,
    System,
    Yardstick,
    pooled,
    table,
    yardstick_cells,
)
from aligncap.io import atomic_open, data_path, write_json, write_text
from aligncap.manifest import Utterance

__all__ = ["System", "Yardstick", "table", "write_report"]


def write_report(
    out: Path,
    systems: Sequence[System],
    references: Sequence[Utterance],
    *,
    manifest_path: Path | None = None,
    yardsticks: Sequence[Yardstick] = (),
    listening: Listening | None = None,
    differences: Mapping[str, Mapping[str, Any]] | None = None,
    headline: str | None = None,
    sample: int = 40,
    seed: int = 0,
    audio: Audio = "copy",
    title: str = "Speech emotion captions",
) -> Path:
    """Write `out`/metrics.json, report.html, pictures and the audio of shown clips; return the page's path.

    Args:
        systems: side by side in this order, all scored on the same clips.
        references: the utterances that were scored; captions, labels and audio paths are taken from them.
        manifest_path: where audio paths start; without it there are no players.
        yardsticks: figures such as a linear probe's.
        listening: what the headline system's scores lose without the clips; without it the report says how to
            find out.
        differences: of `compare_captions`, by a name such as "distill − sft".
        headline: name of the system that summary, samples and metrics.json are about; the last by default.
        sample: clips shown, chosen by `seed`.
        audio: copy the shown clips into `out`/audio, link to where they lie, or embed clips and pictures.

    Raises:
        UserError: names repeat or are unknown, systems were scored on different clips, an audio path leads
            out of its root, or `out` cannot be written.
    """
    main = _check(systems, headline)
    out = Path(out)
    cells = {s.name: pooled(s.results) for s in systems}
    columns = [*cells.items(), *((y.name, yardstick_cells(y)) for y in yardsticks)]
    chance = 1 / max(1, len(main.results[0]["details"]["labels"]))
    pictures = _pictures(systems, listening, chance)
    samples = choose_samples(systems, main, references, sample, seed)
    if manifest_path is not None:
        attach_audio(samples, out, manifest_path, audio)
    sources = {}
    for name, png in pictures.items():
        with atomic_open(out / f"{name}.png", "wb") as file:
            file.write(png)
        data = base64.b64encode(png).decode()
        sources[name] = f"data:image/png;base64,{data}" if audio == "embed" else f"{name}.png"
    listening = listening or Listening({}, listening_words.verdict({}))
    page = _template().render(
        title=title,
        summary=[*wording.summary(main, cells[main.name], chance), listening.verdict[0]],
        columns=[{"name": name, "main": name == main.name} for name, _ in columns],
        notes=[
            *((s.name, s.note) for s in systems if s.note),
            *((y.name, y.note) for y in yardsticks if y.note),
            *((TITLES[n], text) for n, text in MEANINGS.items() if cells[main.name][n]["value"] is not None),
        ],
        lines=wording.lines(columns, len(systems)),
        several=any(len(s.results) > 1 for s in systems),
        main=main.name,
        listening=listening,
        heard_metrics=[TITLES[name] for name in listening_words.shown_metrics(listening.conditions)],
        heard_lines=listening_words.lines(listening.conditions),
        heard_said=listening_words.said_lines(listening.conditions),
        heard_names=listening_words.HEARD,
        manifest=shlex.quote(str(manifest_path or "M.jsonl")),
        differences=wording.difference_lines(differences or {}),
        pictures=sources,
        confusions=[
            (s.name, sources[f"confusion_{i}"]) for i, s in enumerate(systems) if f"confusion_{i}" in sources
        ],
        samples=samples,
        references=len(references),
        seed=seed,
        top_captions=main.results[0]["details"]["top_captions"],
        signature=wording.signature_lines(main.results[0]["signature"]),
    )
    write_json(out / "metrics.json", _metrics(main, systems, cells, yardsticks, listening, differences))
    write_text(out / "report.html", page)
    return out / "report.html"


def _check(systems: Sequence[System], headline: str | None) -> System:
    names = [s.name for s in systems]
    if not systems:
        raise UserError("a report needs at least one system")
    if len(set(names)) < len(names):
        raise UserError(f"systems of a report need different names, found {', '.join(names)}")
    if headline is not None and headline not in names:
        raise UserError(f"headline {headline!r} is none of the systems {', '.join(names)}")
    sizes = {s.name: s.results[0]["signature"]["clips"] for s in systems}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{name}: {n}" for name, n in sizes.items())
        raise UserError(
            f"systems were scored on different numbers of clips ({counts}); caption the same manifest"
        )
    return systems[-1 if headline is None else names.index(headline)]


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = data_path("report.html.j2").parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _pictures(systems: Sequence[System], listening: Listening | None, chance: float) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    speakers: dict[str, Mapping[str, Sequence[float]]] = {}
    for number, system in enumerate(systems):
        first = system.results[0]["details"]
        if not first["labels"]:
            continue
        labels, columns, matrix = _summed_confusion([result["details"] for result in system.results])
        runs = len(system.results)
        name = system.name if runs == 1 else f"{system.name} (sum of {runs} runs)"
        pictures[f"confusion_{number}"] = confusion_picture(matrix, labels, columns, name)
        uars: dict[str, list[float]] = {}
        for result in system.results:
            for row in result["details"]["speakers"]:
                if row["uar"] is not None:
                    uars.setdefault(row["speaker"], []).append(row["uar"])
        if uars:
            speakers[system.name] = uars
    if speakers:
        pictures["speakers"] = speakers_picture(speakers, chance)
    if listening is not None and listening.conditions:
        pictures["listening"] = listening_words.picture(listening.conditions, chance)
    return pictures


def _summed_confusion(details: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str], np.ndarray]:
    """Confusion matrices of several runs added, though their captions may name different further emotions."""
    labels = list(details[0]["labels"])
    none = details[0]["columns"][-1]
    others = sorted({column for d in details for column in d["columns"]} - {*labels, none})
    columns = [*labels, *others, none]
    matrix = np.zeros((len(labels), len(columns)), np.int64)
    for d in details:
        matrix[:, [columns.index(column) for column in d["columns"]]] += np.array(
            d["confusion"], dtype=np.int64
        )
    return labels, columns, matrix


def _metrics(
    main: System,
    systems: Sequence[System],
    cells: Mapping[str, Mapping[str, Cell]],
    yardsticks: Sequence[Yardstick],
    listening: Listening,
    differences: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """The content of metrics.json: the headline system's metrics flat, then everything it is held against."""
    content: dict[str, Any] = {"system": main.name, **cells[main.name]}
    content["signature"] = main.results[0]["signature"]
    content["details"] = main.results[0]["details"]
    content["systems"] = {
        s.name: {**cells[s.name], "seeds": [{n: r[n]["value"] for n in TITLES} for r in s.results]}
        for s in systems
    }
    content["yardsticks"] = {y.name: yardstick_cells(y) for y in yardsticks}
    content["listening"] = listening.conditions
    content["listening_verdict"] = listening.verdict
    content["differences"] = dict(differences or {})
    return content

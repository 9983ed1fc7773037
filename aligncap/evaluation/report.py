"""The report of an evaluation: metrics.json, report.html and its pictures, for people at a glance.

Captions, references and names come from outside and are escaped by the template engine; the page loads
nothing from anywhere but its own folder.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.errors import UserError
from aligncap.evaluation.pictures import confusion_picture, right_wrong_picture, speakers_picture
from aligncap.evaluation.samples import Audio, attach_audio, choose_samples
from aligncap.evaluation.systems import (
    LESS_IS_BETTER,
    NEITHER,
    TITLES,
    Cell,
    System,
    Yardstick,
    figure,
    interval,
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
    wrong_audio: System | None = None,
    differences: Mapping[str, Mapping[str, Any]] | None = None,
    headline: str | None = None,
    sample: int = 40,
    seed: int = 0,
    audio: Audio = "copy",
    title: str = "Speech emotion captions",
) -> Path:
    """Write `out`/metrics.json, report.html, PNG pictures and, for the clips shown, audio; return report.html's path.

    Args:
        systems: side by side in this order, all scored on the same clips.
        references: the utterances that were scored; captions, labels and audio paths are taken from them.
        manifest_path: where audio paths start; without it there are no players.
        yardsticks: figures such as a linear probe's.
        wrong_audio: the headline system captioning shuffled clips.
        differences: of `compare_captions`, by a name such as "distill − sft".
        headline: name of the system that summary, samples and metrics.json are about; the last by default.
        sample: clips shown, chosen by `seed`.
        audio: copy the shown clips into `out`/audio, link to where they lie, or embed clips and pictures.

    Raises:
        UserError: names repeat or are unknown, systems were scored on different clips, an audio path leads out
            of its root, or `out` cannot be written.
    """
    main = _check(systems, headline)
    out = Path(out)
    cells = {s.name: pooled(s.results) for s in systems}
    chance = 1 / max(1, len(main.results[0]["details"]["labels"]))
    pictures = _pictures(systems, main, cells[main.name], wrong_audio, chance)
    samples = choose_samples(systems, main, references, sample, seed)
    if manifest_path is not None:
        attach_audio(samples, out, manifest_path, audio)
    sources = {}
    for name, png in pictures.items():
        with atomic_open(out / f"{name}.png", "wb") as file:
            file.write(png)
        data = base64.b64encode(png).decode()
        sources[name] = f"data:image/png;base64,{data}" if audio == "embed" else f"{name}.png"
    columns = [*cells.items(), *((y.name, yardstick_cells(y)) for y in yardsticks)]
    wrong = None if wrong_audio is None else pooled(wrong_audio.results)
    page = _template().render(
        title=title,
        summary=_summary(main, cells[main.name], wrong, chance),
        columns=[{"name": name, "main": name == main.name} for name, _ in columns],
        notes=[
            *((s.name, s.note) for s in systems if s.note),
            *((y.name, y.note) for y in yardsticks if y.note),
        ],
        lines=_lines(columns, len(systems)),
        several=any(len(s.results) > 1 for s in systems),
        main=main.name,
        wrong=None if wrong is None else _wrong_lines(cells[main.name], wrong),
        wrong_note="" if wrong_audio is None else wrong_audio.note,
        differences=_difference_lines(differences or {}),
        pictures=sources,
        confusions=[
            (s.name, sources[f"confusion_{i}"]) for i, s in enumerate(systems) if f"confusion_{i}" in sources
        ],
        samples=samples,
        references=len(references),
        seed=seed,
        top_captions=main.results[0]["details"]["top_captions"],
        signature=_signature_lines(main.results[0]["signature"]),
    )
    write_json(out / "metrics.json", _metrics(main, systems, cells, yardsticks, wrong, differences))
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


def _pictures(
    systems: Sequence[System],
    main: System,
    cells: Mapping[str, Cell],
    wrong_audio: System | None,
    chance: float,
) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    speakers: dict[str, dict[str, float]] = {}
    for number, system in enumerate(systems):
        first = system.results[0]["details"]
        if not first["labels"]:
            continue
        labels, columns, matrix = _summed_confusion([result["details"] for result in system.results])
        runs = len(system.results)
        name = system.name if runs == 1 else f"{system.name} (sum of {runs} seeds)"
        pictures[f"confusion_{number}"] = confusion_picture(matrix, labels, columns, name)
        uars: dict[str, list[float]] = {}
        for result in system.results:
            for row in result["details"]["speakers"]:
                if row["uar"] is not None:
                    uars.setdefault(row["speaker"], []).append(row["uar"])
        if uars:
            speakers[system.name] = {name: float(np.mean(values)) for name, values in uars.items()}
    if speakers:
        pictures["speakers"] = speakers_picture(speakers, chance)
    if wrong_audio is not None:
        wrong = pooled(wrong_audio.results)
        names = [n for n in ("emotion_uar", "cider_d", "bleu_4", "meteor") if cells[n]["value"] is not None]
        pictures["right_wrong"] = right_wrong_picture(
            [TITLES[n] for n in names], [cells[n] for n in names], [wrong[n] for n in names], chance
        )
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


def _summary(
    main: System, cells: Mapping[str, Cell], wrong: Mapping[str, Cell] | None, chance: float
) -> list[str]:
    """Sentences of the paragraph at the top."""
    signature = main.results[0]["signature"]
    runs = len(main.results)
    over = f"over {signature['clips']} clips"
    if signature["speakers"]:
        over += f" of {signature['speakers']} speaker{'s' if signature['speakers'] > 1 else ''}"
    seeds = f", mean of {runs} seeds" if runs > 1 else ""

    def say(name: str) -> str:
        spread = cells[name]["spread"]
        more = "" if spread is None else f" ± {figure(name, spread)}"
        return f"{figure(name, cells[name]['value'])}{more} {interval(name, cells[name])}".strip()

    sentences = []
    if cells["emotion_uar"]["value"] is not None:
        labels = signature["emotion_labels"]
        sentences.append(
            f"{main.name}: emotion UAR {say('emotion_uar')} {over}{seeds} ({labels} labels, chance {chance:.3f})."
        )
    else:
        sentences.append(f"{main.name}: scored {over}{seeds}; no clip has an emotion label.")
    sentences.append(f"CIDEr-D {say('cider_d')}, METEOR {say('meteor')}, BLEU-4 {say('bleu_4')}.")
    sentences.append(
        f"The most frequent caption makes up {100 * cells['top_caption_share']['value']:.1f} % of all; "
        f"{100 * cells['emotion_none_share']['value']:.1f} % name no emotion."
    )
    if wrong is not None and wrong["emotion_uar"]["value"] is not None:
        sentences.append(
            f"On the wrong audio UAR is {figure('emotion_uar', wrong['emotion_uar']['value'])} and "
            f"CIDEr-D {figure('cider_d', wrong['cider_d']['value'])}."
        )
    return sentences


def _show(name: str, cell: Cell | None) -> dict[str, str]:
    if cell is None:
        return {"value": "–", "spread": "", "interval": ""}
    spread = "" if cell["spread"] is None else f"± {figure(name, cell['spread'])}"
    return {"value": figure(name, cell["value"]), "spread": spread, "interval": interval(name, cell)}


def _lines(columns: Sequence[tuple[str, Mapping[str, Cell]]], systems: int) -> list[dict[str, Any]]:
    """One line a metric; the best of the systems (not of the yardsticks) is marked where more is better or worse."""
    lines = []
    for name, metric in TITLES.items():
        values = [cells[name]["value"] for _, cells in columns[:systems]]
        known = [value for value in values if value is not None]
        best = None
        if len(known) > 1 and len(set(known)) > 1 and name not in NEITHER:
            best = values.index(min(known) if name in LESS_IS_BETTER else max(known))
        cells_shown = [
            {**_show(name, cells.get(name)), "best": place == best}
            for place, (_, cells) in enumerate(columns)
        ]
        lines.append({"title": metric, "cells": cells_shown, "less": name in LESS_IS_BETTER})
    return lines


def _wrong_lines(right: Mapping[str, Cell], wrong: Mapping[str, Cell]) -> list[dict[str, Any]]:
    lines = []
    for name in ("emotion_uar", "emotion_accuracy", "cider_d", "meteor", "rouge_l", "bleu_4"):
        a, b = right[name]["value"], wrong[name]["value"]
        drop = None if a is None or b is None else a - b
        shown = (_show(name, right[name]), _show(name, wrong[name]), figure(name, drop))
        lines.append({"title": TITLES[name], "right": shown[0], "wrong": shown[1], "drop": shown[2]})
    return lines


def _difference_lines(differences: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    lines = []
    for pair, metrics in differences.items():
        for name in TITLES:
            if name in metrics and metrics[name]["low"] is not None and name not in NEITHER:
                cell = metrics[name]
                apart = cell["low"] > 0 or cell["high"] < 0
                p = cell.get("p")
                shown = "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
                value = f"{cell['value']:+.3f}"
                bounds = f"[{cell['low']:+.3f}, {cell['high']:+.3f}]"
                lines.append(
                    {
                        "pair": pair,
                        "title": TITLES[name],
                        "value": value,
                        "interval": bounds,
                        "p": shown,
                        "apart": apart,
                    }
                )
    return lines


def _signature_lines(signature: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name, value in signature.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        elif isinstance(value, (list, tuple)):
            value = "–".join(map(str, value)) if name == "references_per_clip" else ", ".join(map(str, value))
        lines.append((name.replace("_", " "), str(value)))
    return lines


def _metrics(
    main: System,
    systems: Sequence[System],
    cells: Mapping[str, Mapping[str, Cell]],
    yardsticks: Sequence[Yardstick],
    wrong: Mapping[str, Cell] | None,
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
    content["wrong_audio"] = None if wrong is None else dict(wrong)
    content["differences"] = dict(differences or {})
    return content

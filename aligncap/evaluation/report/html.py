"""The report of an evaluation: metrics.json, report.html and its pictures, for people at a glance.

Captions, references and names come from outside and are escaped by the template engine; the page loads
nothing from anywhere but its own folder.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from aligncap.data.manifest import Utterance, audio_path
from aligncap.evaluation import listening as listening_words
from aligncap.evaluation.listening import Listening
from aligncap.evaluation.report.pictures import confusion_picture, speakers_picture
from aligncap.evaluation.systems import (
    LESS_IS_BETTER,
    MEANINGS,
    NEITHER,
    TITLES,
    Cell,
    System,
    Yardstick,
    baseline_cells,
    figure,
    interval,
    pooled,
    table,
)
from aligncap.text.emotions import emotion_of
from aligncap.utils.errors import UserError
from aligncap.utils.io import atomic_open, data_path, write_json, write_text

Audio = Literal["copy", "link", "embed"]

_MIME = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".mp3": "audio/mpeg",
    ".m4a": "audio/mp4",
}


def choose_samples(
    systems: Sequence[System], main: System, references: Sequence[Utterance], number: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of the sample table: `number` clips drawn by `seed`, sorted by label, with what systems say."""
    captions = {s.name: {row["id"]: row["caption"] for row in s.rows} for s in systems}
    pool = [u for u in references if u.id in captions[main.name]]
    chosen = np.random.default_rng(seed).permutation(len(pool))[:number]
    shown = sorted((pool[i] for i in chosen), key=lambda u: (u.emotion or "", u.id))
    rows = []
    for u in shown:
        said = []
        for s in systems:
            if u.id in captions[s.name]:
                emotion = emotion_of(captions[s.name][u.id])
                said.append(
                    {
                        "system": s.name,
                        "caption": captions[s.name][u.id],
                        "emotion": emotion,
                        "right": None if u.emotion is None else emotion == u.emotion,
                    }
                )
        about = [x for x in (u.speaker and f"speaker {u.speaker}", u.gender, u.intensity) if x]
        row = {
            "utterance": u,
            "about": ", ".join(about),
            "said": said,
            "source": None,
            "type": None,
            "missing": None,
        }
        rows.append(row)
    return rows


def attach_audio(rows: Sequence[dict[str, Any]], out: Path, manifest_path: Path, how: Audio) -> None:
    """Give each row a "source" for its player: a copy in `out`/audio, a relative link or a data URI.

    A file that is not there is named under "missing".

    Raises:
        UserError: an audio path leads out of its root, or a copy cannot be written.
    """
    paths = [audio_path(manifest_path, row["utterance"]) for row in rows]
    folder = out / "audio"
    for stale in folder.glob("clip-*.*"):
        stale.unlink()
    for number, (row, path) in enumerate(zip(rows, paths, strict=True)):
        suffix = path.suffix.lower()
        row["type"] = _MIME.get(suffix, "application/octet-stream")
        if not path.is_file():
            row["missing"] = f"{row['utterance'].audio}: no such file"
        elif how == "embed":
            row["source"] = f"data:{row['type']};base64,{base64.b64encode(path.read_bytes()).decode()}"
        elif how == "link":
            row["source"] = quote(Path(os.path.relpath(path, out.resolve())).as_posix())
        else:
            name = f"clip-{number:03d}{suffix if suffix in _MIME else ''}"
            with atomic_open(folder / name, "wb") as file:
                file.write(path.read_bytes())
            row["source"] = f"audio/{name}"


__all__ = ["System", "Yardstick", "table", "write_report"]


def write_report(
    out: Path,
    systems: Sequence[System],
    references: Sequence[Utterance],
    *,
    manifest_path: Path | None = None,
    baselines: Sequence[Yardstick] = (),
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
        baselines: figures such as a linear probe's.
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
    columns = [*cells.items(), *((y.name, baseline_cells(y)) for y in baselines)]
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
        summary=[*summary(main, cells[main.name], chance), listening.verdict[0]],
        columns=[{"name": name, "main": name == main.name} for name, _ in columns],
        notes=[
            *((s.name, s.note) for s in systems if s.note),
            *((y.name, y.note) for y in baselines if y.note),
            *((TITLES[n], text) for n, text in MEANINGS.items() if cells[main.name][n]["value"] is not None),
        ],
        lines=lines(columns, len(systems)),
        several=any(len(s.results) > 1 for s in systems),
        main=main.name,
        listening=listening,
        heard_metrics=[TITLES[name] for name in listening_words.shown_metrics(listening.conditions)],
        heard_lines=listening_words.lines(listening.conditions),
        heard_said=listening_words.said_lines(listening.conditions),
        heard_names=listening_words.HEARD,
        manifest=shlex.quote(str(manifest_path or "M.jsonl")),
        differences=difference_lines(differences or {}),
        pictures=sources,
        confusions=[
            (s.name, sources[f"confusion_{i}"]) for i, s in enumerate(systems) if f"confusion_{i}" in sources
        ],
        samples=samples,
        references=len(references),
        seed=seed,
        top_captions=main.results[0]["details"]["top_captions"],
        signature=signature_lines(main.results[0]["signature"]),
    )
    write_json(out / "metrics.json", _metrics(main, systems, cells, baselines, listening, differences))
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
    baselines: Sequence[Yardstick],
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
    content["baselines"] = {y.name: baseline_cells(y) for y in baselines}
    content["listening"] = listening.conditions
    content["listening_verdict"] = listening.verdict
    content["differences"] = dict(differences or {})
    return content


def summary(main: System, cells: Mapping[str, Cell], chance: float) -> list[str]:
    """Sentences of the paragraph at the top."""
    signature = main.results[0]["signature"]
    runs = len(main.results)
    over = f"over {signature['clips']} clips"
    if signature["speakers"]:
        over += f" of {signature['speakers']} speaker{'s' if signature['speakers'] > 1 else ''}"
    seeds = f", mean of {runs} runs" if runs > 1 else ""

    def say(name: str) -> str:
        spread = cells[name]["spread"]
        more = "" if spread is None else f" ± {figure(name, spread)}"
        return f"{figure(name, cells[name]['value'])}{more} {interval(name, cells[name])}".strip()

    sentences = []
    if cells["emotion_uar"]["value"] is not None:
        labels = signature["emotion_labels"]
        sentences.append(
            f"{main.name}: emotion UAR {say('emotion_uar')} {over}{seeds} "
            f"({labels} labels, chance {chance:.3f})."
        )
    else:
        sentences.append(f"{main.name}: scored {over}{seeds}; no clip has an emotion label.")
    sentences.append(f"CIDEr-D {say('cider_d')}, METEOR {say('meteor')}, BLEU-4 {say('bleu_4')}.")
    sentences.append(
        f"The most frequent caption makes up {100 * cells['top_caption_share']['value']:.1f} % of all; "
        f"{100 * cells['emotion_none_share']['value']:.1f} % name no emotion."
    )
    if cells["wrong_claim_share"]["value"] is not None:
        sentences.append(
            f"{100 * cells['wrong_claim_share']['value']:.1f} % of acoustic claims are wrong of the measured "
            f"audio; {100 * cells['generic_share']['value']:.1f} % of captions are generic."
        )
    return sentences


def _show(name: str, cell: Cell | None) -> dict[str, str]:
    if cell is None:
        return {"value": "–", "spread": "", "interval": ""}
    spread = "" if cell["spread"] is None else f"± {figure(name, cell['spread'])}"
    return {"value": figure(name, cell["value"]), "spread": spread, "interval": interval(name, cell)}


def lines(columns: Sequence[tuple[str, Mapping[str, Cell]]], systems: int) -> list[dict[str, Any]]:
    """One line a metric that any system has. The best system, or those that look alike, is marked."""
    shown_lines = []
    for name, metric in TITLES.items():
        values = [cells[name]["value"] for _, cells in columns[:systems]]
        known = [value for value in values if value is not None]
        if not known:
            continue
        best = None
        if len({figure(name, value) for value in known}) > 1 and name not in NEITHER:
            best = figure(name, min(known) if name in LESS_IS_BETTER else max(known))
        cells_shown = [
            {**(shown := _show(name, cells.get(name))), "best": place < systems and shown["value"] == best}
            for place, (_, cells) in enumerate(columns)
        ]
        shown_lines.append({"title": metric, "cells": cells_shown, "less": name in LESS_IS_BETTER})
    return shown_lines


def difference_lines(differences: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a pair of systems and metric, of `compare_captions`."""
    shown_lines = []
    for pair, metrics in differences.items():
        for name in TITLES:
            if name in metrics and metrics[name]["low"] is not None and name not in NEITHER:
                cell = metrics[name]
                apart = cell["low"] > 0 or cell["high"] < 0
                p = cell.get("p")
                shown = "" if p is None else f"{p:.3f}"
                value = f"{cell['value']:+.3f}"
                bounds = f"[{cell['low']:+.3f}, {cell['high']:+.3f}]"
                shown_lines.append(
                    {
                        "pair": pair,
                        "title": TITLES[name],
                        "value": value,
                        "interval": bounds,
                        "p": shown,
                        "apart": apart,
                    }
                )
    return shown_lines


def signature_lines(signature: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The signature as name and text."""
    shown_lines = []
    for name, value in signature.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {one}" for key, one in value.items()) or "none"
        elif isinstance(value, (list, tuple)):
            value = "–".join(map(str, value)) if name == "references_per_clip" else ", ".join(map(str, value))
        shown_lines.append((name.replace("_", " "), str(value)))
    return shown_lines

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
from typing import Literal
from urllib.parse import quote

import numpy as np

from aligncap.audio.files import read_bytes
from aligncap.audio.members import is_there, member_of
from aligncap.data.manifest import Utterance, audio_path
from aligncap.evaluation.listening import HEARD, Listening
from aligncap.evaluation.metrics import SCORES, figure, shown, template
from aligncap.evaluation.metrics.calibration import calibration
from aligncap.evaluation.metrics.emotion import by_speaker, joined
from aligncap.evaluation.report.pictures import coverage_picture, speakers_picture
from aligncap.evaluation.scoring import Baseline, System, details
from aligncap.text.emotions import emotion_of
from aligncap.utils.drawing import bars_picture, confusion_picture
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, atomic_open, write_json, write_text
from aligncap.utils.statistics import Interval

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
    systems: Sequence[System], references: Sequence[Utterance], number: int, seed: int
) -> list[Row]:
    """Rows of the sample table: `number` clips drawn by `seed`, sorted by label, with what systems say.

    The clips are those of the last system; each system's captions are those of its first seed.
    """
    first = [(s.name, s.seeds[0]) for s in systems]
    captions = {n: dict(zip([u.id for u in s.utterances], s.captions, strict=True)) for n, s in first}
    pool = [u for u in references if u.id in captions[systems[-1].name]]
    chosen = np.random.default_rng(seed).permutation(len(pool))[:number]
    rows = []
    for u in sorted((pool[i] for i in chosen), key=lambda u: (u.emotion or "", u.id)):
        said: list[Row] = [
            {"system": name, "caption": texts[u.id], "emotion": emotion_of(texts[u.id])}
            for name, texts in captions.items()
            if u.id in texts
        ]
        for part in said:
            part["right"] = None if u.emotion is None else part["emotion"] == u.emotion
        about = [x for x in (u.speaker and f"speaker {u.speaker}", u.gender, u.intensity) if x]
        rows.append({"utterance": u, "about": ", ".join(about), "said": said})
    return rows


def attach_audio(rows: Sequence[Row], out: Path, manifest: Path | None, how: Audio) -> None:
    """Give each row a "source" for its player: a copy in `out`/audio, a relative link or a data URI.

    A file that is not there is named under "missing". Without a manifest there are no players.

    Raises:
        UserError: an audio path leads out of its root, or a copy cannot be written.
    """
    for row in rows:
        row |= {"source": None, "type": None, "missing": None}
    paths = [audio_path(manifest, row["utterance"]) for row in rows] if manifest else []
    for stale in (out / "audio").glob("clip-*.*") if manifest else ():
        stale.unlink()
    for number, (row, path) in enumerate(zip(rows, paths, strict=False)):
        suffix = path.suffix.lower()
        row["type"] = _MIME.get(suffix, "application/octet-stream")
        if not is_there(path):
            row["missing"] = f"{row['utterance'].audio}: no such file"
        elif how == "embed":
            row["source"] = _data_uri(row["type"], read_bytes(path)[0])
        elif how == "link" and member_of(path) is None:  # what lies in a shard is copied
            row["source"] = quote(Path(os.path.relpath(path, out.resolve())).as_posix())
        else:
            row["source"] = f"audio/clip-{number:03d}{suffix if suffix in _MIME else ''}"
            with atomic_open(out / row["source"], "wb") as file:
                file.write(read_bytes(path)[0])


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_report(
    out: Path,
    systems: Sequence[System],
    references: Sequence[Utterance],
    *,
    manifest: Path | None = None,
    baselines: Sequence[Baseline] = (),
    listening: Listening | None = None,
    differences: Mapping[str, Mapping[str, Interval]] | None = None,
    sample: int = 40,
    seed: int = 0,
    audio: Audio = "copy",
    title: str = "Speech emotion captions",
) -> Path:
    """Write `out`/metrics.json, report.html, pictures and the audio of shown clips; return the page's path.

    Args:
        systems: side by side in this order, all scored on the same clips. Summary, samples and metrics.json
            are about the last one.
        references: the utterances that were scored; captions, labels and audio paths are taken from them.
        manifest: where audio paths start; without it there are no players.
        listening: what the last system's scores lose without the clips; without it the report says how to
            find out.
        differences: of `scoring.differences`, by a name such as "distill − sft".
        sample: clips shown, chosen by `seed`.
        audio: copy the shown clips into `out`/audio, link to where they lie, or embed clips and pictures.

    Raises:
        UserError: names repeat, systems were scored on different clips, an audio path leads out of its root,
            or `out` cannot be written.
    """
    if not systems:
        raise UserError("a report needs at least one system")
    names = [s.name for s in systems]
    if len(set(names)) < len(names):
        raise UserError(f"systems of a report need different names, found {', '.join(names)}")
    sizes = [len(s.seeds[0].captions) for s in systems]
    if len(set(sizes)) > 1:
        counts = ", ".join(f"{name}: {n}" for name, n in zip(names, sizes, strict=True))
        raise UserError(
            f"systems were scored on different numbers of clips ({counts}); caption the same manifest"
        )
    main, listening = systems[-1], listening or Listening({})
    samples = choose_samples(systems, references, sample, seed)
    attach_audio(samples, out, manifest, audio)
    sources = {}
    sure = {s.name: found for s in systems if (found := calibration(s.seeds)) is not None}
    pictures = _pictures(systems, listening)
    if sure:
        pictures["coverage"] = coverage_picture({name: found["curve"] for name, found in sure.items()})
    for name, png in pictures.items():
        with atomic_open(out / f"{name}.png", "wb") as file:
            file.write(png)
        sources[name] = _data_uri("image/png", png) if audio == "embed" else f"{name}.png"
    columns: list[System | Baseline] = [*systems, *baselines]
    notes = [(s.title, s.meaning) for n, s in SCORES.items() if main.cells[n]["value"] is not None]
    counted = details(main.seeds[0])
    page = template("report.html.j2").render(
        title=title,
        columns=[{"name": c.name, "main": c is main} for c in columns],
        notes=[(name, note) for name, note in [*((c.name, c.note) for c in columns), *notes] if note],
        lines=score_lines(systems, baselines),
        several=any(len(s.seeds) > 1 for s in systems),
        main=main,
        listening=listening,
        heard_names=HEARD,
        manifest=shlex.quote(str(manifest or "M.jsonl")),
        differences=differences or {},
        pictures=sources,
        confusions=[
            (s.name, sources[f"confusion_{i}"]) for i, s in enumerate(systems) if f"confusion_{i}" in sources
        ],
        calibrations=sure,
        samples=samples,
        references=len(references),
        seed=seed,
        top_captions=counted["top_captions"],
    )
    metrics = {
        "system": main.name,
        **main.cells,
        "signature": main.signature,
        "details": counted,
        "systems": {s.name: {**s.cells, "seeds": [scored.values for scored in s.seeds]} for s in systems},
        "baselines": {b.name: b.cells for b in baselines},
        "listening": listening.conditions,
        "listening_verdict": listening.verdict,
        "differences": dict(differences or {}),
        **({"calibration": sure} if sure else {}),
    }
    write_json(out / "metrics.json", metrics)
    write_text(out / "report.html", page)
    return out / "report.html"


def _pictures(systems: Sequence[System], listening: Listening) -> dict[str, bytes]:
    """PNG files by name: confusion_0 … of each system, speakers, listening; those that there is data for."""
    pictures: dict[str, bytes] = {}
    speakers: dict[str, dict[str, list[float]]] = {}
    chance = 1 / max(1, len(systems[-1].seeds[0].emotions.labels))
    for number, system in enumerate(systems):
        together = joined([scored.emotions for scored in system.seeds])
        if not together.labels:
            continue
        several = f" (sum of {len(system.seeds)} runs)" if len(system.seeds) > 1 else ""
        pictures[f"confusion_{number}"] = confusion_picture(
            together.confusion(), together.labels, together.columns, system.name + several
        )
        for scored in system.seeds:
            for row in by_speaker(scored.emotions, scored.utterances):
                speakers.setdefault(system.name, {}).setdefault(row["speaker"], []).append(row["uar"])
    if speakers:
        pictures["speakers"] = speakers_picture(speakers, chance)
    if listening.conditions:
        first = next(iter(listening.conditions.values()))
        panels = {
            SCORES[name].title + "\n(less is better)" * (SCORES[name].better == "less"): {
                "right audio": first[name]["right"],
                **{HEARD[condition]: part[name]["heard"] for condition, part in listening.conditions.items()},
            }
            for name in listening.shown
        }
        pictures["listening"] = bars_picture(panels, {SCORES["emotion_uar"].title: (chance, "chance")})
    return pictures


def score_lines(systems: Sequence[System], baselines: Sequence[Baseline]) -> list[Row]:
    """One line a score that any system has. The best system, or those that look alike, is marked."""
    result = []
    columns: list[System | Baseline] = [*systems, *baselines]
    for name, score in SCORES.items():
        known = [v for s in systems if (v := s.cells[name]["value"]) is not None]
        if not known:
            continue
        less = score.better == "less"
        best = figure(name, min(known) if less else max(known))
        differ = score.better != "neither" and len({figure(name, value) for value in known}) > 1
        cells = []
        for column in columns:
            value, spread, bounds = shown(name, column.cells.get(name))
            marked = differ and isinstance(column, System) and value == best
            cells.append({"value": value, "spread": spread, "interval": bounds, "best": marked})
        result.append({"title": score.title, "cells": cells, "less": less})
    return result

"""The report of an evaluation: metrics.json, report.html and its pictures, for people at a glance.

Captions, references and names come from outside and are escaped by the template engine; the page loads
nothing from anywhere but its own folder.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from aligncap.data.manifest import Utterance, audio_path
from aligncap.evaluation.listening import HEARD, MEANINGS, Listening
from aligncap.evaluation.metrics import SCORES, figure, interval, shown, signed
from aligncap.evaluation.metrics.emotion import Emotions
from aligncap.evaluation.report.pictures import bars_picture, confusion_picture, speakers_picture
from aligncap.evaluation.scoring import System, details
from aligncap.text.emotions import emotion_of
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, atomic_open, data_path, write_json, write_text
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


@dataclass(frozen=True)
class Baseline:
    """What systems are compared with, such as a linear probe: some scores, by name.

    Raises:
        UserError: a value is given for something that is no score.
    """

    name: str
    values: Mapping[str, float]
    note: str = ""

    def __post_init__(self) -> None:
        for name in self.values:
            if name not in SCORES:
                raise UserError(f"baseline {self.name!r}: {name!r} is no metric, unlike {', '.join(SCORES)}")

    @property
    def cells(self) -> dict[str, Row]:
        """In the form of `System.cells`, without intervals."""
        rest = {"low": None, "high": None, "spread": None, "runs": 1}
        return {name: {**rest, "value": value} for name, value in self.values.items()}


def choose_samples(
    systems: Sequence[System], references: Sequence[Utterance], number: int, seed: int
) -> list[Row]:
    """Rows of the sample table: `number` clips drawn by `seed`, sorted by label, with what systems say.

    The clips are those of the last system; each system's captions are those of its first seed.
    """
    captions = {s.name: dict(zip(_ids(s), s.seeds[0].captions, strict=True)) for s in systems}
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


def _ids(system: System) -> list[str]:
    return [u.id for u in system.seeds[0].utterances]


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
        if not path.is_file():
            row["missing"] = f"{row['utterance'].audio}: no such file"
        elif how == "embed":
            row["source"] = _data_uri(row["type"], path.read_bytes())
        elif how == "link":
            row["source"] = quote(Path(os.path.relpath(path, out.resolve())).as_posix())
        else:
            row["source"] = f"audio/clip-{number:03d}{suffix if suffix in _MIME else ''}"
            with atomic_open(out / row["source"], "wb") as file:
                file.write(path.read_bytes())


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
    _check(systems)
    main, listening = systems[-1], listening or Listening({})
    samples = choose_samples(systems, references, sample, seed)
    attach_audio(samples, out, manifest, audio)
    sources = {}
    for name, png in _pictures(systems, listening).items():
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
        meanings=MEANINGS,
        manifest=shlex.quote(str(manifest or "M.jsonl")),
        differences=differences or {},
        pictures=sources,
        confusions=[
            (s.name, sources[f"confusion_{i}"]) for i, s in enumerate(systems) if f"confusion_{i}" in sources
        ],
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
        "systems": {s.name: {**s.cells, "seeds": s.values_by_seed} for s in systems},
        "baselines": {b.name: b.cells for b in baselines},
        "listening": listening.conditions,
        "listening_verdict": listening.verdict,
        "differences": dict(differences or {}),
    }
    write_json(out / "metrics.json", metrics)
    write_text(out / "report.html", page)
    return out / "report.html"


def _check(systems: Sequence[System]) -> None:
    names = [s.name for s in systems]
    if not systems:
        raise UserError("a report needs at least one system")
    if len(set(names)) < len(names):
        raise UserError(f"systems of a report need different names, found {', '.join(names)}")
    sizes = {s.name: len(_ids(s)) for s in systems}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{name}: {n}" for name, n in sizes.items())
        raise UserError(
            f"systems were scored on different numbers of clips ({counts}); caption the same manifest"
        )


def template(name: str) -> Template:
    """A template of `data/`; in HTML what is filled in is escaped."""
    environment = Environment(
        loader=FileSystemLoader(data_path(name).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(scores=SCORES, figure=figure, interval=interval, shown=shown, signed=signed)
    return environment.get_template(name)


def _pictures(systems: Sequence[System], listening: Listening) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    speakers: dict[str, Mapping[str, Sequence[float]]] = {}
    chance = 1 / max(1, len(systems[-1].seeds[0].emotions.labels))
    for number, system in enumerate(systems):
        runs = [scored.emotions for scored in system.seeds]
        together = Emotions([x for e in runs for x in e.truth], [x for e in runs for x in e.said])
        if not together.labels:
            continue
        name = system.name if len(runs) == 1 else f"{system.name} (sum of {len(runs)} runs)"
        pictures[f"confusion_{number}"] = confusion_picture(
            together.confusion(), together.labels, together.columns, name
        )
        uars: dict[str, list[float]] = {}
        for scored in system.seeds:
            for row in details(scored)["speakers"]:
                uars.setdefault(row["speaker"], []).append(row["uar"])
        if uars:
            speakers[system.name] = uars
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
    both: list[System | Baseline] = [*systems, *baselines]
    for name, score in SCORES.items():
        columns = [shown(name, column.cells.get(name)) for column in both]
        known = [v for s in systems if (v := s.cells[name]["value"]) is not None]
        if not known:
            continue
        best = shown(name, {"value": (min if score.better == "less" else max)(known)})[0]
        alike = score.better == "neither" or len({text for text, *_ in columns[: len(systems)]} - {"–"}) < 2
        cells = [
            {
                "value": value,
                "spread": spread,
                "interval": bounds,
                "best": not alike and place < len(systems) and value == best,
            }
            for place, (value, spread, bounds) in enumerate(columns)
        ]
        result.append({"title": score.title, "cells": cells, "less": score.better == "less"})
    return result

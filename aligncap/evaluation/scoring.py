"""From caption files to a report: systems, seeds, wrong audio and the linear probe side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligncap.errors import UserError
from aligncap.evaluation.evaluate import compare_captions, evaluate_captions
from aligncap.evaluation.report import System, Yardstick, table, write_report
from aligncap.evaluation.samples import choose_samples
from aligncap.io import read_jsonl
from aligncap.manifest import read_manifest
from aligncap.naming import nearest
from aligncap.run_record import file_hashes, write_run_record


def read_probe(path: str | Path, manifest: str | Path) -> list[Yardstick]:
    """UAR of a linear probe (`aligncap probe --out`) on the test set of this manifest.

    Best layer on dev, and last.

    Raises:
        UserError: the file is no probe's output, or was made for other test sets.
    """
    name = Path(manifest).stem
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        layers = {row["layer"]: row for row in result["layers"]}
        best, last = layers[result["best_layer"]], layers[max(layers)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no output of `aligncap probe` ({error})") from error
    if name not in best or file_hashes([manifest])[str(manifest)] not in result.get("tests", {}).values():
        raise UserError(f"{path}: holds no score for {name!r}; run `aligncap probe` with --test {manifest}")
    return [
        Yardstick(
            f"linear probe, layer {row['layer']}",
            {"emotion_uar": row[name]},
            note=f"logistic regression on the mean of the encoder's frames; {what}",
        )
        for row, what in ((best, "the layer that is best on the dev set"), (last, "the encoder's last layer"))
    ]


def score_files(
    systems: Sequence[tuple[str, Sequence[str]]],
    references: str | Path,
    out: Path,
    *,
    wrong_audio: Sequence[str] | None = None,
    probe: str | None = None,
    label_map: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    audio: Any = "copy",
    wordnet: Any = "auto",
    allow_missing: bool = False,
    title: str = "Speech emotion captions",
    show: int = 3,
    against: str | None = None,
) -> tuple[Any, list[str], Path]:
    """Score every caption file of every system (several files: seeds) and write the report.

    The last system leads, and differences are between it and each other one; with `against`, between each
    one and the system of that name.

    Returns:
        A terminal table, `show` captions beside a reference of theirs, and the path of report.html.

    Raises:
        UserError: files missing or not matching the manifest.
    """
    utterances = read_manifest(references)
    yardsticks = read_probe(probe, references) if probe else []
    wanted = {str(u.emotion) for u in utterances}
    scorer = {"resamples": resamples, "seed": seed, "synonyms": wordnet, "label_map": label_map or None}

    captions: dict[str, list[list[dict[str, Any]]]] = {}

    def score(name: str, paths: Sequence[str], note: str = "") -> System:
        rows = captions[name] = [read_jsonl(path) for path in paths]
        results = [evaluate_captions(r, utterances, allow_missing=allow_missing, **scorer) for r in rows]
        return System(name, results, rows[0], note)

    unknown = set((label_map or {}).values()) - wanted
    if unknown:
        raise UserError(f"--label-map: {', '.join(sorted(unknown))} is no label of {references}")
    names = [name for name, _ in systems]
    if against is not None and (against not in names or allow_missing):
        why = "not with --allow-missing" if against in names else f"no such system{nearest(against, names)}"
        raise UserError(f"--against {against}: {why}")
    scored = [score(name, paths) for name, paths in systems]
    wrong = (
        score("wrong audio", wrong_audio, "each caption was written from another clip's audio")
        if wrong_audio
        else None
    )
    lead = scored[-1].name
    if against is None:
        compared = [(lead, s.name) for s in scored[:-1]]
    else:
        compared = [(s.name, against) for s in scored if s.name != against]
    if wrong is not None:
        compared.append((lead, wrong.name))
    differences = {
        f"{one} − {other}": compare_captions(captions[other], captions[one], utterances, **scorer)
        for one, other in compared
        if not allow_missing
    }
    path = write_report(
        out,
        scored,
        utterances,
        manifest_path=Path(references),
        yardsticks=yardsticks,
        wrong_audio=wrong,
        differences=differences,
        seed=seed,
        audio=audio,
        title=title,
    )
    files = [references, *(p for _, paths in systems for p in paths), *(wrong_audio or ())]
    write_run_record(
        out, "evaluate", {"systems": {n: list(p) for n, p in systems}, **scorer}, files, seed=seed
    )
    shown = scored if wrong is None else [*scored, replace(wrong, name=f"{scored[-1].name}, wrong audio")]
    lines = [
        f"{row['utterance'].id} ({row['utterance'].emotion or 'no label'})\n"
        f"  says       {row['said'][0]['caption']}\n  reference  {row['utterance'].captions[0]}"
        for row in choose_samples([scored[-1]], scored[-1], utterances, show, seed)
    ]
    return table(shown, yardsticks), lines, path

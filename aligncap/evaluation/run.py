"""From caption files to a report: systems, seeds, proof of listening and the linear probe side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from aligncap.data.manifest import read_manifest
from aligncap.evaluation.evaluate import evaluate_captions
from aligncap.evaluation.listening import audio_gains, compare, counter
from aligncap.evaluation.listening import table as listening_table
from aligncap.evaluation.protocols import protocol as protocol_text
from aligncap.evaluation.protocols import secap_runs
from aligncap.evaluation.report.html import System, Yardstick, choose_samples, table, write_report
from aligncap.utils.errors import UserError, nearest
from aligncap.utils.io import read_jsonl
from aligncap.utils.run_record import file_hashes, write_run_record


def read_probe(path: str | Path, manifest: str | Path) -> list[Yardstick]:
    """UAR of a linear probe (`aligncap probe --out`) on the test set of this manifest.

    Best layer on dev, last layer, and best on dev with features relative to the speaker.

    Raises:
        UserError: the file is no probe's output, or was made for other test sets.
    """
    name = Path(manifest).stem
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        plain = "logistic regression on the mean of the encoder's frames"
        rows = []
        for part, kind, note in (
            (result, "", plain),
            (result.get("relative"), "relative to the speaker, ", f"{plain} less the speaker's mean"),
        ):
            if part is not None:
                layers = {row["layer"]: row for row in part["layers"]}
                best = layers[part["best_layer"]]
                rows.append((best, kind, f"{note}; the layer that is best on the dev set"))
        last = result["layers"][-1]
        rows.insert(1, (last, "", f"{plain}; the encoder's last layer"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no output of `aligncap probe` ({error})") from error
    if name not in last or file_hashes([manifest])[str(manifest)] not in result.get("tests", {}).values():
        raise UserError(f"{path}: holds no score for {name!r}; run `aligncap probe` with --test {manifest}")
    return [
        Yardstick(
            f"linear probe, {kind}layer {row['layer']}",
            {"emotion_uar": row[name]},
            note=note,
        )
        for row, kind, note in rows
    ]


def score_files(
    systems: Sequence[tuple[str, Sequence[str]]],
    references: str | Path,
    out: Path,
    *,
    listening: Mapping[str, Sequence[str]] | None = None,
    wrong_audio: Sequence[str] | None = None,
    probe: str | None = None,
    label_map: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    audio: Any = "copy",
    wordnet: Any = "auto",
    similarity: Any = "auto",
    coco: Sequence[str] = (),
    protocol: str | None = None,
    allow_missing: bool = False,
    title: str = "Speech emotion captions",
    show: int = 3,
    against: str | None = None,
) -> tuple[Any, list[str], Path]:
    """Score every caption file of every system (several files: seeds) and write the report.

    The last system leads, and differences are between it and each other one; with `against`, between each
    one and the system of that name.

    Args:
        listening: caption files of the last system by what it heard instead of the clips, such as
            {"silence": [...]}, a file a seed; see `aligncap.evaluation.listening`.
        wrong_audio: more files of `listening["wrong"]`.
        protocol: "secap" or "secap-words" for files of candidates: each is scored as several runs, see
            `aligncap.evaluation.protocols`.

    Returns:
        What to print: tables, `show` captions beside a reference of theirs, and the path of report.html.

    Raises:
        UserError: files missing or not matching the manifest.
    """
    utterances = read_manifest(references)
    baselines = read_probe(probe, references) if probe else []
    wanted = {str(u.emotion) for u in utterances}
    drawing: dict[str, Any] = {"resamples": resamples, "seed": seed}
    options: dict[str, Any] = {"synonyms": wordnet, "similarity": similarity, "coco": tuple(coco)}
    scorer = {**drawing, **options, "label_map": label_map or None}
    unknown = set((label_map or {}).values()) - wanted
    if unknown:
        raise UserError(f"--label-map: {', '.join(sorted(unknown))} is no label of {references}")
    names = [name for name, _ in systems]
    if against is not None and (against not in names or allow_missing):
        why = "not with --allow-missing" if against in names else f"no such system{nearest(against, names)}"
        raise UserError(f"--against {against}: {why}")

    alike: Any = {None: None, "secap": "encoder", "secap-words": "words"}[protocol]

    def read(paths: Sequence[str]) -> list[list[dict[str, Any]]]:
        files = [read_jsonl(path) for path in paths]
        return files if alike is None else [run for f in files for run in secap_runs(f, similarity=alike)]

    captions = {name: read(paths) for name, paths in systems}
    other_files = {name: list(paths) for name, paths in (listening or {}).items()}
    if wrong_audio:
        other_files["wrong"] = [*other_files.get("wrong", ()), *wrong_audio]
    other = {name: read(paths) for name, paths in other_files.items()}

    lead = names[-1]
    if against is None:
        compared = [(lead, name) for name in names[:-1]]
    else:
        compared = [(name, against) for name in names if name != against]
    everywhere = utterances
    if allow_missing:
        lists = [rows for part in (captions[lead], *other.values()) for rows in part]
        common = set.intersection(*({row.get("id") for row in rows} for rows in lists))
        everywhere = [u for u in utterances if u.id in common and u.captions]
    count = counter(everywhere, utterances, label_map=label_map, allow_missing=allow_missing, **options)

    def report_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
        known = None if allow_missing else count(rows)  # what is missing differs from file to file
        return evaluate_captions(rows, utterances, allow_missing=allow_missing, scored=known, **scorer)

    note = protocol_text(alike) if alike else ""
    scored = [System(n, [report_of(rows) for rows in captions[n]], captions[n][0], note) for n in names]
    differences = {
        f"{one} − {two}": compare(
            [count(rows) for rows in captions[two]],
            [count(rows) for rows in captions[one]],
            **drawing,
        )
        for one, two in compared
        if not allow_missing
    }
    proof = audio_gains(
        captions[lead],
        other,
        everywhere,
        count=count,
        label_map=label_map,
        **drawing,
    )
    path = write_report(
        out,
        scored,
        utterances,
        manifest_path=Path(references),
        baselines=baselines,
        listening=proof,
        differences=differences,
        seed=seed,
        audio=audio,
        title=title,
    )
    files = [
        references,
        *(p for _, paths in systems for p in paths),
        *(p for paths in other_files.values() for p in paths),
    ]
    record = {"systems": {n: list(p) for n, p in systems}, "listening": other_files, **scorer}
    write_run_record(out, "evaluate", record, files, seed=seed)
    lines = [
        f"{row['utterance'].id} ({row['utterance'].emotion or 'no label'})\n"
        f"  says       {row['said'][0]['caption']}\n  reference  {row['utterance'].captions[0]}"
        for row in choose_samples([scored[-1]], scored[-1], utterances, show, seed)
    ]
    shown: Any = table(scored, baselines)
    if proof.conditions:
        shown = Group(shown, listening_table(proof.conditions))
    return Group(shown, Text(" ".join(proof.verdict))), lines, path

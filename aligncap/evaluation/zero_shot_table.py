"""What a zero-shot test found: its JSON, and the table for a terminal and in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligncap.evaluation.listening import Listening
from aligncap.evaluation.recordings import compare, describe, describe_training
from aligncap.evaluation.systems import TITLES, Cell, Yardstick, figure, interval
from aligncap.evaluation.zero_shot_scores import WEIGHTS, Corpus
from aligncap.heard import Heard
from aligncap.io import file_sha256

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = (
    "emotion_uar",
    "subset_emotion_uar",
    "emotion_accuracy",
    "emotion_none_share",
    "cider_d",
    "bleu_4",
    "wrong_claim_share",
    "fit_share",
)


def content_of(
    name: str,
    heard: Heard,
    corpora: Sequence[Corpus],
    scores: Mapping[str, Any],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    proofs: Mapping[str, Listening | None],
    labels: Sequence[str],
    yardsticks: Mapping[str, Sequence[Yardstick]],
    limit: int | None,
) -> dict[str, Any]:
    """zero_shot.json: for each corpus its scores, flat, beside what it is and how captions were read."""
    training = describe_training(heard)
    training["corpora_without_hash"] = sorted(heard.unhashed)
    told = {}
    for corpus in corpora:
        conditions = describe(corpus.manifest, corpus.utterances)
        own = sorted(conditions["labels"].keys() - {"unknown"})
        told[corpus.name] = {
            **scores["corpora"][corpus.name],
            **conditions,
            **compare(conditions, training),
            "manifest": str(corpus.manifest),
            "manifest_sha256": file_sha256(corpus.manifest),
            "label_map": corpus.label_map,
            "chance": 1 / len(own) if own else None,
            "subset": [label for label in labels if label in own],
            "foreign_emotions": _foreign(results[corpus.name]),
            "yardsticks": {y.name: {**y.values, "note": y.note} for y in yardsticks[corpus.name]},
            "listening": _listening(proofs[corpus.name]),
            "signature": results[corpus.name][0]["signature"],
        }
    content = {
        "system": name,
        "seeds": len(corpora[0].captions),
        "labels": list(labels),
        "limit": limit,
        "corpora": told,
        "together": scores["together"],
        "weights": WEIGHTS if scores["together"] else None,
        "training": training,
    }
    json.dumps(content, allow_nan=False)
    return content


def _listening(proof: Listening | None) -> dict[str, Any] | None:
    return None if proof is None else {"conditions": proof.conditions, "verdict": proof.verdict}


def _foreign(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of captions that name an emotion which no clip of the corpus has, by emotion, over all seeds."""
    counts: dict[str, int] = {}
    for result in results:
        details = result["details"]
        for place in range(len(details["labels"]), len(details["columns"]) - 1):
            said = sum(row[place] for row in details["confusion"])
            counts[details["columns"][place]] = counts.get(details["columns"][place], 0) + said
    clips = sum(sum(map(sum, result["details"]["confusion"])) for result in results)
    return {label: count / clips for label, count in sorted(counts.items())}


def _title(metric: str, labels: Sequence[str]) -> str:
    name = metric.removeprefix("subset_")
    return f"{TITLES[name]}, {len(labels)} labels" if metric != name else TITLES[name]


def _cell(metric: str, cell: Cell | None) -> str:
    if cell is None or cell["value"] is None:
        return "–"
    name = metric.removeprefix("subset_")
    spread = "" if cell["spread"] is None else f" ± {figure(name, cell['spread'])}"
    return f"{figure(name, cell['value'])}{spread} {interval(name, cell)}".strip()


def _listed(counts: Mapping[str, Any], show: str = "{0} {1}") -> str:
    return ", ".join(show.format(name, value) for name, value in counts.items())


def rows_of(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: corpora, their yardsticks, all together."""
    metrics = [m for m in _SHOWN if content["labels"] or not m.startswith("subset_")]
    header = ["corpus", "language", "level, dBFS", "clips", "speakers", "labels"]
    header += [_title(metric, content["labels"]) for metric in metrics]
    lines = []
    for name, c in content["corpora"].items():
        level = "–" if c["level_dbfs"] is None else f"{c['level_dbfs']:.0f}"
        if c["level_difference_db"] is not None:
            level += f" ({c['level_difference_db']:+.0f} to training)"
        labels = len(c["labels"].keys() - {"unknown"})
        facts = [", ".join(c["languages"]), level, str(c["clips"]), str(c["speakers"]), str(labels)]
        lines.append([name, *facts, *(_cell(metric, c.get(metric)) for metric in metrics)])
        for yardstick, values in c["yardsticks"].items():
            cells = [_yardstick(metric, values.get(metric)) for metric in metrics]
            lines.append([f"{name}: {yardstick}", *[""] * len(facts), *cells])
    for way, cells in (content["together"] or {}).items():
        lines.append([way.replace("_", " "), *[""] * 5, *(_cell(m, cells.get(m)) for m in metrics)])
    return header, lines


def _yardstick(metric: str, value: Any) -> str:
    if value is None:
        return "–"
    given = value if isinstance(value, Mapping) else {"value": value}
    return _cell(metric, {"low": None, "high": None, "spread": None, **given})


def notes(content: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the figures, a sentence each."""
    training = content["training"]
    known = training["conditions"]
    told = [f"Trained on {', '.join(training['corpora']) or 'nothing'}"]
    if known is not None:
        level = "" if known["level_dbfs"] is None else f", speech at {known['level_dbfs']:.0f} dBFS"
        told[0] += f" ({', '.join(known['languages'])}{level}, {known['clips']} clips)"
    if training["unreadable"]:
        told.append(f"Training manifests gone or changed: {', '.join(training['unreadable'])}")
    if training["corpora_without_hash"]:
        names = ", ".join(training["corpora_without_hash"])
        told.append(f"Clips without hash in training ({names}): compared by corpus and speaker alone")
    for name, c in content["corpora"].items():
        rates = _listed(c["rates"], "{1} files at {0}")
        told.append(f"{name}: {_listed(c['genders'])} clips; {rates} Hz; labels {_listed(c['labels'])}")
        if c["new_languages"]:
            told.append(f"{name}: a language that training has not: {', '.join(c['new_languages'])}")
        renamed = _listed(c["label_map"], "{0} counts as {1}") or "no emotion renamed"
        shares = {label: f"{share:.1%}" for label, share in c["foreign_emotions"].items()}
        also = f"; captions name emotions that no clip has: {_listed(shares)}" if shares else ""
        told.append(f"{name}: {renamed}{also}")
        if c["clips_without_hash"]:
            told.append(f"{name}: {c['clips_without_hash']} clips without hash, not compared by hash")
        if c["listening"]:
            told += [f"{name}: {sentence.removesuffix('.')}" for sentence in c["listening"]["verdict"]]
        if content["labels"]:
            chosen = ", ".join(c["subset"]) or "none"
            told.append(f"{name}: of the chosen labels it has {chosen}; another emotion said counts as wrong")
    told.append(
        "A model that hears a clip against its speaker takes the mean of up to 32 unlabelled clips of the "
        "same speaker from the corpus itself"
    )
    if content["limit"]:
        told.append(f"Limited to {content['limit']} clips of each corpus, labels as even as they come")
    told += [f"{way.replace('_', ' ')}: {text}" for way, text in (content["weights"] or {}).items()]
    spread = f"; ± is the standard deviation over {content['seeds']} seeds" if content["seeds"] > 1 else ""
    return [*told, f"In brackets: 95 % intervals over speakers{spread}"]


def markdown(content: Mapping[str, Any]) -> str:
    """The table and its notes as a Markdown page."""
    header, lines = rows_of(content)
    table = [header, ["---"] * len(header), *lines]
    text = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table)
    told = "\n".join(f"- {note}." for note in notes(content))
    return f"# Zero-shot: {content['system']}\n\n{text}\n\n{told}\n"


def terminal_table(content: Mapping[str, Any]) -> Table:
    """The same for a terminal, scores downwards."""
    from rich.table import Table
    from rich.text import Text

    header, lines = rows_of(content)
    sheet = Table(title=f"zero-shot: {content['system']}", caption="\n".join(notes(content)))
    sheet.caption_justify = "left"
    sheet.add_column("")
    for line in lines:
        sheet.add_column(Text(line[0]), justify="right")
    for place, name in enumerate(header[1:], 1):
        sheet.add_row(Text(name), *(Text(line[place]) for line in lines))
    return sheet

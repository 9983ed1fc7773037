"""Several corpora side by side: scores of each and of all together, their recordings, and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from aligncap.audio.files import AudioError, info, load_audio
from aligncap.audio.level import level_dbfs
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.data.provenance import Provenance
from aligncap.data.split import choose_evenly
from aligncap.evaluation.evaluate import Evaluation
from aligncap.evaluation.metrics import SCORES, shown
from aligncap.evaluation.metrics.emotion import joined
from aligncap.evaluation.scoring import subset_cells, together
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, file_sha256
from aligncap.utils.progress import track

WEIGHTS = {
    "pooled": "the clips of all corpora as one set, so that a corpus weighs as many clips as it has; "
    "CIDEr-D's document frequencies and speakers' norms are those of each corpus",
    "mean_over_corpora": "plain mean of the corpora's own scores, each weighing the same",
    "interval": "95 % by the jackknife over the speakers of all corpora",
}
_MEASURED = 100  # clips whose level is measured where a manifest has none
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


@dataclass(frozen=True)
class Corpus:
    """A set to score; `whole` is its manifest, of which `utterances` may be a part.

    Speakers' norms and the clips that captions are compared with are taken from `whole`.
    """

    name: str
    manifest: Path
    utterances: list[Utterance]
    whole: list[Utterance]
    label_map: Mapping[str, str]


def content_of(
    provenance: Provenance,
    results: Sequence[tuple[Corpus, Evaluation]],
    labels: Sequence[str],
    limit: int | None,
) -> Row:
    """zero_shot.json: of each corpus its scores, flat, beside what it is and how captions were read.

    Args:
        labels: a choice of labels; scores named "subset_…" are of the clips with one of these alone.
    """
    training = describe_training(provenance)
    known = training["conditions"]
    systems = [evaluation.systems[-1] for _, evaluation in results]
    system, several = systems[0], len(systems) > 1
    corpora = {}
    for corpus, evaluation in results:
        listening, seeds = evaluation.listening, evaluation.systems[-1].seeds
        conditions = describe(corpus.manifest, corpus.utterances)
        levels = conditions["level_dbfs"], known and known["level_dbfs"]
        own = sorted(conditions["labels"].keys() - {"unknown"})
        emotions = joined([scored.emotions for scored in seeds])
        said = [said for truth, said in zip(emotions.truth, emotions.said, strict=True) if truth]
        foreign = sorted(set(emotions.columns[:-1]) - set(emotions.labels))
        corpora[corpus.name] = {
            **evaluation.systems[-1].cells,
            **subset_cells([[seeds]], labels),
            **conditions,
            "new_languages": known and sorted(conditions["languages"].keys() - known["languages"].keys()),
            "level_difference_db": None if None in levels else levels[0] - levels[1],
            "manifest": str(corpus.manifest),
            "manifest_sha256": file_sha256(corpus.manifest),
            "label_map": dict(corpus.label_map),
            "chance": 1 / len(own) if own else None,
            "subset": [label for label in labels if label in own],
            "foreign_emotions": {label: said.count(label) / len(said) for label in foreign},
            "baselines": {b.name: {**b.values, "note": b.note} for b in evaluation.baselines},
            "listening": {"conditions": listening.conditions, "verdict": listening.verdict}
            if listening.conditions
            else None,
            "signature": evaluation.systems[-1].signature,
        }
    return {
        "system": system.name,
        "seeds": len(system.seeds),
        "labels": list(labels),
        "limit": limit,
        "corpora": corpora,
        "together": together([s.seeds for s in systems], labels) if several else None,
        "weights": WEIGHTS if several else None,
        "training": training,
    }


def describe(manifest: Path, utterances: Sequence[Utterance]) -> Row:
    """What to know of a set's recordings before its scores are compared with another set's.

    Returns:
        clips, speakers, genders (clips of each), languages and labels (clips of each), level_dbfs (median RMS
        of active speech, dB of full scale; of the cues that `annotate` measured, else of up to 100 files) and
        level_clips, rates (files of each sampling rate in Hz; "unreadable" those without a header), and
        clips_without_hash.
    """
    levels = [u.cues["level_dbfs"] for u in utterances if "level_dbfs" in u.cues]
    if not levels:
        chosen = [utterances[i] for i in choose_evenly(list(utterances), _MEASURED, seed=0)]
        measured = (_level(manifest, u) for u in track(chosen, len(chosen), "measuring levels"))
        levels = [level for level in measured if np.isfinite(level)]
    return {
        "clips": len(utterances),
        "speakers": len({(u.corpus, u.speaker) for u in utterances if u.speaker}),
        "genders": _counts(u.gender or "unknown" for u in utterances),
        "languages": _counts(u.language for u in utterances),
        "labels": _counts(u.emotion or "unknown" for u in utterances),
        "level_dbfs": median(levels) if levels else None,
        "level_clips": len(levels),
        "rates": _counts(_rate(manifest, u) for u in utterances),
        "clips_without_hash": sum(not (u.sha256 or u.extra.get("samples_sha256")) for u in utterances),
    }


def describe_training(provenance: Provenance) -> Row:
    """What a model was trained on, as far as its manifests can still be read unchanged.

    Returns: corpora, `describe` of all readable clips together under "conditions" (None where there are
    none), "unreadable": the manifests that are gone or changed, and "corpora_without_hash".
    """
    listed = [line.split(" ", 1) for line in sorted(provenance.manifests)]
    paths = [Path(name) for sha256, name in listed if Path(name).is_file() and file_sha256(name) == sha256]
    clips: dict[tuple[str, str], Utterance] = {}
    for path in paths:
        for u in read_manifest(path):
            u.root = str((path.parent / u.root).resolve())
            clips.setdefault((u.corpus, u.id), u)
    return {
        "corpora": sorted(provenance.corpora),
        "conditions": describe(paths[0], list(clips.values())) if clips else None,
        "unreadable": [name for _, name in listed if Path(name) not in paths],
        "corpora_without_hash": sorted(provenance.unhashed),
    }


def _level(manifest: Path, u: Utterance) -> float:
    try:
        return level_dbfs(load_audio(audio_path(manifest, u), normalise=False))
    except UserError:
        return float("nan")


def _rate(manifest: Path, u: Utterance) -> str:
    try:
        return str(info(audio_path(manifest, u)).rate)
    except (AudioError, UserError):
        return "unreadable"


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def table_of(content: Row) -> list[list[str]]:
    """Lines of the table: its header, corpora, their baselines, all together."""
    metrics = [m for m in _SHOWN if content["labels"] or not m.startswith("subset_")]

    def cells(values: Row) -> list[str]:
        found = ((m.removeprefix("subset_"), values.get(m)) for m in metrics)
        plain = ((m, {"value": v} if isinstance(v, float) else v) for m, v in found)
        return [" ".join(part for part in shown(m, cell) if part) for m, cell in plain]

    titles = [SCORES[m.removeprefix("subset_")].title for m in metrics]
    number = f", {len(content['labels'])} labels"
    header = ["corpus", "language", "level, dBFS", "clips", "speakers", "labels"]
    header += [t + number * m.startswith("subset_") for m, t in zip(metrics, titles, strict=True)]
    lines = [header]
    for name, c in content["corpora"].items():
        level = "–" if c["level_dbfs"] is None else f"{c['level_dbfs']:.0f}"
        if c["level_difference_db"] is not None:
            level += f" ({c['level_difference_db']:+.0f} to training)"
        labels = len(c["labels"].keys() - {"unknown"})
        facts = [", ".join(c["languages"]), level, str(c["clips"]), str(c["speakers"]), str(labels)]
        lines.append([name, *facts, *cells(c)])
        lines += [[f"{name}: {other}", *[""] * 5, *cells(values)] for other, values in c["baselines"].items()]
    for way, values in (content["together"] or {}).items():
        lines.append([way.replace("_", " "), *[""] * 5, *cells(values)])
    return lines

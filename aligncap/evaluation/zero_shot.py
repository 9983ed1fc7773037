"""`aligncap zeroshot`: score a model on corpora that share nothing with its training."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.audio.files import AudioError, info, level_dbfs, load_audio
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.data.provenance import Provenance, known_provenance, refuse_overlap
from aligncap.data.split import choose_evenly
from aligncap.evaluation.evaluate import SCORES, Synonyms, evaluate_captions, pair_up, score
from aligncap.evaluation.listening import Listening, audio_gains, counter
from aligncap.evaluation.metrics.emotion import NONE, Emotions, emotion_statistics, read_emotions
from aligncap.evaluation.metrics.ngram import diversity_statistics
from aligncap.evaluation.report.html import Audio, write_report
from aligncap.evaluation.run import read_probe
from aligncap.evaluation.systems import TITLES, Cell, System, Yardstick, figure, interval, pooled
from aligncap.inference.batch import caption_jobs, jobs_of_manifest, with_condition
from aligncap.inference.captioner import Captioner
from aligncap.models.checkpoints import model_key
from aligncap.models.precision import dtype_name
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import file_sha256, load_data, read_jsonl, write_json, write_text
from aligncap.utils.progress import track
from aligncap.utils.run_record import write_run_record
from aligncap.utils.statistics import Clusters, Interval, Statistic, clusters_of, intervals

if TYPE_CHECKING:
    from rich.table import Table

Rows = Sequence[Mapping[str, Any]]
SUBSET = ("emotion_uar", "emotion_accuracy", "emotion_none_share")
WEIGHTS = {
    "pooled": "the clips of all corpora as one set, so that a corpus weighs as many clips as it has; "
    "CIDEr-D's document frequencies and speakers' norms are those of each corpus",
    "mean_over_corpora": "plain mean of the corpora's own scores, each weighing the same",
    "interval": "95 % percentile bootstrap over the speakers of all corpora, drawn together",
}


@dataclass(frozen=True)
class Corpus:
    """A set to score: `captions` are one list of rows {"id", "caption"} for each training seed.

    `whole` is what speakers' norms are taken from and captions are compared with where only some of its clips
    are scored; by default `utterances`.
    """

    name: str
    manifest: Path
    utterances: list[Utterance]
    captions: list[Rows]
    label_map: dict[str, str] = field(default_factory=dict)
    whole: list[Utterance] = field(default_factory=list)


def score_corpus(
    corpus: Corpus, *, resamples: int = 1000, seed: int = 0, synonyms: Synonyms = "auto"
) -> list[dict[str, Any]]:
    """`evaluate_captions` for each seed's captions.

    Raises:
        UserErrors: captions and manifest do not match.
    """
    for rows in corpus.captions:
        pair_up(rows, corpus.utterances)
    return [
        evaluate_captions(
            rows,
            corpus.whole or corpus.utterances,
            allow_missing=bool(corpus.whole),
            resamples=resamples,
            seed=seed,
            synonyms=synonyms,
            label_map=corpus.label_map,
        )
        for rows in corpus.captions
    ]


def score_zero_shot(
    corpora: Sequence[Corpus],
    *,
    labels: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    synonyms: Synonyms = "auto",
    results: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Scores by corpus and together, over seeds (see `pooled` of systems.py for their form).

    Args:
        corpora: all with captions of as many seeds.
        labels: a choice of labels; scores named `subset_…` are of the clips with one of these labels alone. A
            caption that names an emotion outside of them, or none, is wrong there.
        results: `score_corpus` of each corpus by name, where it has been called before.

    Returns:
        {"corpora": {name: {metric: cell}}, "together": {"pooled" and "mean_over_corpora": {metric: cell}}},
        the latter only for several corpora (else None), and of the scores that all corpora have. Together
        there is no distinct-n, which is no sum over clips.
    """
    options = {"resamples": resamples, "seed": seed}
    by_corpus: dict[str, dict[str, Any]] = {}
    for corpus in corpora:
        done = results and results.get(corpus.name)
        found: dict[str, Any] = pooled(done or score_corpus(corpus, synonyms=synonyms, **options))
        found |= _subset_cells([[corpus]], labels, options)
        by_corpus[corpus.name] = found
    if len(corpora) < 2:
        return {"corpora": by_corpus, "together": None}
    clusters = clusters_of([u for corpus in corpora for u in corpus.utterances])
    runs: dict[str, list[dict[str, Interval]]] = {"pooled": [], "mean_over_corpora": []}
    for number in range(len(corpora[0].captions)):
        parts = [_counted(corpus, number, synonyms) for corpus in corpora]
        runs["pooled"].append(intervals(_pooled_statistics(corpora, parts, number), clusters, **options))
        runs["mean_over_corpora"].append(intervals(_mean_statistics(parts), clusters, **options))
    together = {name: _cells(found) for name, found in runs.items()}
    together["pooled"] |= _subset_cells([corpora], labels, options)
    together["mean_over_corpora"] |= _subset_cells([[corpus] for corpus in corpora], labels, options)
    return {"corpora": by_corpus, "together": together}


def _cells(runs: Sequence[Mapping[str, Interval]]) -> dict[str, Cell]:
    """`pooled` over seeds, for those scores that there are."""
    nothing: Interval = {"value": None, "low": None, "high": None}
    cells = pooled([{name: _told(run.get(name, nothing)) for name in SCORES} for run in runs])
    return {name: cell for name, cell in cells.items() if name in runs[0]}


def _told(interval: Interval) -> Interval:
    return {k: v if v is not None and np.isfinite(v) else None for k, v in interval.items()}


def _counted(corpus: Corpus, number: int, synonyms: Synonyms) -> dict[str, Statistic]:
    utterances, captions = pair_up(corpus.captions[number], corpus.utterances)
    whole = corpus.whole or corpus.utterances
    return score(utterances, captions, synonyms=synonyms, label_map=corpus.label_map, whole=whole).statistics


def _shared_names(parts: Sequence[Mapping[str, Statistic]]) -> list[str]:
    both = set.intersection(*(set(part) for part in parts))
    return [name for name in SCORES if name in both]


def _pooled_statistics(
    corpora: Sequence[Corpus], parts: Sequence[Mapping[str, Statistic]], number: int
) -> dict[str, Statistic]:
    """Sums over the clips of all corpora; emotions over all labels, and the top caption of all captions."""
    found = {
        name: Statistic(np.concatenate([part[name].sums for part in parts]), parts[0][name].score)
        for name in _shared_names(parts)
        # what differs in width is made of other labels, or of other denominators
        if len({part[name].sums.shape[1] for part in parts}) == 1
    }
    captions = [c for corpus in corpora for c in pair_up(corpus.captions[number], corpus.utterances)[1]]
    found.pop("emotion_uar", None)
    found |= emotion_statistics(_emotions(corpora, number))
    found["top_caption_share"] = diversity_statistics(captions, np.zeros(len(captions)))["top_caption_share"]
    return found


def _mean_statistics(parts: Sequence[Mapping[str, Statistic]]) -> dict[str, Statistic]:
    """The mean over corpora, as a statistic of all clips: each corpus has columns of its own."""
    return {name: _mean_of([part[name] for part in parts]) for name in _shared_names(parts)}


def _mean_of(parts: Sequence[Statistic]) -> Statistic:
    widths = np.cumsum([0, *(part.sums.shape[1] for part in parts)])
    sums = np.zeros((sum(len(part.sums) for part in parts), widths[-1]))
    at = 0
    for part, start, end in zip(parts, widths, widths[1:], strict=False):
        sums[at : at + len(part.sums), start:end] = part.sums
        at += len(part.sums)

    def mean(totals: np.ndarray) -> np.ndarray:
        values = [
            part.score(totals[..., start:end])
            for part, start, end in zip(parts, widths, widths[1:], strict=False)
        ]
        result: np.ndarray = np.mean(values, axis=0)
        return result

    return Statistic(sums, mean)


def _emotions(corpora: Sequence[Corpus], number: int) -> Emotions:
    """What was so and what was said in all corpora, each read through its own label map."""
    truth: list[str | None] = []
    said: list[str] = []
    for corpus in corpora:
        utterances, captions = pair_up(corpus.captions[number], corpus.utterances)
        found = read_emotions(captions, utterances, corpus.label_map)
        truth += [u.emotion for u in utterances]
        said += [found.columns[column] for column in found.said]
    labels = sorted({label for label in truth if label})
    columns = [*labels, *sorted(set(said) - {*labels, NONE}), NONE]
    return Emotions(
        labels,
        columns,
        np.array([labels.index(label) if label else -1 for label in truth], dtype=np.int64),
        np.array([columns.index(label) for label in said], dtype=np.int64),
    )


def _chosen(corpus: Corpus, labels: Sequence[str]) -> Corpus | None:
    """The clips of these labels and their captions; None where there are none."""
    utterances = [u for u in corpus.utterances if u.emotion in labels]
    ids = {u.id for u in utterances}
    captions: list[Rows] = [[row for row in rows if row["id"] in ids] for rows in corpus.captions]
    if not utterances:
        return None
    return Corpus(corpus.name, corpus.manifest, utterances, captions, corpus.label_map)


def _subset_cells(
    groups: Sequence[Sequence[Corpus]], labels: Sequence[str], options: Mapping[str, int]
) -> dict[str, Cell]:
    """Emotion scores of the chosen labels, averaged over groups of corpora whose clips are one set."""
    chosen = [[part for corpus in group if (part := _chosen(corpus, labels))] for group in groups]
    chosen = [group for group in chosen if group]
    if not labels or not chosen:
        return {}
    everything = [corpus for group in chosen for corpus in group]
    clusters: Clusters = clusters_of([u for corpus in everything for u in corpus.utterances])
    runs = []
    for number in range(len(everything[0].captions)):
        parts = [emotion_statistics(_emotions(group, number)) for group in chosen]
        runs.append(intervals(_mean_statistics(parts), clusters, **options))
    cells = _cells(runs)
    return {f"subset_{name}": cells[name] for name in SUBSET}


_MEASURED = 100  # clips whose level is measured where a manifest has none


def describe(manifest: str | Path, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """What is worth knowing of a set's recordings before its scores are compared with another set's.

    Returns:
        clips, speakers, genders (clips of each), languages and labels (clips of each), level_dbfs (median RMS
        of active speech, dB of full scale; of the cues that `annotate` measured, else of up to 100 files) and
        level_clips, rates (files of each sampling rate in Hz; "unreadable" those without a header), and
        clips_without_hash.
    """
    levels = [u.cues["level_dbfs"] for u in utterances if "level_dbfs" in u.cues]
    if not levels:
        chosen = [utterances[i] for i in choose_evenly(utterances, _MEASURED, seed=0)]
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


def describe_training(heard: Provenance) -> dict[str, Any]:
    """The same for what a model was trained on, as far as its manifests can still be read unchanged.

    Returns: corpora, `describe` of all readable clips together under "conditions" (None where there are
    none), and "unreadable": the manifests that are gone or changed.
    """
    conditions, unreadable, clips = None, [], []
    first: Path | None = None
    seen: set[tuple[str, str]] = set()
    for line in sorted(heard.manifests):
        sha256, _, name = line.partition(" ")
        path = Path(name)
        if not path.is_file() or file_sha256(path) != sha256:
            unreadable.append(name)
            continue
        first = first or path
        for u in read_manifest(path):
            if (u.corpus, u.id) not in seen:
                seen.add((u.corpus, u.id))
                u.root = str((path.parent / u.root).resolve())
                clips.append(u)
    if first is not None:
        conditions = describe(first, clips)
    return {"corpora": sorted(heard.corpora), "conditions": conditions, "unreadable": unreadable}


def compare(conditions: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """How a set differs from the training's: new_languages, and level_difference_db (None if unknown)."""
    known = training["conditions"]
    if known is None:
        return {"new_languages": None, "level_difference_db": None}
    levels = conditions["level_dbfs"], known["level_dbfs"]
    return {
        "new_languages": sorted(set(conditions["languages"]) - set(known["languages"])),
        "level_difference_db": None if None in levels else levels[0] - levels[1],
    }


def _level(manifest: str | Path, u: Utterance) -> float:
    try:
        return level_dbfs(load_audio(audio_path(manifest, u), normalise=False))
    except UserError:
        return float("nan")


def _rate(manifest: str | Path, u: Utterance) -> str:
    try:
        return str(info(audio_path(manifest, u)).rate)
    except (AudioError, UserError):
        return "unreadable"


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


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
    heard: Provenance,
    corpora: Sequence[Corpus],
    scores: Mapping[str, Any],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    proofs: Mapping[str, Listening | None],
    labels: Sequence[str],
    baselines: Mapping[str, Sequence[Yardstick]],
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
            "baselines": {y.name: {**y.values, "note": y.note} for y in baselines[corpus.name]},
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
    """Header and lines: corpora, their baselines, all together."""
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
        for baseline, values in c["baselines"].items():
            cells = [_baseline(metric, values.get(metric)) for metric in metrics]
            lines.append([f"{name}: {baseline}", *[""] * len(facts), *cells])
    for way, cells in (content["together"] or {}).items():
        lines.append([way.replace("_", " "), *[""] * 5, *(_cell(m, cells.get(m)) for m in metrics)])
    return header, lines


def _baseline(metric: str, value: Any) -> str:
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


__all__ = ["refuse_overlap", "read_corpora", "score_zero_shot", "zero_shot"]


def read_corpora(
    manifests: Sequence[str | Path],
    label_maps: Sequence[tuple[str, str]] = (),
    labels: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> list[Corpus]:
    """Manifests as corpora without captions yet, named by their corpus, or by the file if it holds several.

    Args:
        label_maps: ("CORPUS:SAID", "LABEL"): what captions say counts as a label of that corpus.
        labels: a choice of labels to score apart.
        limit: that many clips of each corpus only, labels as even as they come, chosen by `seed`.

    Raises:
        UserErrors: names that repeat, maps of unknown corpora or labels or of labels that the corpus has itself,
            and chosen labels that no corpus has.
    """
    maps, errors = _read_maps(label_maps)
    corpora: list[Corpus] = []
    for manifest in manifests:
        whole = utterances = read_manifest(manifest)
        inside = {u.corpus for u in utterances}
        name = _folder_name(inside.pop() if len(inside) == 1 else Path(manifest).stem)
        if limit is not None:
            utterances = [utterances[i] for i in choose_evenly(utterances, limit, seed)]
        if any(corpus.name == name for corpus in corpora):
            errors.append(f'{manifest}: "{name}" was named before; join its manifests with `aligncap join`')
        rest = whole if limit is not None else []
        corpora.append(Corpus(name, Path(manifest), utterances, [], maps.get(name, {}), rest))
    names = [corpus.name for corpus in corpora]
    errors += [
        f"--label-map {name}:…: no such corpus{nearest(name, names)}; there are {', '.join(names)}"
        for name in maps
        if name not in names
    ]
    known = load_data("labels.yaml")["labels"]
    everywhere: set[str | None] = set()
    for corpus in corpora:
        own = {u.emotion for u in corpus.utterances}
        everywhere |= own
        for said, label in corpus.label_map.items():
            option = f"--label-map {corpus.name}:{said}={label}"
            if said not in known:
                errors.append(f'{option}: unknown label "{said}"{nearest(said, known)}')
            elif said in own:
                errors.append(f'{option}: {corpus.name} has clips labelled "{said}" itself; leave it out')
            if label not in own:
                errors.append(f'{option}: {corpus.name} has no clip labelled "{label}"')
    errors += [
        f'--labels: no clip is labelled "{label}"{nearest(label, filter(None, everywhere))}'
        for label in labels
        if label not in everywhere
    ]
    if errors:
        raise UserErrors(errors)
    return corpora


def _folder_name(corpus: str) -> str:
    return re.sub(r"[^\w.-]+", "-", corpus).strip("-.") or "corpus"


def _read_maps(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, dict[str, str]], list[str]]:
    maps: dict[str, dict[str, str]] = {}
    errors = []
    for key, label in pairs:
        name, colon, said = key.rpartition(":")
        if not (colon and name and said):
            errors.append(f"--label-map {key}={label}: write CORPUS:SAID=LABEL, like nemo:calm=neutral")
        maps.setdefault(name, {})[said] = label
    return ({}, errors) if errors else (maps, [])


def zero_shot(
    models: Sequence[str | Path],
    manifests: Sequence[str | Path],
    out: str | Path,
    *,
    captions: Sequence[tuple[str, str]] = (),
    captions_dir: str | Path | None = None,
    trained_on: Sequence[str | Path] = (),
    label_maps: Sequence[tuple[str, str]] = (),
    labels: Sequence[str] = (),
    only_labels: bool = False,
    heard_instead: Sequence[str] = (),
    probes: Sequence[str | Path] = (),
    limit: int | None = None,
    name: str = "model",
    resamples: int = 1000,
    seed: int = 0,
    wordnet: Synonyms = "auto",
    audio: Audio = "copy",
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 32,
    max_new_tokens: int = 48,
) -> Table:
    """Refuse what was heard, caption the rest, score it, and write tables and a report for each corpus.

    Writes zero_shot.json and zero_shot.md, CORPUS/report.html, run.json, and CORPUS-0.jsonl … in
    `captions_dir` (OUT/captions); captions there are taken up if the same model wrote them of the same clips.

    Args:
        models: checkpoints of one system, one a training seed.
        captions: (CORPUS, FILE) of captions written before; a corpus named again is another seed.
        trained_on: manifests of the training, for checkpoints that do not tell.
        only_labels: captions may name no emotion but `labels`, or without them the corpus's own labels: as a
            classifier that must choose among them.
        heard_instead: conditions under which the clips are captioned too, to prove that it listens: "wrong",
            "silence", "noise", "same-words", "whisper" (see `aligncap.evaluation.listening`).
        probes: outputs of `aligncap probe`, as baselines.

    Returns: a table for the terminal.

    Raises:
        UserErrors: a corpus, speaker or clip that was heard in training, or whatever else does not fit.
    """
    out = Path(out)
    corpora = read_corpora(manifests, label_maps, labels, limit, seed)
    if not models and not trained_on:
        raise UserError(
            "nothing tells what was trained on; give --model CHECKPOINT or --trained-on M.jsonl …"
        )
    heard = known_provenance(models, trained_on)
    refuse_overlap(heard, manifests)
    baselines = _baselines(probes, corpora, limit)
    given = _given_captions(captions, corpora, models)
    if heard_instead and (given or not models):
        raise UserError("--heard captions with the model itself: give --model, and leave out --captions")
    folder = Path(captions_dir) if captions_dir else out / "captions"
    todo = [corpus for corpus in corpora if corpus.name not in given]
    files = {corpus.name: [Path(p) for p in given.get(corpus.name, ())] for corpus in corpora}
    other: dict[str, dict[str, list[Path]]] = {}
    if todo:
        from aligncap.evaluation.zero_shot import caption_corpora

        caption = partial(
            caption_corpora,
            models,
            todo,
            folder,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            only=list(labels) if only_labels else None,
            seed=seed,
        )
        files |= caption()
        other = {condition: caption(condition=condition) for condition in dict.fromkeys(heard_instead)}
    corpora = [replace(corpus, captions=[_rows(p, corpus) for p in files[corpus.name]]) for corpus in corpora]
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "synonyms": wordnet}
    results = {corpus.name: score_corpus(corpus, **options) for corpus in corpora}
    scores = score_zero_shot(corpora, labels=labels, results=results, **options)
    proofs = {
        corpus.name: _proof(corpus, {name: paths[corpus.name] for name, paths in other.items()}, **options)
        for corpus in corpora
    }
    for corpus in corpora:
        write_report(
            out / corpus.name,
            [System(name, results[corpus.name], corpus.captions[0])],
            corpus.utterances,
            manifest_path=corpus.manifest,
            baselines=baselines[corpus.name],
            listening=proofs[corpus.name],
            seed=seed,
            audio=audio,
            title=f"Zero-shot: {corpus.name}",
        )
    content = content_of(name, heard, corpora, scores, results, proofs, labels, baselines, limit)
    write_json(out / "zero_shot.json", content)
    write_text(out / "zero_shot.md", markdown(content))
    config = {
        "models": [str(m) for m in models],
        "captions": {corpus: [str(p) for p in paths] for corpus, paths in files.items()},
        "trained_on": [str(p) for p in trained_on],
        "label_maps": {corpus.name: corpus.label_map for corpus in corpora},
        "labels": list(labels),
        "only_labels": only_labels,
        "heard_instead": list(heard_instead),
        "probes": [str(p) for p in probes],
        "limit": limit,
        **options,
    }
    every = [files, *other.values()]
    data = [
        *manifests,
        *trained_on,
        *(p for part in every for paths in part.values() for p in paths),
        *probes,
    ]
    write_run_record(out, "zeroshot", config, list(data), seed=seed)
    return terminal_table(content)


def _rows(path: Path, corpus: Corpus) -> Rows:
    """Captions of the corpus's clips, which may be fewer than the file's under --limit."""
    ids = {u.id for u in corpus.utterances}
    others = {u.id for u in corpus.whole} - ids
    return [row for row in read_jsonl(path) if row.get("id") not in others]


def _proof(
    corpus: Corpus, files: Mapping[str, Sequence[Path]], synonyms: Synonyms, **drawing: Any
) -> Listening | None:
    """What is lost when the clips are not heard; None where that was not asked for."""
    if not files:
        return None
    count = counter(corpus.utterances, corpus.whole or None, label_map=corpus.label_map, synonyms=synonyms)
    heard = {name: [_rows(path, corpus) for path in paths] for name, paths in files.items()}
    return audio_gains(
        corpus.captions, heard, corpus.utterances, count=count, label_map=corpus.label_map, **drawing
    )


def _given_captions(
    pairs: Sequence[tuple[str, str]], corpora: Sequence[Corpus], models: Sequence[str | Path]
) -> dict[str, list[str]]:
    names = [corpus.name for corpus in corpora]
    given: dict[str, list[str]] = {}
    for name, path in pairs:
        given.setdefault(name, []).append(path)
    errors = [
        f"--captions {name}=…: no such corpus{nearest(name, names)}; there are {', '.join(names)}"
        for name in given
        if name not in names
    ]
    if not models:
        errors += [
            f"{name}: no captions; give --captions {name}=FILE or --model"
            for name in names
            if name not in given
        ]
    seeds = {name: len(given.get(name, models)) for name in names}
    if not errors and len(set(seeds.values())) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in seeds.items())
        errors.append(f"captions of different numbers of seeds ({told}); give as many for each corpus")
    if errors:
        raise UserErrors(errors)
    return given


def _baselines(
    probes: Sequence[str | Path], corpora: Sequence[Corpus], limit: int | None
) -> dict[str, list[Yardstick]]:
    """By corpus, the linear probes that were tested on its manifest."""
    found: dict[str, list[Yardstick]] = {corpus.name: [] for corpus in corpora}
    for probe in probes:
        errors = []
        for corpus in corpora:
            try:
                found[corpus.name] += read_probe(probe, corpus.manifest)
            except UserError as error:
                errors.append(str(error))
        if len(errors) == len(corpora):
            raise UserErrors(errors)
    if limit is None:
        return found
    return {
        name: [replace(y, note=f"{y.note}; of all clips, not the {limit} chosen") for y in baselines]
        for name, baselines in found.items()
    }


def caption_corpora(
    models: Sequence[str | Path],
    corpora: Sequence[Corpus],
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 32,
    max_new_tokens: int = 48,
    only: Sequence[str] | None = None,
    condition: str = "right",
    seed: int = 0,
) -> dict[str, list[Path]]:
    """Caption each corpus with each model into `folder`/CORPUS-NUMBER.jsonl; the files by corpus.

    Under a condition of what is heard instead (`aligncap.inference.batch.with_condition`, drawn by
    `seed`) they are CORPUS-NUMBER-CONDITION.jsonl.

    Beside each file lies what made it (CORPUS-NUMBER.made_of.json): a file of the same model, clips and
    options stands, another is written anew, and what was stopped goes on. With `only` captions may name no
    emotion but these; an empty list stands for the corpus's own labels and those that its map renames.

    Raises:
        UserError: a file there was written by something else.
        UserErrors: clips that cannot be captioned.
    """
    tail = "" if condition == "right" else f"-{condition}"
    files = {
        corpus.name: [folder / f"{corpus.name}-{n}{tail}.jsonl" for n in range(len(models))]
        for corpus in corpora
    }
    kind = dtype_name(dtype, device)
    for number, model in enumerate(models):
        captioner: Captioner | None = None
        for corpus in corpora:
            out = files[corpus.name][number]
            settings = {
                "model": model_key(model),
                "dtype": kind,
                "max_new_tokens": max_new_tokens,
                "manifest": file_sha256(corpus.manifest),
                "clips": len(corpus.utterances),
            }
            if condition != "right":
                settings |= {"condition": condition, "seed": seed}
            emotions: list[str] = []
            if only is not None:
                own = {u.emotion for u in corpus.utterances if u.emotion}
                emotions = settings["emotions"] = sorted(only or own | set(corpus.label_map))
            if _stands(out, settings, corpus):
                continue
            captioner = captioner or Captioner.from_pretrained(model, device=device, dtype=kind)
            ids = {u.id for u in corpus.utterances}
            every = jobs_of_manifest(corpus.manifest)
            jobs = with_condition([job for job in every if job.id in ids], corpus.utterances, condition, seed)
            options = captioner.naming_only(emotions) if emotions else {}
            # Before the mark changes: a kill must not leave a file beside another one's mark.
            out.unlink(missing_ok=True)
            mark = _mark(out)
            write_json(mark, settings)
            options["max_new_tokens"] = max_new_tokens
            _, errors = caption_jobs(captioner, jobs, out, settings, batch_size, every=every, **options)
            if errors:
                raise UserErrors(
                    [f"{error} (in {corpus.manifest}; mend it or leave it out)" for error in errors]
                )
    return files


def _mark(out: Path) -> Path:
    return out.with_suffix(".made_of.json")


def _stands(out: Path, settings: dict[str, Any], corpus: Corpus) -> bool:
    """Whether the finished file is of these settings and clips."""
    if not out.is_file():
        return False
    try:
        made_of = json.loads(_mark(out).read_text(encoding="utf-8"))
        ids = [json.loads(line)["id"] for line in out.read_text(encoding="utf-8").splitlines()]
    except OSError:
        raise UserError(
            f"{out}: stands without {_mark(out).name}, so nothing tells which model wrote it; delete it, "
            f"choose another --captions-dir, or vouch for it with --captions {corpus.name}={out}"
        ) from None
    except (ValueError, KeyError, TypeError):
        return False
    return bool(made_of == settings and ids == [u.id for u in corpus.utterances])

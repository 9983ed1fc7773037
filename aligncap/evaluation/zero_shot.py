"""`aligncap zeroshot`: score a model on corpora that share nothing with its training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligncap.errors import Faults, UserError
from aligncap.evaluation.evaluate import Synonyms
from aligncap.evaluation.listening import Listening, audio_gains, counter
from aligncap.evaluation.report import write_report
from aligncap.evaluation.samples import Audio
from aligncap.evaluation.scoring import read_probe
from aligncap.evaluation.systems import System, Yardstick
from aligncap.evaluation.zero_shot_scores import Corpus, Rows, score_corpus, score_zero_shot
from aligncap.evaluation.zero_shot_table import content_of, markdown, terminal_table
from aligncap.heard import check_unheard, known_heard
from aligncap.io import load_data, read_jsonl, write_json, write_text
from aligncap.manifest import read_manifest
from aligncap.naming import nearest
from aligncap.run_record import write_run_record
from aligncap.splits import choose_evenly

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["check_unheard", "read_corpora", "score_zero_shot", "zero_shot"]


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
        Faults: names that repeat, maps of unknown corpora or labels or of labels that the corpus has itself,
            and chosen labels that no corpus has.
    """
    maps, faults = _read_maps(label_maps)
    corpora: list[Corpus] = []
    for manifest in manifests:
        whole = utterances = read_manifest(manifest)
        inside = {u.corpus for u in utterances}
        name = _folder_name(inside.pop() if len(inside) == 1 else Path(manifest).stem)
        if limit is not None:
            utterances = [utterances[i] for i in choose_evenly(utterances, limit, seed)]
        if any(corpus.name == name for corpus in corpora):
            faults.append(f'{manifest}: "{name}" was named before; join its manifests with `aligncap join`')
        rest = whole if limit is not None else []
        corpora.append(Corpus(name, Path(manifest), utterances, [], maps.get(name, {}), rest))
    names = [corpus.name for corpus in corpora]
    faults += [
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
                faults.append(f'{option}: unknown label "{said}"{nearest(said, known)}')
            elif said in own:
                faults.append(f'{option}: {corpus.name} has clips labelled "{said}" itself; leave it out')
            if label not in own:
                faults.append(f'{option}: {corpus.name} has no clip labelled "{label}"')
    faults += [
        f'--labels: no clip is labelled "{label}"{nearest(label, filter(None, everywhere))}'
        for label in labels
        if label not in everywhere
    ]
    if faults:
        raise Faults(faults)
    return corpora


def _folder_name(corpus: str) -> str:
    return re.sub(r"[^\w.-]+", "-", corpus).strip("-.") or "corpus"


def _read_maps(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, dict[str, str]], list[str]]:
    maps: dict[str, dict[str, str]] = {}
    faults = []
    for key, label in pairs:
        name, colon, said = key.rpartition(":")
        if not (colon and name and said):
            faults.append(f"--label-map {key}={label}: write CORPUS:SAID=LABEL, like nemo:calm=neutral")
        maps.setdefault(name, {})[said] = label
    return ({}, faults) if faults else (maps, [])


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
        probes: outputs of `aligncap probe`, as yardsticks.

    Returns: a table for the terminal.

    Raises:
        Faults: a corpus, speaker or clip that was heard in training, or whatever else does not fit.
    """
    out = Path(out)
    corpora = read_corpora(manifests, label_maps, labels, limit, seed)
    if not models and not trained_on:
        raise UserError(
            "nothing tells what was trained on; give --model CHECKPOINT or --trained-on M.jsonl …"
        )
    heard = known_heard(models, trained_on)
    check_unheard(heard, manifests)
    yardsticks = _yardsticks(probes, corpora, limit)
    given = _given_captions(captions, corpora, models)
    if heard_instead and (given or not models):
        raise UserError("--heard captions with the model itself: give --model, and leave out --captions")
    folder = Path(captions_dir) if captions_dir else out / "captions"
    todo = [corpus for corpus in corpora if corpus.name not in given]
    files = {corpus.name: [Path(p) for p in given.get(corpus.name, ())] for corpus in corpora}
    other: dict[str, dict[str, list[Path]]] = {}
    if todo:
        from aligncap.evaluation.zero_shot_captions import caption_corpora

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
            yardsticks=yardsticks[corpus.name],
            listening=proofs[corpus.name],
            seed=seed,
            audio=audio,
            title=f"Zero-shot: {corpus.name}",
        )
    content = content_of(name, heard, corpora, scores, results, proofs, labels, yardsticks, limit)
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
    faults = [
        f"--captions {name}=…: no such corpus{nearest(name, names)}; there are {', '.join(names)}"
        for name in given
        if name not in names
    ]
    if not models:
        faults += [
            f"{name}: no captions; give --captions {name}=FILE or --model"
            for name in names
            if name not in given
        ]
    seeds = {name: len(given.get(name, models)) for name in names}
    if not faults and len(set(seeds.values())) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in seeds.items())
        faults.append(f"captions of different numbers of seeds ({told}); give as many for each corpus")
    if faults:
        raise Faults(faults)
    return given


def _yardsticks(
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
            raise Faults(errors)
    if limit is None:
        return found
    return {
        name: [replace(y, note=f"{y.note}; of all clips, not the {limit} chosen") for y in yardsticks]
        for name, yardsticks in found.items()
    }

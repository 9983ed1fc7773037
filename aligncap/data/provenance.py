"""What a model has been trained on, kept beside its weights, so that a zero-shot test can prove itself one.

`provenance.json` in a checkpoint's folder names corpora, speakers and clips (by the hashes that manifests
carry) of every training and dev manifest that the model or anything it stands on has read: the text teacher too,
which reads captions of clips. Pretrained encoders and language models count as having heard nothing, since
nobody can say what they were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from aligncap.data.manifest import Utterance, read_manifest
from aligncap.utils.errors import UserError, UserErrors, natural
from aligncap.utils.io import file_sha256, write_text

FILE = "provenance.json"
_STARTS = ("model", "llm")  # options of training that may name a checkpoint to start from
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Provenance:
    """Sets of what was heard.

    `speakers` are "corpus/speaker", `clips` SHA-256 of the files, `samples` of the decoded samples
    (`extra["samples_sha256"]`). `unhashed` are corpora with clips that carry neither hash. `manifests` are
    "sha256 path" of the manifests read. `unknown` says, one a line, what could not be found out.
    """

    corpora: frozenset[str] = frozenset()
    speakers: frozenset[str] = frozenset()
    clips: frozenset[str] = frozenset()
    samples: frozenset[str] = frozenset()
    unhashed: frozenset[str] = frozenset()
    manifests: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()


def manifests_provenance(manifests: Iterable[str | Path]) -> Provenance:
    """What whoever reads these manifests has heard.

    Raises:
        UserError, UserErrors: a manifest cannot be read (see `read_manifest`).
    """
    return merge_provenance(*map(_heard_of_file, manifests))


def _heard_of_file(path: str | Path) -> Provenance:
    utterances = read_manifest(path)
    samples = [(u.corpus, u.sha256, u.extra.get("samples_sha256")) for u in utterances]
    return Provenance(
        corpora=frozenset(u.corpus for u in utterances),
        speakers=frozenset(f"{u.corpus}/{u.speaker}" for u in utterances if u.speaker),
        clips=frozenset(of_file for _, of_file, _ in samples if of_file),
        samples=frozenset(str(of_samples) for *_, of_samples in samples if of_samples),
        unhashed=frozenset(corpus for corpus, *hashes in samples if not any(hashes)),
        manifests=frozenset({f"{file_sha256(path)} {Path(path).resolve()}"}),
    )


def merge_provenance(*parts: Provenance) -> Provenance:
    """All that any of `parts` has heard."""
    return Provenance(
        **{f.name: frozenset().union(*(getattr(p, f.name) for p in parts)) for f in fields(Provenance)}
    )


def write_provenance(folder: str | Path, heard: Provenance) -> None:
    """Write `folder`/provenance.json: sorted, one line a set."""
    lines = [
        f"{json.dumps(f.name)}:{json.dumps(sorted(getattr(heard, f.name)), separators=(',', ':'))}"
        for f in fields(Provenance)
    ]
    write_text(Path(folder) / FILE, "{" + ",\n".join(lines) + "}\n")


def read_provenance(folder: str | Path) -> Provenance | None:
    """The provenance.json of a checkpoint; of its run for `base/` and `checkpoint-N/`; None where there is none.

    Raises:
        UserError: the file is broken.
    """
    path = _run_folder(Path(folder), FILE) / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sets = {f.name: found[f.name] for f in fields(Provenance)}
        if not all(isinstance(v, list) and all(isinstance(x, str) for x in v) for v in sets.values()):
            raise TypeError("lists of texts are needed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no record of what a model heard ({error}); delete it to go by run.json instead"
        ) from None
    return Provenance(**{name: frozenset(values) for name, values in sets.items()})


def checkpoint_provenance(checkpoint: str | Path) -> Provenance:
    """What the model in `checkpoint` has heard, by its provenance.json.

    A checkpoint without one is traced through run.json: the manifests that it names, where they still stand
    unchanged, and what its start model, its teacher or the checkpoint it was merged from had heard. What
    cannot be traced is said in `unknown`.

    Raises:
        UserError: no such folder, or a broken provenance.json.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a trained model")
    return _trace(folder, frozenset())


def training_provenance(manifests: Iterable[str | Path], starts: Iterable[str | Path | None]) -> Provenance:
    """What a model has heard after training on `manifests` from `starts`: models, teachers or LLMs.

    A start that is no folder is the name of a pretrained model, which has heard nothing.
    """
    folders = [Path(start) for start in starts if start and Path(start).is_dir()]
    return merge_provenance(manifests_provenance(manifests), *map(checkpoint_provenance, folders))


def _run_folder(folder: Path, file: str) -> Path:
    """The folder itself, or the run's for `base/` and `checkpoint-N/` without a file of their own."""
    inside = folder.resolve()
    part = inside.name == "base" or inside.name.startswith("checkpoint-")
    return inside.parent if part and not (folder / file).is_file() else folder


def _trace(folder: Path, seen: frozenset[Path]) -> Provenance:
    recorded = read_provenance(folder)
    if recorded is not None:
        return recorded
    folder = _run_folder(folder, "run.json").resolve()
    if folder in seen:
        return Provenance()
    record = _read(folder / "run.json")
    verb, config, data = (record.get(key) for key in ("verb", "config", "data"))
    if not (isinstance(verb, str) and isinstance(config, dict) and isinstance(data, dict)):
        return Provenance() if _pretrained(folder) else _unknown(f"{folder}: neither {FILE} nor run.json")
    if verb == "merge":
        parts = [_of_start(str(config.get("checkpoint")), folder, seen | {folder})]
        parts += [
            _unknown(f"{path}: has changed since {folder} was made of it")
            for path, sha256 in data.items()
            if (found := _find(path, folder)) and file_sha256(found) != sha256
        ]
        return merge_provenance(*parts)
    pairs = config.get("train_pairs")
    parts = [_of_manifest(path, sha256, folder) for path, sha256 in data.items() if path != pairs]
    starts = [config[name] for name in _STARTS if config.get(name)]
    # A name that is no path is a pretrained model's.
    parts += [
        _of_start(start, folder, seen | {folder}) for start in starts if "/" in start or _find(start, folder)
    ]
    return merge_provenance(*parts)


def _of_start(start: str, folder: Path, seen: frozenset[Path]) -> Provenance:
    found = _find(start, folder)
    if found is None or not found.is_dir():
        return _unknown(f"{start}: {folder} began with it, and it is gone")
    return _trace(found, seen)


def _of_manifest(path: str, sha256: str, folder: Path) -> Provenance:
    found = _find(path, folder)
    if found is None:
        return _unknown(f"{path}: {folder} was trained on it, and it is gone")
    if file_sha256(found) != sha256:
        return _unknown(f"{path}: has changed since {folder} was trained on it")
    return manifests_provenance([found])


def _find(path: str, folder: Path) -> Path | None:
    """A path that run.json names: relative ones start where the command ran, here or above the checkpoint."""
    return next((p / path for p in (Path.cwd(), *folder.parents) if (p / path).exists()), None)


def _pretrained(folder: Path) -> bool:
    """Whether this is a plain language model's folder: none of ours, which have heard nothing."""
    kind = _read(folder / "config.json").get("model_type")
    return kind is not None and kind != "aligncap"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unknown(what: str) -> Provenance:
    return Provenance(unknown=frozenset({what}))


def known_provenance(checkpoints: Iterable[str | Path], trained_on: Sequence[str | Path] = ()) -> Provenance:
    """What checkpoints have heard, together with the manifests `trained_on` that the user vouches for.

    Raises:
        UserErrors: what cannot be traced, unless `trained_on` stands for it.
    """
    heard = merge_provenance(manifests_provenance(trained_on), *map(checkpoint_provenance, checkpoints))
    if heard.unknown and not trained_on:
        remedy = "name every manifest of its training with --trained-on M.jsonl …"
        raise UserErrors(
            [f"{what}, so what the model has heard is not known; {remedy}" for what in heard.unknown]
        )
    return replace(heard, unknown=frozenset()) if trained_on else heard


def refuse_overlap(heard: Provenance, manifests: Iterable[str | Path]) -> None:
    """Refuse manifests that share a corpus, a speaker or a clip with what was heard.

    A clip is recognised by its file's hash or that of its samples; a speaker by "corpus/speaker", or by a
    name that begins with its corpus ("ravdess-01") under whatever corpus it is listed.

    Raises:
        UserErrors: everything shared, for all manifests at once.
    """
    errors = [error for path in manifests for error in _shared(heard, str(path), read_manifest(path))]
    if errors:
        raise UserErrors(errors)


def _shared(heard: Provenance, path: str, utterances: Sequence[Utterance]) -> list[str]:
    corpora = {name.casefold() for name in heard.corpora}
    names = {s.split("/", 1)[1] for s in heard.speakers if "/" in s and _tells_corpus(*s.split("/", 1))}
    remedy = "a zero-shot test needs a corpus that training never touched"
    errors = []
    for corpus in sorted({u.corpus for u in utterances if u.corpus.casefold() in corpora}):
        clips = sum(u.corpus == corpus for u in utterances)
        errors.append(f'{path}: corpus "{corpus}" ({clips} clips) was trained on; {remedy}')
    speakers: dict[str, int] = {}
    for u in utterances:
        if u.speaker and (f"{u.corpus}/{u.speaker}" in heard.speakers or u.speaker in names):
            speakers[u.speaker] = speakers.get(u.speaker, 0) + 1
    if speakers:
        shown = [f"{name} ({speakers[name]} clips)" for name in sorted(speakers, key=natural)]
        errors.append(f"{path}: {_several(shown, 'speaker')} heard in training; leave them out")
    clips_shared = [
        (u.id, "file" if u.sha256 in heard.clips else "samples")
        for u in utterances
        if u.sha256 in heard.clips or u.extra.get("samples_sha256") in heard.samples
    ]
    if clips_shared:
        shown = [f"{name} (same {what})" for name, what in clips_shared]
        errors.append(f"{path}: {_several(shown, 'clip')} heard in training; leave them out")
    return errors


def _tells_corpus(corpus: str, speaker: str) -> bool:
    return speaker.startswith(f"{corpus}-")


def _several(shown: Sequence[str], what: str) -> str:
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    verb = "was" if len(shown) == 1 else "were"
    return f"{len(shown)} {what}{'s'[: len(shown) != 1]}: {', '.join(shown[:_SHOWN])}{more} {verb}"

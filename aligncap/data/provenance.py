"""What a model was trained on, kept beside its weights, so that a zero-shot test can prove itself one.

`provenance.json` in a checkpoint's folder names corpora, speakers and clips (by the hashes in manifests) of
every training and dev manifest that the model, or anything it started from, has read: the text teacher too,
which reads captions of clips. Pretrained encoders and language models count as trained on nothing, since
nobody can say what they were trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from aligncap.data.columns import columns_of
from aligncap.data.manifest import Utterance
from aligncap.data.rows import open_manifest
from aligncap.utils.errors import UserError, UserErrors, natural
from aligncap.utils.io import Row, atomic_open
from aligncap.utils.run_record import file_hashes

FILE = "provenance.json"
_OLD_FILE = "heard.json"  # its name before version 0.2
_STARTS = ("model", "llm")  # options of training that may name a checkpoint to start from
_SHOWN = 5  # names in a message
_AT_ONCE = 4096  # names that are written at once: a set may hold millions


@dataclass(frozen=True)
class Provenance:
    """Sets of what was trained on.

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


_SETS = tuple(f.name for f in fields(Provenance))
Manifests = Iterable[str | Path] | Mapping[str | Path, Sequence[Utterance]]


def manifests_provenance(manifests: Manifests) -> Provenance:
    """Of a model that is trained on these manifests.

    Args:
        manifests: paths, or a mapping from paths to the utterances where they have been read already.

    Raises:
        UserError, UserErrors: a manifest cannot be read (see `read_manifest`).
    """
    parts = []
    for path, utterances in _read(manifests):
        columns = columns_of(utterances)
        speaks = np.stack([columns.corpus, columns.speaker], axis=1)[columns.speaker >= 0]
        names, unhashed = columns.names, columns.lacking("sha256") & columns.lacking("samples")
        part = Provenance(
            corpora=frozenset(columns.named("corpus")),
            speakers=frozenset(
                f"{names['corpus'][corpus]}/{names['speaker'][speaker]}"
                for corpus, speaker in np.unique(speaks, axis=0).tolist()
            ),
            clips=columns.hashes("sha256"),
            samples=columns.hashes("samples"),
            unhashed=frozenset(columns.take(unhashed).named("corpus")),
            manifests=frozenset({f"{file_hashes([path])[str(path)]} {Path(path).resolve()}"}),
        )
        parts.append(part)
    return merge_provenance(*parts)


def _read(manifests: Manifests) -> Iterator[tuple[str | Path, Sequence[Utterance]]]:
    if isinstance(manifests, Mapping):
        yield from manifests.items()
    else:
        yield from ((path, open_manifest(path)) for path in manifests)


def merge_provenance(*parts: Provenance) -> Provenance:
    """All that any of `parts` names."""
    return Provenance(**{name: frozenset().union(*(getattr(p, name) for p in parts)) for name in _SETS})


def training_provenance(manifests: Manifests, starts: Iterable[str | Path | None]) -> Provenance:
    """Of a model that is trained on `manifests` from `starts`: models, teachers or LLMs.

    A start that is no folder is the name of a pretrained model.
    """
    folders = [Path(start) for start in starts if start and Path(start).is_dir()]
    return merge_provenance(manifests_provenance(manifests), *map(checkpoint_provenance, folders))


def write_provenance(folder: str | Path, provenance: Provenance) -> None:
    """Write `folder`/provenance.json: sorted, one line a set."""
    with atomic_open(Path(folder) / FILE) as file:
        before = "{"
        for name in _SETS:
            values = sorted(getattr(provenance, name))
            file.write(f'{before}"{name}":[')
            for start in range(0, len(values), _AT_ONCE):
                some = json.dumps(values[start : start + _AT_ONCE], separators=(",", ":"))
                file.write(("," if start else "") + some[1:-1])
            file.write("]")
            before = ",\n"
        file.write("}\n")


def read_provenance(folder: str | Path) -> Provenance | None:
    """The provenance.json of a checkpoint, or of its run for `base/` and `checkpoint-N/`; None without one.

    Raises:
        UserError: the file is broken.
    """
    path = next((p for name in (FILE, _OLD_FILE) if (p := _beside(Path(folder), name)).is_file()), None)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sets = {name: found[name] for name in _SETS}
        if not all(isinstance(v, list) and all(isinstance(x, str) for x in v) for v in sets.values()):
            raise TypeError("lists of texts are needed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no record of what a model was trained on ({error}); delete it to go by run.json instead"
        ) from None
    return Provenance(**{name: frozenset(values) for name, values in sets.items()})


def checkpoint_provenance(checkpoint: str | Path) -> Provenance:
    """What the model in `checkpoint` was trained on, by its provenance.json.

    A checkpoint without one is traced through run.json: the manifests that it names, where they still stand
    unchanged, and its start model, its teacher or the checkpoint it was merged from. What cannot be traced
    is said in `unknown`.

    Raises:
        UserError: no such folder, or a broken provenance.json.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a trained model")
    return _trace(folder, frozenset())


def _trace(folder: Path, seen: frozenset[Path]) -> Provenance:
    if (recorded := read_provenance(folder)) is not None:
        return recorded
    folder = _beside(folder, "run.json").parent.resolve()
    if folder in seen:
        return Provenance()
    record = _json(folder / "run.json")
    command, config, data = (record.get(key) for key in ("verb", "config", "data"))
    if not (isinstance(command, str) and isinstance(config, dict) and isinstance(data, dict)):
        pretrained = _json(folder / "config.json").get("model_type") not in (None, "aligncap")
        return Provenance() if pretrained else _unknown(f"{folder}: neither {FILE} nor run.json")
    parts = []
    for path, sha256 in data.items():
        found = _find(path, folder)
        changed = found is not None and file_hashes([found])[str(found)] != sha256
        if path == config.get("train_pairs") or (command == "merge" and not changed):
            continue  # the manifest of pairs stands in `data` too; a merge names its weights there
        if found and not changed:
            parts.append(manifests_provenance([found]))
        else:
            what = "has changed since it" if changed else "is gone, and it"
            parts.append(_unknown(f"{path}: {what} went into {folder}"))
    if command == "merge":
        starts = [config.get("checkpoint")]
    else:  # a name that is no path is a pretrained model's
        named = [config[name] for name in _STARTS if config.get(name)]
        named = [config["start"]] if config.get("start") else named  # instead of them
        starts = [name for name in named if "/" in name or _find(name, folder)]
    for start in map(str, starts):
        found = _find(start, folder)
        there = found is not None and found.is_dir()
        gone = f"{start}: {folder} began with it, and it is gone"
        parts.append(_trace(found, seen | {folder}) if found and there else _unknown(gone))
    return merge_provenance(*parts)


def _beside(folder: Path, file: str) -> Path:
    """A file of the folder, or of its run for `base/` and `checkpoint-N/` without one of their own."""
    inside = folder.resolve()
    part = inside.name == "base" or inside.name.startswith("checkpoint-")
    return (inside.parent if part and not (folder / file).is_file() else folder) / file


def _find(path: str, folder: Path) -> Path | None:
    """A path that run.json names: relative ones start where the command ran, here or above the checkpoint."""
    return next((p / path for p in (Path.cwd(), *folder.parents) if (p / path).exists()), None)


def _json(path: Path) -> Row:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unknown(what: str) -> Provenance:
    return Provenance(unknown=frozenset({what}))


def known_provenance(checkpoints: Iterable[str | Path], trained_on: Sequence[str | Path] = ()) -> Provenance:
    """Of checkpoints, together with the manifests `trained_on` that the user vouches for.

    Raises:
        UserErrors: what cannot be traced, unless `trained_on` stands for it.
    """
    found = merge_provenance(manifests_provenance(trained_on), *map(checkpoint_provenance, checkpoints))
    if found.unknown and not trained_on:
        remedy = "name every manifest of its training with --trained_on M.jsonl …"
        raise UserErrors(
            [f"{what}, so what the model was trained on is not known; {remedy}" for what in found.unknown]
        )
    return replace(found, unknown=frozenset())


def refuse_overlap(provenance: Provenance, manifests: Manifests) -> None:
    """Refuse manifests that share a corpus, a speaker or a clip with what was trained on.

    A clip is recognised by its file's hash or that of its samples; a speaker by "corpus/speaker", or by a
    name that begins with its corpus ("ravdess-01") under whatever corpus it is listed.

    Raises:
        UserErrors: everything shared, for all manifests at once.
    """
    parts = _read(manifests)
    if errors := [e for path, utterances in parts for e in _shared(provenance, str(path), utterances)]:
        raise UserErrors(errors)


def _shared(provenance: Provenance, path: str, utterances: Sequence[Utterance]) -> list[str]:
    corpora = {name.casefold() for name in provenance.corpora}
    pairs = (pair.partition("/") for pair in provenance.speakers)
    names = {speaker for corpus, _, speaker in pairs if speaker.startswith(f"{corpus}-")}
    remedy = "a zero-shot test needs a corpus that training never touched"
    errors = []
    for corpus, clips in sorted(Counter(u.corpus for u in utterances).items()):
        if corpus.casefold() in corpora:
            errors.append(f'{path}: corpus "{corpus}" ({clips} clips) was trained on; {remedy}')
    speakers = Counter(
        u.speaker
        for u in utterances
        if u.speaker and (f"{u.corpus}/{u.speaker}" in provenance.speakers or u.speaker in names)
    )
    shared = {
        "speaker": [f"{name} ({speakers[name]} clips)" for name in sorted(speakers, key=natural)],
        "clip": [
            f"{u.id} (same {'file' if u.sha256 in provenance.clips else 'samples'})"
            for u in utterances
            if u.sha256 in provenance.clips or u.extra.get("samples_sha256") in provenance.samples
        ],
    }
    for what, found in shared.items():
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            several = f"{what} was" if len(found) == 1 else f"{what}s were"
            told = f"{', '.join(found[:_SHOWN])}{more}"
            errors.append(f"{path}: {len(found)} {several} trained on: {told}; leave them out")
    return errors

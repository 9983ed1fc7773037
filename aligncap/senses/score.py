"""`aligncap senses score`: scores, and if wanted features, of any sense on any moments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from aligncap.audio.members import stamp
from aligncap.senses.measures import measured, refuse_absent, table_of
from aligncap.senses.moments import Moment, read_moments
from aligncap.senses.sense import FILE, load_sense, write_scores
from aligncap.utils.distributed import ALONE
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import read_jsonl
from aligncap.utils.journal import journaled
from aligncap.utils.options import Config, PositiveInt, option
from aligncap.utils.progress import track
from aligncap.utils.run_record import file_hashes
from aligncap.utils.tensor_cache import SHARD_ROWS, TensorCache, digest


@dataclass
class ScoreConfig(Config):
    """Scores of the seven emotions by a trained sense, a line a moment; what was done survives a kill.

    Moments without what the sense reads get no scores. Where moments have labels, how right it is is printed.

    Examples:
        aligncap senses score --model runs/face --manifest test.jsonl --out runs/scores/face-test.jsonl
        aligncap senses score --model runs/text --manifest dev.jsonl --out text.jsonl --features features/text
    """

    model: str = option(help="Folder of a trained sense.")
    manifest: str = option(help="Moments to score.")
    out: str = option(help="File of scores to write.")
    captions: list[str] = option([], "Files of captions, which are read in place of what was said.")
    features: str | None = option(
        None, "Folder that keeps features for `senses gate`; one serves many manifests."
    )
    batch_size: PositiveInt = option(16, "Moments at a time.")
    device: str = option("cpu", "Where the sense runs: cpu, cuda, cuda:1.")


def run_score(config: ScoreConfig) -> int:
    """`aligncap senses score`. Raises UserErrors: every file that cannot be read; other moments are kept."""
    refuse_absent(config.manifest, *config.captions, str(Path(config.model) / FILE))
    moments = with_captions(read_moments(config.manifest), config.captions)
    sense, model = load_sense(config.model, config.device), hash_of_sense(Path(config.model))
    keys = [key_of(moment, sense.kind) for moment in moments]
    out, errors = Path(config.out), list[str]()
    store = open_features(config.features, sense.kind, model) if config.features else None
    # features are kept with their scores, so that a folder of them is the journal of this run and of others
    with journaled(None if store is not None else out, {"model": model}, ALONE) as journal:
        todo: dict[str, Moment] = {}  # the first of those that are read alike
        for key, moment in zip(keys, moments, strict=True):
            if key not in journal and not (store and key in store):
                todo.setdefault(key, moment)
        rows: dict[str, list[float]] = {}
        tensors: dict[str, Tensor] = {}
        starts = range(0, len(todo), config.batch_size)
        for start in track(starts, None, f"{sense.kind} scores"):
            batch = list(todo)[start : start + config.batch_size]
            try:
                reading = sense.read([todo[key] for key in batch])
            except UserErrors as error:
                errors += error.errors
            else:
                rows |= zip(batch, reading.scores.tolist(), strict=True)
                tensors |= zip(
                    batch, (own.clamp(-_LARGEST, _LARGEST).half() for own in reading.features), strict=True
                )
            if len(rows) >= SHARD_ROWS or start == starts[-1]:
                if store is not None:
                    store.write(tensors | {f"{key}{_SCORES}": torch.tensor(row) for key, row in rows.items()})
                journal.write(rows)
                rows, tensors = {}, {}
        if errors:
            raise UserErrors(errors)
        found = [
            journal[k] if k in journal or store is None else store[f"{k}{_SCORES}"].tolist() for k in keys
        ]
        scores = np.array(found, np.float64)
        write_scores(out, moments, scores)
    absent = int(np.isnan(scores).any(axis=1).sum())
    print(f"{out}: {len(moments)} moments, {absent} of them without scores")
    if any(m.label for m in moments):
        Console().print(table_of({sense.kind: measured(moments, scores)}, out.stem))
    return 0


def hash_of_sense(folder: Path) -> str:
    """Hash of a trained sense: the names and bytes of its settings and weights."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
    hashes = {path.relative_to(folder).as_posix(): path for path in files if path.name not in _NOT_OF_IT}
    found = file_hashes(hashes.values())
    return digest({name: found[str(path)] for name, path in hashes.items()})


_NOT_OF_IT = ("run.json", "metrics.json")
_LARGEST = 65504.0  # float16
_SCORES = ".scores"  # after a key, in a store of features


def open_features(folder: str | Path, sense: str = "", model: str = "") -> TensorCache:
    """The features of one sense, (steps, width) by `key_of` a moment.

    Args:
        sense, model: kind and hash of the sense that is to fill it; without, it is only read.

    Raises:
        UserError: the folder holds those of another sense, or, to read, none at all.
    """
    place, own = Path(folder) / "cache.json", {"sense": sense, "model": model}
    held = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    if held is None and not model:
        raise UserError(f"{folder}: holds no features; `aligncap senses score --features` writes them")
    if held is not None and model and held != own:
        raise UserError(f"{folder}: holds features of another sense; choose another folder")
    return TensorCache(Path(folder), held or own)


def key_of(moment: Moment, kind: str) -> str:
    """Hash of what a sense of this kind reads of a moment: text, or files by path, size and time of change.

    Moments of several manifests that share a comment, a clip or pictures share scores and features.
    """
    read = {"text": [moment.audio] if moment.text is None else [], "voice": [moment.audio]}
    read["face"] = [*map(str, moment.pictures), str(moment.video)]
    words = (moment.text, moment.language) if kind == "text" else ()
    return digest(kind, words, [_known(str(file)) for file in read[kind] if file])


def _known(path: str) -> tuple[str, int, int]:
    """Path, bytes and time of change; zeros of what is not there, which reading tells."""
    try:
        return stamp(path)
    except OSError:
        return path, 0, 0


def with_captions(moments: Sequence[Moment], paths: Sequence[str]) -> list[Moment]:
    """Moments whose text is the caption that a file has for them, or None; as they are without files.

    Raises:
        UserError: no caption for any of them.
    """
    captions = {row.get("id"): row.get("caption") for path in paths for row in read_jsonl(path)}
    if paths and not any(m.id in captions for m in moments):
        raise UserError(f"{', '.join(paths)}: no caption of any of these moments")
    return [replace(m, text=captions.get(m.id) or None) if paths else m for m in moments]


def features_of(
    folders: Mapping[str, str], moments: Sequence[Moment], captions: Sequence[str] = ()
) -> dict[str, list[Tensor]]:
    """Features of each moment by sense: {name: [tensor (steps, width) or (0, width)]}.

    Args:
        captions: files of captions, which the sense named "caption" read in place of what was said.

    Raises:
        UserErrors: every folder without features, or which lacks moments.
    """
    found: dict[str, list[Tensor]] = {}
    errors: list[str] = []
    for name, folder in folders.items():
        try:
            store = open_features(folder)
        except UserError as error:
            errors.append(str(error))
            continue
        read = with_captions(moments, captions) if name == "caption" else moments
        keys = [key_of(moment, store.description["sense"]) for moment in read]
        if missing := sum(key not in store for key in keys):
            errors.append(
                f"{folder}: lacks {missing} of {len(keys)} moments; run `senses score --features` on them"
            )
        else:
            found[name] = [store[key].float() for key in keys]
    if errors:
        raise UserErrors(errors)
    return found

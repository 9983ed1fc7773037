"""`aligncap senses score`: scores, and if wanted features, of any sense on any moments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import Tensor

from aligncap.audio.members import member_of
from aligncap.senses.measures import measured, table_of
from aligncap.senses.moments import Moment, read_moments
from aligncap.senses.sense import FILE, load_sense, write_scores
from aligncap.utils.distributed import ALONE
from aligncap.utils.errors import UserError, UserErrors
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
    features: str | None = option(
        None, "Folder that keeps features for `senses gate`; one serves many manifests."
    )
    batch_size: PositiveInt = option(16, "Moments at a time.")
    device: str = option("cpu", "Where the sense runs: cpu, cuda, cuda:1.")

    def own_errors(self) -> list[str]:
        errors = [] if Path(self.manifest).is_file() else [f"{self.manifest}: no such file of moments"]
        if not (Path(self.model) / FILE).is_file():
            errors.append(f"{self.model}: holds no sense; `aligncap senses text|voice|face` trains one")
        return errors


def run_score(config: ScoreConfig) -> int:
    """`aligncap senses score`. Raises UserErrors: every file that cannot be read; other moments are kept."""
    moments = read_moments(config.manifest)
    out, model = Path(config.out), hash_of_sense(Path(config.model))
    store = open_features(config.features, model) if config.features else None
    errors: list[str] = []
    with journaled(out, {"model": model, "manifest": file_hashes([config.manifest])}, ALONE) as journal:

        def is_done(moment: Moment) -> bool:
            return moment.id in journal and (store is None or key_of(moment) in store)

        todo = [moment for moment in moments if not is_done(moment)]
        sense = load_sense(config.model, config.device)
        starts = range(0, len(todo), config.batch_size)
        rows: dict[str, list[float | None]] = {}
        features: dict[str, Tensor] = {}
        for start in track(starts, None, f"{sense.kind} scores"):
            batch = todo[start : start + config.batch_size]
            try:
                reading = sense.read(batch)
            except UserErrors as error:
                errors += error.errors
            else:
                known = ([None if np.isnan(p) else float(p) for p in row] for row in reading.scores)
                rows |= zip((m.id for m in batch), known, strict=True)
                features |= zip(map(key_of, batch), (f.half() for f in reading.features), strict=True)
            if len(rows) >= SHARD_ROWS or start == starts[-1]:
                if store is not None:  # first, so that what the journal holds has its features
                    store.write({key: row for key, row in features.items() if key not in store})
                journal.write(rows)
                rows, features = {}, {}
        if errors:
            raise UserErrors(errors)
        scores = np.array([journal[m.id] for m in moments], np.float64)
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


def open_features(folder: str | Path, model: str | None = None) -> TensorCache:
    """The features of one sense, (steps, width) by `key_of` a moment; `model`: the sense that is to fill it.

    Raises:
        UserError: the folder holds those of another sense, or, without `model`, none at all.
    """
    place = Path(folder) / "cache.json"
    held = json.loads(place.read_text(encoding="utf-8")).get("model") if place.is_file() else None
    if model is None and held is None:
        raise UserError(f"{folder}: holds no features; `aligncap senses score --features` writes them")
    if model is not None and held not in (None, model):
        raise UserError(f"{folder}: holds features of another sense; choose another folder")
    return TensorCache(Path(folder), {"kind": "features of a sense", "model": held or model})


def key_of(moment: Moment) -> str:
    """Hash of what a sense may read of a moment: text, and files by path, size and time of change."""
    files = [moment.audio, *moment.pictures, moment.video]
    return digest(moment.text, moment.language, [_known(str(file)) for file in files if file])


def _known(path: str) -> tuple[str, int, int]:
    """Path, bytes and time of change; zeros of what is not there, which reading tells."""
    try:
        stat = Path(member.tar if (member := member_of(path)) else path).stat()
    except OSError:
        return path, 0, 0
    return path, stat.st_size, stat.st_mtime_ns


def features_of(folders: Mapping[str, str], moments: Sequence[Moment]) -> dict[str, list[Tensor]]:
    """Features of each moment by sense: {name: [tensor (steps, width) or (0, width)]}.

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
        keys = [key_of(moment) for moment in moments]
        if missing := sum(key not in store for key in keys):
            errors.append(
                f"{folder}: lacks {missing} of {len(keys)} moments; run `senses score --features` on them"
            )
        else:
            found[name] = [store[key].float() for key in keys]
    if errors:
        raise UserErrors(errors)
    return found

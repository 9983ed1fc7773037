"""Under what conditions clips were recorded: language, level, rate, who speaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from aligncap.audio.files import AudioError, info, level_dbfs, load_audio
from aligncap.errors import UserError
from aligncap.heard import Heard
from aligncap.io import file_sha256
from aligncap.manifest import Utterance, audio_path, read_manifest
from aligncap.progress import track
from aligncap.splits import choose_evenly

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


def describe_training(heard: Heard) -> dict[str, Any]:
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

"""Scores of a caption file as sums over clips, kept on disk: many files are compared again in a second."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.evaluation.bootstrap import Floats, Statistic
from aligncap.evaluation.emotion import uar_of_sums
from aligncap.evaluation.evaluate import pair_up, score
from aligncap.evaluation.ngrams import ORDERS, bleu_scores
from aligncap.evaluation.wordnet import SYSTEM_FOLDER, nltk_folder
from aligncap.io import atomic_open, data_path, file_sha256, read_jsonl
from aligncap.manifest import Utterance


def _ratio(sums: Floats) -> Floats:
    return sums[..., 0] / sums[..., 1]


def _bleu(sums: Floats, order: int) -> Floats:
    return bleu_scores(sums)[..., order - 1]


# the functions of sums that are known by name, so that sums on disk can be read again
FORMS: dict[str, Callable[[Floats], Floats]] = {
    "ratio": _ratio,
    "uar": uar_of_sums,
    **{f"bleu_{order}": partial(_bleu, order=order) for order in range(1, ORDERS + 1)},
}


@cache
def code_digest() -> str:
    """What scores depend on beside captions and manifest.

    The source of `evaluate.py` and of all that it imports from this package, the word lists that they name,
    and whether METEOR has a WordNet.
    """
    package = Path(__file__).resolve().parents[1]
    sources: dict[str, str] = {}
    todo = ["aligncap.evaluation.evaluate"]
    while todo:
        name = todo.pop()
        path = (package.parent / name.replace(".", "/")).with_suffix(".py")
        if name not in sources and path.is_file():
            sources[name] = path.read_text(encoding="utf-8")
            for module, names in re.findall(r"from (aligncap[.\w]*) import \(?([\w, ]*)", sources[name]):
                todo += [module, *(f"{module}.{part.strip()}" for part in names.split(","))]
    lists = {
        path.name: path.read_text(encoding="utf-8")
        for path in data_path("emotions.yaml").parent.glob("*.yaml")
        if any(f'"{path.name}"' in text for text in sources.values())
    }
    return digest([sorted(sources.items()), sorted(lists.items()), _has_wordnet()])


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _has_wordnet() -> bool:
    """Whether METEOR will find WordNet, without the seconds that loading it takes."""
    named = [Path(p) for p in os.environ.get("NLTK_DATA", "").split(os.pathsep) if p]
    places = [nltk_folder(), Path.home() / "nltk_data", *named]
    found = [p / "corpora" / name for p in places for name in ("wordnet", "wordnet.zip")]
    return any(path.exists() for path in (SYSTEM_FOLDER, *found))


def _form(statistic: Statistic, rng: np.random.Generator) -> str | None:
    """Name of the form that gives what the statistic gives, on some random resamples."""
    draws = rng.poisson(1.0, (8, len(statistic.sums))).astype(np.float64)
    draws[0] = 1
    sums = draws @ statistic.sums
    with np.errstate(all="ignore"):
        wanted = statistic.score(sums)
        for name, form in FORMS.items():
            try:
                if np.allclose(form(sums), wanted, rtol=1e-12, atol=0, equal_nan=True):
                    return name
            except (IndexError, ValueError):
                continue
    return None


def file_statistics(
    captions: str | Path,
    references: Sequence[Utterance],
    manifest_hash: str,
    *,
    label_map: Mapping[str, str] | None = None,
    extras: Sequence[str] = (),
    cache_folder: Path | None = None,
) -> dict[str, Statistic]:
    """Every score of one caption file as sums over the clips of `references`, in their order.

    Kept in `cache_folder` under a hash of captions, manifest, label map, extras and the counting code. A
    score whose function of sums has no name in FORMS keeps the whole file from being cached, and so does an
    extra that could not be had.

    Args:
        extras: of `evaluate.EXTRAS`, which need more than this package; the others are always counted.

    Raises:
        Faults: captions and references do not match.
        UserError: an extra of Java is asked for, and its programs are not there.
    """
    extras = sorted(extras)
    path = None
    if cache_folder is not None:
        key = [file_sha256(captions), manifest_hash, sorted((label_map or {}).items()), extras, code_digest()]
        path = cache_folder / f"{digest(key)[:32]}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                return {
                    name: Statistic(kept[f"{name}|{form}"], FORMS[form])
                    for name, _, form in (entry.partition("|") for entry in kept.files)
                }
    statistics = score(
        *pair_up(read_jsonl(captions), references),
        label_map=label_map,
        similarity="auto" if "similarity" in extras else "none",
        coco=[name for name in extras if name != "similarity"],
    ).statistics
    if path is not None and statistics.keys() >= set(extras):
        rng = np.random.default_rng(0)
        forms = {name: _form(statistic, rng) for name, statistic in statistics.items()}
        if None not in forms.values():
            with atomic_open(path, "wb") as file:
                np.savez(
                    file,
                    allow_pickle=False,
                    **{f"{name}|{forms[name]}": s.sums for name, s in statistics.items()},
                )
    return statistics

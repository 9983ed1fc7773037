"""What every sense is to the others: scores of the seven emotions and features in the order of time."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from aligncap.senses.moments import SEVEN, Moment, label_of
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import json_lines, workplace, write_jsonl

FILE = "sense.json"  # of a trained sense's folder: {"kind": "voice", …its settings}; weights are beside it
# Where the sense of a kind lives: a class of this name in this module, loaded by its `load(folder, device)`.
KINDS = {
    "text": ("aligncap.senses.text", "TextSense"),
    "voice": ("aligncap.senses.voice", "VoiceSense"),
    "face": ("aligncap.senses.face", "FaceSense"),
}


@dataclass
class Reading:
    """What a sense made of n moments.

    scores: (n, 7) probabilities in the order of SEVEN; a row of nan where there was nothing to go on (no
        text, no face found).
    features: n tensors (steps, width), in the order of time: states of tokens, stretches of the voice, faces;
        (0, width) where there was nothing.
    """

    scores: np.ndarray
    features: list[Tensor]


class Sense(Protocol):
    """A trained classifier; `width` is that of its features."""

    kind: str
    width: int

    def read(self, moments: Sequence[Moment]) -> Reading:
        """Scores and features of moments. Raises UserErrors: every file that cannot be read."""


def load_sense(folder: str | Path, device: str = "cpu") -> Sense:
    """The trained sense of a folder.

    Raises:
        UserError: no trained sense is there, or weights are missing, damaged or of another shape.
    """
    path, kind = Path(folder) / FILE, None
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind") if path.is_file() else None
    except (ValueError, AttributeError):
        pass  # of something else
    if kind not in KINDS:
        raise UserError(f"{folder}: holds no sense; `aligncap senses {'|'.join(KINDS)}` trains one")
    module, name = KINDS[kind]
    try:
        return cast(Sense, getattr(importlib.import_module(module), name).load(Path(folder), device))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        message = f"{folder}: no sense of {kind} that can be used ({reason}); train it again"
        raise UserError(message) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, atomically."""
    with workplace(path) as work:
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(own, work / path.name, metadata)
        os.replace(work / path.name, path)


def fold_labels(probabilities: Mapping[str, float]) -> np.ndarray | None:
    """Probabilities (7,) of a captioner's, of labels that may mean none of SEVEN; None: such labels have more
    than half.

    >>> fold_labels({"calm": 0.3, "neutral": 0.2, "happy": 0.3, "proud": 0.2}).round(3).tolist()[:2]
    [0.625, 0.375]
    """
    found = dict.fromkeys(SEVEN, 0.0)
    for label, share in probabilities.items():
        if (name := label_of(label)) is not None:
            found[name] += float(share)
    total = sum(found.values())
    return np.array(list(found.values())) / total if total >= 0.5 else None


class Score(TypedDict):
    """A line of a file of scores; `scores` has a probability for each of SEVEN, or is null."""

    id: str
    label: str | None
    speaker: str | None
    scores: dict[str, float] | None


_CHECK: TypeAdapter[Score] = TypeAdapter(Score)


def write_scores(path: str | Path, moments: Sequence[Moment], scores: np.ndarray) -> None:
    """Write a file of scores, a line a moment, atomically."""

    def line(moment: Moment, row: np.ndarray) -> Score:
        known = (
            None if np.isnan(row).any() else {k: round(float(p), 6) for k, p in zip(SEVEN, row, strict=True)}
        )
        return {"id": moment.id, "label": moment.label, "speaker": moment.speaker, "scores": known}

    write_jsonl(path, [line(m, row) for m, row in zip(moments, scores, strict=True)])


def read_scores(path: str | Path) -> tuple[list[Score], np.ndarray]:
    """The lines of a file of scores, and their probabilities (n, 7), rows of nan where there are none.

    Raises:
        UserError: no such file, or nothing in it. UserErrors: every line that is none of such a file.
    """
    rows, values, errors = [], [], []
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of scores; `aligncap senses score` writes one")
    for number, line in json_lines(path):
        try:
            row = _CHECK.validate_python(line)
            known = row["scores"]
            numbers = [np.nan] * 7 if known is None else [known[name] for name in SEVEN]
            if known is not None and not (min(numbers) >= 0 and abs(sum(numbers) - 1) < 1e-3):
                raise ValueError("scores must be probabilities that add up to 1")
            rows.append(row)
            values.append(numbers)
        except (ValidationError, ValueError, KeyError) as error:
            what = "has no seven scores" if isinstance(error, ValidationError | KeyError) else str(error)
            errors.append(f"{path}:{number}: {line if isinstance(line, str) else what}")
    if errors:
        raise UserErrors(errors)
    if not rows:
        raise UserError(f"{path}: no scores in it")
    return rows, np.array(values, np.float64)

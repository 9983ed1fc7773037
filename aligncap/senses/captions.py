"""`aligncap senses captions`: the captioner's confidence in the emotion it names, as scores of a sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from rich.console import Console

from aligncap.senses.measures import measured, table_of
from aligncap.senses.moments import SEVEN, Moment, read_moments
from aligncap.senses.sense import fold_labels, write_scores
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import read_jsonl
from aligncap.utils.options import Config, option


@dataclass
class CaptionScoresConfig(Config):
    """Make a file of scores of what `aligncap caption --confidence` wrote, for fusion with the senses.

    Calm counts as neutral; what is left of a captioner's labels beyond the seven is dropped and the rest made
    to add up to 1. A clip has no scores whose caption names no emotion, or for which the seven have less than
    half of the probability.

    Examples:
        aligncap caption --model runs/model --manifest test.jsonl --confidence --out captions.jsonl
        aligncap senses captions captions.jsonl --manifest test.jsonl --out runs/captions/test.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("captions",)

    captions: str = option(help="JSONL of `aligncap caption --confidence`.")
    manifest: str = option(help="The manifest that was captioned.")
    out: str = option(help="File of scores to write.")


def run_captions(config: CaptionScoresConfig) -> int:
    """`aligncap senses captions`."""
    moments = read_moments(config.manifest, ["voice"])
    scores = scores_of_captions(config.captions, moments)
    write_scores(config.out, moments, scores)
    silent = int(np.isnan(scores).any(axis=1).sum())
    if any(moment.label for moment in moments):
        Console().print(table_of({"captioner": measured(moments, scores)}, "captioner as a sense"))
    print(f"{config.out}: {len(moments)} moments, {silent} of them without scores")
    return 0


def scores_of_captions(path: str | Path, moments: Sequence[Moment]) -> np.ndarray:
    """Probabilities (n, 7) of the moments by the rows of `aligncap caption --confidence`.

    A row of nan where the caption names no emotion, or less than half of the probability is the seven's.

    Raises:
        UserError: no row has probabilities. UserErrors: every moment that was not captioned, and every id
            that has two rows.
    """
    rows = read_jsonl(path)
    by_id = {str(row.get("id")): row for row in rows}
    errors = [f"{path}: {m.id}: not captioned" for m in moments if m.id not in by_id]
    if len(by_id) < len(rows):
        ids = [str(row.get("id")) for row in rows]
        errors += [f"{path}: {name}: captioned twice" for name in by_id if ids.count(name) > 1]
    if errors:
        raise UserErrors(errors)
    if not any(row.get("probabilities") for row in rows):
        raise UserError(f"{path}: no row has probabilities; caption with --confidence")
    scores = np.full((len(moments), len(SEVEN)), np.nan)
    for place, moment in enumerate(moments):
        seven = fold_labels(by_id[moment.id].get("probabilities") or {})
        if seven is not None:
            scores[place] = seven
    return scores

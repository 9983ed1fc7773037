"""Measured cues against a norm: what is high, fast or shaky for this speaker, or for this gender."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from aligncap.errors import UserError
from aligncap.io import data_path, load_data

FILE = "cues.yaml"


@dataclass(frozen=True, slots=True)
class CueNorm:
    """How one cue is compared: its scale, the narrowest spread, (centre, spread) by gender in raw units.

    Spreads are in units of the scale: semitones, octaves (factors of two), or raw units for `linear`.
    """

    scale: str
    smallest: float  # raw values below are taken as this, so that a logarithm exists
    min_spread: float
    genders: Mapping[str, tuple[float, float]]  # "female", "male", "any"

    def scaled(self, value: float) -> float:
        """The value on the scale on which differences are counted."""
        if self.scale == "linear":
            return value
        steps = 12 if self.scale == "semitones" else 1
        return steps * math.log2(max(value, self.smallest))


@cache
def norms() -> dict[str, CueNorm]:
    """Norms of data/cues.yaml by cue.

    Raises:
        UserError: an unknown scale or a spread that is not positive.
    """
    data: dict[str, Any] = load_data(FILE)
    found: dict[str, CueNorm] = {}
    for cue, entry in data["cues"].items():
        genders = {name: (float(pair[0]), float(pair[1])) for name, pair in entry["norm"].items()}
        spreads = [float(entry["min_spread"]), *(spread for _, spread in genders.values())]
        if entry["scale"] not in ("linear", "semitones", "octaves") or min(spreads) <= 0:
            raise UserError(
                f"{data_path(FILE)}: {cue}: scale must be linear, semitones or octaves, spreads above 0"
            )
        found[cue] = CueNorm(
            entry["scale"], float(entry.get("smallest", 0.0)), float(entry["min_spread"]), genders
        )
    return found


def min_clips() -> int:
    """Clips of a speaker needed before the speaker's own norm is used."""
    return int(load_data(FILE)["min_clips"])


def relative(
    utterances_cues: Sequence[Mapping[str, float]],
    speakers: Sequence[str | None],
    genders: Sequence[str | None],
) -> list[dict[str, float]]:
    """Cues of each clip as distances from a norm, about one unit per usual deviation (like a z-score).

    The norm of a cue is the speaker's own, median and 1.4826 times the median absolute deviation, where the
    cue was measured in at least 8 of the speaker's clips; else the gender's from data/cues.yaml, or that of
    both genders when it is unknown. The speaker's own norm is that of the clips given: where those are all
    angry, angry is usual. F0 is compared in semitones, movement and rate in octaves, the rest as it is.

    Returns:
        One dict a clip, keys as `measure` less `duration_s` and `level_dbfs`; absent cues stay absent.

    Raises:
        ValueError: the three sequences differ in length.
    """
    if not len(utterances_cues) == len(speakers) == len(genders):
        raise ValueError(
            f"{len(utterances_cues)} cues, {len(speakers)} speakers, {len(genders)} genders: lengths differ"
        )
    clips: dict[str, list[int]] = defaultdict(list)
    for index, speaker in enumerate(speakers):
        if speaker is not None:
            clips[speaker].append(index)
    needed = min_clips()
    result: list[dict[str, float]] = [{} for _ in utterances_cues]
    for cue, norm in norms().items():
        values = {i: norm.scaled(c[cue]) for i, c in enumerate(utterances_cues) if cue in c}
        own: dict[str, tuple[float, float]] = {}
        for speaker, indices in clips.items():
            measured = np.array([values[i] for i in indices if i in values])
            if len(measured) >= needed:
                centre = float(np.median(measured))
                spread = 1.4826 * float(np.median(np.abs(measured - centre)))
                own[speaker] = centre, max(spread, norm.min_spread)
        for i, value in values.items():
            speaker = speakers[i]
            if speaker in own:
                centre, spread = own[speaker]
            else:
                raw, spread = norm.genders.get(genders[i] or "any", norm.genders["any"])
                centre = norm.scaled(raw)
            result[i][cue] = round((value - centre) / spread, 4)
    return result

"""What is said of a clip beside its caption: measured cues in words, candidates and their marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from aligncap.audio.cues import measure, relative
from aligncap.inference.captioner import Captioner
from aligncap.inference.sampling import sample_captions
from aligncap.text.claims import genders_of, word_cues
from aligncap.text.emotions import emotion_of
from aligncap.text.rubric import Evidence, score
from aligncap.utils.io import Row

CANDIDATES = 4
TEMPERATURE, TOP_P = 0.9, 0.95


def cues_of(clip: np.ndarray, caption: str = "") -> Row:
    """Cues of a clip: {"measured": by name, "relative": to the usual voice, "words": "low" by "pitch", …}.

    What is usual is that of the gender that the caption names, else of both.
    """
    named = genders_of(caption)
    gender = next(iter(named)) if len(named) == 1 else None
    measured = measure(clip)
    (distances,) = relative([measured], [None], [gender])
    return {"measured": measured, "relative": distances, "words": word_cues(distances)}


def candidates_of(
    captioner: Captioner,
    clip: np.ndarray,
    distances: Mapping[str, float],
    first: str | None = None,
    num: int = CANDIDATES,
    seed: int = 0,
) -> list[Row]:
    """Sampled captions with the rubric's marks, the best first; to be called in the model's thread.

    The clip's true emotion is not known, so the rubric judges what was measured, language and detail.

    Args:
        distances: relative cues, as `cues_of` has them.
        first: the greedy caption, judged with the others.
    """
    (drawn,) = sample_captions(
        captioner, [clip], ["clip"], num=num, temperature=TEMPERATURE, top_p=TOP_P, seed=seed
    )
    return judged([*([first] if first else []), *drawn], distances)


def judged(captions: Sequence[str], distances: Mapping[str, float]) -> list[Row]:
    """Different captions with scores, overall mark and reasons, the best first."""
    evidence = Evidence(relative=distances)
    rows = []
    for caption in dict.fromkeys(captions):
        marks = score(caption, evidence)
        rows.append(
            {
                "caption": caption,
                "emotion": emotion_of(caption),
                "overall": marks.overall,
                "scores": dict(marks.scores),
                "why": marks.reason,
            }
        )
    return sorted(rows, key=lambda row: -row["overall"])

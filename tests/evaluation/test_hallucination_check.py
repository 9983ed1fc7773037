"""Each detector of a type of hallucination against its hand-labelled sentences; `-s` prints the table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics.emotion import emotion_sets
from aligncap.evaluation.metrics.hallucination import GENERIC, OtherClips
from aligncap.text.claims import check, claims_of, genders_of
from aligncap.text.emotions import feelings
from aligncap.text.instruction import breaches
from aligncap.text.rubric import leaks
from aligncap.utils.io import data_path

WRONG = 0.5  # set precision up to which a caption counts as naming a wrong emotion


@cache
def rows() -> list[dict[str, Any]]:
    text = data_path("gold/hallucination_check.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def of(kind: str, part: str | None = None) -> list[dict[str, Any]]:
    return [row for row in rows() if row["type"] == kind and part in (None, row.get("part"))]


def yes_no(pairs: Iterable[tuple[bool, bool]]) -> Counter[str]:
    """Counts of (found, expected)."""
    names = {(True, True): "right", (True, False): "extra", (False, True): "missed"}
    return Counter(names.get(pair, "silent") for pair in pairs)


def sets(pairs: Iterable[tuple[Iterable[str], Iterable[str]]]) -> Counter[str]:
    """Counts over items of (found, expected)."""
    counts: Counter[str] = Counter()
    for found, wanted in pairs:
        a, b = Counter(found), Counter(wanted)
        counts += Counter(right=(a & b).total(), extra=(a - b).total(), missed=(b - a).total())
    return counts


def clip(row: dict[str, Any]) -> Utterance:
    return Utterance(
        "u", ".", "u.wav", "made", emotion=row.get("emotion"), captions=row.get("references", [])
    )


def wrong_claims(row: dict[str, Any]) -> list[str]:
    wrong = [str(claim) for claim in check(claims_of(row["caption"]), row["cues"]).wrong]
    genders = genders_of(row["caption"])
    return [*wrong, *(["gender"] if row["gender"] and genders - {row["gender"]} else [])]


def flips(name: str) -> Counter[str]:
    judged = [row for row in of("wrong_emotion") if row["expected"][name] is not None]
    return yes_no(
        (bool(getattr(emotion_sets(r["caption"], clip(r)), name)), r["expected"][name]) for r in judged
    )


def wrong_emotion() -> Counter[str]:
    judged = [row for row in of("wrong_emotion") if row["expected"]["wrong"] is not None]
    found = [emotion_sets(row["caption"], clip(row)).precision for row in judged]
    return yes_no(
        (p is not None and p <= WRONG, row["expected"]["wrong"]) for p, row in zip(found, judged, strict=True)
    )


def fits() -> list[tuple[int, int]]:
    """Other clips that each caption is as true of, by rule and by hand."""
    room = of("room")
    whole = [Utterance(r["id"], ".", "u.wav", "made", emotion=r["emotion"], gender=r["gender"]) for r in room]
    others = OtherClips(whole, [r["cues"] for r in room], {})
    place = {r["id"]: i for i, r in enumerate(room)}
    found = []
    for row in of("generic"):
        share = others.find(
            row["caption"], place[row["clip"]], claims_of(row["caption"]), genders_of(row["caption"])
        ).fit
        assert share is not None
        found.append((round(share * (len(room) - 1)), row["expected"]))
    return found


def generic() -> Counter[str]:
    limit = GENERIC * (len(of("room")) - 1)
    return yes_no((a > limit, b > limit) for a, b in fits())


def breach(part: str | None = None) -> Counter[str]:
    return yes_no((bool(breaches(r["caption"])), r["expected"]) for r in of("instruction_breach", part))


DETECTORS = {
    "emotion words asserted": (
        lambda: sets(
            ([f.word for f in feelings(r["caption"]) if not f.negated], r["expected"]["words"])
            for r in of("wrong_emotion")
        )
    ),
    "wrong emotion (set precision up to 0.5)": wrong_emotion,
    "valence flip": lambda: flips("valence_flip"),
    "arousal flip": lambda: flips("arousal_flip"),
    "wrong claims and gender": lambda: sets(
        (wrong_claims(r), r["expected"]) for r in of("unsupported_claim")
    ),
    "instruction breach, worked on": lambda: breach("worked on"),
    "instruction breach, kept back": lambda: breach("kept back"),
    "transcript leak": lambda: yes_no(
        (leaks(r["caption"], r["transcript"]), r["expected"]) for r in of("transcript_leak")
    ),
    "generic": generic,
}


def rates(counts: Counter[str]) -> tuple[float, float]:
    right = counts["right"]
    return right / (right + counts["extra"]), right / (right + counts["missed"])


def test_every_type_has_enough_sentences_with_both_answers() -> None:
    for kind in ("wrong_emotion", "unsupported_claim", "instruction_breach", "transcript_leak", "generic"):
        assert len(of(kind)) >= 25
        assert len({r["caption"] for r in of(kind)}) >= 25
    for kind in ("instruction_breach", "transcript_leak"):
        assert min(Counter(r["expected"] for r in of(kind)).values()) >= 15


# what was measured, less a little: a detector that falls below has lost something
FLOORS = {
    "emotion words asserted": (0.92, 0.95),
    "wrong emotion (set precision up to 0.5)": (0.89, 0.92),
    "valence flip": (0.99, 0.99),
    "arousal flip": (0.87, 0.99),
    "wrong claims and gender": (0.85, 0.88),
    "instruction breach, worked on": (0.95, 0.95),
    "instruction breach, kept back": (0.88, 0.93),
    "transcript leak": (0.81, 0.81),
    "generic": (0.95, 0.99),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_keep_their_precision_and_recall(name: str) -> None:
    counts = DETECTORS[name]()
    precision, recall = rates(counts)
    print(f"\n{name}: precision {precision:.2f}, recall {recall:.2f}, {dict(counts)}")
    assert precision >= FLOORS[name][0] and recall >= FLOORS[name][1]


def test_most_captions_fit_as_many_other_clips_as_by_hand() -> None:
    agree = [a == b for a, b in fits()]
    assert len(agree) == 30 and sum(agree) >= 27

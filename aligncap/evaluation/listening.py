"""Proof of listening: what a captioner's scores lose when it does not hear the clip that is scored.

The audio gain of a score is the score on the right audio less that under a condition (`CONDITIONS` of
`aligncap.models.caption_files`), or the other way round where less is better, so that a listener gains. Both
are resampled together by speaker, and the captions of several seeds count together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aligncap.captions.emotions import emotion_of
from aligncap.errors import UserError
from aligncap.evaluation.bootstrap import (
    Clusters,
    Interval,
    Statistic,
    clusters_of,
    intervals,
    paired_differences,
)
from aligncap.evaluation.diversity import most_frequent
from aligncap.evaluation.evaluate import SCORES, Scored, Synonyms, pair_up, score
from aligncap.evaluation.listening_words import HEARD, verdict
from aligncap.evaluation.systems import LESS_IS_BETTER, NEITHER
from aligncap.manifest import Utterance

Rows = Sequence[Mapping[str, Any]]
Count = Callable[[Rows], Scored]

USUAL = ("wrong", "silence", "noise", "same-words")  # what every report should have


@dataclass(frozen=True)
class Listening:
    """What captions lose without the clip.

    `conditions` is {condition: {metric: {"right", "heard", "gain"}, "said": {"captions", "emotions"},
    "made": {"clip" or kind of sound: number}}}, the three being {"value", "low", "high"} (and "p" of the
    gain). "same-words" has "follows": {"clips", metric: {"voice", "words", "gain"}}, the captions of clips
    heard in place of others, against the references of the clip heard and of the clip it stands for.
    `verdict` is sentences, `missing` the usual conditions that were not captioned.
    """

    conditions: dict[str, dict[str, Any]]
    verdict: list[str]
    missing: tuple[str, ...] = USUAL


def counter(
    references: Sequence[Utterance],
    whole: Sequence[Utterance] | None = None,
    *,
    label_map: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    **options: Any,
) -> Count:
    """A function that scores a list of rows against `references`, each list once however often it is asked.

    Lists are told apart by identity and kept. `whole` is the set that speakers' norms are taken from;
    `options` are those of `score`.
    """
    known: dict[int, tuple[Rows, Scored]] = {}

    def count(rows: Rows) -> Scored:
        if id(rows) not in known:
            paired = pair_up(rows, references, allow_missing=allow_missing)
            scored = score(*paired, label_map=label_map, whole=whole or references, **options)
            known[id(rows)] = rows, scored
        return known[id(rows)][1]

    return count


def audio_gains(
    right: Sequence[Rows],
    conditions: Mapping[str, Sequence[Rows]],
    references: Sequence[Utterance],
    *,
    count: Count | None = None,
    synonyms: Synonyms = "auto",
    label_map: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Listening:
    """Audio gain of one captioner under each condition.

    Args:
        right: its captions of the clips themselves, a list of rows a training seed.
        conditions: its captions by what it heard instead, as `aligncap caption --heard` writes them.
        references: the clips that are scored, all captioned in every list.
        count: of `counter`, to share what is scored already.

    Raises:
        UserError: no such condition, or captions that were written under another one.
        Faults: captions and references do not match.
    """
    for name, lists in conditions.items():
        _check(name, lists)
    count = count or counter(references, synonyms=synonyms, label_map=label_map)
    found: dict[str, dict[str, Any]] = {}
    for name in HEARD:
        lists = conditions.get(name, ())
        if lists:
            base, other = ([count(rows) for rows in part] for part in (right, lists))
            found[name] = {
                **_gains(("right", "heard"), base, other, base[0].clusters, resamples, seed),
                "said": _said([caption for scored in other for caption in scored.captions]),
                "made": dict(Counter(row.get("made") or "clip" for rows in lists for row in rows)),
            }
    pairs = _swapped(conditions.get("same-words", ()), references)
    if pairs:
        captions = [caption for _, _, caption in pairs]
        own, voice = [clip for clip, _, _ in pairs], [clip for _, clip, _ in pairs]
        by_voice, by_words = (
            [
                score(
                    clips, captions, label_map=label_map, whole=references, synonyms="none", similarity="none"
                )
            ]
            for clips in (voice, own)
        )
        gains = _gains(("voice", "words"), by_voice, by_words, clusters_of(own), resamples, seed)
        found["same-words"]["follows"] = {"clips": len(pairs), **gains}
    return Listening(found, verdict(found), tuple(name for name in USUAL if name not in found))


def compare(
    first: Sequence[Scored], second: Sequence[Scored], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Second minus first, as `compare_captions`, of what is scored already (each: its seeds)."""
    a, b = _pooled(first, second)
    gaps = paired_differences(a, b, first[0].clusters, resamples=resamples, seed=seed)
    return {name: _finite(gap) for name, gap in gaps.items()}


def _check(name: str, lists: Sequence[Rows]) -> None:
    if name not in HEARD:
        raise UserError(f"condition {name!r}: choose among {', '.join(HEARD)}")
    others = {str(row["condition"]) for rows in lists for row in rows if row.get("condition", name) != name}
    if others:
        raise UserError(
            f"captions given as {name!r} were written of {', '.join(sorted(others))}; "
            "name each file by what was heard"
        )


def _swapped(
    lists: Sequence[Rows], references: Sequence[Utterance]
) -> list[tuple[Utterance, Utterance, str]]:
    """(the clip, the clip that was heard, the caption) where another recording of the words was heard."""
    known = {u.id: u for u in references}
    return [
        (known[row["id"]], known[row["heard"]], row["caption"])
        for rows in lists
        for row in rows
        if not row.get("made") and row["id"] in known and row.get("heard") in known
    ]


def _gains(
    names: tuple[str, str],
    first: Sequence[Scored],
    second: Sequence[Scored],
    clusters: Clusters,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """{metric: {names[0], names[1], "gain"}}: what `first` is ahead of `second`; each is its seeds."""
    a, b = _pooled(first, second)
    alone = [intervals(part, clusters, resamples=resamples, seed=seed) for part in (a, b)]
    more = paired_differences(b, a, clusters, resamples=resamples, seed=seed)
    less = paired_differences(a, b, clusters, resamples=resamples, seed=seed)
    return {
        name: {
            names[0]: _finite(alone[0][name]),
            names[1]: _finite(alone[1][name]),
            "gain": _finite((less if name in LESS_IS_BETTER else more)[name]),
        }
        for name in a
        if name not in NEITHER
    }


def _pooled(first: Sequence[Scored], second: Sequence[Scored]) -> tuple[dict[str, Statistic], ...]:
    """Of each, the scores that all have, their sums over clips added over seeds."""
    parts = [*first, *second]
    both = [name for name in SCORES if all(name in scored.statistics for scored in parts)]
    return tuple(
        {
            name: Statistic(
                np.sum([s.statistics[name].sums for s in seeds], axis=0), seeds[0].statistics[name].score
            )
            for name in both
        }
        for seeds in (first, second)
    )


def _finite(cell: Interval) -> Interval:
    """None for what is no number, such as the share of wrong claims where none are made."""
    return {key: v if v is not None and math.isfinite(v) else None for key, v in cell.items()}


def _said(captions: Sequence[str]) -> dict[str, Any]:
    """The most frequent captions, and the emotions that captions name with their shares."""
    named = Counter(emotion_of(caption) or "none" for caption in captions)
    return {
        "captions": most_frequent(captions, 3),
        "emotions": {label: n / len(captions) for label, n in named.most_common()},
    }

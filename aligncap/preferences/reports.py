"""What was kept of the pairs that clips could give, why others were dropped, and shortcuts in the rest."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from aligncap.preferences.pair_kinds import Option, Pair
from aligncap.text.lexicon import caption_words
from aligncap.utils.io import Row

QUANTILES = {"least": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "most": 1.0}
GIVEN_AWAY = 0.75  # guessed from the text alone more often than this: a warning


def pair_report(considered: Mapping[str, Sequence[Option]]) -> Row:
    """What was kept of the pairs that clips could have given, by kind, and why others were dropped.

    For every kind and for all: "considered" = "kept" + the sum of "dropped". "length.mean_log_before" is the
    mean log ratio of a random choice of every pair before balancing.
    """
    every = [found for options in considered.values() for found in options]
    kept = [found for found in every if isinstance(found, Pair) and found.dropped is None]
    by_kind = {kind: _summary(options) for kind, options in considered.items()}
    return {
        "clips_with_pairs": len({pair.clip.utterance.id for pair in kept}),
        **_summary(every),
        "by_emotion": dict(Counter(str(pair.clip.emotion) for pair in kept).most_common()),
        "by_kind": by_kind,
        "warnings": [line for kind, part in by_kind.items() for line in _warnings(kind, part)],
    }


def _summary(considered: Sequence[Option]) -> Row:
    possible = [found for found in considered if isinstance(found, Pair)]
    pairs = [pair for pair in possible if pair.dropped is None]
    dropped = Counter(found if isinstance(found, str) else found.dropped for found in considered)
    del dropped[None]  # those that were kept
    ratios = np.array([pair.log_ratio for pair in pairs])
    margins = [pair.margin for pair in pairs if pair.margin is not None]

    def mean(values: Sequence[float] | np.ndarray) -> float | None:
        return float(np.mean(values)) if len(values) else None

    return {
        "considered": len(considered),
        "kept": len(pairs),
        "dropped": dict(dropped.most_common()),
        "margin": {
            "unknown": len(pairs) - len(margins),
            **{name: float(np.quantile(margins, q)) if margins else None for name, q in QUANTILES.items()},
        },
        "length": {
            "mean_log_before": mean([pair.log_ratio_before for pair in possible]),
            "mean_log_after": mean(ratios),
            "chosen_longer": mean(ratios > 0),
            "equal": mean(ratios == 0),
        },
        "chosen_is_reference": mean([pair.chosen.reference for pair in pairs]),
        "distinct_chosen": len({pair.chosen.caption for pair in pairs}),
        "distinct_rejected": len({pair.rejected.caption for pair in pairs}),
        "guessed_from_text": guessed_from_text(pairs),
    }


def guessed_from_text(pairs: Sequence[Pair]) -> float | None:
    """Share of pairs whose chosen caption is told from the words alone, without the clip; ties count half.

    Naive Bayes over words: a word counts log((chosen captions with it + 1) / (rejected ones with it + 1)),
    counted on one half of the clips and tried on the other. 0.5 is no shortcut at all; 1 means that training
    can succeed without listening. None for fewer than 20 pairs.
    """
    if len(pairs) < 20:
        return None
    halves: list[list[tuple[set[str], set[str]]]] = [[], []]
    for pair in pairs:
        chosen, rejected = (set(caption_words(text.caption)) for text in (pair.chosen, pair.rejected))
        halves[zlib.crc32(pair.clip.utterance.id.encode()) % 2].append((chosen - rejected, rejected - chosen))
    right = 0.0
    for learnt, tried in (halves, halves[::-1]):
        good = Counter(word for more, _ in learnt for word in more)
        bad = Counter(word for _, less in learnt for word in less)
        weight = {w: math.log((good[w] + 1) / (bad[w] + 1)) for w in good.keys() | bad.keys()}
        for more, less in tried:
            score = math.fsum(weight.get(w, 0.0) for w in more) - math.fsum(weight.get(w, 0.0) for w in less)
            right += 0.5 if abs(score) < 1e-12 else float(score > 0)
    return right / len(pairs)


def _warnings(kind: str, part: Row) -> list[str]:
    kept, considered, rejected = part["kept"], part["considered"], part["distinct_rejected"]
    if not kept:
        return [f"{kind}: no pair is left"]
    found = []
    if kept < considered / 2:
        reason, count = next(iter(part["dropped"].items()))
        found.append(
            f'{considered - kept} of {considered} pairs were dropped, most of them for "{reason}" ({count})'
        )
    if abs(part["length"]["mean_log_after"]) > 0.05:
        ratio = math.expm1(part["length"]["mean_log_after"])
        than = f"{abs(ratio):.0%} {'longer' if ratio > 0 else 'shorter'} than rejected ones"
        found.append(f"chosen captions are {than}; length is a shortcut here")
    if (guessed := part["guessed_from_text"]) is not None and guessed > GIVEN_AWAY:
        share = f"the words alone tell the chosen caption in {guessed:.0%} of pairs"
        found.append(f"{share}; mix it with kinds that need the clip")
    if rejected < kept / 4:
        few = f"only {rejected} different rejected captions in {kept} pairs"
        found.append(f"{few}; candidates at a higher --temperature vary more")
    return [f"{kind}: {line}" for line in found]


def pair_tables(report: Row) -> list[Table | str]:
    """The report for a terminal: one table by kind, one of what was dropped, emotions and warnings."""
    kinds = {**report["by_kind"], "all": report} if len(report["by_kind"]) > 1 else report["by_kind"]
    kept = Table(title=f"{report['kept']} pairs of {report['clips']} clips, judged by {report['judge']}")
    kept.add_column("")
    columns = []
    for kind, part in kinds.items():
        kept.add_column(kind, justify="right")
        margin, length = part["margin"], part["length"]
        longer, equal = length["chosen_longer"], length["equal"]
        shorter = None if longer is None else 1 - longer - equal
        before, after = length["mean_log_before"], length["mean_log_after"]
        rows: dict[str, tuple[Any, ...]] = {  # a format and its values
            "considered": ("", part["considered"]),
            "kept": ("", part["kept"]),
            "margin: least / median / most": (".1f", margin["least"], margin["median"], margin["most"]),
            "margin unknown": ("", margin["unknown"]),
            "mean log length ratio: before / after": ("+.3f", before, after),
            "chosen longer / equal / shorter": (".0%", longer, equal, shorter),
            "chosen is a reference": (".0%", part["chosen_is_reference"]),
            "different chosen / rejected": ("", part["distinct_chosen"], part["distinct_rejected"]),
            "told by the words alone": (".0%", part["guessed_from_text"]),
        }
        columns.append(rows)
    for title in columns[0]:
        cells = (column[title] for column in columns)
        kept.add_row(title, *(" / ".join("–" if v is None else format(v, f) for v in vs) for f, *vs in cells))
    found: list[Table | str] = [kept]
    if report["dropped"]:
        dropped = Table("why dropped", *kinds, title="Pairs not kept")
        for reason in report["dropped"]:
            dropped.add_row(reason, *(str(part["dropped"].get(reason, 0)) for part in kinds.values()))
        found.append(dropped)
    found.append("pairs by emotion: " + ", ".join(f"{k} {n}" for k, n in report["by_emotion"].items()))
    return found + [f"warning: {line}" for line in report["warnings"]]

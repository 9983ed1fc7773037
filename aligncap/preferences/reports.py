"""What is printed of pairs and of agreement, and the report of pairs: what was kept or dropped, and why."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from aligncap.text.lexicon import caption_words
from aligncap.utils.io import Row

Part = Table | str
_QUANTILES = {"least": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "most": 1.0}
_GIVEN_AWAY = 0.75  # guessed from the text alone more often than this: a warning


def show(parts: Sequence[Part]) -> None:
    """Print tables and lines to standard output."""
    console = Console(markup=False, emoji=False)
    for part in parts:
        console.print(part)


def pair_report(considered: Sequence[Row], kinds: Sequence[str]) -> Row:
    """What was kept of the pairs that clips could have given, and why others were dropped.

    For every kind and for all: "considered" = "kept" + the sum of "dropped". "length.mean_log_before" is the
    mean log ratio of a random choice of every pair before balancing.

    Args:
        considered: a row a pair: its "kind" and either why it was "dropped" or, with None there, the pair as
            in a pairs file with "emotion", "log_ratio" (words of chosen by words of rejected) and
            "from_reference"; "log_ratio_before" where it could have been kept.
    """
    kept = [row for row in considered if row["dropped"] is None]
    report = {
        "clips_with_pairs": len({row["id"] for row in kept}),
        **_summary(considered),
        "by_emotion": dict(Counter(str(row["emotion"]) for row in kept).most_common()),
        "by_kind": {kind: _summary([row for row in considered if row["kind"] == kind]) for kind in kinds},
    }
    return report | {"warnings": _warnings(report["by_kind"])}


def _summary(considered: Sequence[Row]) -> Row:
    pairs = [row for row in considered if row["dropped"] is None]
    dropped = Counter(row["dropped"] for row in considered if row["dropped"] is not None)
    before = [row["log_ratio_before"] for row in considered if "log_ratio_before" in row]
    ratios = np.array([row["log_ratio"] for row in pairs])
    margins = [row["margin"] for row in pairs if row["margin"] is not None]

    def mean(values: Sequence[Any] | np.ndarray) -> float | None:
        return float(np.mean(values)) if len(values) else None

    return {
        "considered": len(considered),
        "kept": len(pairs),
        "dropped": dict(dropped.most_common()),
        "margin": {
            "unknown": len(pairs) - len(margins),
            **{name: float(np.quantile(margins, q)) if margins else None for name, q in _QUANTILES.items()},
        },
        "length": {
            "mean_log_before": mean(before),
            "mean_log_after": mean(ratios),
            "chosen_longer": mean(ratios > 0),
            "equal": mean(ratios == 0),
        },
        "chosen_is_reference": mean([row["from_reference"] for row in pairs]),
        "distinct_chosen": len({row["chosen"] for row in pairs}),
        "distinct_rejected": len({row["rejected"] for row in pairs}),
        "guessed_from_text": guessed_from_text(pairs),
    }


def guessed_from_text(pairs: Sequence[Row]) -> float | None:
    """Share of pairs whose chosen caption is told from the words alone, without the clip; ties count half.

    Naive Bayes over words: a word counts log((chosen captions with it + 1) / (rejected ones with it + 1)),
    counted on one half of the clips and tried on the other. 0.5 is no shortcut at all; 1 means that training
    can succeed without listening. None for fewer than 20 pairs.
    """
    if len(pairs) < 20:
        return None
    halves: list[list[tuple[set[str], set[str]]]] = [[], []]
    for pair in pairs:
        chosen, rejected = (set(caption_words(pair[name])) for name in ("chosen", "rejected"))
        halves[zlib.crc32(pair["id"].encode()) % 2].append((chosen - rejected, rejected - chosen))
    right = 0.0
    for learnt, tried in (halves, halves[::-1]):
        good = Counter(word for more, _ in learnt for word in more)
        bad = Counter(word for _, less in learnt for word in less)
        weight = {w: math.log((good[w] + 1) / (bad[w] + 1)) for w in good.keys() | bad.keys()}
        for more, less in tried:
            score = math.fsum(weight.get(w, 0.0) for w in more) - math.fsum(weight.get(w, 0.0) for w in less)
            right += 0.5 if abs(score) < 1e-12 else float(score > 0)
    return right / len(pairs)


def _warnings(by_kind: Row) -> list[str]:
    found = []
    for kind, part in by_kind.items():
        if not part["kept"]:
            found.append(f"{kind}: no pair is left")
            continue
        if part["kept"] < part["considered"] / 2:
            reason, count = next(iter(part["dropped"].items()))
            found.append(
                f"{kind}: {part['considered'] - part['kept']} of {part['considered']} pairs were dropped, "
                f'most of them for "{reason}" ({count})'
            )
        if abs(part["length"]["mean_log_after"]) > 0.05:
            ratio = math.expm1(part["length"]["mean_log_after"])
            found.append(
                f"{kind}: chosen captions are {abs(ratio):.0%} {'longer' if ratio > 0 else 'shorter'} than "
                "rejected ones; length is a shortcut here"
            )
        guessed = part["guessed_from_text"]
        if guessed is not None and guessed > _GIVEN_AWAY:
            found.append(
                f"{kind}: the words alone tell the chosen caption in {guessed:.0%} of pairs; "
                "mix it with kinds that need the clip"
            )
        if part["distinct_rejected"] < part["kept"] / 4:
            found.append(
                f"{kind}: only {part['distinct_rejected']} different rejected captions in "
                f"{part['kept']} pairs; candidates at a higher --temperature vary more"
            )
    return found


def _figures(form: str, *values: float | None) -> str:
    return " / ".join("–" if value is None else format(value, form) for value in values)


def pair_tables(report: Row) -> list[Part]:
    """The report for a terminal: one table by kind, one of what was dropped, emotions and warnings."""
    kinds = {**report["by_kind"], "all": report} if len(report["by_kind"]) > 1 else report["by_kind"]
    kept = Table(title=f"{report['kept']} pairs of {report['clips']} clips, judged by {report['judge']}")
    for name in ("", *kinds):
        kept.add_column(name, justify="right" if name else "left")
    columns = []
    for part in kinds.values():
        margin, length = part["margin"], part["length"]
        longer, equal = length["chosen_longer"], length["equal"]
        shorter = None if longer is None else 1 - longer - equal
        columns.append(
            {
                "considered": str(part["considered"]),
                "kept": str(part["kept"]),
                "margin: least / median / most": _figures(
                    ".1f", margin["least"], margin["median"], margin["most"]
                ),
                "margin unknown": str(margin["unknown"]),
                "mean log length ratio: before / after": _figures(
                    "+.3f", length["mean_log_before"], length["mean_log_after"]
                ),
                "chosen longer / equal / shorter": _figures(".0%", longer, equal, shorter),
                "chosen is a reference": _figures(".0%", part["chosen_is_reference"]),
                "different chosen / rejected": f"{part['distinct_chosen']} / {part['distinct_rejected']}",
                "told by the words alone": _figures(".0%", part["guessed_from_text"]),
            }
        )
    for title in columns[0]:
        kept.add_row(title, *(column[title] for column in columns))
    found: list[Part] = [kept]
    if report["dropped"]:
        dropped = Table("why dropped", *kinds, title="Pairs not kept")
        for reason in report["dropped"]:
            dropped.add_row(reason, *(str(part["dropped"].get(reason, 0)) for part in kinds.values()))
        found.append(dropped)
    found.append("pairs by emotion: " + ", ".join(f"{k} {n}" for k, n in report["by_emotion"].items()))
    return found + [f"warning: {line}" for line in report["warnings"]]


_TITLES = {
    "tau_within": "Kendall's τ-b, mean within clips",
    "tau_overall": "Kendall's τ-b, all captions",
    "pairwise": "pairs ordered alike (ties left out)",
    "pairwise_ties_half": "pairs ordered alike (ties count half)",
    "kappa": "weighted κ of overall scores",
}


def cell(found: Row | None) -> str:
    """ "0.412 [0.300, 0.510]", or why there is no number."""
    if found is None:
        return ""
    if found["value"] is None:
        return str(found["note"])
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    note = f" ({found['note']})" if found["note"] else ""
    return f"{found['value']:.3f}{interval}{note}"


def agreement_tables(result: Row) -> list[Part]:
    """What `agreement.agree_files` found: one table, what stands beside it, and the warnings, in order."""
    a, b = result["a"]["judge"], result["b"]["judge"]
    matched, ties, length = result["matched"], result["ties"], result["length"]
    sheet = Table(
        title=f"Agreement with {b}: {matched['captions']} captions of {matched['clips']} clips",
        caption=f"95 % intervals over clips, {result['resamples']} resamples",
    )
    sheet.add_column("")
    for name in (a, f"length alone ({length['better']} is better)", "difference"):
        sheet.add_column(name, justify="right")
    columns = (result["statistics"], length["statistics"], result["gain"])
    for name, title in _TITLES.items():
        sheet.add_row(title, *(cell(column.get(name)) for column in columns))
    for name, found in result["kappa_by_criterion"].items():
        sheet.add_row(f"weighted κ of {name}", cell(found), "", "")
    parts: list[Part] = [sheet]
    if ties["pairs"]:
        parts.append(
            f"{ties['pairs']} pairs of captions of one clip: {ties['tied_by_a']:.1%} tied by {a}, "
            f"{ties['tied_by_b']:.1%} by {b}, {ties['tied_by_both']:.1%} by both; "
            f"{result['clips_without_tau']} clips without τ-b"
        )
    if matched["only_a"] or matched["only_b"]:
        parts.append(f"left out: {matched['only_a']} captions only {a} scored, {matched['only_b']} only {b}")
    own = result.get("self")
    if own:
        parts.append(
            f"with captions swapped ({own['pairs']} pairs): same winner {cell(own['consistent'])}, "
            f"first shown preferred {cell(own['first_preferred'])}, ties {own['ties']:.1%}"
        )
    warnings = [*result["warnings"], *(own["warnings"] if own else [])]
    return parts + [f"warning: {line}" for line in warnings]

"""What was kept of the pairs and why, and whether the text alone gives the preference away."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.preferences.pair_kinds import Pair, words_of_text

if TYPE_CHECKING:
    from rich.table import Table

_QUANTILES = {"least": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "most": 1.0}
_GIVEN_AWAY = 0.75  # guessed from the text alone more often than this: a warning


@dataclass
class Outcome:
    """One kind of pair: pairs kept, reasons of those dropped, and log length ratios of a first choice."""

    kept: list[Pair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    before: list[float] = field(default_factory=list)
    considered: int = 0


def report_of(
    outcomes: Mapping[str, Outcome], judge: Mapping[str, Any], clips: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as a dict that JSON can hold; see `table` for its face.

    For every kind and for all: `considered` = `kept` + the sum of `dropped`. `length.mean_log_before` is that
    of a random choice of every pair before balancing.
    """
    everything = Outcome()
    for outcome in outcomes.values():
        everything.kept = everything.kept + outcome.kept
        everything.dropped = everything.dropped + outcome.dropped
        everything.before = everything.before + outcome.before
        everything.considered += outcome.considered
    report = {
        **judge,
        "options": dict(options),
        "clips": clips,
        "clips_with_pairs": len({pair.id for pair in everything.kept}),
        **_summary(everything),
        "by_emotion": dict(Counter(str(pair.emotion) for pair in everything.kept).most_common()),
        "by_kind": {kind: _summary(outcome) for kind, outcome in outcomes.items()},
    }
    report["warnings"] = _warnings(report)
    return report


def _summary(outcome: Outcome) -> dict[str, Any]:
    pairs = outcome.kept
    ratios = np.array([pair.log_ratio for pair in pairs])
    margins = [pair.margin for pair in pairs if pair.margin is not None]
    return {
        "considered": outcome.considered,
        "kept": len(pairs),
        "dropped": {reason: n for reason, n in outcome.dropped.most_common() if n},
        "margin": {
            "unknown": len(pairs) - len(margins),
            **{name: float(np.quantile(margins, q)) if margins else None for name, q in _QUANTILES.items()},
        },
        "length": {
            "mean_log_before": float(np.mean(outcome.before)) if outcome.before else None,
            "mean_log_after": float(ratios.mean()) if pairs else None,
            "chosen_longer": float((ratios > 0).mean()) if pairs else None,
            "equal": float((ratios == 0).mean()) if pairs else None,
        },
        "chosen_is_reference": float(np.mean([p.chosen.reference for p in pairs])) if pairs else None,
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
        chosen, rejected = set(words_of_text(pair.chosen.caption)), set(words_of_text(pair.rejected.caption))
        halves[zlib.crc32(pair.id.encode()) % 2].append((chosen - rejected, rejected - chosen))
    right = 0.0
    for learnt, tried in (halves, halves[::-1]):
        good = Counter(word for more, _ in learnt for word in more)
        bad = Counter(word for _, less in learnt for word in less)
        weight = {w: math.log((good[w] + 1) / (bad[w] + 1)) for w in good.keys() | bad.keys()}
        for more, less in tried:
            score = math.fsum(weight.get(w, 0.0) for w in more) - math.fsum(weight.get(w, 0.0) for w in less)
            right += 0.5 if abs(score) < 1e-12 else float(score > 0)
    return right / len(pairs)


def _warnings(report: Mapping[str, Any]) -> list[str]:
    found = []
    for kind, part in report["by_kind"].items():
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
    if len(report["versions"]) > 1:
        found.append(f"verdicts of several versions of the judge: {', '.join(report['versions'])}")
    return found


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def tables(report: Mapping[str, Any]) -> list[Table | str]:
    """The report for a terminal: one table by kind, one of what was dropped, emotions and warnings."""
    from rich.table import Table

    kinds = {**report["by_kind"], "all": report} if len(report["by_kind"]) > 1 else report["by_kind"]
    kept = Table(title=f"{report['kept']} pairs of {report['clips']} clips, judged by {report['judge']}")
    kept.add_column("")
    for kind in kinds:
        kept.add_column(kind, justify="right")
    lines: list[tuple[str, list[str]]] = [
        ("considered", [str(p["considered"]) for p in kinds.values()]),
        ("kept", [str(p["kept"]) for p in kinds.values()]),
        (
            "margin: least / median / most",
            [
                " / ".join(_figure(p["margin"][q], ".1f") for q in ("least", "median", "most"))
                for p in kinds.values()
            ],
        ),
        ("margin unknown", [str(p["margin"]["unknown"]) for p in kinds.values()]),
        (
            "mean log length ratio: before → after",
            [
                f"{_figure(p['length']['mean_log_before'], '+.3f')} → "
                f"{_figure(p['length']['mean_log_after'], '+.3f')}"
                for p in kinds.values()
            ],
        ),
        (
            "chosen longer / equal / shorter",
            [
                " / ".join(
                    _figure(v, ".0%")
                    for v in (
                        p["length"]["chosen_longer"],
                        p["length"]["equal"],
                        None if not p["kept"] else 1 - p["length"]["chosen_longer"] - p["length"]["equal"],
                    )
                )
                for p in kinds.values()
            ],
        ),
        ("chosen is a reference", [_figure(p["chosen_is_reference"], ".0%") for p in kinds.values()]),
        (
            "different chosen / rejected",
            [f"{p['distinct_chosen']} / {p['distinct_rejected']}" for p in kinds.values()],
        ),
        ("told by the words alone", [_figure(p["guessed_from_text"], ".0%") for p in kinds.values()]),
    ]
    for title, cells in lines:
        kept.add_row(title, *cells)
    found: list[Table | str] = [kept]
    if report["dropped"]:
        dropped = Table("why dropped", *kinds, title="Pairs not kept")
        for reason in report["dropped"]:
            dropped.add_row(reason, *(str(p["dropped"].get(reason, 0)) for p in kinds.values()))
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


def cell(found: Mapping[str, Any] | None) -> str:
    """ "0.412 [0.300, 0.510]", or why there is no number."""
    if found is None:
        return ""
    if found["value"] is None:
        return str(found["note"])
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    note = f" ({found['note']})" if found["note"] else ""
    return f"{found['value']:.3f}{interval}{note}"


def tables_agreement_report(result: Mapping[str, Any]) -> list[Table | str]:
    """What `agreement.agree_files` found: one table, what stands beside it, and the warnings, in order."""
    from rich.table import Table
    from rich.text import Text

    a, b = result["a"]["judge"], result["b"]["judge"]
    matched, ties, length = result["matched"], result["ties"], result["length"]
    sheet = Table(
        title=f"Agreement with {b}: {matched['captions']} captions of {matched['clips']} clips",
        caption=f"95 % intervals over clips, {result['resamples']} resamples",
    )
    sheet.add_column("")
    for name in (a, f"length alone ({length['better']} is better)", "difference"):
        sheet.add_column(Text(name), justify="right")
    for name, title in _TITLES.items():
        columns = (result["statistics"], length["statistics"], result["gain"])
        sheet.add_row(title, *(Text(cell(column.get(name))) for column in columns))
    for name, found in result["kappa_by_criterion"].items():
        sheet.add_row(f"weighted κ of {name}", Text(cell(found)), "", "")
    lines: list[Table | str] = [sheet]
    if ties["pairs"]:
        lines.append(
            f"{ties['pairs']} pairs of captions of one clip: {ties['tied_by_a']:.1%} tied by {a}, "
            f"{ties['tied_by_b']:.1%} by {b}, {ties['tied_by_both']:.1%} by both; "
            f"{result['clips_without_tau']} clips without τ-b"
        )
    if matched["only_a"] or matched["only_b"]:
        lines.append(f"left out: {matched['only_a']} captions only {a} scored, {matched['only_b']} only {b}")
    own = result.get("self")
    if own:
        lines.append(
            f"with captions swapped ({own['pairs']} pairs): same winner {cell(own['consistent'])}, "
            f"first shown preferred {cell(own['first_preferred'])}, ties {own['ties']:.1%}"
        )
    warnings = [*result["warnings"], *(own["warnings"] if own else [])]
    return lines + [f"warning: {line}" for line in warnings]

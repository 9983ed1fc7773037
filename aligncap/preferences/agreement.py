"""How far two judges agree, whether a judge is better than counting words, and whether it agrees with itself.

A judge's scores train the captioner, so its word is checked before it is trusted: against another judge
(a person, where there is one), against length alone, and against itself with the order of captions swapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.preferences.pair_kinds import words_of_text
from aligncap.preferences.verdicts import CRITERIA, read_scored
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import read_jsonl, write_json
from aligncap.utils.run_record import file_hashes
from aligncap.utils.statistics import (
    MOST_CLIPS,
    Floats,
    Scored,
    agreement_of,
    agreement_with_ties,
    clip_taus,
    draws,
    estimate,
    kappa_of,
    kappa_sums,
    mean_clip_tau,
    overall_tau,
    pair_counts,
    starts_of,
)

_WINNERS = ("a", "b", "tie")


def self_consistency(
    rows: Sequence[Mapping[str, Any]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Whether a judge keeps its word when two captions change places.

    Args:
        rows: {"id", "a", "b", "winner_ab", "winner_ba"}: the winner ("a", "b" or "tie") with a shown first,
            and with b shown first.

    Returns:
        "consistent": share of pairs with the same winner in both orders; "first_preferred": share of
        decisions, ties aside, for the caption shown first (0.5: no preference); both with an interval over
        clips. "pairs", "ties" (share of decisions) and "warnings".

    Raises:
        UserError: no row. UserErrors: rows without id or winners.
    """
    errors = [
        f"pair {i}: {name} must be {', '.join(_WINNERS)}, found {row.get(name)!r}"
        for i, row in enumerate(rows, 1)
        for name in ("winner_ab", "winner_ba")
        if row.get(name) not in _WINNERS
    ]
    errors += [f'pair {i}: "id" is missing' for i, row in enumerate(rows, 1) if not row.get("id")]
    if errors:
        raise UserErrors(errors)
    if not rows:
        raise UserError("no pair was judged in both orders; `aligncap judge --compare` writes such a file")
    if resamples < 1:
        raise UserError(f"--resamples {resamples}: at least 1 is needed, 1000 is usual")
    rows = sorted(rows, key=lambda row: str(row["id"]))
    decisions = [(row["winner_ab"], row["winner_ba"]) for row in rows]
    columns = np.array(
        [
            [ab == ba, 1, (ab == "a") + (ba == "b"), (ab != "tie") + (ba != "tie"), (ab, ba).count("tie")]
            for ab, ba in decisions
        ],
        dtype=np.float64,
    )
    by_clip = np.add.reduceat(columns, starts_of([row["id"] for row in rows]), axis=0)
    drawn = draws(len(by_clip), resamples, seed) @ by_clip
    total = by_clip.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        same = estimate(total[0] / total[1], drawn[:, 0] / drawn[:, 1], "")
        first = estimate(total[2] / total[3], drawn[:, 2] / drawn[:, 3], "every decision is a tie")
    warnings = []
    if same["low"] is not None and same["low"] <= 0.5:
        warnings.append(f"the judge keeps its word in {same['value']:.0%} of pairs when they change places")
    if first["value"] is not None and not first["low"] <= 0.5 <= first["high"]:
        place = "first" if first["value"] > 0.5 else "second"
        share = max(first["value"], 1 - first["value"])
        warnings.append(f"the judge prefers the caption shown {place} ({share:.0%}); ask in both orders")
    return {
        "pairs": len(rows),
        "clips": len(by_clip),
        "consistent": same,
        "first_preferred": first,
        "ties": float(total[4] / (2 * len(rows))),
        "warnings": warnings,
    }


FEW = 20  # fewer clips than this make a coarse interval


def agree(
    rows_a: Sequence[Mapping[str, Any]],
    rows_b: Sequence[Mapping[str, Any]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement of judge A with judge B over the captions that both scored.

    Rows are matched by clip, candidate or reference number, and caption. Every statistic is
    {"value", "low", "high", "note"} with a 95 % interval over clips; one that cannot be had (a judge that
    gives one score only) is None and its note says why.

    Returns:
        "a" and "b" (who they are, how much they vary), "matched", "statistics" of A against B: "tau_within"
        (mean over clips of Kendall's tau-b), "tau_overall", "pairwise" (share of a clip's pairs of captions
        ordered alike, of those that neither ties), "pairwise_ties_half" (of those that B orders, A's ties
        counted half), "kappa" (quadratic-weighted, of overall scores rounded to integers);
        "kappa_by_criterion"; "ties"; "length": the same for length alone as a judge, and "gain": A less
        length; "warnings".

    Raises:
        UserError: no caption that both scored, or fewer than one resample.
    """
    if resamples < 1:
        raise UserError(f"--resamples {resamples}: at least 1 is needed, 1000 is usual")
    matched, only_a, only_b = _match(rows_a, rows_b)
    starts = starts_of([a["id"] for a, _ in matched])
    overall = [_column(rows) for rows in zip(*matched, strict=True)]
    scored = Scored(overall[0], overall[1], starts)
    words = np.array([float(len(words_of_text(a["caption"]))) for a, _ in matched])
    drawn = draws(scored.clips, resamples, seed)
    names = [_judge(rows, side) for rows, side in ((rows_a, "A"), (rows_b, "B"))]
    why = _why_undefined(scored, names)
    counts = pair_counts(scored)
    result: dict[str, Any] = {
        "a": _about(names[0], scored.a),
        "b": _about(names[1], scored.b),
        "matched": {"captions": len(matched), "clips": scored.clips, "only_a": only_a, "only_b": only_b},
        "statistics": {
            **_order_statistics(scored, counts, drawn, why),
            "kappa": _kappa(scored, drawn),
        },
        "kappa_by_criterion": _kappa_by_criterion(matched, resamples, seed),
        "ties": _ties(counts),
        "clips_without_tau": int((~np.isfinite(clip_taus(counts))).sum()),
        "resamples": resamples,
        "seed": seed,
    }
    result |= _against_length(scored, counts, words, drawn, why)
    result["warnings"] = _warnings(result)
    return result


def agree_files(
    a: str | Path,
    b: str | Path,
    *,
    pairwise: str | Path | None = None,
    out: str | Path | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`agree` of two scored files, with `self_consistency` of a pairwise file; written to `out` as JSON.

    Raises:
        UserError: a file is missing or empty, or no caption was scored by both.
        UserErrors: broken lines.
    """
    rows_a = read_scored(a)
    result = agree(rows_a, read_scored(b), resamples=resamples, seed=seed)
    files = [a, b]
    if pairwise is not None:
        rows = read_jsonl(pairwise)
        own = rows_a[0]["verdict"]["judge"]
        if others := {str(row["judge"]) for row in rows if row.get("judge")} - {own}:
            raise UserError(f"{pairwise}: compared by {', '.join(sorted(others))}, and {a} is {own}'s")
        try:
            result["self"] = self_consistency(rows, resamples=resamples, seed=seed)
        except UserErrors as error:
            raise UserErrors(
                [error.replace("pair ", f"{pairwise}: pair ", 1) for error in error.errors]
            ) from None
        files.append(pairwise)
    result["files"] = file_hashes(files)
    if out is not None:
        write_json(out, result)
    return result


# ---- parts


def _match(
    rows_a: Sequence[Mapping[str, Any]], rows_b: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[Mapping[str, Any], Mapping[str, Any]]], int, int]:
    """Rows of the same caption, sorted by clip; and how many only A and only B has."""

    def key(row: Mapping[str, Any]) -> tuple[str, str, int, str]:
        number = row.get("reference") if row["kind"] == "reference" else row.get("candidate")
        return str(row["id"]), str(row["kind"]), int(number or 0), row["caption"]

    by_a, by_b = ({key(row): row for row in rows} for rows in (rows_a, rows_b))
    both = sorted(by_a.keys() & by_b.keys())
    if not both:
        raise UserError(
            "the two judges scored no caption in common (same id, candidate number and caption); "
            "judge the same candidates file with both"
        )
    return [(by_a[k], by_b[k]) for k in both], len(by_a) - len(both), len(by_b) - len(both)


def _column(rows: Sequence[Mapping[str, Any]], criterion: str | None = None) -> Floats:
    verdicts = [row["verdict"] for row in rows]
    return np.array([v["overall"] if criterion is None else v["scores"][criterion] for v in verdicts], float)


def _judge(rows: Sequence[Mapping[str, Any]], side: str) -> str:
    return " and ".join(sorted({str(row["verdict"]["judge"]) for row in rows})) or side


def _about(name: str, scores: Floats) -> dict[str, Any]:
    return {
        "judge": name,
        "mean": float(scores.mean()),
        "sd": float(scores.std()),
        "different_scores": len(np.unique(scores)),
    }


def _why_undefined(scored: Scored, names: Sequence[str]) -> str:
    for side, name, scores in (("A", names[0], scored.a), ("B", names[1], scored.b)):
        if len(np.unique(scores)) == 1:
            return f"undefined: {side} ({name}) gives every caption {scores[0]:g}"
    return "undefined: no two captions of a clip that both judges tell apart"


def _order_statistics(scored: Scored, counts: Floats, drawn: Floats, why: str) -> dict[str, Any]:
    total, resampled = counts.sum(0), drawn @ counts
    overall = overall_tau(scored, drawn)
    found = {
        "tau_within": estimate(*mean_clip_tau(clip_taus(counts), drawn), why),
        "tau_overall": estimate(*overall, why),
        "pairwise": estimate(float(agreement_of(total)), agreement_of(resampled), why),
        "pairwise_ties_half": estimate(
            float(agreement_with_ties(total)), agreement_with_ties(resampled), why
        ),
    }
    if scored.clips > MOST_CLIPS and found["tau_overall"]["value"] is not None:
        found["tau_overall"]["note"] = f"no interval for more than {MOST_CLIPS} clips"
    return found


def _kappa(scored: Scored, drawn: Floats) -> dict[str, Any]:
    sums = kappa_sums(scored)
    found = estimate(
        float(kappa_of(sums.sum(0))), kappa_of(drawn @ sums), "undefined: both give one and the same score"
    )
    constant = [
        side
        for side, scores in (("A", scored.a), ("B", scored.b))
        if len(np.unique(np.floor(scores + 0.5))) == 1
    ]
    if constant and found["value"] is not None:
        found["note"] = f"{' and '.join(constant)} gives one score only, so it can be no better than chance"
    return found


def _kappa_by_criterion(
    matched: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], resamples: int, seed: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in CRITERIA:
        both = [(a, b) for a, b in matched if all(name in row["verdict"]["scores"] for row in (a, b))]
        if not both:
            continue
        a, b = (_column(rows, name) for rows in zip(*both, strict=True))
        scored = Scored(a, b, starts_of([row["id"] for row, _ in both]))
        found[name] = {"captions": len(both), **_kappa(scored, draws(scored.clips, resamples, seed))}
    return found


def _ties(counts: Floats) -> dict[str, Any]:
    total = counts.sum(0)
    pairs = float(total.sum())

    def share(value: float) -> float | None:
        return float(value / pairs) if pairs else None

    return {
        "pairs": int(pairs),
        "tied_by_a": share(total[2] + total[4]),
        "tied_by_b": share(total[3] + total[4]),
        "tied_by_both": share(total[4]),
    }


def _against_length(scored: Scored, counts: Floats, words: Floats, drawn: Floats, why: str) -> dict[str, Any]:
    """Length alone as a judge of B, in the direction that agrees better, and A less length.

    Kappa is left out: a number of words is no score of 0 to 10.
    """
    longer = pair_counts(Scored(words, scored.b, scored.starts))
    direction = "longer" if np.nan_to_num(agreement_of(longer.sum(0)), nan=0.5) >= 0.5 else "shorter"
    signed = words if direction == "longer" else -words
    length = Scored(signed, scored.b, scored.starts)
    by_length = pair_counts(length)
    constant = len(np.unique(words)) == 1
    why_length = "undefined: every caption is equally long" if constant else why
    taus, taus_length = clip_taus(counts), clip_taus(by_length)
    means = [mean_clip_tau(t, drawn) for t in (taus, taus_length)]
    pairs = [
        (float(agreement_with_ties(c.sum(0))), agreement_with_ties(drawn @ c)) for c in (counts, by_length)
    ]
    return {
        "length": {
            "better": direction,
            "statistics": _order_statistics(length, by_length, drawn, why_length),
        },
        "gain": {
            "tau_within": estimate(means[0][0] - means[1][0], means[0][1] - means[1][1], why_length),
            "pairwise_ties_half": estimate(pairs[0][0] - pairs[1][0], pairs[0][1] - pairs[1][1], why_length),
        },
    }


def _warnings(result: Mapping[str, Any]) -> list[str]:
    found = []
    a, b, gain = result["a"]["judge"], result["b"]["judge"], result["gain"]["pairwise_ties_half"]
    for side in ("a", "b"):
        if result[side]["different_scores"] == 1:
            found.append(f"{result[side]['judge']} gives every caption the same score and so orders nothing")
    if gain["value"] is None:
        found.append(f"{a} cannot be held against length alone: {gain['note'].removeprefix('undefined: ')}")
    else:
        better = f"length alone ({result['length']['better']} is better)"
        own, other = (
            s["pairwise_ties_half"]["value"] for s in (result["statistics"], result["length"]["statistics"])
        )
        shares = f"{own:.1%} of {b}'s pairs against {other:.1%}"
        if gain["value"] < 0:
            found.append(f"{a} does worse than {better}: {shares}; do not train on it")
        elif gain["low"] is None or gain["low"] <= 0:
            found.append(f"{a} is not clearly better than {better}: {shares}")
    if result["matched"]["clips"] < FEW:
        found.append(f"{result['matched']['clips']} clips only: the intervals are coarse, likely too narrow")
    if a == b:
        found.append(f"both files are of {a}: this is how far it agrees with itself")
    return found

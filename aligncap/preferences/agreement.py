"""How far two judges agree, whether a judge is better than counting words, and whether it agrees with itself.

A judge's scores train the captioner, so they are checked before they are trusted: against another judge
(a person, where there is one), against length alone, and against itself with the order of captions swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from aligncap.preferences.judges import CRITERIA, read_scored
from aligncap.text.lexicon import caption_length
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, read_jsonl, write_json
from aligncap.utils.options import Config, option
from aligncap.utils.run_record import file_hashes
from aligncap.utils.statistics import (
    Clusters,
    Floats,
    Ints,
    Statistic,
    noted_intervals,
    overall_tau,
    paired_differences,
    ratio,
    tau_b,
    weighted_kappa,
)

KEY = ["id", "kind", "number", "caption"]  # what tells captions apart
FEW = 20  # fewer clips than this make a coarse interval
_WINNERS = ("a", "b", "tie")
_TITLES = {
    "tau_within": "Kendall's τ-b, mean within clips",
    "tau_overall": "Kendall's τ-b, all captions",
    "pairwise": "pairs ordered alike (ties left out)",
    "pairwise_ties_half": "pairs ordered alike (ties count half)",
    "kappa": "weighted κ of overall scores",
}


@dataclass
class AgreeConfig(Config):
    """How far judge A agrees with judge B over the captions that both scored, and with length alone.

    Examples:
        aligncap agree scored.jsonl gpt.jsonl --out agreement.json
        aligncap agree gpt.jsonl ann.jsonl --pairwise compared.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("a", "b")

    a: str = option(help="Scored file of the judge in question.")
    b: str = option(help="Scored file of the judge that it is compared with, such as a person.")
    pairwise: str | None = option(None, "Pairs compared by A (`judge --compare`): does it agree with itself?")
    out: str | None = option(None, "JSON file of the result.")


@dataclass(frozen=True)
class Scored:
    """Captions scored by two judges, sorted by clip: `clip[i]` is the number of caption i's clip."""

    a: Floats
    b: Floats
    clip: Ints

    def by_clip(self) -> list[tuple[Floats, Floats]]:
        """Scores of both judges, clip by clip."""
        ends = np.flatnonzero(np.diff(self.clip)) + 1
        return list(zip(np.split(self.a, ends), np.split(self.b, ends), strict=True))


def clusters_of_clips(clip: Ints) -> Clusters:
    """The units: clips, each with all of its captions or pairs."""
    return Clusters(clip, int(clip.max()) + 1, 0, 0, "clips")


def pair_counts(scored: Scored) -> Floats:
    """Pairs of captions within each clip: (clips, 5), columns as below.

    Ordered alike, ordered the other way, tied by A alone, tied by B alone, tied by both.
    """
    rows = []
    for scores in scored.by_clip():
        i, j = np.triu_indices(len(scores[0]), 1)
        a, b = (np.sign(x[i] - x[j]) for x in scores)
        alike, tied_a, tied_b = a * b, a == 0, b == 0
        kinds = (alike > 0, alike < 0, tied_a & ~tied_b, ~tied_a & tied_b, tied_a & tied_b)
        rows.append([kind.sum() for kind in kinds])
    return np.array(rows, dtype=np.float64)


def order_statistics(scored: Scored, counts: Floats) -> dict[str, Statistic]:
    """How alike the captions of a clip are ordered, of sums over clips.

    "tau_within": mean over clips of Kendall's tau-b (clips where a judge ties all are left out);
    "pairwise": share of pairs ordered alike, of those that neither judge ties; "pairwise_ties_half": the
    same of the pairs that B orders, a tie of A's counting half, as a coin would do.
    """
    taus = np.array([tau_b(a, b) for a, b in scored.by_clip()])
    alike, other, tied_a = counts[:, 0], counts[:, 1], counts[:, 2]
    return {
        "tau_within": ratio(np.nan_to_num(taus), np.isfinite(taus).astype(np.float64)),
        "pairwise": ratio(alike, alike + other),
        "pairwise_ties_half": ratio(alike + tied_a / 2, alike + other + tied_a),
    }


def agree(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> Row:
    """Agreement of judge A with judge B over the captions that both scored.

    Rows are matched by clip, candidate or reference number, and caption. Every statistic is
    {"value", "low", "high", "note"} with a 95 % interval over clips; one that cannot be had (a judge that
    gives one score only) is None and its note says why.

    Returns:
        "a" and "b" (who they are, how much they vary), "matched", "statistics" of A against B: those of
        `order_statistics`, "tau_overall" (tau-b of all captions) and "kappa" (quadratic-weighted, of overall
        scores rounded to integers); "kappa_by_criterion"; "ties"; "length": the same for length alone as a
        judge, in the direction that agrees better, and "gain": A less length; "warnings".

    Raises:
        UserError: no caption that both scored.
    """
    both = _frame(rows_a).merge(_frame(rows_b), on=KEY, suffixes=("_a", "_b")).sort_values(KEY)
    if both.empty:
        raise UserError(
            "the two judges scored no caption in common (same id, candidate number and caption); "
            "judge the same candidates file with both"
        )
    scored = _scored(both, "overall")
    lengths = both["caption"].map(caption_length).to_numpy(float)
    longer = pair_counts(Scored(lengths, scored.b, scored.clip)).sum(0)
    better = "longer" if longer[0] >= longer[1] else "shorter"
    by_length = Scored(lengths if better == "longer" else -lengths, scored.b, scored.clip)
    names = [" and ".join(sorted({row["verdict"]["judge"] for row in rows})) for rows in (rows_a, rows_b)]
    why = "undefined: no two captions of a clip that both judges tell apart"
    for side, name, scores in (("B", names[1], scored.b), ("A", names[0], scored.a)):
        if len(np.unique(scores)) == 1:
            why = f"undefined: {side} ({name}) gives every caption {scores[0]:g}"
    why_length = "undefined: every caption is equally long" if len(np.unique(lengths)) == 1 else why

    counts = pair_counts(scored)
    own = order_statistics(scored, counts)
    length = order_statistics(by_length, pair_counts(by_length))
    clips, every = (clusters_of_clips(index) for index in (np.arange(len(counts)), scored.clip))
    # Kappa of length is left out: a number of words is no score of 0 to 10.
    statistics, of_length = (
        {
            **noted_intervals(of, clips, reason),
            "tau_overall": overall_tau(judge.a, judge.b, every, reason),
        }
        for of, judge, reason in ((own, scored, why), (length, by_length, why_length))
    )
    gain = paired_differences(length, own, clips)
    total, pairs = counts.sum(0), counts.sum()
    ties = {"tied_by_a": total[2] + total[4], "tied_by_b": total[3] + total[4], "tied_by_both": total[4]}
    result: Row = {
        **{
            side: {
                "judge": name,
                "mean": float(scores.mean()),
                "sd": float(scores.std()),
                "different_scores": len(np.unique(scores)),
            }
            for side, name, scores in (("a", names[0], scored.a), ("b", names[1], scored.b))
        },
        "matched": {
            "captions": len(both),
            "clips": len(counts),
            "only_a": len(rows_a) - len(both),
            "only_b": len(rows_b) - len(both),
        },
        "statistics": {**statistics, "kappa": _kappa(scored)},
        "kappa_by_criterion": {
            name: {"captions": len(part.a), **_kappa(part)}
            for name in CRITERIA
            if len((part := _scored(both, name)).a)
        },
        "ties": {"pairs": int(pairs)} | {k: float(n / pairs) if pairs else None for k, n in ties.items()},
        "clips_without_tau": int((own["tau_within"].sums[:, 1] == 0).sum()),
        "length": {"better": better, "statistics": of_length},
        "gain": {
            name: {**gain[name], "note": why_length if gain[name]["value"] is None else ""}
            for name in ("tau_within", "pairwise_ties_half")
        },
    }
    result["warnings"] = _warnings(result)
    return result


def self_consistency(rows: Sequence[Row]) -> Row:
    """Whether a judge gives the same answer when two captions change places.

    Args:
        rows: {"id", "a", "b", "winner_ab", "winner_ba"}: the winner ("a", "b" or "tie") with a shown first,
            and with b shown first.

    Returns:
        "consistent": share of pairs with the same winner in both orders; "first_preferred": share of
        decisions, ties aside, for the caption shown first (0.5: no preference); both with an interval over
        clips. "pairs", "clips", "ties" (share of decisions) and "warnings".

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
    decisions = [(row["winner_ab"], row["winner_ba"]) for row in rows]
    columns = [(ab == ba, (ab == "a") + (ba == "b"), (ab, ba).count("tie")) for ab, ba in decisions]
    same, first, ties = np.array(columns, dtype=np.float64).T
    statistics = {"consistent": ratio(same, np.ones(len(rows))), "first_preferred": ratio(first, 2 - ties)}
    clips = clusters_of_clips(np.unique([str(row["id"]) for row in rows], return_inverse=True)[1])
    found = noted_intervals(statistics, clips, "every decision is a tie")
    warnings = []
    consistent, preferred = found["consistent"], found["first_preferred"]
    if consistent["low"] is not None and consistent["low"] <= 0.5:
        warnings.append(
            f"the judge agrees with itself in {consistent['value']:.0%} of pairs that change places"
        )
    if preferred["low"] is not None and not preferred["low"] <= 0.5 <= preferred["high"]:
        place = "first" if preferred["value"] > 0.5 else "second"
        share = max(preferred["value"], 1 - preferred["value"])
        warnings.append(f"the judge prefers the caption shown {place} ({share:.0%}); ask in both orders")
    share_of_ties = float(ties.sum() / (2 * len(rows)))
    return {"pairs": len(rows), "clips": clips.count, **found, "ties": share_of_ties, "warnings": warnings}


def agree_files(config: AgreeConfig) -> Row:
    """`agree` of two scored files, with `self_consistency` of a pairwise file; written to `out` as JSON.

    Raises:
        UserError: a file is missing or empty, or no caption was scored by both.
        UserErrors: broken lines.
    """
    rows_a = read_scored(config.a)
    result = agree(rows_a, read_scored(config.b))
    if config.pairwise is not None:
        rows = read_jsonl(config.pairwise)
        own = rows_a[0]["verdict"]["judge"]
        if others := {str(row["judge"]) for row in rows if row.get("judge")} - {own}:
            raise UserError(
                f"{config.pairwise}: compared by {', '.join(sorted(others))}, and {config.a} is {own}'s"
            )
        try:
            result["self"] = self_consistency(rows)
        except UserErrors as error:
            raise UserErrors([f"{config.pairwise}: {line}" for line in error.errors]) from None
    result["files"] = file_hashes([file for file in (config.a, config.b, config.pairwise) if file])
    if config.out is not None:
        write_json(config.out, result)
    return result


def run_agree(config: AgreeConfig) -> int:
    """Print how far two judges agree."""
    console = Console(markup=False, emoji=False)
    for part in agreement_tables(agree_files(config)):
        console.print(part)
    return 0


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A line a caption: KEY, the overall score, and those by criterion."""
    lines = [
        {**row, "number": row[row["kind"]], "overall": row["verdict"]["overall"], **row["verdict"]["scores"]}
        for row in rows
    ]
    return pd.DataFrame(lines, columns=[*KEY, "overall", *CRITERIA])


def _scored(both: pd.DataFrame, name: str) -> Scored:
    """Scores of captions, sorted by clip, that have one of both judges."""
    part = both[["id", f"{name}_a", f"{name}_b"]].dropna()
    a, b = (part[f"{name}_{side}"].to_numpy(float) for side in "ab")
    return Scored(a, b, part["id"].factorize()[0])


def _kappa(scored: Scored) -> Row:
    statistic, clips = {"kappa": weighted_kappa(scored.a, scored.b)}, clusters_of_clips(scored.clip)
    why = "undefined: both give one and the same score"
    found = noted_intervals(statistic, clips, why)["kappa"]
    both = (("A", scored.a), ("B", scored.b))
    constant = [side for side, scores in both if len(np.unique(np.floor(scores + 0.5))) == 1]
    if constant and found["value"] is not None:
        found["note"] = f"{' and '.join(constant)} gives one score only, so it can be no better than chance"
    return found


def _warnings(result: Row) -> list[str]:
    a, b, gain = result["a"]["judge"], result["b"]["judge"], result["gain"]["pairwise_ties_half"]
    found = [
        f"{result[side]['judge']} gives every caption the same score and so orders nothing"
        for side in ("a", "b")
        if result[side]["different_scores"] == 1
    ]
    if gain["value"] is None:
        found.append(f"{a} cannot be compared with length alone: {gain['note'].removeprefix('undefined: ')}")
    else:
        better = f"length alone ({result['length']['better']} is better)"
        both = (result["statistics"], result["length"]["statistics"])
        own, other = (statistics["pairwise_ties_half"]["value"] for statistics in both)
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


def cell(found: Row | None) -> str:
    """ "0.412 [0.300, 0.510]", or why there is no number."""
    if found is None:
        return ""
    if found["value"] is None:
        return str(found["note"])
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    note = f" ({found['note']})" if found["note"] else ""
    return f"{found['value']:.3f}{interval}{note}"


def agreement_tables(result: Row) -> list[Table | str]:
    """What `agree_files` found: one table, what stands beside it, and the warnings, in order."""
    a, b = result["a"]["judge"], result["b"]["judge"]
    matched, ties, length = result["matched"], result["ties"], result["length"]
    sheet = Table(
        title=f"Agreement with {b}: {matched['captions']} captions of {matched['clips']} clips",
        caption="95 % intervals over clips",
    )
    sheet.add_column("")
    for name in (a, f"length alone ({length['better']} is better)", "difference"):
        sheet.add_column(name, justify="right")
    columns = (result["statistics"], length["statistics"], result["gain"])
    for name, title in _TITLES.items():
        sheet.add_row(title, *(cell(column.get(name)) for column in columns))
    for name, found in result["kappa_by_criterion"].items():
        sheet.add_row(f"weighted κ of {name}", cell(found), "", "")
    parts: list[Table | str] = [sheet]
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

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

from aligncap.preferences.judges import CRITERIA, read_scored
from aligncap.preferences.reports import agreement_tables, show
from aligncap.text.lexicon import caption_length
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, read_jsonl, write_json
from aligncap.utils.options import Config, PositiveInt, option
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
    resamples: PositiveInt = option(1000, "Resamples of clips behind each interval.")
    seed: int = option(0, "Seed of the resamples.")


@dataclass(frozen=True)
class Scored:
    """Captions scored by two judges, sorted by clip: `clip[i]` is the number of caption i's clip."""

    a: Floats
    b: Floats
    clip: Ints

    @property
    def clips(self) -> list[slice]:
        """Places of each clip's captions."""
        ends = [*np.flatnonzero(np.diff(self.clip)) + 1, len(self.clip)]
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def clusters_of_clips(clip: Ints) -> Clusters:
    """What is resampled: clips, each with all of its captions or pairs."""
    return Clusters(clip, int(clip.max()) + 1, 0, 0, "clips")


def pair_counts(scored: Scored) -> Floats:
    """Pairs of captions within each clip: (clips, 5), columns as below.

    Ordered alike, ordered the other way, tied by A alone, tied by B alone, tied by both.
    """
    rows = []
    for clip in scored.clips:
        i, j = np.triu_indices(clip.stop - clip.start, 1)
        a, b = (np.sign(x[clip][i] - x[clip][j]) for x in (scored.a, scored.b))
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
    taus = np.array([tau_b(scored.a[clip], scored.b[clip]) for clip in scored.clips])
    alike, other, tied_a = counts[:, 0], counts[:, 1], counts[:, 2]
    return {
        "tau_within": ratio(np.nan_to_num(taus), np.isfinite(taus).astype(np.float64)),
        "pairwise": ratio(alike, alike + other),
        "pairwise_ties_half": ratio(alike + tied_a / 2, alike + other + tied_a),
    }


def agree(rows_a: Sequence[Row], rows_b: Sequence[Row], *, resamples: int, seed: int) -> Row:
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
    only = {"only_a": len(rows_a) - len(both), "only_b": len(rows_b) - len(both)}
    scored = _scored(both, "overall")
    words = both["caption"].map(caption_length).to_numpy(float)
    judges = [sorted({row["verdict"]["judge"] for row in rows}) for rows in (rows_a, rows_b)]
    names = [" and ".join(several) for several in judges]
    counts = pair_counts(scored)
    longer = pair_counts(Scored(words, scored.b, scored.clip)).sum(0)
    better = "longer" if longer[0] >= longer[1] else "shorter"
    by_length = Scored(words if better == "longer" else -words, scored.b, scored.clip)

    # Kappa of length is left out: a number of words is no score of 0 to 10.
    own = order_statistics(scored, counts)
    length = order_statistics(by_length, pair_counts(by_length))
    why = _why_undefined(scored, names)
    why_length = "undefined: every caption is equally long" if len(np.unique(words)) == 1 else why
    clips, every = (clusters_of_clips(index) for index in (np.arange(len(counts)), scored.clip))
    draw: dict[str, int] = {"resamples": resamples, "seed": seed}
    gain = paired_differences(length, own, clips, **draw)
    total, pairs = counts.sum(0), counts.sum()
    ties = {"tied_by_a": total[2] + total[4], "tied_by_b": total[3] + total[4], "tied_by_both": total[4]}
    result: Row = {
        "a": _about(names[0], scored.a),
        "b": _about(names[1], scored.b),
        "matched": {"captions": len(both), "clips": len(counts), **only},
        "statistics": {
            **noted_intervals(own, clips, why, **draw),
            "tau_overall": overall_tau(scored.a, scored.b, every, why, **draw),
            "kappa": _kappa(scored, **draw),
        },
        "kappa_by_criterion": {
            name: {"captions": len(part.a), **_kappa(part, **draw)}
            for name in CRITERIA
            if len((part := _scored(both, name)).a)
        },
        "ties": {"pairs": int(pairs)} | {k: float(n / pairs) if pairs else None for k, n in ties.items()},
        "clips_without_tau": int((own["tau_within"].sums[:, 1] == 0).sum()),
        "length": {
            "better": better,
            "statistics": {
                **noted_intervals(length, clips, why_length, **draw),
                "tau_overall": overall_tau(by_length.a, scored.b, every, why_length, **draw),
            },
        },
        "gain": {
            name: {**gain[name], "note": why_length if gain[name]["value"] is None else ""}
            for name in ("tau_within", "pairwise_ties_half")
        },
        **draw,
    }
    result["warnings"] = _warnings(result)
    return result


def self_consistency(rows: Sequence[Row], *, resamples: int, seed: int) -> Row:
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
    found = noted_intervals(statistics, clips, "every decision is a tie", resamples=resamples, seed=seed)
    warnings = []
    consistent, preferred = found["consistent"], found["first_preferred"]
    if consistent["low"] is not None and consistent["low"] <= 0.5:
        warnings.append(
            f"the judge agrees with itself in {consistent['value']:.0%} of pairs that change places"
        )
    if preferred["value"] is not None and not preferred["low"] <= 0.5 <= preferred["high"]:
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
    draw = {"resamples": config.resamples, "seed": config.seed}
    rows_a = read_scored(config.a)
    result = agree(rows_a, read_scored(config.b), **draw)
    if config.pairwise is not None:
        rows = read_jsonl(config.pairwise)
        own = rows_a[0]["verdict"]["judge"]
        if others := {str(row["judge"]) for row in rows if row.get("judge")} - {own}:
            raise UserError(
                f"{config.pairwise}: compared by {', '.join(sorted(others))}, and {config.a} is {own}'s"
            )
        try:
            result["self"] = self_consistency(rows, **draw)
        except UserErrors as error:
            raise UserErrors([f"{config.pairwise}: {line}" for line in error.errors]) from None
    result["files"] = file_hashes([file for file in (config.a, config.b, config.pairwise) if file])
    if config.out is not None:
        write_json(config.out, result)
    return result


def run_agree(config: AgreeConfig) -> int:
    """Print how far two judges agree."""
    show(agreement_tables(agree_files(config)))
    return 0


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A line a caption: KEY, the overall score, and those by criterion."""
    lines = [
        {**row, "number": row[row["kind"]], "overall": row["verdict"]["overall"]}
        | {name: row["verdict"]["scores"].get(name) for name in CRITERIA}
        for row in rows
    ]
    return pd.DataFrame(lines, columns=[*KEY, "overall", *CRITERIA])


def _scored(both: pd.DataFrame, name: str) -> Scored:
    """Scores of captions, sorted by clip, that have one of both judges."""
    part = both[["id", f"{name}_a", f"{name}_b"]].dropna()
    a, b = (part[f"{name}_{side}"].to_numpy(float) for side in "ab")
    return Scored(a, b, part["id"].factorize()[0])


def _about(name: str, scores: Floats) -> Row:
    spread = {"mean": float(scores.mean()), "sd": float(scores.std())}
    return {"judge": name, **spread, "different_scores": len(np.unique(scores))}


def _why_undefined(scored: Scored, names: Sequence[str]) -> str:
    for side, name, scores in (("A", names[0], scored.a), ("B", names[1], scored.b)):
        if len(np.unique(scores)) == 1:
            return f"undefined: {side} ({name}) gives every caption {scores[0]:g}"
    return "undefined: no two captions of a clip that both judges tell apart"


def _kappa(scored: Scored, *, resamples: int, seed: int) -> Row:
    statistic, clips = {"kappa": weighted_kappa(scored.a, scored.b)}, clusters_of_clips(scored.clip)
    why = "undefined: both give one and the same score"
    found = noted_intervals(statistic, clips, why, resamples=resamples, seed=seed)["kappa"]
    both = (("A", scored.a), ("B", scored.b))
    constant = [side for side, scores in both if len(np.unique(np.floor(scores + 0.5))) == 1]
    if constant and found["value"] is not None:
        found["note"] = f"{' and '.join(constant)} gives one score only, so it can be no better than chance"
    return found


def _warnings(result: Row) -> list[str]:
    found = []
    a, b, gain = result["a"]["judge"], result["b"]["judge"], result["gain"]["pairwise_ties_half"]
    for side in ("a", "b"):
        if result[side]["different_scores"] == 1:
            found.append(f"{result[side]['judge']} gives every caption the same score and so orders nothing")
    if gain["value"] is None:
        found.append(f"{a} cannot be compared with length alone: {gain['note'].removeprefix('undefined: ')}")
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

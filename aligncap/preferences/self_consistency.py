"""Whether a judge agrees with itself when two captions change places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aligncap.errors import Faults, UserError
from aligncap.preferences.agreement_stats import draws, estimate, starts_of

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
        UserError: no row. Faults: rows without id or winners.
    """
    faults = [
        f"pair {i}: {name} must be {', '.join(_WINNERS)}, found {row.get(name)!r}"
        for i, row in enumerate(rows, 1)
        for name in ("winner_ab", "winner_ba")
        if row.get(name) not in _WINNERS
    ]
    faults += [f'pair {i}: "id" is missing' for i, row in enumerate(rows, 1) if not row.get("id")]
    if faults:
        raise Faults(faults)
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

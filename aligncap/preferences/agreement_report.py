"""The agreement of two judges as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

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


def tables(result: Mapping[str, Any]) -> list[Table | str]:
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

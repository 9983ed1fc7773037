"""Results tables: training seeds pooled, systems compared, and the numbers written as text.

A table is a pandas frame with a line for each test set ("block"), system and metric: "value", "low", "high"
and "spread" over seeds of `statistics.pooled`, and the difference to another system, see `differences`. Where
there is no number, it is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import SCORES, claim, figure, interval, shown, signed
from aligncap.utils.io import Row
from aligncap.utils.statistics import (
    Interval,
    Run,
    clusters_of,
    correct,
    over_seeds,
    paired_differences,
    pooled,
    sure,
)

GAPS = ["gap", "gap_low", "gap_high", "p", "p_holm", "units", "seeds_agree", "seeds_compared"]
ABSENT = "–"
Runs = Mapping[str, Mapping[int, Run]]  # by system and training seed
Remarks = Mapping[str, Sequence[str]]  # lines by heading
# test set, better system, worse one, metric, margin within which it may be worse, difference
Claimed = tuple[str, str, str, str, float, Interval | None]


def differences(
    runs: Runs,
    first: str,
    second: str,
    clips: Sequence[Utterance],
    metrics: Sequence[str],
    margins: Mapping[str, float] | None = None,
) -> dict[str, Interval]:
    """Second system minus first on the same clips, each pooled over the training seeds that both have.

    Args:
        margins: of metrics for which "p" is of the second being worse by this much.

    Returns:
        by metric the columns GAPS, of `paired_differences`; "seeds_agree" is the number of the seeds in which
        the difference has this sign. "p_holm" is left to `correct`.
    """
    seeds = [seed for seed in runs[first] if seed in runs[second]]
    if not seeds:
        return {}
    a, b = (over_seeds([runs[name][seed] for seed in seeds]) for name in (first, second))
    one, two = ({name: of[name] for name in metrics if name in of} for of in (a, b))
    null = {n: m if SCORES[n].better == "less" else -m for n, m in (margins or {}).items()}
    found: dict[str, Interval] = {}
    for name, gap in paired_differences(one, two, clusters_of(clips), null).items():
        if (value := gap["value"]) is None:
            continue
        alone = [runs[second][seed][name].value - runs[first][seed][name].value for seed in seeds]
        agree = int(sum(np.sign(x) == np.sign(value) for x in alone))
        cell = (value, gap["low"], gap["high"], gap["p"], None, gap["units"], agree, len(alone))
        found[name] = dict(zip(GAPS, cell, strict=True))
    return found


def outcomes(claims: Sequence[Claimed]) -> list[str]:
    """What became of each claim, after Holm over all of them."""
    correct({claim[:4]: claim[5] for claim in claims if claim[5]})
    found = []
    for block, better, worse, metric, margin, gap in claims:
        than = f"not worse by {margin:g} than" if margin else "better than"
        told = outcome(metric, margin, gap) if gap else "not yet known"
        found.append(f"{block}: {better} {than} {worse} on {SCORES[metric].title}: {told}")
    return found


def outcome(metric: str, margin: float, gap: Interval) -> str:
    """What became of "second is better than first", or with a margin, "not worse by so much", and why.

    It holds where Holm's p is below 0.05; of few speakers there is no claim.
    """
    value = (gap["gap"] or 0.0) * (-1 if SCORES[metric].better == "less" else 1)
    found = "holds" if sure(gap["p_holm"]) else "right way, but within chance"
    found = found if value > -margin else "does not hold"
    return f"{found if gap['p_holm'] is not None else 'not shown'} ({difference_text(metric, gap)} seeds)"


def rows_of(
    runs: Runs,
    labels: Mapping[str, tuple[str, str]],
    against: str,
    clips: Sequence[Utterance],
    metrics: Sequence[str],
) -> list[Row]:
    """Lines of one block: every system's scores and differences to `against`, Holm's p over all.

    Args:
        labels: of each system, in the order of lines, its name in the table and what it lacks ("not run").
    """
    gaps = {n: differences(runs, against, n, clips, metrics) for n in labels if n != against}
    correct({(name, metric): gap for name, found in gaps.items() for metric, gap in found.items()})
    rows = []
    for name, (label, note) in labels.items():
        own = list(runs[name].values())
        cells = pooled(own, clusters_of(clips)) if own else {}
        seeds = " ".join(map(str, runs[name]))
        head = {"system": name, "label": label, "seeds": seeds, "note": note, "baseline": False}
        rows += [head | line(metric, cells, gaps.get(name, {})) for metric in metrics]
    return rows


def line(metric: str, cells: Mapping[str, Interval], gaps: Mapping[str, Interval]) -> Row:
    """The numbers of one system and metric, None where there are none."""
    cell = cells.get(metric, {})
    numbers = {name: cell.get(name) for name in ("value", "low", "high", "spread")}
    return {"metric": metric, **numbers, **gaps.get(metric, dict.fromkeys(GAPS))}


def difference_text(metric: str, gap: Interval) -> str:
    """ "+0.112 [0.060, 0.164], p 0.028 (holds), 3/3" (Holm's p; seeds of this sign)."""
    bounds = interval(metric, {"low": gap["gap_low"], "high": gap["gap_high"]})
    text = f"{signed(metric, gap['gap'])} {bounds}".rstrip().replace("-", "−")
    return f"{text}, {claim(gap)}, {gap['seeds_agree']}/{gap['seeds_compared']}"


def heading(metric: str) -> str:
    """The metric's title with an arrow to where better lies."""
    return SCORES[metric].title + {"neither": "", "less": " ↓", "more": " ↑"}[SCORES[metric].better]


def best(block: pd.DataFrame) -> set[tuple[str, str]]:
    """(system, metric) of the best printed value of each column; several where the print is equal.

    None where fewer than two systems compete or the metric has no better and worse.
    """
    found = set()
    for metric, rows in block[~block.baseline.astype(bool) & block.value.notna()].groupby("metric"):
        better = SCORES[metric].better
        if better != "neither" and len(rows) > 1:
            top = figure(metric, rows.value.min() if better == "less" else rows.value.max())
            found |= {(r.system, metric) for r in rows.itertuples() if figure(metric, r.value) == top}
    return found


def grids(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Name and title of each block, its values as text, systems by metrics, and its differences as text.

    A cell is the value, ± the standard deviation over seeds, and [low, high]; ⟦⟧ stands round the best.
    """
    for (name, title), block in frame.groupby(["block", "title"], sort=False):
        marked = best(block)
        values, gaps = [], []
        for row in block.to_dict("records"):
            value, *rest = shown(row["metric"], row)
            value = f"⟦{value}⟧" if (row["system"], row["metric"]) in marked else value
            values.append(" ".join(filter(None, (value, *rest))))
            gaps.append(ABSENT if row["gap"] is None else difference_text(row["metric"], row))
        labels = block.label + [f" ({note})" if note else "" for note in block.note]
        compared = block.system.isin(block.system[block.gap.notna()])
        yield name, title, _wide(block, labels, values), _wide(block, block.label, gaps, compared)


def _wide(
    block: pd.DataFrame, labels: pd.Series, texts: Sequence[str], keep: pd.Series | None = None
) -> pd.DataFrame:
    """Texts of a block as a grid, systems by metrics, in the order in which they come."""
    long = block.assign(text=texts, label=labels)[slice(None) if keep is None else keep]
    wide = long.pivot(index="system", columns="metric", values="text")
    wide = wide.loc[long.system.unique(), long.metric.unique()]
    names = long.drop_duplicates("system").label.tolist()
    return wide.set_axis(names).rename(columns=heading).rename_axis(index=None, columns=None)


def escape(text: str) -> str:
    """Text in which Markdown reads no marks."""
    plain = " ".join(re.sub(r"([\\|*_<`])", r"\\\1", text).split())
    return plain.replace("⟦", "**").replace("⟧", "**")


def markdown(frame: pd.DataFrame, title: str, against: str, remarks: Remarks) -> str:
    """The table for a README: a Markdown table a block, differences under it, then the remarks."""

    def lines(wide: pd.DataFrame) -> str:
        rows = [["", *wide.columns], *wide.reset_index().to_numpy()]
        written = [" | ".join(map(escape, row)) for row in rows]
        return "\n".join(
            f"| {row} |" for row in (written[0], "---" + " | ---:" * wide.shape[1], *written[1:])
        )

    parts = [f"# {escape(title)}"]
    for _, name, values, gaps in grids(frame):
        parts += [f"## {escape(name)}", lines(values)]
        parts += [f"Differences to {escape(against)}:", lines(gaps)] if len(gaps) else []
    for name, texts in remarks.items():
        parts += [f"## {name}", "\n".join(f"- {escape(text)}" for text in texts)] if texts else []
    return "\n\n".join(parts) + "\n"


_TEX = {mark: f"\\{mark}" for mark in "&%$#_{}"} | {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "−": "$-$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "≥": r"$\geq$",
    },
    **{"–": "--", "⟦": r"\textbf{", "⟧": "}"},
}


def tex(text: str) -> str:
    """Text in which LaTeX reads no commands."""
    return "".join(_TEX.get(letter, letter) for letter in text)


def latex(frame: pd.DataFrame, name: str, title: str, remarks: Remarks) -> str:
    """The table for a paper: one `table` environment a block (package booktabs), remarks as comments."""
    parts = [f"% {' '.join(title.split())}; needs \\usepackage{{booktabs}}"]
    for block, block_title, values, _ in grids(frame):
        shown = values.map(tex).rename(index=tex, columns=tex)
        caption, label = f"{tex(title)}: {tex(block_title)}", f"tab:{name}-{block}"
        columns = "l" + "r" * values.shape[1]
        parts.append(
            shown.style.to_latex(
                hrules=True, position_float="centering", caption=caption, label=label, column_format=columns
            )
        )
    parts.append("\n".join(f"% {' '.join(text.split())}" for texts in remarks.values() for text in texts))
    return "\n".join(parts).rstrip() + "\n"

"""Results tables: training seeds pooled, systems compared, and the numbers written as text.

A table is a pandas frame with a line for each test set ("block"), system and metric: "value", "low", "high"
and "spread" over seeds of `statistics.pooled`, and the difference to another system, see `differences`. Where
there is no number, it is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from aligncap.data.manifest import Utterance
from aligncap.evaluation.metrics import SCORES, figure, interval, shown, signed
from aligncap.utils.statistics import Interval, Run, clusters_of, over_seeds, paired_differences, pooled

GAPS = ["gap", "gap_low", "gap_high", "p_speakers", "p_clips", "p", "p_holm", "seeds_agree", "seeds_compared"]
ABSENT = "–"
Runs = Mapping[str, Mapping[int, Run]]  # by system and training seed
Remarks = Mapping[str, Sequence[str]]  # lines by heading


def differences(
    runs: Runs, first: str, second: str, clips: Sequence[Utterance], metrics: Sequence[str], resamples: int
) -> dict[str, Interval]:
    """Second system minus first on the same clips, each pooled over the training seeds that both have.

    Returns by metric the columns GAPS. "p_speakers" is of `paired_differences`' bootstrap by speaker: would
    other speakers show the same? It is coarse with few of them. "p_clips" is of a permutation test, whether
    it could be chance in these clips: the share of random exchanges of the two systems' captions of a clip
    (all seeds together), and the data as they are, with a difference at least as large. "p" is the larger
    of the two, "seeds_agree" the number of the seeds in which the difference has this sign.
    """
    seeds = [seed for seed in runs[first] if seed in runs[second]]
    if not seeds:
        return {}
    a, b = (over_seeds([runs[name][seed] for seed in seeds]) for name in (first, second))
    same = [n for n in metrics if n in a and n in b and a[n].sums.shape == b[n].sums.shape]
    one, two = ({name: of[name] for name in same} for of in (a, b))
    gaps = paired_differences(one, two, clusters_of(clips), resamples=resamples, seed=0)
    exchanged = np.random.default_rng(0).integers(0, 2, (resamples, len(clips))).astype(np.float64)
    found: dict[str, Interval] = {}
    for name, gap in gaps.items():
        if (value := gap["value"]) is None:
            continue
        moved = exchanged @ (b[name].sums - a[name].sums)
        with np.errstate(all="ignore"):
            chance = b[name].score(b[name].sums.sum(axis=0) - moved)
            chance = chance - a[name].score(a[name].sums.sum(axis=0) + moved)
        # a hair's breadth for sums added in another order
        as_large = int((np.abs(chance) >= abs(value) - 1e-12).sum())
        p_speakers, p_clips = gap["p"], (1 + as_large) / (1 + resamples)
        alone = [runs[second][seed][name].value - runs[first][seed][name].value for seed in seeds]
        agree = int(sum(np.sign(x) == np.sign(value) for x in alone))
        ps = (p_speakers, p_clips, max(p_speakers or 0.0, p_clips), None)
        found[name] = dict(zip(GAPS, (value, gap["low"], gap["high"], *ps, agree, len(alone)), strict=True))
    return found


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Each p corrected for their number (Holm 1979).

    >>> holm({"a": 0.01, "b": 0.04})
    {'a': 0.02, 'b': 0.04}
    """
    least, corrected = 0.0, {}
    for place, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        least = max(least, min(1.0, ps[name] * (len(ps) - place)))
        corrected[name] = least
    return {name: corrected[name] for name in ps}


def outcome(metric: str, gap: Interval, at_least: bool = False) -> str:
    """What became of "second is better than first": holds, holds within chance, or does not hold.

    `at_least` asks only that the second is not worse.
    """
    value, low, high = gap["gap"] or 0.0, gap["gap_low"], gap["gap_high"]
    if SCORES[metric].better == "less":
        value, low, high = -value, None if high is None else -high, None if low is None else -low
    if at_least:
        if value >= 0:
            return "holds"
        return "worse, but within chance" if high is None or high >= 0 else "does not hold"
    if value <= 0:
        return "does not hold"
    sure = (gap["p"] or 0.0) < 0.05 and low is not None and low > 0
    return "holds" if sure else "right way, but within chance"


def rows_of(
    runs: Runs,
    labels: Mapping[str, tuple[str, str]],
    against: str,
    clips: Sequence[Utterance],
    metrics: Sequence[str],
    resamples: int,
) -> list[dict[str, Any]]:
    """Lines of one block: every system's scores and differences to `against`, Holm's p by metric.

    Args:
        labels: of each system, in the order of lines, its name in the table and what it lacks ("not run").
    """
    gaps = {n: differences(runs, against, n, clips, metrics, resamples) for n in labels if n != against}
    for metric in metrics:
        ps = {name: found[metric]["p"] or 0.0 for name, found in gaps.items() if metric in found}
        for name, p in holm(ps).items():
            gaps[name][metric]["p_holm"] = p
    rows = []
    for name, (label, note) in labels.items():
        own = list(runs[name].values())
        cells = pooled(own, clusters_of(clips), resamples=resamples, seed=0) if own else {}
        seeds = " ".join(map(str, runs[name]))
        head = {"system": name, "label": label, "seeds": seeds, "note": note, "baseline": False}
        rows += [head | line(metric, cells, gaps.get(name, {})) for metric in metrics]
    return rows


def line(metric: str, cells: Mapping[str, Any], gaps: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one system and metric, None where there are none."""
    cell = cells.get(metric, {})
    numbers = {name: cell.get(name) for name in ("value", "low", "high", "spread")}
    return {"metric": metric, **numbers, **gaps.get(metric, dict.fromkeys(GAPS))}


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def difference_text(metric: str, gap: Mapping[str, Any]) -> str:
    """ "+0.112 [0.060, 0.164], p 0.004, Holm 0.028, 3/3" (seeds of this sign)."""
    bounds = interval(metric, {"low": gap["gap_low"], "high": gap["gap_high"]})
    text = f"{signed(metric, gap['gap'])} {bounds}".rstrip().replace("-", "−")
    corrected = "" if gap["p_holm"] is None else f", Holm {_p(gap['p_holm'])}"
    return f"{text}, p {_p(gap['p'])}{corrected}, {gap['seeds_agree']}/{gap['seeds_compared']}"


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

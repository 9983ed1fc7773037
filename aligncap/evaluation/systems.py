"""What a report sets side by side: systems, each run with one or more seeds, and yardsticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.errors import UserError
from aligncap.evaluation.evaluate import METRICS

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    "emotion_uar": "Emotion UAR",
    "emotion_accuracy": "Emotion accuracy",
    "emotion_none_share": "Captions without emotion word",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "distinct_1": "Distinct-1",
    "distinct_2": "Distinct-2",
    "top_caption_share": "Share of most frequent caption",
    "mean_length": "Mean length (tokens)",
}
LESS_IS_BETTER = {"emotion_none_share", "top_caption_share"}
NEITHER = {"mean_length"}


@dataclass(frozen=True)
class System:
    """One system under test.

    `results` are those of `evaluate_captions`, one a seed; `rows` are the captions of the first of them,
    which the report shows.
    """

    name: str
    results: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if not self.results:
            raise UserError(f"system {self.name!r} has no result to report; score its captions first")
        sets = {
            (r["signature"]["clips"], r["signature"]["references"], tuple(r["details"]["labels"]))
            for r in self.results
        }
        if len(sets) > 1:
            raise UserError(
                f"system {self.name!r}: its runs were scored on different clips, so they have no mean"
            )


@dataclass(frozen=True)
class Yardstick:
    """What systems are held against, such as a linear probe: some metrics, with or without interval."""

    name: str
    values: Mapping[str, float | Mapping[str, float | None]]
    note: str = ""


Cell = dict[str, Any]


def pooled(results: Sequence[Mapping[str, Any]]) -> dict[str, Cell]:
    """Mean over runs of each metric: {"name": {"value", "low", "high", "spread", "runs"}}.

    `low` and `high` are the means of the runs' own intervals (clips and speakers); `spread` is the standard
    deviation over runs (seeds), None for a single run.
    """
    cells: dict[str, Cell] = {}
    for name in METRICS:
        runs = [result[name] for result in results]
        cell: Cell = {}
        for key in ("value", "low", "high"):
            numbers = [run[key] for run in runs if run[key] is not None]
            cell[key] = float(np.mean(numbers)) if len(numbers) == len(runs) else None
        whole = len(runs) > 1 and cell["value"] is not None
        cell["spread"] = float(np.std([run["value"] for run in runs], ddof=1)) if whole else None
        cell["runs"] = len(runs)
        cells[name] = cell
    return cells


def yardstick_cells(yardstick: Yardstick) -> dict[str, Cell]:
    """The yardstick's values in the form of `pooled`.

    Raises:
        UserError: a value is given for something that is no metric.
    """
    cells = {}
    for name, value in yardstick.values.items():
        if name not in METRICS:
            raise UserError(
                f"yardstick {yardstick.name!r}: {name!r} is no metric, unlike {', '.join(METRICS)}"
            )
        given = dict(value) if isinstance(value, Mapping) else {"value": value}
        cells[name] = {"low": None, "high": None, "spread": None, "runs": 1, **given}
    return cells


def figure(name: str, value: float | None) -> str:
    """A metric's value as it is printed: shares with three decimals, lengths and CIDEr-D with two."""
    if value is None:
        return "–"
    return (
        f"{value:.1f}" if name == "mean_length" else f"{value:.2f}" if name == "cider_d" else f"{value:.3f}"
    )


def interval(name: str, cell: Cell) -> str:
    """ "[0.66, 0.77]", or nothing."""
    if cell["low"] is None or cell["high"] is None:
        return ""
    return f"[{figure(name, cell['low'])}, {figure(name, cell['high'])}]"


def table(result: Mapping[str, Any] | Sequence[System], yardsticks: Sequence[Yardstick] = ()) -> Table:
    """A terminal table of one result of `evaluate_captions`, or of several systems side by side."""
    from rich.table import Table
    from rich.text import Text

    systems = [System("value", [result])] if isinstance(result, Mapping) else list(result)
    columns = [(s.name, pooled(s.results)) for s in systems] + [
        (y.name, yardstick_cells(y)) for y in yardsticks
    ]
    signature = systems[0].results[0]["signature"]
    title = (
        f"{signature['clips']} clips, {signature['references']} references, {signature['speakers']} speakers"
    )
    sheet = Table(title=title, caption="95 % intervals; ± is over seeds")
    sheet.add_column("metric")
    for name, _ in columns:
        sheet.add_column(Text(name), justify="right")
    for metric, metric_title in TITLES.items():
        line = [Text(metric_title)]
        for _, cells in columns:
            cell = cells.get(metric)
            text = Text("–" if cell is None else figure(metric, cell["value"]))
            if cell is not None and cell["spread"] is not None:
                text.append(f" ± {figure(metric, cell['spread'])}")
            if cell is not None and interval(metric, cell):
                text.append(f" {interval(metric, cell)}", style="dim")
            line.append(text)
        sheet.add_row(*line)
    return sheet

"""A results table as Markdown, LaTeX, CSV and terminal text: numbers in, text out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aligncap.evaluation.systems import LESS_IS_BETTER, NEITHER, TITLES, figure, interval

if TYPE_CHECKING:
    from rich.table import Table as RichTable

ABSENT = "–"


@dataclass(frozen=True)
class Difference:
    """To another system: value, 95 % interval, and p by speakers and by clips.

    `seeds` are how many of how many seeds have a difference of this sign.
    """

    value: float
    low: float | None
    high: float | None
    p_speakers: float
    p_clips: float
    seeds: tuple[int, int]
    p_holm: float | None = None

    @property
    def p(self) -> float:
        """The larger of the two, so that neither test alone makes a difference."""
        return max(self.p_speakers, self.p_clips)


@dataclass(frozen=True)
class Cell:
    """One number with its 95 % interval; `spread` is the standard deviation over seeds."""

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    difference: Difference | None = None


@dataclass(frozen=True)
class Row:
    """One system in one block.

    `note` says what the row lacks; a row that does not compete, such as a yardstick, is never set bold.
    """

    name: str
    label: str
    cells: Mapping[str, Cell]
    seeds: Sequence[str] = ()
    note: str = ""
    competes: bool = True


@dataclass(frozen=True)
class Block:
    """Rows on one test set; `metrics` are the columns, named as in `systems.TITLES`."""

    name: str
    title: str
    metrics: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """What is written: blocks, one a test set, the outcome of each claim in words, and notes."""

    name: str
    title: str
    against: str
    blocks: Sequence[Block]
    claims: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def heading(metric: str) -> str:
    """The metric's title with an arrow to where better lies."""
    arrow = "" if metric in NEITHER else " ↓" if metric in LESS_IS_BETTER else " ↑"
    return TITLES.get(metric, metric) + arrow


def best(block: Block) -> set[tuple[str, str]]:
    """(row name, metric) of the best printed value of each column; several where the print is equal.

    None where fewer than two rows compete.
    """
    found = set()
    for metric in block.metrics:
        rows = [row for row in block.rows if row.competes and metric in row.cells]
        if metric in NEITHER or len(rows) < 2:
            continue
        choose = min if metric in LESS_IS_BETTER else max
        top = figure(metric, choose(row.cells[metric].value for row in rows))
        found |= {(row.name, metric) for row in rows if figure(metric, row.cells[metric].value) == top}
    return found


def p_text(p: float) -> str:
    """ "0.034", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def difference_text(metric: str, gap: Difference) -> str:
    """ "+0.112 [0.060, 0.164], p 0.004, Holm 0.028, 3/3" (seeds of this sign)."""
    bounds = interval(metric, {"low": gap.low, "high": gap.high})
    holm = "" if gap.p_holm is None else f", Holm {p_text(gap.p_holm)}"
    text = f"{'+' if gap.value >= 0 else ''}{figure(metric, gap.value)}{' ' + bounds if bounds else ''}"
    return f"{text.replace('-', '−')}, p {p_text(gap.p)}{holm}, {gap.seeds[0]}/{gap.seeds[1]}"


def _label(row: Row) -> str:
    return f"{row.label} ({row.note})" if row.note else row.label


def _grid(block: Block, bold: Callable[[str], str], quote: Callable[[str], str]) -> Iterator[list[str]]:
    """Lines of the main table: label, then value ± spread [low, high] of each metric."""
    marked = best(block)
    for row in block.rows:
        line = [quote(_label(row))]
        for metric in block.metrics:
            cell = row.cells.get(metric)
            if cell is None:
                line.append(ABSENT)
                continue
            value = figure(metric, cell.value)
            text = bold(quote(value)) if (row.name, metric) in marked else quote(value)
            if cell.spread is not None:
                text += f" {quote(f'± {figure(metric, cell.spread)}')}"
            bounds = interval(metric, {"low": cell.low, "high": cell.high})
            line.append(f"{text} {quote(bounds)}" if bounds else text)
        yield line


def _differences(block: Block, quote: Callable[[str], str]) -> list[list[str]]:
    lines = []
    for row in block.rows:
        gaps = {m: c.difference for m, c in row.cells.items() if c.difference is not None}
        if gaps:
            told = [quote(difference_text(m, gaps[m])) if m in gaps else ABSENT for m in block.metrics]
            lines.append([quote(row.label), *told])
    return lines


def _pipe(text: str) -> str:
    for mark in "\\|*_<`":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def markdown(table: Table) -> str:
    """The table for a README: one Markdown table a block, differences under it, then claims and notes."""
    parts = [f"# {_pipe(table.title)}"]
    for block in table.blocks:
        titles = [_pipe(heading(metric)) for metric in block.metrics]
        parts.append(f"## {_pipe(block.title)}")
        parts.append(_markdown_lines(["", *titles], _grid(block, lambda text: f"**{text}**", _pipe)))
        gaps = _differences(block, _pipe)
        if gaps:
            parts.append(f"Differences to {_pipe(table.against)}:")
            parts.append(_markdown_lines(["", *titles], gaps))
    for name, lines in (("Claims", table.claims), ("Notes", table.notes)):
        if lines:
            parts.append(f"## {name}\n\n" + "\n".join(f"- {_pipe(line)}" for line in lines))
    return "\n\n".join(parts) + "\n"


def _markdown_lines(head: Sequence[str], lines: Any) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≥": r"$\geq$",
}


def tex(text: str) -> str:
    """Text with what LaTeX reads as a command made plain; a number in brackets is kept together."""
    return "".join(_TEX.get(letter, letter) for letter in text)


def latex(table: Table) -> str:
    """The table for a paper: one `table` environment a block (package booktabs), claims as comments."""
    parts = [f"% {' '.join(table.title.split())}; needs \\usepackage{{booktabs}}"]
    for block in table.blocks:
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.title)}: {tex(block.title)}}}",
            rf"\label{{tab:{table.name}-{block.name}}}",
            rf"\begin{{tabular}}{{l{'r' * len(block.metrics)}}}",
            r"\toprule",
            " & ".join(["", *(tex(heading(metric)) for metric in block.metrics)]) + r" \\",
            r"\midrule",
            *(
                " & ".join("--" if text == ABSENT else text for text in line) + r" \\"
                for line in _grid(block, lambda text: rf"\textbf{{{text}}}", tex)
            ),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    remarks = [f"% {' '.join(line.split())}" for line in (*table.claims, *table.notes)]
    return "\n\n".join([*parts, *(["\n".join(remarks)] if remarks else [])]) + "\n"


COLUMNS = (
    "block system label seeds note metric value low high spread "
    "difference difference_low difference_high p_speakers p_clips p_holm seeds_agree"
).split()


def csv_text(table: Table) -> str:
    """Every number unrounded, one line a block, system and metric; absent ones are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for block in table.blocks:
        for row in block.rows:
            for metric in block.metrics:
                cell = row.cells.get(metric)
                gap = None if cell is None else cell.difference
                line: dict[str, Any] = {
                    "block": block.name,
                    "system": row.name,
                    "label": row.label,
                    "seeds": " ".join(row.seeds),
                    "note": row.note,
                    "metric": metric,
                }
                if cell is not None:
                    line |= {"value": cell.value, "low": cell.low, "high": cell.high, "spread": cell.spread}
                if gap is not None:
                    line |= {
                        "difference": gap.value,
                        "difference_low": gap.low,
                        "difference_high": gap.high,
                        "p_speakers": gap.p_speakers,
                        "p_clips": gap.p_clips,
                        "p_holm": gap.p_holm,
                        "seeds_agree": gap.seeds[0],
                    }
                writer.writerow(line)
    return out.getvalue()


def terminal(table: Table) -> list[RichTable]:
    """One rich table a block."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    sheets = []
    for block in table.blocks:
        sheet = RichTable(title=escape(f"{table.title}: {block.title}"))
        sheet.add_column("")
        for metric in block.metrics:
            sheet.add_column(escape(heading(metric)), justify="right")
        for line in _grid(block, lambda text: f"[bold]{text}[/bold]", escape):
            sheet.add_row(*line)
        sheets.append(sheet)
    return sheets

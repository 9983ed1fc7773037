"""A results table as Markdown, LaTeX, CSV and terminal text: numbers in, text out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aligncap.data.manifest import Utterance
from aligncap.evaluation.evaluate import pair_up, score
from aligncap.evaluation.metrics.emotion import uar_of_sums
from aligncap.evaluation.metrics.ngram import ORDERS, SYSTEM_FOLDER, bleu_scores, nltk_folder
from aligncap.evaluation.systems import LESS_IS_BETTER, NEITHER, TITLES, figure, interval
from aligncap.utils.errors import UserError
from aligncap.utils.io import atomic_open, data_path, file_sha256, read_jsonl
from aligncap.utils.statistics import (
    Clusters,
    Floats,
    Statistic,
    clusters_of,
    intervals,
    paired_differences,
)

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

    `note` says what the row lacks; a row that does not compete, such as a baseline, is never set bold.
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


Statistics = Mapping[str, Statistic]


def _mean_of_seeds(sums: Floats, parts: Sequence[Callable[[Floats], Floats]]) -> Floats:
    pieces = np.split(sums, len(parts), axis=-1)
    return np.mean([form(piece) for form, piece in zip(parts, pieces, strict=True)], axis=0)


def over_seeds(runs: Sequence[Statistics], keep: Sequence[bool] | None = None) -> dict[str, Statistic]:
    """One statistic a metric: the mean over runs (seeds) of their scores, on the same clips.

    A draw of speakers is so a draw for all seeds at once. `keep` chooses clips. Metrics that a run lacks are
    left out.
    """
    mask = _mask(keep)
    return {
        name: Statistic(
            np.concatenate([run[name].sums[mask] for run in runs], axis=1),
            partial(_mean_of_seeds, parts=[run[name].score for run in runs]),
        )
        for name in runs[0]
        if all(name in run for run in runs) and len({run[name].sums.shape[1] for run in runs}) == 1
    }


def cells(
    runs: Sequence[Statistics],
    utterances: Sequence[Utterance],
    metrics: Sequence[str],
    *,
    keep: Sequence[bool] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Cell]:
    """Mean over seeds with its 95 % interval (speakers) and the spread over seeds; metrics by name."""
    pooled = {name: s for name, s in over_seeds(runs, keep).items() if name in metrics}
    found = intervals(pooled, _clusters(utterances, keep), resamples=resamples, seed=seed) if pooled else {}
    mask = _mask(keep)
    result = {}
    for name, told in found.items():
        value = told["value"]
        if value is None or not np.isfinite(value):
            continue
        alone = [_alone(run, name, mask) for run in runs]
        spread = float(np.std(alone, ddof=1)) if len(alone) > 1 else None
        result[name] = Cell(value, told["low"], told["high"], spread)
    return result


def _mask(keep: Sequence[bool] | None) -> Any:
    return slice(None) if keep is None else np.array(keep, dtype=bool)


def _alone(run: Statistics, name: str, mask: Any) -> float:
    return float(run[name].score(run[name].sums[mask].sum(axis=0)))


def _clusters(utterances: Sequence[Utterance], keep: Sequence[bool] | None) -> Clusters:
    if keep is None:
        return clusters_of(utterances)
    return clusters_of([u for u, kept in zip(utterances, keep, strict=True) if kept])


def differences(
    first: Sequence[Statistics],
    second: Sequence[Statistics],
    utterances: Sequence[Utterance],
    metrics: Sequence[str],
    *,
    keep: Sequence[bool] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Second minus first, run by run of the same seed, on the same clips.

    `p_speakers` is `paired_differences`' bootstrap by speaker; `p_clips` a permutation test that exchanges
    the two systems' captions of a clip (all seeds together) at random: the share of `resamples` exchanges,
    and the data as they are, with a difference at least as large. The first asks whether other speakers
    would say the same, and is coarse with few of them; the second whether it could be chance in these clips.

    Raises:
        UserError: the two have different numbers of runs.
    """
    if len(first) != len(second):
        raise UserError(
            f"{len(first)} runs cannot be paired with {len(second)}; compare what has the same seeds"
        )
    a, b = over_seeds(first, keep), over_seeds(second, keep)
    same = [n for n in metrics if n in a and n in b and a[n].sums.shape == b[n].sums.shape]
    if not same:
        return {}
    gaps = paired_differences(
        {n: a[n] for n in same},
        {n: b[n] for n in same},
        _clusters(utterances, keep),
        resamples=resamples,
        seed=seed,
    )
    mask = _mask(keep)
    rng = np.random.default_rng(seed)
    exchanged = rng.integers(0, 2, (resamples, len(a[same[0]].sums))).astype(np.float64)
    found = {}
    for name in same:
        gap = gaps[name]
        value, p_speakers = gap["value"], gap["p"]
        if value is None or p_speakers is None or not np.isfinite(value):
            continue
        moved = exchanged @ (b[name].sums - a[name].sums)
        with np.errstate(all="ignore"):
            chance = b[name].score(b[name].sums.sum(axis=0) - moved) - a[name].score(
                a[name].sums.sum(axis=0) + moved
            )
        # a hair's breadth for sums added in another order
        as_large = int((np.abs(chance) >= abs(value) - 1e-12).sum())
        p_clips = (1 + as_large) / (1 + resamples)
        alone = [
            _alone(other, name, mask) - _alone(one, name, mask)
            for one, other in zip(first, second, strict=True)
        ]
        agree = sum(np.sign(difference) == np.sign(value) for difference in alone)
        found[name] = Difference(
            value, gap["low"], gap["high"], p_speakers, p_clips, (int(agree), len(alone))
        )
    return found


def holm(gaps: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same differences with `p_holm`: p corrected for their number (Holm 1979).

    >>> a, b = (Difference(1, 0, 2, p, p, (3, 3)) for p in (0.01, 0.04))
    >>> [gap.p_holm for gap in holm({"a": a, "b": b}).values()]
    [0.02, 0.04]
    """
    order = sorted(gaps, key=lambda name: gaps[name].p)
    least, corrected = 0.0, {}
    for place, name in enumerate(order):
        least = max(least, min(1.0, gaps[name].p * (len(order) - place)))
        corrected[name] = replace(gaps[name], p_holm=least)
    return {name: corrected[name] for name in gaps}


def outcome(gap: Difference, *, less_is_better: bool, at_least: bool = False) -> str:
    """What became of "second is better than first": holds, holds within chance, or does not hold.

    `at_least` asks only that the second is not worse.
    """
    low, high = (gap.low, gap.high) if not less_is_better else _turned(gap)
    value = -gap.value if less_is_better else gap.value
    if at_least:
        if value >= 0:
            return "holds"
        return "worse, but within chance" if high is None or high >= 0 else "does not hold"
    if value > 0:
        return "holds" if gap.p < 0.05 and low is not None and low > 0 else "right way, but within chance"
    return "does not hold"


def _turned(gap: Difference) -> tuple[float | None, float | None]:
    return (None if gap.high is None else -gap.high), (None if gap.low is None else -gap.low)


def _ratio(sums: Floats) -> Floats:
    return sums[..., 0] / sums[..., 1]


def _bleu(sums: Floats, order: int) -> Floats:
    return bleu_scores(sums)[..., order - 1]


# the functions of sums that are known by name, so that sums on disk can be read again
FORMS: dict[str, Callable[[Floats], Floats]] = {
    "ratio": _ratio,
    "uar": uar_of_sums,
    **{f"bleu_{order}": partial(_bleu, order=order) for order in range(1, ORDERS + 1)},
}


@cache
def code_digest() -> str:
    """What scores depend on beside captions and manifest.

    The source of `evaluate.py` and of all that it imports from this package, the word lists that they name,
    and whether METEOR has a WordNet.
    """
    package = Path(__file__).resolve().parents[1]
    sources: dict[str, str] = {}
    todo = ["aligncap.evaluation.evaluate"]
    while todo:
        name = todo.pop()
        path = (package.parent / name.replace(".", "/")).with_suffix(".py")
        if name not in sources and path.is_file():
            sources[name] = path.read_text(encoding="utf-8")
            for module, names in re.findall(r"from (aligncap[.\w]*) import \(?([\w, ]*)", sources[name]):
                todo += [module, *(f"{module}.{part.strip()}" for part in names.split(","))]
    lists = {
        path.name: path.read_text(encoding="utf-8")
        for path in data_path("emotions.yaml").parent.glob("*.yaml")
        if any(f'"{path.name}"' in text for text in sources.values())
    }
    return digest([sorted(sources.items()), sorted(lists.items()), _has_wordnet()])


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _has_wordnet() -> bool:
    """Whether METEOR will find WordNet, without the seconds that loading it takes."""
    named = [Path(p) for p in os.environ.get("NLTK_DATA", "").split(os.pathsep) if p]
    places = [nltk_folder(), Path.home() / "nltk_data", *named]
    found = [p / "corpora" / name for p in places for name in ("wordnet", "wordnet.zip")]
    return any(path.exists() for path in (SYSTEM_FOLDER, *found))


def _form(statistic: Statistic, rng: np.random.Generator) -> str | None:
    """Name of the form that gives what the statistic gives, on some random resamples."""
    draws = rng.poisson(1.0, (8, len(statistic.sums))).astype(np.float64)
    draws[0] = 1
    sums = draws @ statistic.sums
    with np.errstate(all="ignore"):
        wanted = statistic.score(sums)
        for name, form in FORMS.items():
            try:
                if np.allclose(form(sums), wanted, rtol=1e-12, atol=0, equal_nan=True):
                    return name
            except (IndexError, ValueError):
                continue
    return None


def file_statistics(
    captions: str | Path,
    references: Sequence[Utterance],
    manifest_hash: str,
    *,
    label_map: Mapping[str, str] | None = None,
    extras: Sequence[str] = (),
    cache_folder: Path | None = None,
) -> dict[str, Statistic]:
    """Every score of one caption file as sums over the clips of `references`, in their order.

    Kept in `cache_folder` under a hash of captions, manifest, label map, extras and the counting code. A
    score whose function of sums has no name in FORMS keeps the whole file from being cached, and so does an
    extra that could not be had.

    Args:
        extras: of `evaluate.EXTRAS`, which need more than this package; the others are always counted.

    Raises:
        UserErrors: captions and references do not match.
        UserError: an extra of Java is asked for, and its programs are not there.
    """
    extras = sorted(extras)
    path = None
    if cache_folder is not None:
        key = [file_sha256(captions), manifest_hash, sorted((label_map or {}).items()), extras, code_digest()]
        path = cache_folder / f"{digest(key)[:32]}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                return {
                    name: Statistic(kept[f"{name}|{form}"], FORMS[form])
                    for name, _, form in (entry.partition("|") for entry in kept.files)
                }
    statistics = score(
        *pair_up(read_jsonl(captions), references),
        label_map=label_map,
        similarity="auto" if "similarity" in extras else "none",
        coco=[name for name in extras if name != "similarity"],
    ).statistics
    if path is not None and statistics.keys() >= set(extras):
        rng = np.random.default_rng(0)
        forms = {name: _form(statistic, rng) for name, statistic in statistics.items()}
        if None not in forms.values():
            with atomic_open(path, "wb") as file:
                np.savez(
                    file,
                    allow_pickle=False,
                    **{f"{name}|{forms[name]}": s.sums for name, s in statistics.items()},
                )
    return statistics

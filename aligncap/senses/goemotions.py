"""`aligncap senses goemotions`: the comments of GoEmotions (Demszky et al. 2020) as files of moments."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from aligncap.senses.moments import SEVEN
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, load_data, write_jsonl
from aligncap.utils.options import Config, option

PARTS = ("train", "dev", "test")


@dataclass
class GoEmotionsConfig(Config):
    """Write train.jsonl, dev.jsonl and test.jsonl of a GoEmotions folder, its 28 labels folded into seven.

    The folder has train.tsv, dev.tsv and test.tsv (text, label numbers, id) and labels.txt. A comment whose
    labels mean different ones of the seven is left out, as is one of an id that was there before.

    Examples:
        aligncap senses goemotions ~/corpora/goemotions --out runs/goemotions
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str = option(help="Folder of GoEmotions.")
    out: str = option(help="Folder for the three files.")


@cache
def seven_of() -> dict[str, str]:
    """The one of SEVEN that each label of GoEmotions means (data/goemotions.yaml)."""
    return {label: emotion for emotion, labels in load_data("goemotions.yaml").items() for label in labels}


def run_goemotions(config: GoEmotionsConfig) -> int:
    """`aligncap senses goemotions`.

    Raises:
        UserErrors: files that are missing, and every line that is none of GoEmotions.
    """
    folder = Path(config.folder)
    names = [*(f"{part}.tsv" for part in PARTS), "labels.txt"]
    if missing := [f"{folder / name}: no such file" for name in names if not (folder / name).is_file()]:
        raise UserErrors(missing)
    labels = (folder / "labels.txt").read_text(encoding="utf-8").split()
    if unknown := [label for label in labels if label not in seven_of()]:
        raise UserError(f"{folder / 'labels.txt'}: no label of GoEmotions: {', '.join(unknown)}")
    seen: set[str] = set()
    table = Table("file", "moments", *SEVEN, "of two emotions", "ids twice", title="GoEmotions")
    for part in PARTS:
        rows, left = read_part(folder / f"{part}.tsv", labels, seen)
        write_jsonl(Path(config.out) / f"{part}.jsonl", rows)
        counts = Counter(row["emotion"] for row in rows)
        numbers = [len(rows), *(counts[e] for e in SEVEN), left["two emotions"], left["id twice"]]
        table.add_row(f"{part}.jsonl", *map(str, numbers))
    Console().print(table)
    return 0


def read_part(path: Path, labels: list[str], seen: set[str]) -> tuple[list[Row], Counter[str]]:
    """Rows of moments of a file of GoEmotions, and how many were left out as "two emotions" or "id twice".

    Args:
        labels: of the numbers; seen: ids of files before, to which this file's are added.

    Raises:
        UserErrors: every line that is none of GoEmotions.
    """
    rows: list[Row] = []
    left: Counter[str] = Counter()
    errors = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            text, numbers, name = line.rstrip("\r").rsplit("\t", 2)
            emotions = {seven_of()[labels[int(n)]] for n in numbers.split(",")}
        except (ValueError, IndexError):
            errors.append(f"{path}:{number}: is not text, label numbers and id, separated by tabs")
            continue
        if name in seen:
            left["id twice"] += 1
        elif len(emotions) > 1:
            left["two emotions"] += 1
        elif text.strip():
            rows.append({"id": name, "transcript": text, "emotion": emotions.pop()})
        seen.add(name)
    if errors:
        raise UserErrors(errors)
    return rows, left

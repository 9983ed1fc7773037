"""People as judges: a sheet to fill in, and the verdicts of a filled sheet."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path

from aligncap.audio.files import read_bytes
from aligncap.data.manifest import audio_path
from aligncap.preferences.judges import CRITERIA, HIGHEST, LOWEST, Item, Verdict, weighted_overall
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import atomic_open, data_path, load_data, write_text

COLUMNS = ("item", "id", "audio", "caption", *CRITERIA, "reason")
_FORMULA = ("=", "+", "-", "@")  # a spreadsheet would compute these


def write_form(items: Sequence[Item], path: str | Path, seed: int) -> None:
    """Write a sheet with one row a caption and blank scores, the captions of a clip in random order.

    The sheet does not say which captions are references. `item` ties a row to its caption. A path ending in
    .html gives a page to send to people, that plays the clips, which it holds, and saves such a sheet; it
    names no file, as names of files tell labels.

    Raises:
        UserError: the file cannot be written, or exists: filled sheets are not written over.
    """
    if Path(path).exists():
        raise UserError(f"{path} exists, perhaps with scores in it; name another file or delete it")
    clips: dict[str, list[Item]] = {}
    for item in items:
        clips.setdefault(item.id, []).append(item)
    if Path(path).suffix.lower() in (".html", ".htm"):
        return write_text(path, _page(list(clips.values()), seed))
    with atomic_open(path) as file:
        file.write("\ufeff")  # spreadsheets take UTF-8 for what it is
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for name, rows in clips.items():
            random.Random(f"{seed} {name}").shuffle(rows)
            for item in rows:
                audio = str(audio_path(item.manifest, item.utterance))
                cells = [item_code(item), item.id, audio, item.caption]
                cells = [f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells]
                writer.writerow(cells + [""] * (len(CRITERIA) + 1))


def _page(clips: list[list[Item]], seed: int) -> str:
    from jinja2 import Environment, StrictUndefined

    rng, shown = random.Random(seed), []
    for rows in rng.sample(clips, len(clips)):
        audio = audio_path(rows[0].manifest, rows[0].utterance)
        data = base64.b64encode(read_bytes(audio)[0]).decode()
        kind = {".mp3": "mpeg", ".oga": "ogg"}.get(audio.suffix.lower(), audio.suffix.lower()[1:])
        captions = [{"item": item_code(i), "caption": i.caption} for i in rng.sample(rows, len(rows))]
        shown.append({"audio": f"data:audio/{kind};base64,{data}", "captions": captions})
    rubric = load_data("judge.yaml")["rubric"]
    page = data_path("judge_form.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True, undefined=StrictUndefined)
        .from_string(page)
        .render(
            clips=shown,
            criteria=CRITERIA,
            guide={name: rubric[name] for name in CRITERIA},
            columns=COLUMNS,
            lowest=LOWEST,
            highest=HIGHEST,
        )
    )


def judge_human(items: Sequence[Item], path: str | Path, judge: str) -> list[Verdict | str]:
    """Verdicts of a filled sheet by `judge`, "human:NAME"; of captions without any score, why there is none.

    A criterion may be left blank. `overall` is the weighted mean of the scored criteria.

    Raises:
        UserError: no such file, not UTF-8, or columns are missing.
        UserErrors: every row of an unknown or repeated item, of a changed caption, or with a wrong score.
    """
    wanted = {item_code(item): item for item in items}
    guide = hashlib.sha256(str(sorted(load_data("judge.yaml")["rubric"].items())).encode()).hexdigest()[:12]
    found: dict[str, Verdict] = {}
    first: dict[str, int] = {}
    errors: list[str] = []
    for line, row in _lines(Path(path)):
        code = row["item"].strip()
        code = code if code in wanted else f"c{code}"  # sheets of earlier versions have digits alone
        if code not in wanted:
            errors.append(f'{path}:{line}: item "{row["item"].strip()}" is none of this candidates file')
            continue
        if code in first:
            errors.append(f'{path}:{line}: item "{code}" is on line {first[code]} already; delete one')
            continue
        first[code] = line
        if _plain(row["caption"]) != _plain(wanted[code].caption):
            errors.append(f'{path}:{line}: the caption of item "{code}" was changed; put the original back')
        scores: dict[str, float] = {}
        for name in CRITERIA:
            if not (text := row[name].strip()):
                continue
            try:
                scores[name] = float(text.replace(",", "."))
            except ValueError:
                scores[name] = float("nan")
            if not LOWEST <= scores[name] <= HIGHEST:
                errors.append(f'{path}:{line}: {name}: "{text}" is no number of {LOWEST} to {HIGHEST}')
        if scores:
            found[code] = Verdict(scores, weighted_overall(scores), row["reason"].strip(), judge, "1", guide)
    if errors:
        raise UserErrors(errors)
    return [found.get(code, "no score in the sheet") for code in wanted]


def item_code(item: Item) -> str:
    """One caption of one clip: ten hex digits, after a letter, since spreadsheets change numbers."""
    text = repr(((item.id, item.kind, item.number), item.caption))
    return f"c{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of a sheet; separated by commas, semicolons or tabs."""
    if not path.is_file():
        raise UserError(f"{path}: no such sheet; `aligncap judge --judge human --form` writes a blank one")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the sheet as CSV in UTF-8") from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in COLUMNS if name not in columns]:
            raise UserError(f"{path}:1: columns are missing: {', '.join(missing)}; they come with --form")
        start = reader.line_num + 1  # a cell may hold line breaks
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((start, dict(zip(columns, cells + [""] * len(columns), strict=False))))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: no CSV ({error}); save the sheet again") from None
    return rows


def _plain(caption: str) -> str:
    return " ".join(caption.removeprefix("'").split())

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from aligncap.preferences.judge import JudgeConfig, JudgeSummary, judge_candidates
from aligncap.preferences.judges import CRITERIA, read_scored
from aligncap.utils.errors import UserError, UserErrors


def judge(path: Path, out: Path | None, **options: Any) -> JudgeSummary:
    words = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    chosen = {"references": 0, "out": out and str(out)} | words
    return judge_candidates(JudgeConfig(candidates=str(path), judge="human", **chosen))


def sheet(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def form(candidates: Callable[..., Path], tmp_path: Path) -> tuple[Path, list[dict[str, str]]]:
    path = candidates(clips=2, each=3)
    judge(path, None, references=1, form=tmp_path / "form.csv")
    return path, sheet(tmp_path / "form.csv")


def test_a_blank_sheet_hides_what_is_a_reference(form: tuple[Path, list[dict[str, str]]]) -> None:
    _, rows = form
    assert len(rows) == 8 and len({row["item"] for row in rows}) == 8
    assert all(row["item"][0] == "c" for row in rows)  # 14846090e6 would be a number to a spreadsheet
    assert set(rows[0]) == {
        "item",
        "id",
        "audio",
        "caption",
        "faithful",
        "emotion",
        "acoustics",
        "fluent",
    } | {
        "specific",
        "reason",
    }
    assert all(row["emotion"] == "" for row in rows)
    assert rows[0]["audio"].endswith("data/audio/clip0.wav") and Path(rows[0]["audio"]).is_absolute()
    places = [i % 4 for i, row in enumerate(rows) if row["caption"] == "She sounds angry and loud."]
    assert len(places) == 2 and places != [3, 3]


def test_a_filled_sheet_becomes_verdicts_in_the_order_of_the_candidates(
    form: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    path, rows = form
    for row in rows:
        row |= {"emotion": "8", "fluent": "7,5", "reason": " good "}
    rows[0] |= {"emotion": "", "fluent": "", "reason": ""}
    rows[3] |= {"item": rows[3]["item"][1:]}  # as sheets of earlier versions have it
    filled = fill(tmp_path / "filled.csv", rows[::-1], ";", "utf-8-sig")
    done = judge(path, tmp_path / "s.jsonl", references=1, filled=filled, rater="ann")
    scored = read_scored(tmp_path / "s.jsonl")
    assert (done.scored, done.wanted, done.complete) == (7, 8, False)
    assert "no score in the sheet" in "\n".join(done.lines)
    verdict = scored[-1]["verdict"]
    assert verdict["scores"] == {"emotion": 8, "fluent": 7.5} and verdict["overall"] == 7.89
    assert verdict["judge"] == "human:ann" and verdict["reason"] == "good"
    order = [(row["id"], row["kind"], row["candidate"]) for row in scored]
    assert order == sorted(order, key=lambda key: (key[0], key[1], key[2] or 0))


def test_every_fault_of_a_sheet_is_told_with_its_line(
    form: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    path, rows = form
    rows[0] |= {"emotion": "eleven", "fluent": "11"}
    rows[1] |= {"reason": "two\nlines", "emotion": "3"}
    rows[2] |= {"caption": "She sounds sad."}
    rows[3] |= {"item": "feedbeef00"}
    rows[4] |= {"item": rows[1]["item"]}
    with pytest.raises(UserErrors) as caught:
        judge(
            path,
            tmp_path / "s.jsonl",
            references=1,
            filled=fill(tmp_path / "f.csv", rows),
            rater="a",
        )
    found = [error.partition("f.csv:")[2] for error in caught.value.errors]
    assert [error.partition(" ")[0] for error in found] == ["2:", "2:", "5:", "6:", "7:"]
    assert 'emotion: "eleven"' in found[0] and "was changed" in found[2]
    assert "none of this candidates file" in found[3] and "on line 3 already" in found[4]
    assert not (tmp_path / "s.jsonl").exists()


def test_a_sheet_is_never_written_over_and_missing_pieces_are_named(
    form: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    path, rows = form
    with pytest.raises(UserError, match="exists"):
        judge(path, None, form=tmp_path / "form.csv")
    with pytest.raises(UserError, match="--filled"):
        judge(path, tmp_path / "s.jsonl", rater="a")
    with pytest.raises(UserError, match="--rater"):
        judge(path, tmp_path / "s.jsonl", filled=tmp_path / "form.csv")
    short = fill(tmp_path / "short.csv", [{"item": "1", "caption": "x"}])
    with pytest.raises(UserError, match="columns are missing: id, audio, faithful"):
        judge(path, tmp_path / "s.jsonl", filled=short, rater="a")


def test_a_caption_that_looks_like_a_formula_is_defused_and_accepted_back(
    candidates: Callable[..., Path], tmp_path: Path
) -> None:
    path = candidates(clips=1, each=1)
    path.write_text(path.read_text().replace("She sounds angry, number 0 0.", "=HYPERLINK(1)"))
    judge(path, None, form=tmp_path / "form.csv")
    rows = sheet(tmp_path / "form.csv")
    assert rows[0]["caption"] == "'=HYPERLINK(1)"
    rows[0]["emotion"] = "1"
    filled = fill(tmp_path / "filled.csv", rows)
    assert judge(path, tmp_path / "s.jsonl", filled=filled, rater="a").complete


class Fields(HTMLParser):
    """What the page's script reads: item and caption of every fieldset, and sources of sound."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str | None]] = []
        self.sounds: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        if tag == "fieldset":
            self.rows.append({"item": named["data-item"], "caption": named["data-caption"]})
        if tag == "audio":
            self.sounds.append(str(named["src"]))


def test_a_page_plays_the_clips_tells_no_name_and_its_rows_are_read_back(
    candidates: Callable[..., Path], tmp_path: Path
) -> None:
    path = candidates(clips=2, each=3)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    evil = '"><script>alert(1)</script> & sad'
    lines[0]["caption"] = evil
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(UserError, match="no such file"):
        judge(path, None, references=1, form=tmp_path / "form.html")
    (tmp_path / "data" / "audio").mkdir(exist_ok=True)
    for name in {line["id"] for line in lines}:
        sf.write(tmp_path / "data" / "audio" / f"{name}.wav", np.zeros(1600), 16000)
    judge(path, None, references=1, form=tmp_path / "form.html")
    text = (tmp_path / "form.html").read_text(encoding="utf-8")
    page = Fields()
    page.feed(text)
    assert page.tags.count("script") == 1 and evil in [row["caption"] for row in page.rows]
    assert len(page.rows) == 8 and len(page.sounds) == 2
    assert all(base64.b64decode(s.partition("base64,")[2])[:4] in (b"RIFF", b"fLaC") for s in page.sounds)
    for line in lines:
        assert f'"{line["id"]}"' not in text and f">{line['id']}<" not in text and ".wav" not in text
    names = ("item", "id", "audio", "caption", *CRITERIA, "reason")
    rows = [
        dict.fromkeys(names, "") | {n: str(v) for n, v in r.items()} | {"emotion": "7"} for r in page.rows
    ]
    filled = fill(tmp_path / "filled.csv", rows)
    done = judge(path, tmp_path / "out.jsonl", references=1, filled=filled, rater="ann")
    assert done.complete and done.scored == 8
    with pytest.raises(UserError, match="exists"):
        judge(path, None, references=1, form=tmp_path / "form.html")

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aligncap.preferences.judges import (
    CRITERIA,
    Verdict,
    manifest_of,
    read_items,
    read_scored,
    weighted_overall,
)
from aligncap.utils.errors import UserError, UserErrors

VERDICT = Verdict({"emotion": 7, "fluent": 9.5}, 8.0, "fits", "rubric", "1", "abc")


def edit(path: Path, line: int, **changes: Any) -> None:
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows[line - 1] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_verdict_survives_json() -> None:
    assert Verdict(**json.loads(json.dumps(asdict(VERDICT)))) == VERDICT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"emotion": 11}}, "verdict.scores.emotion: .* less than or equal to 10, found 11"),
        ({"scores": {"emotion": True}}, "verdict.scores.emotion: .* a valid number, found True"),
        ({"scores": {"beauty": 3}}, "verdict.scores.beauty.* 'faithful'"),
        ({"scores": None}, "verdict.scores: .* found None"),
        ({"overall": float("nan")}, "verdict.overall: .* a finite number"),
        ({"judge": None}, "verdict.judge: .* a valid string"),
    ],
)
def test_a_broken_verdict_is_refused_with_what_is_wrong(
    candidates: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    path = candidates(clips=1, each=1)
    edit(path, 1, kind="candidate", verdict=asdict(VERDICT) | change)
    with pytest.raises(UserErrors, match=rf"c\.jsonl:1: {message}"):
        read_scored(path)


def test_overall_weighs_the_criteria_that_were_scored() -> None:
    assert weighted_overall(dict.fromkeys(CRITERIA, 4)) == 4
    assert weighted_overall({"emotion": 10, "fluent": 2}) == 8.22  # weights .35 and .1
    with pytest.raises(ValueError):
        weighted_overall({})


def test_all_faults_of_a_candidates_file_are_told_at_once_with_their_lines(
    candidates: Callable[..., Path],
) -> None:
    path = candidates()
    edit(path, 2, candidate=0)
    edit(path, 3, caption=None)
    edit(path, 4, candidate=-1)
    edit(path, 5, kind="reference")
    with path.open("a") as file:
        file.write('{"id": \n[1]\n')
    with pytest.raises(UserErrors) as caught:
        read_items(path)
    found = str(caught.value)
    for part in (
        'c.jsonl:2: candidate 0 of "clip0" is on line 1',
        "c.jsonl:3: caption: Input should be a valid string, found None",
        "c.jsonl:4: candidate: Input should be greater than or equal to 0, found -1",
        "c.jsonl:5: kind: Input should be 'candidate', found 'reference'",
        "c.jsonl:7: broken JSON",
        "c.jsonl:8: Input should be a valid dictionary",
    ):
        assert part in found
    assert len(caught.value.errors) == 6


def test_missing_and_empty_files_say_which_verb_writes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="aligncap candidates"):
        read_items(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no row"):
        read_scored(tmp_path / "empty.jsonl")


def test_a_scored_file_needs_sound_verdicts(candidates: Callable[..., Path]) -> None:
    path = candidates(clips=1)
    edit(path, 1, kind="candidate", verdict=asdict(VERDICT))
    edit(path, 2, kind="reference", reference=0, candidate=None, verdict={"scores": {}})
    with pytest.raises(UserErrors) as caught:
        read_scored(path)
    assert all("c.jsonl:2: verdict." in error for error in caught.value.errors)
    edit(path, 2, verdict=asdict(VERDICT))
    rows = read_scored(path)
    assert [row["kind"] for row in rows] == ["candidate", "reference"]
    assert Verdict(**rows[1]["verdict"]) == VERDICT


def test_references_follow_their_clip_and_are_no_evidence_for_themselves(
    candidates: Callable[..., Path], tmp_path: Path
) -> None:
    items = read_items(candidates(clips=2, each=2), references=9, out=tmp_path / "deep" / "s.jsonl")
    kinds = ["candidate", "candidate", "reference", "reference"]
    assert [(i.id, i.kind) for i in items] == [(f"clip{n}", kind) for n in (0, 1) for kind in kinds]
    assert items[0].references == tuple(items[0].utterance.captions)
    assert items[2].caption == items[0].references[0] and items[2].references == items[0].references[1:]
    assert items[2].row["candidate"] is None and items[2].row["reference"] == 0
    assert {i.row["manifest"] for i in items} == {"../data/m.jsonl"}
    assert len({(i.id, i.kind, i.number) for i in items}) == 8


def test_the_manifest_is_found_beside_the_file_or_where_it_is_said_to_be(
    candidates: Callable[..., Path], tmp_path: Path
) -> None:
    path = candidates(clips=1, each=1)
    row = json.loads(path.read_text())
    assert manifest_of(row, path).samefile(tmp_path / "data" / "m.jsonl")
    with pytest.raises(UserError, match="--manifest"):
        manifest_of(row, tmp_path / "elsewhere" / "c.jsonl")
    assert manifest_of(row, tmp_path / "elsewhere" / "c.jsonl", tmp_path / "data" / "m.jsonl").is_file()
    with pytest.raises(UserError, match="--manifest"):
        manifest_of({"id": "x"}, path)


def test_a_clip_that_the_manifest_does_not_hold_is_named_with_its_line(
    candidates: Callable[..., Path],
) -> None:
    path = candidates()
    edit(path, 4, id="stranger")
    with pytest.raises(UserErrors, match=r'c\.jsonl:4: .*holds no clip "stranger"'):
        read_items(path)

"""`prepare` on real corpora, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aligncap.data.corpora import prepare
from aligncap.data.manifest import read_manifest
from aligncap.data.split import split_by_speaker
from aligncap.data.validate import validate

CORPORA = Path(os.environ.get("ALIGNCAP_CORPORA", Path(__file__).resolve().parents[3] / "shared" / "corpora"))


def folder(name: str) -> Path:
    if not (CORPORA / name).is_dir():
        pytest.skip(f"no {name} under {CORPORA}; set ALIGNCAP_CORPORA to the folder that holds it")
    return CORPORA / name


@pytest.mark.real
def test_ravdess_gives_1440_clips_its_duplicate_and_the_last_actors_as_test(tmp_path: Path) -> None:
    report = prepare("ravdess", folder("ravdess"), tmp_path / "m.jsonl")
    assert report.clips == 1440
    assert report.problems == []
    assert report.emotions == {"neutral": 96} | dict.fromkeys(
        ("calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised"), 192
    )
    assert set(report.speakers.values()) == {60} and report.genders == {"female": 720, "male": 720}
    assert report.duplicates == [["ravdess-03-01-03-01-02-01-07", "ravdess-03-01-03-01-02-02-07"]]
    parts = split_by_speaker(read_manifest(tmp_path / "m.jsonl"), dev=2, test=4)
    assert {u.speaker for u in parts["test"]} == {f"ravdess-{a}" for a in (21, 22, 23, 24)}
    assert {u.speaker for u in parts["dev"]} == {"ravdess-19", "ravdess-20"}
    assert [len(part) for part in parts.values()] == [1080, 120, 240]


@pytest.mark.real
def test_nemo_gives_the_clips_that_are_there(tmp_path: Path) -> None:
    there = len(list((folder("nemo") / "samples").iterdir()))
    report = prepare("nemo", folder("nemo"), tmp_path / "m.jsonl")
    assert report.clips == there
    assert len(report.speakers) == 9 and report.languages == {"pl": there}
    assert set(report.emotions) == {"angry", "fearful", "happy", "neutral", "sad", "surprised"}
    assert validate(tmp_path / "m.jsonl", deep=False).errors == []


@pytest.mark.real
def test_emovo_gives_six_actors_every_sentence_in_every_emotion(tmp_path: Path) -> None:
    report = prepare("emovo", folder("emovo"), tmp_path / "m.jsonl")
    assert (report.clips, report.problems, report.duplicates) == (588, [], [])
    assert set(report.speakers.values()) == {98} and report.genders == {"female": 294, "male": 294}
    assert set(report.emotions.values()) == {84} and len(report.emotions) == 7
    clips = read_manifest(tmp_path / "m.jsonl")
    assert len({(u.speaker, u.emotion, u.transcript) for u in clips}) == 588


@pytest.mark.real
def test_librittsp_gives_every_clip_the_words_of_three_people(tmp_path: Path) -> None:
    report = prepare("librittsp", folder("librittsp"), tmp_path / "m.jsonl")
    assert (report.clips, report.problems, report.emotions) == (270, [], {"?": 270})
    assert len(report.speakers) == 207
    clips = read_manifest(tmp_path / "m.jsonl")
    assert all(set(u.extra["voice"]) == {"df1", "df2", "df3"} for u in clips)
    assert validate(tmp_path / "m.jsonl", deep=False).errors == []


@pytest.mark.real
def test_emospeech_is_read_by_the_command_of_the_docs(tmp_path: Path) -> None:
    table, out = folder("emospeech") / "clips.csv", tmp_path / "m.jsonl"
    report = prepare("csv", table, out, columns={"transcript": "words"})
    assert (report.clips, report.problems, len(report.speakers)) == (536, [], 67)
    assert set(report.emotions) == {"angry", "calm", "fearful", "happy"}
    assert all(u.transcript for u in read_manifest(out))

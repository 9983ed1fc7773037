from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aligncap.data.manifest import Utterance, audio_path, read_manifest, write_manifest
from aligncap.data.split import (
    SplitConfig,
    duplicates,
    fold_speakers,
    run_split,
    split_by_speaker,
    straddling,
)
from aligncap.data.validate import validate
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import file_sha256


def utterance(name: str, **fields: Any) -> Utterance:
    return Utterance(**{"id": name, "root": ".", "audio": f"{name}.wav", "corpus": "c", **fields})


def row(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "root": ".", "audio": f"{name}.wav", "corpus": "c", **fields}


def manifest(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "m.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def errors_of(path: Path) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        read_manifest(path)
    return caught.value.errors


def tone(path: Path, hz: float = 220.0, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(16_000 * seconds)) / 16_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * time), 16_000, subtype="PCM_16")
    return path


def test_what_is_written_is_read_back_and_empty_fields_are_left_out(tmp_path: Path) -> None:
    full = utterance(
        "a", language="zh", speaker="s", gender="female", transcript="你好\u2028嗨", emotion="sad",
        duration=0.0, intensity="strong", sha256="0" * 64, bytes=0, mtime_ns=1, captions=["她很伤心"],
        clues=[["伤心"]], p_act=["x"], cues={"f0_median_hz": 201.5},
        cue_words={"pitch": "high"}, extra={"n": 1},
    )  # fmt: skip
    path = tmp_path / "deep" / "m.jsonl"
    write_manifest(path, [full, utterance("b")])
    assert read_manifest(path) == [full, utterance("b")]
    assert json.loads(path.read_bytes().split(b"\n")[1]) == {**row("b"), "language": "en"}


def test_all_broken_lines_are_named_at_once_with_their_numbers(tmp_path: Path) -> None:
    path = manifest(
        tmp_path, row("a"), "", '{"id": "b",', row("c", captons=["x"]), row("d", duration="long"), "[1]",
        {"id": "e", "root": "."}, row("f", cues={"x": True}), '{"id": "g", "duration": NaN}', row("a"),
    )  # fmt: skip
    errors = errors_of(path)
    for number, words in [
        (3, "broken JSON"), (4, 'unknown key "captons", nearest is "captions"'), 
        (5, '"duration" must be a number'),
        (6, "found list"), (7, '"audio" is missing'), (7, '"corpus" is missing'), (8, '"cues" must be'),
        (9, "NaN"), (10, 'id "a" is used on line 1'),
    ]:  # fmt: skip
        assert any(f.startswith(f"{path}:{number}: ") and words in f for f in errors), (number, words, errors)
    assert len(errors) == 9


def test_empty_caption_and_unequal_lengths_are_errors(tmp_path: Path) -> None:
    path = manifest(tmp_path, row("a", captions=["x", " "]), row("b", captions=["x"], clues=[["x"], []]))
    first, second = errors_of(path)
    assert "caption 2 is empty" in first
    assert "1 captions but 2 clues" in second


@pytest.mark.parametrize(("given", "meant"), [("anger", "angry"), ("hapy", "happy"), ("Fear", "fearful")])
def test_unknown_emotion_suggests_the_nearest(tmp_path: Path, given: str, meant: str) -> None:
    (error,) = errors_of(manifest(tmp_path, row("a", emotion=given)))
    assert f'nearest is "{meant}"' in error


def test_bytes_that_are_not_utf8_name_their_line(tmp_path: Path) -> None:
    path = manifest(tmp_path, row("a"))
    path.write_bytes(path.read_bytes() + b'{"id": "\xff"}\n')
    assert f"{path}:2: not UTF-8" in errors_of(path)[0]


def test_missing_and_empty_manifest_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no utterance"):
        read_manifest(manifest(tmp_path, ""))


def test_audio_path_joins_root_and_audio_relative_to_the_manifest(tmp_path: Path) -> None:
    path = audio_path(tmp_path / "m.jsonl", utterance("a", root="corpus", audio="x/../y.wav"))
    assert path == (tmp_path / "corpus" / "y.wav").resolve()


@pytest.mark.parametrize("audio", ["../secret.wav", "/etc/passwd", "x/../../secret.wav", ".", "a\0b.wav"])
def test_audio_outside_the_root_is_refused(tmp_path: Path, audio: str) -> None:
    with pytest.raises(UserError, match="outside root|no usable path"):
        audio_path(tmp_path / "m.jsonl", utterance("a", root="corpus", audio=audio))


def test_a_symlink_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    tone(tmp_path / "secret.wav")
    (tmp_path / "corpus" / "a.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(UserError, match="outside root"):
        audio_path(tmp_path / "m.jsonl", utterance("a", root="corpus"))


def test_validate_lists_missing_outside_changed_and_corrupt_audio(tmp_path: Path) -> None:
    tone(tmp_path / "good.wav")
    (tmp_path / "noise.wav").write_bytes(b"not sound at all")
    path = manifest(
        tmp_path,
        row("good"),
        "broken",
        row("gone"),
        row("out", audio="../x.wav"),
        row("noise"),
        row("changed", audio="good.wav", sha256="0" * 64),
    )
    errors = validate(path).errors
    assert [int(f.removeprefix(f"{path}:").split(":")[0]) for f in errors] == [2, 3, 4, 5, 6]
    for error, words in zip(
        errors, ["broken JSON", "no such file", "outside root", "noise.wav", "sha256"], strict=True
    ):
        assert words in error
    shallow = validate(path, deep=False).errors
    assert [2, 3, 4] == [int(f.removeprefix(f"{path}:").split(":")[0]) for f in shallow]


def test_identical_clips_are_notes_not_errors(tmp_path: Path) -> None:
    same = file_sha256(tone(tmp_path / "a.wav"))
    path = manifest(tmp_path, row("a", sha256=same), row("b", audio="a.wav", sha256=same))
    found = validate(path)
    assert found.errors == []
    assert found.notes == ["identical clips: a, b"]
    assert found.clips == 2


def test_duplicates_by_bytes_or_by_samples_form_one_group() -> None:
    clips = [
        utterance("a", sha256="1" * 64, extra={"samples_sha256": "s"}),
        utterance("b", sha256="2" * 64, extra={"samples_sha256": "s"}),
        utterance("c", sha256="2" * 64),
        utterance("d", sha256="3" * 64),
        utterance("e"),
        utterance("f"),
    ]
    assert duplicates(clips) == [["a", "b", "c"]]


def people(count: int, clips: int = 2) -> list[Utterance]:
    return [
        utterance(f"{s}-{i}", speaker=f"c-{s}", sha256=f"{s * clips + i:064x}")
        for i in range(clips)
        for s in range(1, count + 1)
    ]


def speakers_of(parts: dict[str, list[Utterance]], name: str) -> list[str]:
    return sorted({str(u.speaker) for u in parts[name]})


def test_the_last_speakers_in_natural_order_are_test_and_those_before_dev() -> None:
    parts = split_by_speaker(people(24), dev=2, test=4)
    assert speakers_of(parts, "test") == ["c-21", "c-22", "c-23", "c-24"]
    assert speakers_of(parts, "dev") == ["c-19", "c-20"]
    assert len(parts["train"]) == 36


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_no_speaker_is_in_two_parts_and_no_clip_is_lost(seed: int | None) -> None:
    clips = people(9, clips=3)
    parts = split_by_speaker(clips, dev=2, test=3, seed=seed)
    names = [speakers_of(parts, part) for part in parts]
    assert sorted(sum(names, [])) == sorted({str(u.speaker) for u in clips})
    assert sorted(u.id for part in parts.values() for u in part) == sorted(u.id for u in clips)
    assert [len(n) for n in names] == [4, 2, 3]


def test_a_seed_shuffles_the_speakers_the_same_way_each_time() -> None:
    drawn = [speakers_of(split_by_speaker(people(24), 2, 4, seed=s), "test") for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_named_speakers_replace_the_numbers_and_may_lack_their_corpus() -> None:
    parts = split_by_speaker(people(6), dev=1, test_speakers=["1", "c-3"])
    assert speakers_of(parts, "test") == ["c-1", "c-3"]
    assert speakers_of(parts, "dev") == ["c-6"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dev": 2, "test": 4}, "6 speakers are too few"),
        ({"dev": -1}, "0 or more"),
        ({"test_speakers": ["c-9"]}, "is not in the manifest"),
        ({"test_speakers": ["1"], "dev_speakers": ["c-1"]}, "named for dev and for test"),
    ],
)
def test_impossible_splits_say_why(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        split_by_speaker(people(6), **arguments)


@pytest.mark.parametrize("seed", [None, 4])
def test_every_speaker_is_in_one_fold(seed: int | None, tmp_path: Path) -> None:
    folds = fold_speakers(people(24), 6, seed)
    assert [len(fold) for fold in folds] == [4] * 6
    assert sorted(sum(folds, [])) == sorted({str(u.speaker) for u in people(24)})
    if seed is None:
        assert folds[0] == ["c-1", "c-2", "c-3", "c-4"] and folds[5][-1] == "c-24"
    write_manifest(tmp_path / "m.jsonl", people(24))
    config = SplitConfig(str(tmp_path / "m.jsonl"), str(tmp_path / "d"), folds=6, fold=2, seed=seed)
    assert run_split(config) == 0
    parts = {name: read_manifest(tmp_path / f"d/{name}.jsonl") for name in ("train", "dev", "test")}
    speakers = {name: {str(u.speaker) for u in part} for name, part in parts.items()}
    assert speakers["test"] == {*folds[2]} and len(speakers["dev"]) == 2
    assert len(set.union(*speakers.values())) == sum(map(len, speakers.values())) == 24


def test_impossible_folds_are_refused() -> None:
    with pytest.raises(UserError, match="c: 3 speakers are too few for 4 folds"):
        fold_speakers(people(3), 4)
    with pytest.raises(UserError, match="fold=6: there are folds 0 to 5"):
        SplitConfig("m.jsonl", "out", folds=6, fold=6)
    with pytest.raises(UserError, match="choose one"):
        SplitConfig("m.jsonl", "out", folds=6, test_speakers=["1"])
    with pytest.raises(UserError, match="fold: has no effect without --folds"):
        SplitConfig("m.jsonl", "out", fold=1)
    with pytest.raises(UserError, match="test: a fold is the test set"):
        SplitConfig("m.jsonl", "out", folds=6, test=2)


def test_a_corpus_of_two_speakers_beside_others_is_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    two = [replace(u, id=f"t{u.id}", corpus="tess", speaker=f"tess-{u.speaker}") for u in people(2)]
    for u in two:
        u.sha256 = None
    parts = split_by_speaker([*people(8), *two], dev=1, test=2)
    assert [len(speakers_of(parts, name)) for name in ("train", "dev", "test")] == [7, 1, 2]
    assert {u.corpus for name in ("dev", "test") for u in parts[name]} == {"c"}
    assert "tess: too few speakers for dev and test, all are for training" in caplog.text


def test_clips_without_a_speaker_cannot_be_split() -> None:
    with pytest.raises(UserErrors, match="x: no speaker"):
        split_by_speaker([*people(4), utterance("x")], test=1)


def test_identical_clips_in_two_parts_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    clips = people(3, clips=1)
    clips[2].sha256 = clips[0].sha256
    parts = split_by_speaker(clips, test=1)
    assert straddling(parts) == ["identical clips in different parts: 1-0 (train), 3-0 (test)"]
    assert "identical clips in different parts" in caplog.text

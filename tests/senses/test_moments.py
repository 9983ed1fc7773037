"""Files of moments and of scores: what is read, and what is said of what cannot be."""

import json

import numpy as np
import pytest

from aligncap.senses.moments import SEVEN, Moment, label_of, read_moments, senses_of
from aligncap.senses.sense import load_sense, read_scores, write_scores
from aligncap.utils.errors import UserError, UserErrors


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_manifest_is_a_file_of_moments(manifest):
    moments = read_moments(manifest)
    assert len(moments) == 8 and {m.label for m in moments} == {"angry", "neutral"}  # calm is neutral
    assert moments[0].audio == str(manifest.parent / "clip0.wav")
    assert senses_of(moments[0]) == {"text", "voice"}


def test_senses_may_be_absent_and_are_asked_for(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        {"id": "a", "transcript": "Oh no", "emotion": "proud"},
        {"id": "b", "pictures": ["1.png", "2.png"], "emotion": "happy", "speaker": "S5"},
        {"id": "c", "audio": "c.wav", "transcript": " "},
    )
    assert [(m.id, m.label, m.text) for m in read_moments(path)] == [
        ("a", None, "Oh no"),
        ("b", "happy", None),
        ("c", None, None),
    ]
    assert [m.id for m in read_moments(path, ["face", "voice"])] == ["b", "c"]
    with pytest.raises(UserError, match="no moment with face or voice in it"):
        read_moments(write(tmp_path / "t.jsonl", {"id": "a", "transcript": "x"}), ["face", "voice"])


def test_every_bad_line_is_told(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        {"id": "a", "transcript": "x"},
        {"id": "a", "transcript": "y"},
        {"id": "b"},
        {"id": "c", "pictures": "one.png"},
        {"id": "d", "audio": "../d.wav"},
    )
    with pytest.raises(UserErrors) as told:
        read_moments(path)
    lines = str(told.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "3", "4", "5"]
    assert "has none of transcript, audio, pictures, video" in lines[1]
    assert "pictures: input should be a valid list" in lines[2] and "lies outside root" in lines[3]


def test_aliases_mean_one_of_the_seven():
    assert [label_of(e) for e in ("happiness", "calm", "Angry", "bored", None)] == [
        "happy",
        "neutral",
        "angry",
        None,
        None,
    ]


def test_scores_come_back_and_absent_ones_stay_absent(tmp_path):
    scores = np.array([[0.4, 0.6, 0, 0, 0, 0, 0], [np.nan] * 7])
    write_scores(tmp_path / "s.jsonl", [Moment("a", "happy", "p"), Moment("b")], scores)
    rows, read = read_scores(tmp_path / "s.jsonl")
    assert np.array_equal(read, scores, equal_nan=True)
    assert rows[1] == {"id": "b", "label": None, "speaker": None, "scores": None}
    write(tmp_path / "bad.jsonl", {"id": "a"}, {**rows[0], "scores": dict.fromkeys(SEVEN, 1.0)})
    with pytest.raises(UserErrors, match="(?s)bad.jsonl:1: has no seven scores.*:2: scores must be prob"):
        read_scores(tmp_path / "bad.jsonl")


def test_a_folder_that_holds_no_sense_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no sense; `aligncap senses text|voice|face` trains one"):
        load_sense(tmp_path)


@pytest.mark.parametrize("kind", ["text", "voice", "face"])
def test_a_damaged_sense_of_any_kind_is_told(kind, tmp_path):
    (tmp_path / "sense.json").write_text(json.dumps({"kind": kind}))
    with pytest.raises(UserError, match=f"no sense of {kind} that can be used .*; train it again"):
        load_sense(tmp_path)
    (tmp_path / "sense.json").write_text("{")
    with pytest.raises(UserError, match="holds no sense"):
        load_sense(tmp_path)

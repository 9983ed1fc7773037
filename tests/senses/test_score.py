"""Scores of any sense: once for what is read alike, kept through a kill, with features or without."""

import json

import numpy as np
import pytest
import torch

from aligncap.cli import main
from aligncap.senses import score as module
from aligncap.senses.moments import Moment, read_moments
from aligncap.senses.score import features_of, key_of
from aligncap.senses.sense import Reading, read_scores
from aligncap.utils.errors import UserError, UserErrors


class Fake:
    """A sense of text: scores by the text's length, one feature a letter."""

    width = 2

    def __init__(self, kind="text"):
        self.kind, self.read_so_far, self.broken = kind, [], ()

    def read(self, moments):
        if bad := [m.id for m in moments if m.id in self.broken]:
            raise UserErrors([f"{name}: cannot be read" for name in bad])
        if "kill" in self.broken and len(self.read_so_far) >= 4:
            raise KeyboardInterrupt
        self.read_so_far += [m.id for m in moments]
        scores = [np.full(7, np.nan) if m.text is None else np.eye(7)[len(m.text) % 7] for m in moments]
        features = [torch.arange(2.0 * len(m.text or "")).reshape(-1, 2) for m in moments]
        return Reading(np.stack(scores), features)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    own = Fake()
    monkeypatch.setattr(module, "load_sense", lambda folder, device="cpu": own)
    monkeypatch.setattr(module, "SHARD_ROWS", 2)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sense.json").write_text('{"kind": "text"}')
    return own


def manifest(path, *texts):
    rows = [
        {"id": f"m{i}", "emotion": "sad", "speaker": f"s{i}", "audio": "a.wav"} for i in range(len(texts))
    ]
    rows = [row | ({"transcript": text} if text else {}) for row, text in zip(rows, texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TEXTS = ("a", "bb", None, "dddd", "bb", "ffffff")


def run(tmp_path, name="m", *more):
    words = ["--manifest", str(tmp_path / f"{name}.jsonl"), "--batch_size", "2", *more]
    return main(
        ["senses", "score", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "s.jsonl"), *words]
    )


def test_scores_come_in_the_order_of_the_moments_and_what_is_alike_is_read_once(fake, tmp_path, capsys):
    manifest(tmp_path / "m.jsonl", *TEXTS)
    assert run(tmp_path) == 0
    rows, scores = read_scores(tmp_path / "s.jsonl")
    assert [row["id"] for row in rows] == [f"m{i}" for i in range(6)]
    assert [None if np.isnan(row).any() else int(row.argmax()) for row in scores] == [1, 2, None, 4, 2, 6]
    assert fake.read_so_far == ["m0", "m1", "m2", "m3", "m5"]
    assert "6 moments, 1 of them without scores" in capsys.readouterr().out
    assert not list(tmp_path.glob("s.jsonl.partial*"))


@pytest.mark.parametrize("features", [False, True])
def test_a_killed_run_goes_on_where_it_was(fake, tmp_path, features):
    manifest(tmp_path / "m.jsonl", *TEXTS)
    more = ["--features", str(tmp_path / "features")] * features
    fake.broken = ("kill",)
    assert run(tmp_path, "m", *more) == 130 and not (tmp_path / "s.jsonl").exists()
    assert fake.read_so_far == ["m0", "m1", "m2", "m3"]
    fake.broken, fake.read_so_far = (), []
    assert run(tmp_path, "m", *more) == 0
    assert fake.read_so_far == ["m5"] and len(read_scores(tmp_path / "s.jsonl")[0]) == 6


def test_every_unreadable_moment_is_told_and_the_others_are_kept(fake, tmp_path, capsys):
    manifest(tmp_path / "m.jsonl", *TEXTS)
    fake.broken = ("m0", "m5")
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert (
        "m0: cannot be read" in said and "m5: cannot be read" in said and not (tmp_path / "s.jsonl").exists()
    )
    fake.broken, fake.read_so_far = (), []
    assert run(tmp_path) == 0 and fake.read_so_far == ["m0", "m1", "m5"]


def test_features_serve_other_manifests_and_no_other_sense(fake, tmp_path, capsys):
    first = manifest(tmp_path / "m.jsonl", *TEXTS)
    folder = str(tmp_path / "features")
    assert run(tmp_path, "m", "--features", folder) == 0
    found = features_of({"text": folder}, read_moments(first))["text"]
    assert [len(row) for row in found] == [1, 2, 0, 4, 2, 6]
    assert torch.equal(found[1], torch.tensor([[0.0, 1], [2, 3]]))
    second = manifest(tmp_path / "n.jsonl", "ffffff", "new")
    with pytest.raises(UserErrors, match="lacks 1 of 2 moments; run `senses score --features` on them"):
        features_of({"text": folder}, read_moments(second))
    fake.read_so_far = []
    assert run(tmp_path, "n", "--features", folder) == 0 and fake.read_so_far == ["m1"]
    assert [len(row) for row in features_of({"text": folder}, read_moments(second))["text"]] == [6, 3]
    (tmp_path / "model" / "sense.json").write_text('{"kind": "text", "of": "others"}')
    assert run(tmp_path, "n", "--features", folder) == 2
    assert "holds features of another sense; choose another folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="none: holds no features"):
        features_of({"text": str(tmp_path / "none")}, read_moments(second))


def test_captions_are_read_in_place_of_what_was_said(fake, tmp_path, capsys):
    path = manifest(tmp_path / "m.jsonl", "a", "bb")
    captions = tmp_path / "captions.jsonl"
    captions.write_text(json.dumps({"id": "m1", "caption": "She is sad."}) + "\n")
    folder = str(tmp_path / "features")
    assert run(tmp_path, "m", "--captions", str(captions), "--features", folder) == 0
    _, scores = read_scores(tmp_path / "s.jsonl")
    assert np.isnan(scores[0]).all() and scores[1].argmax() == 11 % 7
    found = features_of({"caption": folder}, read_moments(path), [str(captions)])["caption"]
    assert [len(row) for row in found] == [0, 11]
    captions.write_text(json.dumps({"id": "other", "caption": "She is sad."}) + "\n")
    assert run(tmp_path, "m", "--captions", str(captions)) == 2
    assert "no caption of any of these moments" in capsys.readouterr().err


def test_a_key_is_of_what_the_sense_reads(tmp_path):
    for name in ("a.wav", "b.wav", "1.png"):
        (tmp_path / name).write_text(name)
    audio, other = str(tmp_path / "a.wav"), str(tmp_path / "b.wav")
    one = Moment("x", text="hello", audio=audio, pictures=[tmp_path / "1.png"])
    two = Moment("y", "sad", "s", text="hello", audio=other)
    assert key_of(one, "text") == key_of(two, "text") and key_of(one, "voice") != key_of(two, "voice")
    assert key_of(one, "face") != key_of(two, "face")
    before = key_of(one, "voice")
    (tmp_path / "a.wav").write_text("another recording")
    assert key_of(one, "voice") != before


def test_mistakes_are_told_at_once(tmp_path, capsys):
    words = ["--model", str(tmp_path), "--manifest", "gone.jsonl", "--out", str(tmp_path / "s.jsonl")]
    assert main(["senses", "score", *words]) == 2
    said = capsys.readouterr().err
    assert "gone.jsonl: no such file" in said and "sense.json: no such file" in said

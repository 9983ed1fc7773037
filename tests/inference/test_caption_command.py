"""`aligncap caption` and its options."""

from __future__ import annotations

import json

import pytest
import soundfile
from tiny import save_model, voice

from aligncap.cli import main
from aligncap.inference.batch import CaptionConfig
from aligncap.utils.errors import UserErrors


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), max_response_tokens=6)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "speech").mkdir()
    for i in range(5):
        soundfile.write(tmp_path / f"speech/c{i}.wav", voice(0.4 + 0.1 * i, 100 + 40 * i), 16_000)
    return tmp_path / "speech"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_give_a_line_each_and_the_notes_go_to_stderr(model, folder, capsys):
    files = [str(folder / "c0.wav"), str(folder / "c1.wav")]
    assert main(["caption", *files, "--model", str(model)]) == 0
    out, notes = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == files
    assert "2 captions, 0 files could not be captioned" in notes


def test_the_options_reach_the_captions(model, folder, tmp_path, manifest, capsys):
    def captions(*options, source=("--manifest", str(manifest))):
        out = tmp_path / "out.jsonl"
        words = [*source, "--model", str(model), "--out", str(out), *map(str, options)]
        assert main(["caption", *words]) == 0
        return {row["id"]: row["caption"] for row in rows(out)}

    plain = captions()
    assert len(plain) == 8 and captions("--batch-size", 3) == plain
    assert captions("--max_new_tokens", 6) == plain != captions("--max_new_tokens", 2)
    assert captions("--temperature", 2, "--seed", 1) != captions("--temperature", 2, "--seed", 2)
    assert captions("--temperature", 0) == captions("--temperature", "none") == plain
    assert captions("--condition", "wrong", "--seed", 3) != plain
    assert all(row["condition"] == "wrong" for row in rows(tmp_path / "out.jsonl"))
    assert len(captions("--session")) == len(captions("--speaker")) == 8
    assert list(captions(source=(str(folder),))) == [f"c{i}" for i in range(5)]


def test_a_file_that_cannot_be_read_is_named_and_the_exit_code_is_one(model, folder, tmp_path, capsys):
    (folder / "c1.wav").write_text("no sound")
    assert main(["caption", str(folder), "--model", str(model), "--out", str(tmp_path / "o.jsonl")]) == 1
    assert "c1.wav" in capsys.readouterr().err and len(rows(tmp_path / "o.jsonl")) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["c.wav", "--manifest", "m.jsonl"], "name sound files or folders, or one --manifest"),
        ([], "name sound files or folders, or one --manifest"),
        (["c.wav", "--speaker", "--session"], "speaker and session: choose one"),
        (["c.wav", "--beams", "0"], "beams=0: must be at least 1"),
        (["c.wav", "--batch_size", "-3"], "batch_size=-3"),
        (["c.wav", "--top_p", "0"], "top_p=0.0"),
        (["c.wav", "--temperature", "-1"], "temperature=-1.0"),
        (["c.wav", "--condition", "muffled"], "condition"),
        (["c.wav", "--wrong-audio", "1"], "unknown option --wrong_audio"),
        (["c.wav", "--speaker"], "--speaker needs 8 clips"),
        (["c.wav", "--session"], "--session needs 16 clips"),
        (["c.wav", "--device", "foo"], "device 'foo': unknown"),
        (["c.wav", "--model", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(words, message, capsys):
    given = words if "--model" in words else [*words, "--model", "m"]
    assert main(["caption", *given]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(message in line for line in lines) and all(line.startswith("aligncap: ") for line in lines)


def test_every_wrong_option_is_named_at_once():
    with pytest.raises(UserErrors) as caught:
        CaptionConfig(model="m", beams=0, top_p=2.0)
    assert len(caught.value.errors) == 3


def test_files_may_stand_after_the_options(model, folder, capsys):
    clip = str(folder / "c0.wav")
    outputs = []
    for words in ([clip, "--model", str(model)], ["--model", str(model), "--beams", "1", clip]):
        assert main(["caption", *words]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""

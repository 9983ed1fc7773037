"""The command line: what a user's mistake gets, and that nothing half-written is left."""

import json

import pytest
from tiny import make_model

from aligncap.cli import COMMANDS, main
from aligncap.data.manifest import read_manifest


def run(capsys, *words) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def only(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("aligncap:")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in make_model():
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0 and f"usage: aligncap {command}" in out
    assert f"aligncap {command}" in out.split("Example")[1]


def test_the_list_of_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(f"  {command} " in out for command in COMMANDS)
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0 and "train distill" in out and "prepare" not in out
    assert run(capsys)[0] == run(capsys, "models")[0] == 2


@pytest.mark.parametrize(
    ("words", "near"),
    [(["captoin"], "caption"), (["train", "distil"], "train distill")],
)
def test_an_unknown_command_is_one_line_with_the_nearest(words, near, capsys):
    code, _, err = run(capsys, *words)
    assert code == 2 and near in only(err)


def test_a_folder_that_is_not_the_corpus(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    code, _, err = run(capsys, "prepare", "ravdess", tmp_path, "--out", tmp_path / "m.jsonl")
    assert code == 2 and str(tmp_path) in only(err)
    assert not (tmp_path / "m.jsonl").exists()


def test_broken_json_names_its_line(capsys, tmp_path, manifest):
    lines = manifest.read_text().splitlines()
    lines[2] = lines[2][:-5]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    code, _, err = run(
        capsys, "clues", tmp_path / "m.jsonl", "--out", tmp_path / "o.jsonl", "--parser", "rules"
    )
    assert code == 2 and "m.jsonl:3" in only(err)
    assert not (tmp_path / "o.jsonl").exists()
    code, out, _ = run(capsys, "validate", tmp_path / "m.jsonl")
    assert code == 1 and "m.jsonl:3" in out


def test_an_audio_path_outside_the_root(capsys, tmp_path, manifest, model):
    row = json.loads(manifest.read_text().splitlines()[0]) | {"audio": "../secret.wav"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    code, _, err = run(capsys, "caption", "--model", model, "--manifest", tmp_path / "m.jsonl")
    assert code == 2 and "outside root" in only(err)


def test_an_empty_caption(capsys, tmp_path, manifest):
    row = json.loads(manifest.read_text().splitlines()[0]) | {"captions": [" "], "clues": [], "p_act": []}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    code, _, err = run(capsys, "clues", tmp_path / "m.jsonl", "--out", tmp_path / "o.jsonl")
    assert code == 2 and "m.jsonl:1" in only(err)


def test_an_unknown_key_in_a_config(capsys, tmp_path, manifest):
    (tmp_path / "c.yaml").write_text("divergense: forward_kl\n")
    code, _, err = run(capsys, "train", "distill", "--config", tmp_path / "c.yaml")
    assert code == 2 and "c.yaml" in only(err) and "divergence" in err


def test_a_checkpoint_of_another_architecture(capsys, parts, manifest):
    code, _, err = run(capsys, "caption", "--model", parts["llm"], "--manifest", manifest)
    assert code == 2 and "'llama'" in only(err)


def test_a_full_disk_leaves_the_old_file(capsys, tmp_path, manifest, monkeypatch):
    import os

    out = tmp_path / "o.jsonl"
    out.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run(capsys, "clues", manifest, "--out", out, "--parser", "rules")
    assert code == 2 and "No space left" in only(err)
    assert out.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["o.jsonl"]


def test_several_errors_come_all_at_once(capsys, tmp_path):
    code, _, err = run(capsys, "train", "sft", "--train_manifest", tmp_path / "none.jsonl")
    assert code == 2 and "output_dir" in err and "none.jsonl" in err


def test_files_or_a_manifest_are_needed(capsys, model):
    code, _, err = run(capsys, "caption", "--model", model)
    assert code == 2 and "--manifest" in only(err)


def test_captioning_and_scoring_from_the_command_line(capsys, tmp_path, manifest, model):
    words = ["caption", "--model", model, "--manifest", manifest, "--max-new-tokens", 5]
    assert run(capsys, *words, "--out", tmp_path / "right.jsonl")[0] == 0
    assert run(capsys, *words, "--out", tmp_path / "wrong.jsonl", "--condition", "wrong", "--seed", 1)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "right.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [u.id for u in read_manifest(manifest)]
    code, out, _ = run(
        capsys, "evaluate", tmp_path / "right.jsonl", "--references", manifest, "--out", tmp_path / "report",
        "--listening", f"wrong={tmp_path / 'wrong.jsonl'}", "--system", f"other={tmp_path / 'wrong.jsonl'}",
        "--wordnet", "none",
    )  # fmt: skip
    assert code == 0 and "report.html" in out
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert {"bleu_4", "cider_d", "emotion_uar", "signature"} <= set(metrics)
    assert json.loads((tmp_path / "report/run.json").read_text())["verb"] == "evaluate"


def test_captions_of_files_are_printed(capsys, manifest, model):
    code, out, err = run(capsys, "caption", "--model", model, manifest.parent, "--max-new-tokens", 3)
    assert code == 0 and out.count("\n") == 8 and "8 captions, 0 files" in err


def test_a_bad_file_among_good_ones_is_reported_and_the_exit_code_says_so(capsys, tmp_path, manifest, model):
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    code, out, err = run(
        capsys, "caption", "--model", model, bad, manifest.parent / "clip0.wav", "--max-new-tokens", 3
    )
    assert code == 1 and "clip0.wav" in out and "bad.wav" in err


def test_splitting_keeps_the_audio_within_reach(capsys, tmp_path, manifest):
    from aligncap.data.manifest import audio_path

    code, *_ = run(capsys, "split", manifest, "--dev", 0, "--test", 1, "--out", tmp_path / "deep/er")
    assert code == 0
    for name in ("train", "test"):
        part = tmp_path / f"deep/er/{name}.jsonl"
        assert all(audio_path(part, u).is_file() for u in read_manifest(part))


def test_what_is_no_file_is_not_replaced_by_one(capsys, tmp_path, manifest):
    import os

    os.mkfifo(tmp_path / "pipe")
    code, _, err = run(capsys, "clues", manifest, "--out", tmp_path / "pipe", "--parser", "rules")
    assert code == 2 and "is no regular file" in only(err)
    assert not (tmp_path / "pipe").is_file()

"""The commands one after another, as a person types them, from candidates to captions of a new model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import save_model

from aligncap.cli import main
from aligncap.utils.io import read_jsonl


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("verbs") / "start", projector_dropout=0.0))


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_from_a_checkpoint_to_a_preferred_one(tmp_path: Path, start: str, manifest: Path, capsys) -> None:
    made, scored, pairs = (tmp_path / f"{name}.jsonl" for name in ("candidates", "scored", "pairs"))
    common = ("--model", start, "--manifest", manifest, "--max-new-tokens", 8)
    assert run("candidates", *common, "--num", 3, "--out", made) == 0
    assert len(read_jsonl(made)) == 24
    assert run("judge", made, "--judge", "rubric", "--no-fluency", "--out", scored) == 0
    assert len(read_jsonl(scored)) == 24 + 8  # a reference a clip is judged beside them
    kinds = ("reference-worst", "flipped-emotion", "other-clip")
    assert run("pairs", scored, "--kinds", *kinds, "--max-length-ratio", 20, "--out", pairs) == 0
    assert "pairs of 8 clips" in capsys.readouterr().out
    report = json.loads((tmp_path / "pairs.report.json").read_text())
    assert report["kept"] == len(read_jsonl(pairs)) > 8
    out = tmp_path / "dpo"
    options = ("--output_dir", out, "--cache_dir", tmp_path / "cache", "--precision", "float32")
    options += ("--max_steps", 2, "--eval_steps", 2, "--save_steps", 2, "--report_to", "none")
    assert run("train", "dpo", "--model", start, "--train_pairs", pairs, *options) == 0
    assert json.loads((out / "run.json").read_text())["pairs"] == report["kept"]
    assert run("merge", out, "--out", tmp_path / "model") == 0
    said = tmp_path / "captions.jsonl"
    common = ("--manifest", manifest, "--max-new-tokens", 4, "--out", said)
    assert run("caption", "--model", tmp_path / "model", *common) == 0
    assert len(read_jsonl(said)) == 8


def test_two_judges_are_compared(tmp_path: Path, start: str, manifest: Path, capsys) -> None:
    made = tmp_path / "candidates.jsonl"
    run("candidates", "--model", start, "--manifest", manifest, "--num", 2, "--out", made)
    for name in ("a", "b"):
        assert run("judge", made, "--no-fluency", "--references", 2, "--out", tmp_path / f"{name}.jsonl") == 0
    out = tmp_path / "agreement.json"
    two = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert run("agree", *two, "--out", out) == 0
    assert json.loads(out.read_text())
    assert "how far it agrees with itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["judge"], "CANDIDATES is missing"),
        (["judge", "C", "--judge", "oracle"], "'rubric', 'openai', 'human'"),
        (["agree", "C"], "B is missing"),
        (["judge", "nowhere.jsonl", "--out", "s.jsonl"], "no such file"),
        (["judge", "C", "--judge", "openai", "--out", "s.jsonl"], "--model"),
        (["judge", "C"], "--out is missing"),
        (["judge", "C", "--model", "m", "--out", "s.jsonl"], "--model: is for --judge openai"),
        (["judge", "C", "--tpm", 5, "--timeout", 3, "--out", "s.jsonl"], "--timeout: is for --judge openai"),
        (["judge", "C", "--judge", "human", "--no_fluency"], "--fluency: is for --judge rubric"),
        (["judge", "C", "--form", "sheet.csv"], "--form: is for --judge human"),
        (["pairs", "C", "--out", "p.jsonl"], "holds no verdict"),
        (["pairs", "C", "--chosen", "bset", "--out", "p.jsonl"], "'reference', 'best'"),
        (["train", "dpo", "--output_dir", "x"], "train_pairs is missing"),
    ],
)
def test_mistakes_are_one_clear_line(words, told, tmp_path, start, manifest, capsys, monkeypatch) -> None:
    made = tmp_path / "candidates.jsonl"
    run(
        "candidates",
        "--model",
        start,
        "--manifest",
        manifest,
        "--num",
        2,
        "--max-new-tokens",
        2,
        "--out",
        made,
    )
    monkeypatch.chdir(tmp_path)
    assert run(*(made if word == "C" else word for word in words)) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error

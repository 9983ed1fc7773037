"""Answers to an instruction for a label are counted as a classifier's, and anything else is invalid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from aligncap.cli import main
from aligncap.data.manifest import Utterance, write_manifest
from aligncap.evaluation.answers import score_answers
from aligncap.text.answers import read_answer
from aligncap.utils.f1 import macro_f1, weighted_f1
from aligncap.utils.io import write_jsonl

LABELS = ["angry", "calm", "sad"]


def clips(truth: list[str | None], speakers: int = 4) -> list[Utterance]:
    return [
        Utterance(f"c{i}", ".", f"c{i}.wav", "made", speaker=f"s{i % speakers}", emotion=label)
        for i, label in enumerate(truth)
    ]


def rows(said: list[str]) -> list[dict[str, str]]:
    return [{"id": f"c{i}", "audio": f"c{i}.wav", "caption": text} for i, text in enumerate(said)]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *[(text, "sad") for text in ("sad", "Sad.", " SAD ", "“sad”", "sadness", "悲伤", "难过。")],
        *[(text, "none") for text in ("", "?", "happy", "开心", "It is sad.", "sad or angry", "not sad")],
        *[(text, "none") for text in ("The emotion label is sad", "情感是悲伤", "sad sad")],
    ],
)
def test_an_answer_is_one_word_of_the_set(text: str, label: str) -> None:
    assert read_answer(text, LABELS) == label


def test_a_label_can_be_renamed() -> None:
    assert read_answer("neutral", LABELS) == "none"
    assert read_answer("neutral", LABELS, {"neutral": "calm"}) == "calm"


def test_the_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(LABELS, 60, p=[0.6, 0.3, 0.1]).tolist()
    said = [t if rng.random() < 0.6 else str(rng.choice([*LABELS, "happy"])) for t in truth]
    found = score_answers(rows(said), clips(truth), LABELS)
    names = [s if s in LABELS else "none" for s in said]
    values = {name: s.value for name, s in found.statistics.items()}
    score = {"y_true": truth, "y_pred": names, "labels": LABELS, "zero_division": 0}
    assert values["answer_accuracy"] == pytest.approx(np.mean(np.array(truth) == np.array(names)))
    assert values["answer_weighted_f1"] == pytest.approx(f1_score(**score, average="weighted"))
    assert values["answer_macro_f1"] == pytest.approx(f1_score(**score, average="macro"))
    assert values["answer_invalid"] == pytest.approx(said.count("happy") / 60)
    assert len(found.invalid) == said.count("happy")


def test_f1_by_hand() -> None:
    # angry: 2 of 3 found, said twice: 0.8; sad: 1 of 1 found, said twice: 2/3
    sums = np.array([2.0, 1, 3, 1, 2, 2])
    assert weighted_f1(sums) == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert macro_f1(sums) == pytest.approx((0.8 + 2 / 3) / 2)


def test_the_command_writes_scores_intervals_pictures_and_invalid_answers(tmp_path: Path, capsys) -> None:
    truth: list[str | None] = ["angry", "sad", "calm", "sad"] * 12
    manifest, report = tmp_path / "m.jsonl", tmp_path / "report"
    write_manifest(manifest, [*clips(truth, 12), *clips([None])[:0]])
    good = [str(label) for label in truth]
    good[5] = "The emotion is sad."
    bad = ["angry"] * len(truth)
    for name, said in (("good", good), ("bad", bad)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(said))
    words = ["evaluate", str(tmp_path / "good.jsonl"), "--answers", "--references", str(manifest)]
    words += ["--name", "good", "--system", f"bad={tmp_path / 'bad.jsonl'}", "--out", str(report)]
    assert main(words) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "weighted F1" in told and "invalid answer of good, 1 times: the emotion is sad" in told
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["answer_accuracy"]["value"] == pytest.approx(47 / 48)
    assert metrics["answer_invalid"]["value"] == pytest.approx(1 / 48)
    assert metrics["answer_uar"]["low"] < metrics["answer_uar"]["value"] < metrics["answer_uar"]["high"]
    assert metrics["systems"]["good"]["invalid"] == [{"answer": "the emotion is sad", "count": 1}]
    gap = metrics["differences"]["good − bad"]["answer_accuracy"]
    assert gap["value"] == pytest.approx(47 / 48 - 12 / 48) and gap["p_holm"] < 0.05
    assert {path.name for path in report.iterdir()} >= {"confusion_0.png", "confusion_1.png", "run.json"}


def test_clips_without_a_label_are_left_out_and_a_set_without_any_is_refused(tmp_path: Path, capsys) -> None:
    manifest, answers = tmp_path / "m.jsonl", tmp_path / "a.jsonl"
    write_jsonl(answers, rows(["angry", "sad", "sad"]))
    words = ["evaluate", str(answers), "--answers", "--references", str(manifest)]
    words += ["--out", str(tmp_path / "report")]
    write_manifest(manifest, clips(["angry", None, "sad"]))
    assert main(words) == 0
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["signature"]["clips"] == 2 and metrics["answer_accuracy"]["value"] == 1
    write_manifest(manifest, clips([None, None, None]))
    assert main(words) == 2 and "no clip has an emotion label" in capsys.readouterr().err
    assert main([*words, "--listening", "wrong=x.jsonl"]) == 2


def test_where_answers_are_missing_all_systems_and_seeds_are_scored_on_the_same_clips(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    write_manifest(manifest, clips(["angry", "sad"] * 12, 12))
    answers = rows(["angry", "sad"] * 12)
    write_jsonl(tmp_path / "all.jsonl", answers)
    write_jsonl(tmp_path / "few.jsonl", answers[:20])
    write_jsonl(tmp_path / "others.jsonl", answers[4:])
    words = ["evaluate", str(tmp_path / "all.jsonl"), "--answers", "--allow_missing", "true"]
    words += ["--references", str(manifest), "--out", str(tmp_path / "report")]
    assert main([*words, "--system", f"few={tmp_path / 'few.jsonl'}"]) == 0
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["signature"]["clips"] == 20 and metrics["differences"]["model − few"]
    seeds = [f"few={tmp_path / name}.jsonl" for name in ("few", "others")]
    assert main([*words, "--system", *seeds]) == 0
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["signature"]["clips"] == 16


def test_answers_are_no_references_of_captions(tmp_path: Path, capsys) -> None:
    asked = clips(["angry", "sad"])
    for u in asked:
        u.captions, u.instructions = [str(u.emotion)], ["Which emotion?"]
    write_manifest(tmp_path / "m.jsonl", asked)
    write_jsonl(tmp_path / "a.jsonl", rows(["He sounds angry.", "He sounds sad."]))
    words = ["evaluate", str(tmp_path / "a.jsonl"), "--references", str(tmp_path / "m.jsonl")]
    assert main([*words, "--out", str(tmp_path / "report")]) == 2
    assert "m.jsonl: c0: its captions are answers to instructions" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "report"), "--answers", "--show", "5"]) == 2
    assert "show: has no effect on answers" in capsys.readouterr().err

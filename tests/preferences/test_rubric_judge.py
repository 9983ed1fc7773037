"""The offline judge on candidates files: right order, its own evidence, the same verdicts every time."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from aligncap.data.manifest import Utterance, write_manifest
from aligncap.inference import fluency
from aligncap.models.precision import best_dtype
from aligncap.preferences.judge import judge_rubric
from aligncap.preferences.judges import Item, Verdict, read_items
from aligncap.text.rubric import data_hash, version
from aligncap.utils.io import write_jsonl

CANDIDATES = [
    "He sounds sad and speaks softly.",
    "He sounds happy and speaks loudly.",
    "She sounds sad and speaks softly.",
    "A person is speaking.",
    "He sounds sad and",
    "",
]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("judge")
    utterances = [
        Utterance(
            f"u{i}",
            ".",
            f"u{i}.wav",
            "made",
            speaker="s",
            gender="male",
            transcript="Dogs are sitting by the door.",
            emotion="sad" if i == 0 else ("happy", "angry")[i % 2],
            cues={"effort_db": -9.0 if i == 0 else float(i)},
            captions=["He sounds sad, with a soft voice.", "The man cries."]
            if i == 0
            else ["He sounds happy."],
        )
        for i in range(9)
    ]
    write_manifest(folder / "m.jsonl", utterances)
    rows = [
        {
            "id": "u0",
            "audio": "u0.wav",
            "candidate": n,
            "caption": caption,
            "model": "m",
            "seed": 0,
            "settings": {},
            "manifest": "m.jsonl",
        }
        for n, caption in enumerate(CANDIDATES)
    ]
    write_jsonl(folder / "c.jsonl", rows)
    return read_items(folder / "c.jsonl", references=2)


def test_ranks_candidates_as_the_evidence_does(items: list[Item]) -> None:
    marks = [verdict.overall for verdict in judge_rubric(items, fluency_model=None)]
    best, wrong, gender, generic, cut, empty = marks[:6]
    assert best > gender > generic and best > cut > wrong > empty == 0
    assert marks[6] > 8 and len(marks) == len(CANDIDATES) + 2


def test_verdicts_are_whole_deterministic_and_name_their_making(
    items: list[Item], parts: dict[str, str]
) -> None:
    first, again = (judge_rubric(items, fluency_model=parts["llm"], device="cpu") for _ in range(2))
    assert first == again
    for verdict in first:
        assert Verdict(**json.loads(json.dumps(asdict(verdict)))) == verdict
        assert verdict.judge == "rubric" and verdict.prompt_hash == data_hash() and verdict.reason
        assert verdict.version == f"{version()}, fluency by {parts['llm']} in {best_dtype()}"
    assert first[0].version != judge_rubric(items[:1], fluency_model=None)[0].version


def test_a_verdict_does_not_depend_on_what_else_is_judged(items: list[Item]) -> None:
    together = judge_rubric(items, fluency_model=None)
    assert [judge_rubric([item], fluency_model=None)[0] for item in items] == together


def test_without_a_fluency_model_none_is_loaded(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(fluency, "_load", refuse)
    assert judge_rubric(items, fluency_model=None)
    assert judge_rubric([], "smollm2-135m-instruct") == []
    with pytest.raises(AssertionError, match="loaded"):
        judge_rubric(items, "smollm2-135m-instruct")


def test_a_reference_is_judged_by_the_others_alone(items: list[Item]) -> None:
    reference = items[-1]
    assert reference.kind == "reference" and reference.caption not in reference.references
    reason = judge_rubric([reference], fluency_model=None)[0].reason
    assert "says nothing of how the voice sounds" in reason


def test_labels_that_its_manifest_tells_apart_come_with_an_item(items: list[Item]) -> None:
    assert {item.labels for item in items} == {frozenset({"sad", "happy", "angry"})}

"""Questions about a voice: their answers are true, in their language, and what is asked can be chosen."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from aligncap.cli import main
from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.text.answers import read_answer
from aligncap.text.claims import dimensions
from aligncap.text.emotions import emotion_of, labels
from aligncap.text.lexicon import is_chinese
from aligncap.text.questions import KINDS, TOLD, add_questions, label_question, label_word, write_questions
from aligncap.utils.io import load_data

FACTS = {"pitch": "high", "effort": "forceful", "rate": "fast"}
SET = ["angry", "calm", "fearful", "happy", "sad"]


def kind_of(question: str) -> tuple[str, str]:
    """Language and kind of a question, by the words it was made of."""
    for language in ("en", "zh"):
        for kind in (*KINDS, TOLD):
            for words in load_data("instructions.yaml")[language][kind]:
                if re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(words)), question):
                    return language, kind
    raise AssertionError(question)


def test_every_answer_is_true_and_in_the_language_of_its_question() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for emotion in SET:
        pairs = write_questions(
            emotion, None, "male", FACTS, 10, Random(emotion), labels=SET, languages=["en", "zh"]
        )
        assert len(pairs) == 10
        for question, answer in pairs:
            language, kind = kind_of(question)
            seen[language, kind] += 1
            assert any(map(is_chinese, answer)) == any(map(is_chinese, question)) == (language == "zh")
            assert emotion_of(answer) == emotion, (question, answer)
            if kind in ("label", "choice", "compare"):
                assert answer == label_word(emotion, language) and read_answer(answer, SET) == emotion
            if kind in ("choice", "compare"):
                assert answer in question
                offered = [label for label in SET if label_word(label, language) in question]
                assert len(offered) == 2 if kind == "compare" else len(offered) > 1
            if kind == "reason":
                assert answer.lower().startswith(label_word(emotion, language)) and len(answer) > 8
    assert len(seen) == 10 and len(set(seen.values())) == 1  # all kinds, both languages, alike


def test_the_place_of_the_true_answer_tells_nothing() -> None:
    places = Counter()
    for seed in range(200):
        pairs = write_questions(
            "sad", None, None, {}, 1, Random(seed), labels=SET, languages=["en"], kinds=["compare"]
        )
        question, _ = pairs[0]
        other = next(label for label in SET if label != "sad" and label in question)
        places[question.index("sad") < question.index(other)] += 1
    assert min(places.values()) > 70  # of 200; 2 in 10^5 if it is even


def test_every_label_has_a_word_that_is_read_as_it() -> None:
    for label in labels():
        for language in ("en", "zh"):
            assert read_answer(label_word(label, language), labels()) == label


def test_a_clip_without_a_label_is_only_described_and_a_lone_label_is_no_choice() -> None:
    unlabelled = write_questions(None, None, None, FACTS, 6, Random(0), labels=SET, languages=["en"])
    assert unlabelled and {kind_of(question)[1] for question, _ in unlabelled} == {"caption"}
    lone = write_questions("sad", None, None, FACTS, 6, Random(0), labels=["sad"], languages=["en"])
    assert {kind_of(question)[1] for question, _ in lone} == {"caption", "label", "reason"}


def test_a_persons_captions_stay_as_answers() -> None:
    u = Utterance("a", ".", "a.wav", "made", emotion="sad", captions=["He sighs.", "他在叹气。"])
    add_questions(u, 4, Random(0), labels=SET, languages=["en"], keep=True)
    assert u.captions[:2] == ["He sighs.", "他在叹气。"] and len(u.captions) == len(u.instructions) == 6
    assert [kind_of(question) for question in u.instructions[:2]] == [("en", "caption"), ("zh", "caption")]
    assert "caption" not in {kind_of(question)[1] for question in u.instructions[2:]}


def test_the_question_for_a_label_names_all_in_their_order() -> None:
    asked = "Which of these emotions does the speaker express: angry, sad? Answer with one of them."
    assert label_question(["angry", "sad"]) == asked
    assert (
        label_question(["angry", "sad"], "zh") == "这段语音表达了以下哪种情感：愤怒、悲伤？请只回答其中一个。"
    )


def test_annotate_writes_questions_and_plain_captions_again(manifest: Path, tmp_path: Path) -> None:
    plain, asked, again = (tmp_path / f"{name}.jsonl" for name in ("plain", "asked", "again"))
    assert main(["annotate", str(manifest), "--out", str(plain)]) == 0
    clips = read_manifest(plain)
    for u in clips:
        u.captions, u.clues, u.p_act = [], [], []
    write_manifest(plain, clips)
    words = ["annotate", str(plain), "--instructions", "6", "--language", "both", "--out", str(asked)]
    assert main(words) == 0
    for u in read_manifest(asked):
        assert len(u.instructions) == len(u.captions) == 6
    assert main(["clues", str(asked), "--out", str(asked), "--parser", "rules"]) == 0
    assert all(len(u.p_act) == 6 for u in read_manifest(asked))
    assert main(["annotate", str(asked), "--references", "2", "--out", str(again)]) == 0
    assert all(len(u.captions) == 2 and not u.instructions for u in read_manifest(again))


def test_dimensions_of_the_facts_exist() -> None:
    assert all(dimensions()[name].level(word) for name, word in FACTS.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--language", "both"], "language=both: for --instructions alone"),
        (["--instructions", "3", "--paraphrase", "gpt"], "paraphrase: has no effect on answers"),
        (["--instructions", "-1"], "instructions=-1"),
    ],
)
def test_options_that_do_not_go_together(words, message, manifest, tmp_path, capsys) -> None:
    assert main(["annotate", str(manifest), "--out", str(tmp_path / "o.jsonl"), *words]) == 2
    assert message in capsys.readouterr().err


def test_instructions_and_captions_run_in_parallel(manifest: Path, tmp_path: Path, capsys) -> None:
    clips = read_manifest(manifest)
    clips[2].instructions = ["one"] * (len(clips[2].captions) + 1)
    write_manifest(tmp_path / "m.jsonl", clips)
    assert main(["clues", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "m.jsonl:3: " in (told := capsys.readouterr().err) and "run in parallel" in told


def test_people_s_captions_without_a_label_are_named_and_kept(manifest: Path, tmp_path: Path, capsys) -> None:
    clips = read_manifest(manifest)
    for u in clips:
        u.emotion, u.captions, u.clues, u.p_act = None, ["She sighs.", "A sigh."], [], []
    write_manifest(manifest.parent / "people.jsonl", clips)
    out = tmp_path / "asked.jsonl"
    words = ["annotate", str(manifest.parent / "people.jsonl"), "--instructions", "4", "--out", str(out)]
    assert main(words) == 1
    assert capsys.readouterr().err.count("no emotion label to ask about; add one") == len(clips)
    assert all(u.captions == ["She sighs.", "A sigh."] for u in read_manifest(out))


def test_a_told_emotion_is_not_the_answer_unless_it_is_the_voices() -> None:
    told = Counter()
    for seed in range(100):
        u = Utterance(str(seed), ".", "a.wav", "made", emotion="sad")
        add_questions(u, 4, Random(seed), labels=SET, languages=["en", "zh"], told=3)
        kinds = [kind_of(question) for question in u.instructions]
        assert [kind for _, kind in kinds].count(TOLD) == 3 == [kind for _, kind in kinds[1:]].count(TOLD)
        for (language, kind), question, answer in zip(kinds, u.instructions, u.captions):
            if kind == TOLD:
                assert answer == label_word("sad", language)
                told[language, answer in question] += 1
    assert 0 < told["en", True] < told["en", False] and told["zh", False] > 100
    unlabelled = Utterance("a", ".", "a.wav", "made", cue_words=FACTS)
    add_questions(unlabelled, 2, Random(0), labels=SET, languages=["en"], told=2)
    assert {kind_of(question)[1] for question in unlabelled.instructions} == {"caption"}


def test_training_does_not_see_the_wordings_that_the_lab_measures_by() -> None:
    for language in ("en", "zh"):
        measured, trained = load_data("conflict.yaml")[language], load_data("instructions.yaml")[language]
        assert set(measured["words"].values()).isdisjoint(sum(trained["said"].values(), []))
        wordings = {words.format(emotion="X") for words in measured["told"]}
        assert wordings.isdisjoint(words.format(told="X", said="Y") for words in trained["told"])
        assert set(trained["said"]) >= set(measured["words"])

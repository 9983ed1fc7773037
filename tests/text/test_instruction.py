"""Breaches of the instruction, by name; what the project itself writes has none."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from aligncap.cli import main
from aligncap.data.manifest import read_manifest, write_manifest
from aligncap.text.claims import dimensions
from aligncap.text.instruction import BREACHES, breaches, language_of, other_language
from aligncap.text.sentences import write_captions
from aligncap.utils.io import data_path, read_jsonl


def test_captions_that_this_project_writes_have_no_breach() -> None:
    rng = Random(0)
    for number in range(120):
        facts = {d.name: rng.choice(d.levels).name for d in dimensions().values() if rng.random() < 0.7}
        emotion = ["angry", "sad", "calm", "neutral", "surprised", "fearful", "disgusted"][number % 7]
        for caption in write_captions(emotion, rng.choice(["normal", "strong"]), "female", facts, 3, rng):
            assert breaches(caption) == (), caption


def test_captions_of_the_claims_check_set_have_none_either_but_lists_and_bare_words() -> None:
    rows = map(json.loads, data_path("gold/claims_check.jsonl").read_text(encoding="utf-8").splitlines())
    found = {row["caption"]: breaches(row["caption"]) for row in rows}
    bad = {caption: names for caption, names in found.items() if names}
    assert set(bad.values()) == {("list",), ("fragment",), ("not_the_voice",), ("first_person",)}, bad
    assert len(bad) <= 5


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        (" ", "empty"),
        ("…!", "empty"),
        ("Is she sad?", "question"),
        ("I'm unable to listen to it.", "refusal"),
        ("Certainly! The man sounds sad.", "meta"),
        ("<|assistant|> The man sounds sad.", "meta"),
        ("* He sounds sad.\n* He is slow.", "list"),
        ("Emotion: sad; pace: slow", "list"),
        ("Thanks, that is a sad voice.", "answer"),
        ("You sound sad.", "answer"),
        ("I would call it a sad voice.", "first_person"),
        ("Der Mann klingt traurig und ist langsam.", "language"),
        ("Он говорит грустно и медленно.", "language"),
        ("他听起来很伤心。", "language"),
        ("She sounds sad and " + "speaks softly with a low voice and " * 8 + "slowly.", "too_long"),
        ("He sounds sad, sad, sad.", "repetition"),
        ("The man sounds very", "fragment"),
        ("Loud and angry.", "fragment"),
        ("A sad woman wearing a red coat speaks.", "scene"),
        ("A man says something about dogs.", "not_the_voice"),
        ('He says "the dogs are out".', "not_the_voice"),
        ('"Sad."', "not_the_voice"),
    ],
)
def test_each_breach_has_its_name(caption: str, name: str) -> None:
    assert name in BREACHES and name in breaches(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "We hear a very sad man speaking slowly.",
        "You can hear the joy in her voice.",
        "To you it may sound sad; his voice is low.",
        "He sounds very, very, very sad.",
        "A sad, slow male voice.",
        "Angry and loud, the man shouts at her.",
        "No sign of anger in his voice.",
        "As if asking “what now?”, her voice rises.",
    ],
)
def test_what_only_looks_like_a_breach_is_none(caption: str) -> None:
    assert breaches(caption) == ()


def test_chinese_is_asked_for_where_the_references_are_chinese() -> None:
    assert language_of(["他很伤心。", "A sad man.", "他难过。"]) == "zh" and language_of([]) == "en"
    assert breaches("他听起来很伤心，语速很慢。", "zh") == ()
    assert breaches("他为什么很伤心？", "zh") == ("question",)
    assert breaches("A sad man speaks slowly.", "zh") == ("language",)
    assert breaches("狗在门口。", "zh") == ("not_the_voice",)
    assert "repetition" in breaches("伤心伤心伤心伤心。", "zh")


@pytest.mark.parametrize(
    ("caption", "other"),
    [
        ("Die Stimme klingt traurig, und er spricht sehr leise.", True),
        ("La voix est triste et il parle très doucement.", True),
        ("Голос звучит грустно.", True),
        ("슬픈 목소리로 말한다.", True),
        ("悲しい声で話している。", True),
        ("她的声音很悲伤。", False),
        ("She sounds sad, with a naïve, café-like calm.", False),
        ("A sad woman: 悲伤.", False),
        ("sad, slow", False),
        ("She says 'ありがとう' sadly.", False),
        ("“안녕” she says warmly.", False),
        ('A calm voice: "je ne sais pas, il est parti avec la voiture".', False),
        ("La la la, she hums.", False),
        ("她说话轻柔・缓慢。", False),
    ],
)
def test_captions_of_languages_without_word_lists_are_known(caption: str, other: bool) -> None:
    assert other_language(caption) == other


def test_no_caption_that_is_at_hand_is_taken_for_another_language() -> None:
    for name in ("claims_check", "claims_zh_check", "clue_gold", "coherence_check"):
        for row in read_jsonl(data_path("gold") / f"{name}.jsonl"):
            assert not other_language(row["caption"]), row["caption"]


def test_clues_names_every_caption_of_another_language(manifest: Path, tmp_path: Path, capsys) -> None:
    clips = read_manifest(manifest)
    clips[1].captions = ["He sounds sad.", "Die Stimme klingt sehr traurig."]
    clips[1].clues, clips[1].p_act = [], []
    write_manifest(tmp_path / "m.jsonl", clips)
    assert main(["clues", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "o.jsonl")]) == 2
    assert f"m.jsonl:2: {clips[1].id}: caption 2 is in a language that" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()

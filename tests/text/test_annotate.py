from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.text import annotate as module
from aligncap.text.annotate import AnnotateConfig, run_annotate
from aligncap.text.claims import dimensions, manner_mentions
from aligncap.text.emotions import emotion_of, emotion_words, labels
from aligncap.text.sentences import write_captions
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import load_data

GENDERS = ("female", "male", None)
INTENSITIES = ("normal", "strong", None)
TRANSCRIPT = "Kids are talking by the door"


def random_facts(rng: Random) -> dict[str, str]:
    """A level for each of a random part of the dimensions."""
    names = rng.sample(list(dimensions()), rng.randint(0, len(dimensions())))
    return {name: rng.choice(dimensions()[name].levels).name for name in names}


def every_case() -> list[tuple[str | None, str | None, str | None, dict[str, str], list[str]]]:
    """Captions of all labels, intensities and genders over several random sets of facts."""
    cases = []
    for emotion, intensity, gender in itertools.product([*labels(), None], INTENSITIES, GENDERS):
        rng = Random(f"{emotion} {intensity} {gender}")
        for _ in range(8):
            facts = random_facts(rng)
            cases.append(
                (emotion, intensity, gender, facts, write_captions(emotion, intensity, gender, facts, 5, rng))
            )
    return cases


CASES = every_case()
CAPTIONS = [caption for *_, captions in CASES for caption in captions]


def test_the_emotion_of_every_caption_is_the_label() -> None:
    for emotion, _, _, _, captions in CASES:
        for caption in captions:
            assert emotion_of(caption) == emotion, caption
            assert all(m.label == emotion and not m.negated for m in emotion_words(caption)), caption


def test_no_caption_claims_a_manner_that_was_not_measured() -> None:
    for _, _, _, facts, captions in CASES:
        for caption in captions:
            for mention in manner_mentions(caption):
                assert facts.get(mention.dimension) == mention.level, (caption, mention)


def test_no_caption_claims_a_gender_that_is_not_known() -> None:
    words = {
        "female": {"she", "her", "woman", "woman's", "female"},
        "male": {"he", "his", "man", "man's", "male"},
    }
    for _, _, gender, _, captions in CASES:
        for caption in captions:
            said = set(re.findall(r"[a-z']+", caption.lower()))
            for other in {"female", "male"} - {gender}:
                assert not said & words[other], caption


def test_captions_are_sentences_of_8_to_18_words_and_short_on_average() -> None:
    for caption in CAPTIONS:
        assert 8 <= len(caption.split()) <= 18, caption
        assert re.fullmatch(r"[A-Z][a-z' ,:-]*[a-z]\.", caption), caption
        assert not re.search(r" [,.:]|,,|  |\{|\}", caption), caption
    assert sum(len(caption.split()) for caption in CAPTIONS) / len(CAPTIONS) <= 14


def test_articles_agree_with_the_next_sound_and_verbs_with_their_subject() -> None:
    for caption in CAPTIONS:
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", caption), caption
        assert not re.search(r"\b[Tt]hey\b|\bspeaker speak", caption), caption


def test_no_content_word_stands_twice() -> None:
    small = set("a an the is it in at of to and but with his her their he she who".split())
    for caption in CAPTIONS:
        counts = Counter(word for word in re.findall(r"[\w'-]+", caption.lower()) if word not in small)
        assert max(counts.values()) == 1, caption


def test_captions_of_a_clip_differ_in_text_and_pick_different_facts() -> None:
    several = 0
    for _, _, _, facts, captions in CASES:
        assert len(set(captions)) == len(captions) == (5 if captions else 0)
        outer = [n for n, level in facts.items() if dimensions()[n].level(level).rank]  # type: ignore[union-attr]
        if len(outer) >= 4:
            said = {frozenset(m.dimension for m in manner_mentions(c)) for c in captions}
            several += 1
            assert len(said) >= 4, captions
    assert several > 20


def test_nothing_to_say_gives_no_caption() -> None:
    assert write_captions(None, None, "male", {}, 5, Random(0)) == []
    assert all(captions for emotion, _, _, facts, captions in CASES if emotion)


def test_nothing_measured_gives_the_emotion_alone() -> None:
    for caption in write_captions("sad", "strong", "female", {}, 5, Random(0)):
        assert emotion_of(caption) == "sad" and not manner_mentions(caption)


def test_levels_near_the_norm_are_said_only_where_there_is_little_else() -> None:
    middle = {name: dimension.levels[1].name for name, dimension in dimensions().items()}
    outer = {"rate": "slow", "pitch": "low"}
    for caption in write_captions("sad", None, "male", middle | outer, 5, Random(0)):
        assert {(m.dimension, m.level) for m in manner_mentions(caption)} <= set(outer.items())
    assert any(manner_mentions(c) for c in write_captions("sad", None, "male", middle, 5, Random(0)))


def test_the_plain_word_is_said_about_half_the_time_and_few_others_are() -> None:
    for label in ("calm", "happy", "sad", "angry", "fearful", "surprised"):
        words: Counter[str] = Counter()
        for number in range(120):
            for caption in write_captions(
                label, "normal", "male", {"rate": "slow", "effort": "soft"}, 5, Random(number)
            ):
                words.update(m.word for m in emotion_words(caption))
        plain = load_data("caption_templates.yaml")["emotions"][label]["adjective"][0]
        assert words.most_common(1)[0][0] == plain
        assert 0.35 < words[plain] / words.total() < 0.7, (label, words)
        assert len(words) <= 8


def test_the_emotion_mostly_stands_in_the_first_half() -> None:
    early = [
        emotion_words(caption)[0].start < len(caption) / 2
        for emotion, _, _, facts, captions in CASES
        if emotion and facts
        for caption in captions
    ]
    assert sum(early) / len(early) > 0.6


def test_strong_intensity_is_said_in_every_caption() -> None:
    entries = load_data("caption_templates.yaml")["emotions"]
    default = load_data("caption_templates.yaml")["default"]
    for emotion, intensity, _, _, captions in CASES:
        if emotion:
            entry = default | entries[emotion]
            marks = {*entry["degree"], *entry["noun_degree"], *entry.get("strong", [])}
            for caption in captions:
                said = set(caption.lower().rstrip(".").replace(",", "").replace(":", "").split())
                assert bool(said & marks) == (intensity == "strong"), caption


def test_every_pattern_is_used_and_all_read_differently() -> None:
    templates = load_data("caption_templates.yaml")
    assert len(templates["patterns"]) >= 25
    openings = {" ".join(re.sub(r"\W", " ", c).split()[:2]) for c in CAPTIONS}
    assert len(openings) > 30


def clip(number: int, **values: object) -> Utterance:
    base: dict = {
        "id": f"clip-{number}",
        "root": "audio",
        "audio": f"{number}.wav",
        "corpus": "made",
        "speaker": "s1",
        "gender": "female",
        "emotion": ("sad", "angry", "happy")[number % 3],
        "transcript": TRANSCRIPT,
        "cues": {
            "f0_median_hz": 180.0 + 7 * (number * 7 % 12),
            "f0_movement_st": 3.0 + number * 5 % 12,
            "effort_db": -20.0 + number * 3 % 12,
            "rate_sps": 3.0 + 0.2 * (number * 11 % 12),
            "unsteadiness": 0.05 + 0.01 * (number * 2 % 12),
        },
    }
    return Utterance(**(base | values))


def annotate(
    manifest: str | Path, clips: list[Utterance], **options: int
) -> tuple[list[Utterance], list[str]]:
    return module.annotate(manifest, clips, **({"references": 5, "seed": 0, "workers": 1} | options))


def test_cues_are_worded_against_the_speakers_norm_and_the_input_stays_untouched() -> None:
    clips = [clip(number) for number in range(12)]
    done, errors = annotate("m.jsonl", clips)
    assert errors == []
    by_pitch = sorted(done, key=lambda u: u.cues["f0_median_hz"])
    assert (by_pitch[0].cue_words["pitch"], by_pitch[-1].cue_words["pitch"]) == ("low", "high")
    assert all(len(u.captions) == 5 for u in done)
    assert all(not u.captions and not u.cue_words and not u.extra for u in clips)
    assert not any("door" in caption or "kids" in caption.lower() for u in done for caption in u.captions)


def test_captions_depend_on_seed_and_id_but_not_on_order() -> None:
    clips = [clip(number) for number in range(12)]
    first, _ = annotate("m.jsonl", clips)
    again, _ = annotate("m.jsonl", clips[::-1])
    other, _ = annotate("m.jsonl", clips, seed=1)
    assert {u.id: u.captions for u in first} == {u.id: u.captions for u in again}
    assert [u.id for u in again] == [u.id for u in clips[::-1]]
    assert all(a.captions != b.captions for a, b in zip(first, other, strict=True))


def test_annotating_twice_rewrites_its_own_captions_but_keeps_those_of_people() -> None:
    own = [clip(number) for number in range(8)]
    human = clip(8, captions=["Somebody else wrote this."], clues=[["else"]])
    done, _ = annotate("m.jsonl", [*own, human])
    assert done[-1].captions == ["Somebody else wrote this."] and done[-1].clues == [["else"]]
    assert done[-1].cue_words
    done[0].clues = [["sad"]] * 5
    again, _ = annotate("m.jsonl", done, references=3, seed=4)
    assert len(again[0].captions) == 3 and again[0].clues == []
    assert again[-1].captions == ["Somebody else wrote this."]


def test_unusable_files_are_faults_and_the_rest_is_annotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip(number) for number in range(9)]
    clips += [clip(20, cues={}), clip(21, cues={}, audio="../out.wav"), clip(22, cues={}, emotion=None)]
    done, errors = annotate(tmp_path / "m.jsonl", clips)
    assert [u.id for u in done] == [f"clip-{n}" for n in range(9)]
    assert len(errors) == 3
    assert "20.wav" in errors[0] and "outside root" in errors[1] and "22.wav" in errors[2]


def test_a_clip_without_label_and_without_cues_is_a_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "measure_many", lambda paths, **_: [{"duration_s": 1.0} for _ in paths])
    done, errors = annotate(tmp_path / "m.jsonl", [clip(0, cues={}, emotion=None), clip(1, cues={})])
    assert [u.id for u in done] == ["clip-1"]
    assert "clip-0" in errors[0] and "add a label" in errors[0]
    assert all(emotion_of(caption) == "angry" for caption in done[0].captions)


@pytest.mark.real
def test_real_anger_takes_more_effort_than_calm_and_all_captions_hold(corpora: Path, tmp_path: Path) -> None:
    clips = []
    for number, actor in enumerate(("Actor_01", "Actor_02"), 1):
        for path in sorted((corpora / "ravdess" / actor).glob("03-01-0[258]-*.flac")):
            emotion = {"02": "calm", "05": "angry", "08": "surprised"}[path.name[6:8]]
            clips.append(
                Utterance(
                    path.stem,
                    str(corpora / "ravdess"),
                    f"{actor}/{path.name}",
                    "ravdess",
                    "en",
                    speaker=f"a{number}",
                    gender=("male", "female")[number - 1],
                    emotion=emotion,
                )
            )
    done, errors = annotate(tmp_path / "m.jsonl", clips)
    assert errors == [] and len(done) == len(clips) > 40
    forceful = {
        e: sum(u.cue_words["effort"] == "forceful" for u in done if u.emotion == e) for e in ("angry", "calm")
    }
    assert forceful["angry"] > 3 * forceful["calm"] + 3
    for utterance in done:
        for caption in utterance.captions:
            assert emotion_of(caption) == utterance.emotion
            assert all(utterance.cue_words[m.dimension] == m.level for m in manner_mentions(caption)), caption


def test_fewer_than_one_reference_is_refused() -> None:
    with pytest.raises(UserErrors, match="references=0"):
        AnnotateConfig("m.jsonl", "out.jsonl", references=0)


def test_the_command_writes_captions_and_counts_rewordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reword(captions: list[str], model: str, base_url: str | None) -> module.Paraphrased:
        kept = Counter({"emotion": len(captions) - 1})
        return module.Paraphrased(
            ["He sounds sad.", *captions[1:]], [True] + [False] * len(captions[1:]), kept
        )

    monkeypatch.setattr(module, "paraphrase", reword)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="paraphrasing needs a key"):  # before the manifest is read
        run_annotate(AnnotateConfig("none.jsonl", "out.jsonl", paraphrase="m"))
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    written = replace(clip(9), captions=["A person wrote this."], clues=[["wrote"]])
    write_manifest(tmp_path / "in.jsonl", [clip(number) for number in range(9)] + [written])
    source, target = str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")
    assert run_annotate(AnnotateConfig(source, target, references=2, paraphrase="m")) == 0
    done = read_manifest(tmp_path / "out.jsonl")
    assert (done[9].captions, done[9].clues) == (written.captions, written.clues)
    assert len(done) == 10 and all(len(u.captions) == 2 and u.cue_words for u in done[:9])
    assert done[0].captions[0] == "He sounds sad."
    out = capsys.readouterr().out
    assert "paraphrased: 1 captions; kept as they were: emotion 17" in out
    assert "10 clips, 19 captions, 0 errors" in out
    with pytest.raises(UserErrors, match="rewords English captions"):
        AnnotateConfig(source, target, language="zh", paraphrase="m")

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aligncap.data.manifest import Utterance, audio_path, read_manifest, write_manifest
from aligncap.preferences import pairs as pairs_module
from aligncap.preferences.pair_kinds import KINDS
from aligncap.preferences.pairs import PairsConfig
from aligncap.preferences.reports import guessed_from_text, pair_tables
from aligncap.text.claims import manner_claims
from aligncap.text.emotions import emotion_of
from aligncap.text.lexicon import caption_words
from aligncap.utils.errors import UserError

LABELS = ("angry", "happy", "sad", "fearful")


def make_pairs(rows: Any, utterances: Any, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return pairs_module.make_pairs(
        rows, utterances, PairsConfig(scored="s", out="p", **({"per_clip": 1} | options))
    )


def pairs_file(scored: Path, out: Path, **options: Any) -> dict[str, Any]:
    return pairs_module.pairs_file(PairsConfig(scored=str(scored), out=str(out), **options))


def utterance(number: int, **fields: Any) -> Utterance:
    label = LABELS[number % 4]
    gender = ("male", "female")[number // 4 % 2]
    person = {"male": "man", "female": "woman"}[gender]
    values = {
        "emotion": label,
        "gender": gender,
        "cue_words": {"pitch": "low", "effort": "forceful"},
        "captions": [
            f"The {person} sounds {label}, with a low, loud voice.",
            f"A very {label} {person} speaks loudly at a low pitch in this clip.",
        ],
    }
    return Utterance(id=f"c{number}", root=".", audio=f"c{number}.wav", corpus="made", **(values | fields))


def row(clip: int, caption: str, score: float, candidate: int | None = 0, **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": f"c{clip}",
        "audio": f"c{clip}.wav",
        "candidate": candidate,
        "caption": caption,
        "kind": "candidate" if candidate is not None else "reference",
        "manifest": "m.jsonl",
        "verdict": {
            "scores": {},
            "overall": score,
            "reason": "",
            "judge": "rubric",
            "version": "1",
            "prompt_hash": "",
        },
    }
    return values | fields


def scored(
    *captions: tuple[str, float], clip: int = 0, references: tuple[float, ...] = ()
) -> list[dict[str, Any]]:
    rows = [row(clip, caption, score, i) for i, (caption, score) in enumerate(captions)]
    return rows + [
        row(clip, utterance(clip).captions[i], score, None, reference=i) for i, score in enumerate(references)
    ]


GOOD, FAIR, BAD = ("He is angry and loud.", 8.0), ("He is calm and loud.", 5.0), ("He is sad and quiet.", 2.0)


def crowd(clips: int = 40, seed: int = 0) -> tuple[list[dict[str, Any]], list[Utterance]]:
    """Clips whose worse candidates are longer than their better ones."""
    rng = Random(seed)
    utterances = [utterance(i) for i in range(clips)]
    rows = []
    for i in range(clips):
        for k in range(4):
            more = " really" * rng.randint(0, 2) + " indeed" * (k // 2)
            caption = f"Clip {i} take {k} sounds {LABELS[(i + k) % 4]} and loud{more}."
            rows.append(row(i, caption, 9.0 - 2 * k, k))
    return rows, utterances


def test_best_worst_takes_the_two_ends_of_the_candidates() -> None:
    pairs, _ = make_pairs(scored(FAIR, BAD, GOOD), [utterance(0)])
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [(GOOD[0], BAD[0])]
    assert pairs[0] == {
        "id": "c0",
        "audio": "c0.wav",
        "chosen": GOOD[0],
        "rejected": BAD[0],
        "kind": "best-worst",
        "chosen_score": 8.0,
        "rejected_score": 2.0,
        "margin": 6.0,
        "manifest": "m.jsonl",
    }


def test_without_options_a_clip_gives_two_pairs_as_the_measured_recipe_has_it() -> None:
    rows = scored(("He is sad.", 3.0), FAIR, BAD, GOOD)
    pairs, _ = pairs_module.make_pairs(rows, [utterance(0)], PairsConfig("s", "p", balance_lengths=False))
    assert [(p["chosen_score"], p["rejected_score"]) for p in pairs] == [(8.0, 2.0), (5.0, 3.0)]


def test_reference_worst_takes_a_reference_and_the_worst_candidate() -> None:
    pairs, report = make_pairs(scored(GOOD, BAD), [utterance(0)], kinds=["reference-worst"])
    assert pairs[0]["chosen"] in utterance(0).captions and pairs[0]["rejected"] == BAD[0]
    assert pairs[0]["chosen_score"] is None and pairs[0]["margin"] is None
    assert report["margin"]["unknown"] == 1 and report["chosen_is_reference"] == 1


def test_a_reference_that_the_judge_likes_less_is_not_chosen() -> None:
    rows = scored(GOOD, ("He is angry.", 7.0), references=(3.0, 7.5))
    with pytest.raises(UserError, match="no pair is left"):
        make_pairs(rows, [utterance(0)], kinds=["reference-worst"])
    pairs, _ = make_pairs(rows, [utterance(0)], kinds=["reference-worst"], min_margin=0.5, max_length_ratio=9)
    assert [(p["chosen_score"], p["rejected_score"]) for p in pairs] == [(7.5, 7.0)]


@pytest.mark.parametrize("chosen", ["reference", "best"])
def test_flips_change_only_what_they_are_named_for(chosen: str) -> None:
    rows = [r for i in range(8) for r in scored((utterance(i).captions[0], 9.0), BAD, clip=i)]
    utterances = [utterance(i) for i in range(8)]
    kinds = ["flipped-emotion", "flipped-claim"]
    pairs, report = make_pairs(rows, utterances, kinds=kinds, chosen=chosen)
    assert Counter(p["kind"] for p in pairs) == {"flipped-emotion": 8, "flipped-claim": 8}
    for p in pairs:
        claims = manner_claims([p["chosen"]]), manner_claims([p["rejected"]])
        if p["kind"] == "flipped-emotion":
            assert emotion_of(p["rejected"]) not in (emotion_of(p["chosen"]), None) and claims[0] == claims[1]
            assert emotion_of(p["rejected"]) in LABELS  # of the data, not any label there is
        else:
            assert emotion_of(p["rejected"]) == emotion_of(p["chosen"])
            assert len(claims[0] - claims[1]) == len(claims[1] - claims[0]) == 1
    assert report["chosen_is_reference"] == (chosen == "reference")


def test_a_flip_that_would_be_true_of_the_clip_is_not_rejected() -> None:
    false_claims = utterance(0, captions=["He speaks softly."], cue_words={"effort": "forceful"})
    with pytest.raises(UserError, match="the flipped claim would be true: 1"):
        make_pairs(scored(GOOD, BAD), [false_claims], kinds=["flipped-claim"])
    rows = scored(("The man sounds happy and loud.", 9.0), BAD)
    with pytest.raises(UserError, match="names another emotion"):
        make_pairs(rows, [utterance(0), utterance(1)], kinds=["flipped-emotion"], chosen="best")


def test_other_clips_have_another_emotion_and_the_same_gender() -> None:
    utterances = [utterance(i) for i in range(16)]
    rows = [r for i in range(16) for r in scored(GOOD, BAD, clip=i)]
    pairs, _ = make_pairs(rows, utterances, kinds=["other-clip"])
    assert len(pairs) == 16
    for p in pairs:
        own = utterances[int(p["id"][1:])]
        assert emotion_of(p["rejected"]) != own.emotion and p["chosen"] in own.captions
        assert ("woman" in p["rejected"]) == (own.gender == "female")


def test_other_clips_without_a_match_are_counted() -> None:
    alone = [utterance(0), utterance(5)]  # a man and a woman
    with pytest.raises(UserError, match="same gender: 2"):
        make_pairs(scored(GOOD, BAD) + scored(GOOD, BAD, clip=5), alone, kinds=["other-clip"])


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        ([GOOD, ("He is  ANGRY, and loud", 3.0)], "same caption"),
        (
            [
                ("He is angry and rather loud today, as we hear it.", 8.0),
                ("He is angry and rather loud today, as you hear it.", 2.0),
            ],
            "near-duplicate",
        ),
        ([("He is angry, with a joyful voice.", 8.0), BAD], "the chosen caption contradicts itself"),
        ([("He is angry, loud and loud.", 8.0), BAD], "the chosen caption repeats itself"),
        ([GOOD, ("He is sad and quiet.", 7.5)], "margin below 1"),
        ([GOOD, ("He is sad and quiet.", 8.0)], "judged equal"),
        ([GOOD, ("", 1.0)], "empty caption"),
        ([GOOD, ("He " + "very " * 20 + "sad.", 1.0)], "length ratio above 2"),
    ],
)
def test_each_filter_drops_and_says_why(captions: list[tuple[str, float]], reason: str) -> None:
    rows = scored(*captions) + scored(GOOD, BAD, clip=1)
    pairs, report = make_pairs(rows, [utterance(0), utterance(1)], balance_lengths=False)
    assert [p["id"] for p in pairs] == ["c1"]
    assert report["dropped"] == {reason: 1}


def test_two_captions_that_differ_in_the_emotion_alone_are_no_duplicates() -> None:
    long = "The speaker, a man, sounds {} and talks loudly in a voice that is low and steady."
    rows = scored((long.format("angry"), 9.0), (long.format("happy"), 3.0))
    assert len(make_pairs(rows, [utterance(0)], balance_lengths=False)[0]) == 1


def test_length_is_balanced_and_the_report_says_before_and_after() -> None:
    rows, utterances = crowd()
    plain, before = make_pairs(rows, utterances, balance_lengths=False)
    pairs, after = make_pairs(rows, utterances)

    def mean(chosen: list[dict[str, Any]]) -> float:
        logs = [math.log(len(caption_words(p["chosen"])) / len(caption_words(p["rejected"]))) for p in chosen]
        return sum(logs) / len(logs)

    assert mean(plain) < -0.05
    assert after["length"]["mean_log_before"] == pytest.approx(mean(plain))
    assert after["length"]["mean_log_after"] == pytest.approx(mean(pairs))
    assert abs(mean(pairs)) < 0.011
    assert after["dropped"]["length balance"] == len(plain) - len(pairs) < len(plain)
    assert any("length is a shortcut" in line for line in before["warnings"])


def framed(clips: int, plain: float) -> tuple[list[dict[str, Any]], list[Utterance]]:
    """Clips of which the best caption is plain in this share, and the worst in a tenth."""
    rng, rows = Random(1), []
    for i in range(clips):
        other = [
            "{} and loud, he speaks.",
            "In a loud voice he is {}.",
            "His tone is {}.",
            "It is {}, he says.",
        ]
        good, bad = (
            "He sounds {}, and his voice is loud." if rng.random() < share else rng.choice(other)
            for share in (plain, 0.1)
        )
        rows += scored((good.format("angry"), 8.0), (bad.format("sad"), 2.0), clip=i)
    return rows, [utterance(i) for i in range(clips)]


def test_a_common_frame_is_chosen_half_as_often_as_it_is_rejected() -> None:
    rows, utterances = framed(300, 0.5)
    options: dict[str, Any] = {"balance_lengths": False}
    plain, _ = make_pairs(rows, utterances, balance_frames=False, **options)
    even, report = make_pairs(rows, utterances, **options)
    counts = [
        [sum(p[side].startswith("He sounds") for p in pairs) for side in ("chosen", "rejected")]
        for pairs in (plain, even)
    ]
    assert counts[0][0] > 4 * counts[0][1]
    assert (
        0 < counts[1][0] <= counts[1][1] < counts[0][0] / 3
    )  # other frames have cost pairs that rejected it
    assert report["dropped"]["frame balance"] == len(plain) - len(even)
    assert make_pairs(rows, utterances, **options)[0] == even


def test_frames_of_few_pairs_are_left_alone() -> None:
    rows, utterances = framed(60, 0.5)
    options: dict[str, Any] = {"balance_lengths": False}
    wanted, _ = make_pairs(rows, utterances, balance_frames=False, **options)
    assert make_pairs(rows, utterances, **options)[0] == wanted


def test_references_are_chosen_so_that_no_pair_is_lost_to_length() -> None:
    rows, utterances = crowd()
    pairs, report = make_pairs(rows, utterances, kinds=["reference-worst"])
    assert len(pairs) == len(utterances) and not report["dropped"]
    assert abs(report["length"]["mean_log_after"]) < 0.02


@pytest.mark.parametrize("chosen", ["reference", "best"])
def test_every_pair_is_accounted_for_and_none_is_against_the_judge(chosen: str) -> None:
    rows, utterances = crowd()
    pairs, report = make_pairs(
        rows, utterances, kinds=list(KINDS), chosen=chosen, per_clip=2, balance_emotions=True
    )
    for part in (report, *report["by_kind"].values()):
        assert part["considered"] == part["kept"] + sum(part["dropped"].values())
    assert report["kept"] == len(pairs) == sum(report["by_emotion"].values())
    assert all(p["margin"] is None or p["margin"] >= 1 for p in pairs)
    assert max(Counter((p["id"], p["kind"]) for p in pairs).values()) <= 2
    assert len({(p["id"], p["chosen"], p["rejected"]) for p in pairs}) == len(pairs)
    assert json.loads(json.dumps(report)) == report


def test_emotions_are_balanced_by_option() -> None:
    rows, utterances = crowd()
    rows = [r for r in rows if r["id"] not in ("c0", "c4", "c8")]  # three angry clips less
    _, plain = make_pairs(rows, utterances, balance_lengths=False)
    _, even = make_pairs(rows, utterances, balance_lengths=False, balance_emotions=True)
    assert sorted(plain["by_emotion"].values()) == [7, 10, 10, 10]
    assert list(even["by_emotion"].values()) == [7] * 4


def test_emotions_stay_balanced_beside_lengths_and_frames() -> None:
    rows, utterances = [], [utterance(i) for i in range(160)]
    for i, clip in enumerate(utterances):
        wordy = i % 12 == 0  # a third of the angry ones, whose best captions are long
        good = "The voice of this man sounds {}, and it is loud and low." if wordy else "He is {} and loud."
        rows += scored((good.format(clip.emotion), 8.0), ("He is calm and quiet.", 2.0), clip=i)
    for options in ({}, {"balance_frames": False}):
        _, report = make_pairs(rows, utterances, balance_emotions=True, max_length_ratio=4, **options)
        assert len(set(report["by_emotion"].values())) == 1 and report["kept"] >= 40
        assert report["dropped"]["emotion balance"] > 0


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others() -> None:
    rows, utterances = crowd()
    options: dict[str, Any] = {"kinds": list(KINDS), "seed": 3}
    assert make_pairs(rows, utterances, **options) == make_pairs(rows, utterances, **options)
    assert make_pairs(rows, utterances, **options)[0] != make_pairs(rows, utterances, kinds=list(KINDS))[0]


def test_a_preference_that_the_words_give_away_is_noticed() -> None:
    utterances = [utterance(i) for i in range(40)]
    given = [
        r
        for i in range(40)
        for r in scored((f"Clip {i} is angry, indeed.", 8.0), (f"Take {i} is sad, alas.", 2.0), clip=i)
    ]
    report = make_pairs(given, utterances)[1]
    assert report["guessed_from_text"] > 0.95
    assert any("words alone" in line for line in report["warnings"])
    swapped = [
        r
        for i in range(40)
        for r in scored(
            (f"He sounds {LABELS[i % 4]}.", 8.0), (f"He sounds {LABELS[(i + 1 + i // 4 % 3) % 4]}.", 2.0),
            clip=i,
        )
    ]  # fmt: skip
    guessed = make_pairs(swapped, utterances)[1]["guessed_from_text"]
    assert 0.2 < guessed < 0.8
    assert guessed_from_text([]) is None


def test_a_clip_with_too_few_candidates_is_counted_and_stops_no_other() -> None:
    made, report = make_pairs(scored(GOOD, BAD) + scored(GOOD, clip=1), [utterance(0), utterance(1)])
    assert [pair["id"] for pair in made] == ["c0"]
    assert report["dropped"] == {"fewer than two scored candidates": 1}


def test_mistakes_are_refused_with_their_remedy() -> None:
    two = [utterance(0), utterance(1)]
    good = scored(GOOD, BAD)
    with pytest.raises(UserError, match='"best-wrost", nearest is "best-worst"'):
        make_pairs(good, two, kinds=["best-wrost"])
    with pytest.raises(UserError, match="fewer than two scored candidates: 1"):
        make_pairs(scored(references=(8.0,)), two)
    with pytest.raises(UserError, match="ask `aligncap candidates` for more"):
        make_pairs(scored(GOOD), two)
    with pytest.raises(UserError, match='does not hold "c7"'):
        make_pairs(good + scored(GOOD, BAD, clip=7), two)
    with pytest.raises(UserError, match="several judges"):
        make_pairs([*good, row(0, "x", 3.0, 5, verdict={"overall": 3.0, "judge": "openai:m"})], two)
    with pytest.raises(UserError, match="judge again"):
        make_pairs([*good, row(0, "An old reference.", 3.0, None, reference=0)], two)
    with pytest.raises(UserError) as caught:
        make_pairs(good, two, kinds=["x"], min_margin=-1, max_length_ratio=1, per_clip=0, max_similarity=0)
    assert len(str(caught.value).splitlines()) == 5


def test_chinese_captions_are_counted_by_character() -> None:
    assert caption_words("他很愤怒, OK.") == ["他", "很", "愤", "怒", "ok"]


def test_a_file_of_pairs_is_written_with_its_report(tmp_path: Path) -> None:
    rows, utterances = crowd()
    write_manifest(tmp_path / "data" / "m.jsonl", utterances)
    source = tmp_path / "judged" / "s.jsonl"
    source.parent.mkdir()
    lines = [json.dumps({**r, "manifest": "../data/m.jsonl"}) for r in rows]
    source.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out" / "pairs" / "p.jsonl"
    report = pairs_file(source, out, kinds=["best-worst", "flipped-claim"])
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(pairs) == report["kept"] and {p["manifest"] for p in pairs} == {"../../data/m.jsonl"}
    assert json.loads((tmp_path / "out" / "pairs" / "p.report.json").read_text()) == report
    assert len(report["files"]) == 2
    shown = "\n".join(str(item) for item in pair_tables(report) if isinstance(item, str))
    assert "pairs by emotion" in shown


def test_clips_with_their_chosen_captions_are_a_manifest_for_sft(tmp_path: Path) -> None:
    rows, utterances = crowd()
    for u in utterances:
        u.clues, u.p_act = [["low"]] * len(u.captions), ["Voice: low."] * len(u.captions)
    write_manifest(tmp_path / "data" / "m.jsonl", utterances)
    lines = [json.dumps({**r, "manifest": "data/m.jsonl"}) for r in rows]
    (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
    made = tmp_path / "made" / "chosen.jsonl"
    pairs_file(tmp_path / "s.jsonl", tmp_path / "p.jsonl", per_clip=2, chosen_manifest=str(made))
    pairs = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    clips = read_manifest(made)
    said = {(u.id, caption) for u in clips for caption in u.captions}
    assert said == {(p["id"], p["chosen"]) for p in pairs}
    assert len(clips) == len({p["id"] for p in pairs}) < len(pairs)
    assert all(not u.clues and not u.p_act for u in clips)
    assert audio_path(made, clips[0]) == (tmp_path / "data" / clips[0].audio).resolve()


def test_a_file_without_pairs_leaves_the_former_one(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [utterance(0)])
    (tmp_path / "s.jsonl").write_text("\n".join(json.dumps(r) for r in scored(GOOD, GOOD)))
    (tmp_path / "p.jsonl").write_text("former\n")
    with pytest.raises(UserError, match=r"s\.jsonl: no pair is left \(same caption: 1\)"):
        pairs_file(tmp_path / "s.jsonl", tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").read_text() == "former\n"

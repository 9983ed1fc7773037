"""Wrong claims, wrong gender, leaks, generic captions: counted by hand, absent where nothing allows them."""

from __future__ import annotations

from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aligncap.data.manifest import Utterance
from aligncap.evaluation.evaluate import table
from aligncap.evaluation.metrics import SCORES
from aligncap.evaluation.metrics.hallucination import MEASURES, found_among, hallucination_statistics, measure
from aligncap.evaluation.report.html import write_report
from aligncap.evaluation.scoring import System, differences, evaluate_captions, score_rows
from aligncap.utils.statistics import clusters_of, intervals

LABELS = ("angry", "sad", "happy", "calm")


def utterances(cues: bool = True, gender: bool = True, transcript: bool = True) -> list[Utterance]:
    """24 clips: each label six times, loud where angry, half of them by women."""
    made = []
    for i in range(24):
        label = LABELS[i % 4]
        effort = {"angry": 5.0, "sad": -5.0}.get(label, 0.1 * (i % 3))
        made.append(
            Utterance(
                f"u{i}",
                ".",
                f"u{i}.wav",
                "made",
                speaker=f"s{i // 12}",
                gender=("female", "male")[i // 12] if gender else None,
                transcript="Dogs are sitting by the door." if transcript else None,
                emotion=label,
                cues={"effort_db": effort} if cues else {},
                captions=[f"The speaker sounds {label}."],
            )
        )
    return made


def rows(made: list[Utterance], caption: Any) -> list[dict[str, Any]]:
    return [{"id": u.id, "caption": caption(u)} for u in made]


def full(u: Utterance) -> str:
    manner = {"angry": "loudly", "sad": "softly"}.get(u.emotion or "", "at a moderate volume")
    return f"{'She' if u.gender == 'female' else 'He'} sounds {u.emotion} and speaks {manner}."


def values(made: list[Utterance], caption: Any, **options: Any) -> dict[str, float | None]:
    result = evaluate_captions(rows(made, caption), made, wordnet="none", **options)
    return {name: result[name]["value"] for name in MEASURES}


def test_true_captions_have_nothing_wrong() -> None:
    found = values(utterances(), full)
    for name in ("wrong_claim_share", "wrong_claims_per_caption", "caption_with_wrong_claim_share"):
        assert found[name] == 0
    assert found["wrong_gender_share"] == found["transcript_leak_share"] == 0
    assert found["claims_per_caption"] == 1
    # label, gender and level: 3 - 1 of the 23 others
    assert found["fit_share"] == pytest.approx(2 / 23)
    assert found["generic_share"] == 1  # two clips of 23 are more than one in twenty
    assert found["rubric_score"] > 8


def test_wrong_claims_are_shares_of_claims_and_of_captions() -> None:
    found = values(utterances(), lambda u: "The speaker talks loudly, not softly, and loudly again.")
    # loud is right of the 6 angry clips, not soft of all but the 6 sad ones; loud is counted once
    assert found["wrong_claim_share"] == pytest.approx((18 + 6) / 48)
    assert found["wrong_claims_per_caption"] == pytest.approx(1)
    assert found["caption_with_wrong_claim_share"] == pytest.approx(18 / 24)
    assert found["claims_per_caption"] == pytest.approx(2)


def test_claims_are_worth_what_they_tell_in_bits() -> None:
    # of 24 clips 6 are loud and 6 soft (2 bits each), 12 near the norm (1 bit); so 36 bits can be told
    found = values(utterances(), full)
    assert found["claim_information_precision"] == pytest.approx(1)
    assert found["claim_information_recall"] == pytest.approx(1)
    # loud: 12 bits right of 48; not soft holds for 18 clips, -log2(18 / 24) = 0.415 bits each
    loud = values(utterances(), lambda u: "The speaker talks loudly.")
    assert loud["claim_information_precision"] == loud["wrong_claim_share"] / 3 == pytest.approx(12 / 48)
    assert loud["claim_information_recall"] == pytest.approx(12 / 36)
    both = values(utterances(), lambda u: "The speaker talks loudly, not softly, and loudly again.")
    denied = np.log2(24 / 18)
    assert both["claim_information_precision"] == pytest.approx((12 + 18 * denied) / (48 + 24 * denied))
    # a dimension counts once: 2 bits of loud clips, the denial's 0.415 of the 12 near the norm
    assert both["claim_information_recall"] == pytest.approx((12 + 12 * denied) / 36)
    # who claims everything says nothing
    all_of_it = values(utterances(), lambda u: "She speaks loudly and softly.")
    assert all_of_it["claim_information_recall"] == 0
    silent = values(utterances(), lambda u: "Someone sounds sad.")
    assert silent["claim_information_precision"] is None and silent["claim_information_recall"] == 0


def test_what_holds_for_nearly_every_clip_earns_little() -> None:
    """A captioner that says the same of everything is mostly right, and has told hardly anything."""
    made = utterances()
    for i, u in enumerate(made):
        u.cues = {"effort_db": u.cues["effort_db"], "rate_sps": 3.0 if i % 8 == 0 else 0.01 * (i % 3)}
    found = values(made, lambda u: "The speaker talks at a moderate pace.")
    common = np.log2(24 / 21)
    assert found["wrong_claim_share"] == pytest.approx(3 / 24)
    assert found["claim_information_recall"] == pytest.approx(21 * common / (36 + 21 * common + 3 * 3))
    assert found["claim_information_recall"] < 0.1
    # the rare claim, right three times, is worth more, and so is the true effort
    rare = values(made, lambda u: "Quick speech." if int(u.id[1:]) % 8 == 0 else "Someone speaks.")
    assert rare["claim_information_recall"] > 2 * found["claim_information_recall"]
    assert values(made, full)["claim_information_recall"] > 0.6


def test_a_claim_that_holds_for_no_clip_counts_as_if_it_held_for_one() -> None:
    made = utterances()
    for u in made:
        u.cues = {"effort_db": 0.0, "rate_sps": 3.0 if u.id == "u0" else 0.0}
    found = values(made, lambda u: "She speaks softly and quickly.")
    assert found["claim_information_precision"] == pytest.approx(1 / (24 + 24))


def test_captions_that_make_no_sense_and_the_commonest_frame_are_shares() -> None:
    made = utterances()
    odd = {
        "u0": "She is sorrowful, with a joyful voice.",
        "u1": "She talks loudly and softly.",
        "u2": "He sounds sad sad.",
    }
    found = values(made, lambda u: odd.get(u.id, full(u)))
    assert found["contradiction_share"] == pytest.approx(2 / 24)
    assert found["repetition_share"] == pytest.approx(1 / 24)
    assert found["top_frame_share"] == pytest.approx(21 / 24)


def test_wrong_gender_is_a_share_of_captions_that_name_one() -> None:
    made = utterances()
    found = values(made, lambda u: "She sounds sad." if int(u.id[1:]) < 18 else "Someone sounds sad.")
    assert found["wrong_gender_share"] == pytest.approx(6 / 18)


def test_generic_is_what_is_as_true_of_many_others() -> None:
    made = utterances()
    assert values(made, lambda u: "A person is speaking.")["fit_share"] == 1
    assert values(made, lambda u: "")["generic_share"] == 1
    # 5 of the 23 others have the label
    by_label = values(made, lambda u: f"The speaker sounds {u.emotion}.")
    assert by_label["fit_share"] == pytest.approx(5 / 23) and by_label["generic_share"] == 1
    assert values(made, lambda u: f"The speaker isn't {u.emotion}.")["fit_share"] == pytest.approx(18 / 23)
    # false of its own clip, so that all six with the label are others
    wrong = {"angry": "sad", "sad": "angry", "happy": "calm", "calm": "happy"}
    assert values(made, lambda u: f"The speaker sounds {wrong[u.emotion or '']}.")[
        "fit_share"
    ] == pytest.approx(6 / 23)


def test_renamed_emotions_fit_the_label_they_are_renamed_to() -> None:
    made = utterances()
    plain = values(made, lambda u: "The speaker sounds bored.")
    renamed = values(made, lambda u: "The speaker sounds bored.", label_map={"bored": "sad"})
    assert plain["fit_share"] == 0 and renamed["fit_share"] > 0.2


def test_sets_of_emotion_words_are_scored_on_every_wheel() -> None:
    found = values(utterances(), full)
    for name in ("emotion_set_precision", "emotion_set_recall", "emotion_set_f1"):
        assert found[name] == 1
    # of "sad and angry" half is right of the 12 sad and angry clips; no wheel has either beside the others
    found = values(utterances(), lambda u: "The speaker sounds sad and angry.")
    assert found["emotion_set_precision"] == pytest.approx(0.25)
    assert found["emotion_set_recall"] == pytest.approx(0.5)
    assert found["emotion_set_f1"] == pytest.approx(0.5 * 2 / 3)
    # nothing named: no precision, no recall
    found = values(utterances(), lambda u: "The speaker talks loudly.")
    assert found["emotion_set_precision"] is None and found["valence_flip_share"] is None
    assert found["emotion_set_recall"] == found["emotion_set_f1"] == 0


def test_flips_are_shares_of_clips_with_a_side_whose_caption_names_an_emotion() -> None:
    made = utterances()
    found = values(
        made, lambda u: "The speaker sounds furious." if u.emotion != "angry" else "Someone talks."
    )
    # of sad, happy and calm, happy and calm are pleasant, sad and calm are at rest
    assert found["valence_flip_share"] == pytest.approx(12 / 18)
    assert found["arousal_flip_share"] == pytest.approx(12 / 18)
    # neutral takes no side, nor do feelings that cancel out
    assert values(made, lambda u: "A neutral voice.")["valence_flip_share"] == 0
    assert values(made, lambda u: "He sounds sad and happy.")["valence_flip_share"] == 0
    renamed = values(made, lambda u: "She sounds furious.", label_map={"angry": "calm"})
    assert renamed["valence_flip_share"] == pytest.approx(12 / 24)
    for u in made:
        u.emotion = "surprised"
    found = values(made, lambda u: "The speaker sounds sad.")
    assert found["valence_flip_share"] is None and found["arousal_flip_share"] == 1


def test_a_line_up_of_ten_is_drawn_in_closed_form() -> None:
    # 24 clips, 6 a label: each own label ties with 5 others; by hand over how many of them are drawn
    ties = [comb(5, j) * comb(18, 9 - j) / comb(23, 9) / (j + 1) for j in range(6)]
    assert sum(ties) == pytest.approx(found_among(0, 5, 23))
    made = utterances()
    found = values(made, lambda u: f"The speaker sounds {u.emotion}.")
    assert found["found_among_10"] == pytest.approx(sum(ties))
    assert values(made, lambda u: "A person is speaking.")["found_among_10"] == pytest.approx(0.1)
    # the wrong label: six fit better, so that none of them may be drawn, and 17 as badly
    wrong = {"angry": "sad", "sad": "angry", "happy": "calm", "calm": "happy"}
    found = values(made, lambda u: f"The speaker sounds {wrong[u.emotion or '']}.")
    assert found["found_among_10"] == pytest.approx(comb(17, 9) / comb(23, 9) / 10)


def test_a_line_up_is_graded_so_that_one_wrong_word_does_not_lose_the_clip() -> None:
    made = utterances()
    half = values(made, lambda u: f"The {'woman' if u.gender == 'female' else 'man'} sounds sad.")
    none = values(made, lambda u: f"The {'man' if u.gender == 'female' else 'woman'} sounds bored.")
    assert none["found_among_10"] < 0.1 < half["found_among_10"]


@pytest.mark.parametrize(("better", "tied"), [(0, 0), (0, 3), (2, 0), (2, 3), (5, 6), (11, 0), (0, 11)])
def test_the_closed_form_agrees_with_every_line_up_there_is(better: int, tied: int) -> None:
    others = ["better"] * better + ["tied"] * tied + ["worse"] * (11 - better - tied)
    line_ups = list(combinations(others, 3))
    chances = [0.0 if "better" in drawn else 1 / (1 + drawn.count("tied")) for drawn in line_ups]
    assert found_among(better, tied, 11, among=4) == pytest.approx(np.mean(chances))


def test_fewer_than_ten_clips_make_no_line_up() -> None:
    made = utterances()[:9]
    assert values(made, full)["found_among_10"] is None


def test_breaches_are_a_share_of_all_captions_and_counted_by_name() -> None:
    made = utterances()
    breach = ["What is this?", "I cannot hear the audio.", "", "Der Mann klingt sehr traurig."]
    captions = rows(made, lambda u: breach[int(u.id[1:])] if int(u.id[1:]) < 4 else full(u))
    result = evaluate_captions(captions, made, wordnet="none")
    assert result["instruction_breach_share"]["value"] == pytest.approx(4 / 24)
    counted = result["signature"]["breaches"]
    assert counted["question"] == counted["refusal"] == counted["empty"] == counted["language"] == 1


def test_leaks_are_counted_over_clips_with_transcript() -> None:
    made = utterances()
    for u in made[:12]:
        u.transcript = None
    assert values(made, lambda u: "He says that dogs are sitting there.")["transcript_leak_share"] == 1


def test_what_the_manifest_does_not_allow_is_absent_and_the_rest_stays() -> None:
    bare = utterances(cues=False, gender=False, transcript=False)
    found = values(bare, full)
    always = ["instruction_breach_share"]
    itself = ["contradiction_share", "repetition_share", "top_frame_share"]
    emotion = [name for name in MEASURES if name.startswith("emotion_set") or "flip" in name]
    assert [name for name in MEASURES if found[name] is not None] == [
        *emotion,
        *always,
        "rubric_score",
        *itself,
    ]
    for u in bare:
        u.emotion = None
        u.captions = ["Somebody speaks."]
    found = values(bare, full)
    assert [name for name in MEASURES if found[name] is not None] == always + itself
    table([System("bare", [score_rows(rows(bare, full), bare, wordnet="none")])])
    # nothing claimed: a share of nothing is no number
    silent = values(utterances(), lambda u: "Someone sounds sad.")
    assert silent["wrong_claim_share"] is None and silent["wrong_claims_per_caption"] == 0
    assert silent["wrong_gender_share"] is None


def test_clips_without_cues_count_in_no_share_of_claims() -> None:
    made = utterances()
    for u in made[1::2]:
        u.cues = {}
    measures = measure([full(u) for u in made], made)
    assert [m.right is None for m in measures] == [bool(i % 2) for i in range(24)]
    found = intervals(hallucination_statistics(measures), clusters_of(made))
    assert found["claims_per_caption"]["value"] == 1


def test_norms_and_others_are_those_of_the_whole_set_when_captions_are_missing() -> None:
    made = utterances()
    some = rows(made, full)[::5]
    found = evaluate_captions(some, made, wordnet="none", allow_missing=True)
    assert found["fit_share"]["value"] == pytest.approx(2 / 23)
    assert found["signature"]["clips_with_cues"] == len(some)


def test_chinese_captions_are_read_for_claims_and_gender() -> None:
    made = utterances()
    found = values(made, lambda u: "她听起来很悲伤，语速较快。")
    assert found["claims_per_caption"] == 1 and found["fit_share"] is not None
    assert found["wrong_gender_share"] == 0.5


def test_per_clip_measures_and_paired_comparison_agree() -> None:
    made = utterances()
    worse = lambda u: full(u).replace("softly", "loudly").replace("sad", "happy")  # noqa: E731
    first, second, none = (
        [score_rows(rows(made, caption), made, wordnet="none")]
        for caption in (worse, full, lambda u: "Someone.")
    )
    gaps = differences(first, second)
    a, b = (measure([c(u) for u in made], made) for c in (worse, full))
    for name, of in (
        ("wrong_claims_per_caption", lambda m: len(m.wrong)),
        ("rubric_score", lambda m: m.rubric),
        ("fit_share", lambda m: m.fit),
    ):
        assert gaps[name]["value"] == pytest.approx(np.mean([of(m) for m in b]) - np.mean([of(m) for m in a]))
        assert gaps[name]["low"] - 1e-9 <= gaps[name]["value"] <= gaps[name]["high"] + 1e-9
    assert gaps["wrong_claim_share"]["value"] < 0 < gaps["rubric_score"]["value"]
    assert (gaps["rubric_score"]["p"], gaps["rubric_score"]["units"]) == (None, 2)
    # what only one of the two can be scored on is left out
    silent = differences(none, second)
    assert "wrong_claim_share" not in silent and "claims_per_caption" in silent


def test_fluency_is_taken_up_when_given_and_a_measured_clip_knows_its_claims() -> None:
    made = utterances()
    captions = [full(u) for u in made]
    plain, bad = measure(captions, made), measure(captions, made, fluency=[-20.0] * 24)
    assert all(x.rubric > y.rubric for x, y in zip(plain, bad, strict=True))
    assert plain[0].right == ("effort forceful",) and plain[0].wrong == () and plain[0].generic is True


def test_the_report_shows_the_measures_and_says_what_they_mean(tmp_path: Path) -> None:
    made = utterances()
    system = System("sft", [score_rows(rows(made, full), made, wordnet="none")])
    assert set(SCORES) == set(system.cells)
    ps = {"rubric_score": {"p_holm": 0.012, "units": 24}, "fit_share": {"p_holm": None, "units": 2}}
    page = write_report(
        tmp_path,
        [system],
        made,
        differences={"a − b": {name: {"value": 1.0, "low": 0.5, "high": 1.5, **p} for name, p in ps.items()}},
    ).read_text(encoding="utf-8")
    assert "p 0.012 (holds)" in page and "no claim (2 speakers)" in page
    assert "Emotion words, set F1" in page and "Clip found among ten" in page
    assert "Wrong acoustic claims, share" in page and "the measured audio does not bear out" in page
    assert "0.0 % of acoustic claims are wrong" in page and "<td>Rubric (0 to 10)</td>" in page
    bare = utterances(cues=False, gender=False, transcript=False)
    system = System("sft", [score_rows(rows(bare, full), bare, wordnet="none")])
    page = write_report(tmp_path / "bare", [system], bare).read_text(encoding="utf-8")
    assert "does not bear out" not in page

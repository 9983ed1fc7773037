"""`aligncap people`: planted voices and made words, and what is refused."""

import json

import numpy as np
import pytest
import soundfile as sf

from aligncap.cli import main
from aligncap.data.manifest import Utterance, write_manifest
from aligncap.evaluation.people import PeopleConfig, auc, claimed, majority, people, votes_of
from aligncap.utils.errors import UserError
from aligncap.utils.io import load_data, write_jsonl

PAIR = {"first": ["lively"], "second": ["calm"]}
GRADES = {"very": 3, "slightly": 1}


def voice(*words):
    return {f"df{i}": list(said) for i, said in enumerate(words, 1)}


def made(tmp_path, *, speakers=24, clips=1, **changes):
    """Women at 210 Hz whom all three call feminine, men at 110 Hz; loudness of voice has no words."""
    rng, utterances = np.random.default_rng(0), []
    for number in range(speakers):
        woman = number % 2 == 0
        words = "feminine" if woman else "masculine"
        for clip in range(clips):
            hertz = (210 if woman else 110) + rng.normal(0, 5)
            cues = {"f0_median_hz": hertz, "effort_db": rng.normal(-12, 3), "duration_s": 2.0}
            extra = {"voice": voice([f"very {words}"], [words, "elegant"], [])}
            utterances.append(
                Utterance(f"{number}-{clip}", ".", f"{number}.wav", "made", speaker=str(number), extra=extra)
            )
            utterances[-1].cues = cues
    for place, change in changes.pop("edit", {}).items():
        for name, value in change.items():
            setattr(utterances[place], name, value)
    write_manifest(tmp_path / "m.jsonl", utterances)
    return str(tmp_path / "m.jsonl"), utterances


def test_a_vote_is_the_stronger_side_and_a_majority_needs_two():
    said = {"a": ["very calm", "slightly lively"], "b": ["calm", "lively"], "c": ["slightly lively", "old"]}
    votes = votes_of(said, PAIR, GRADES)
    assert votes == {"a": -2, "b": 0, "c": 1}
    assert [majority(votes, n) for n in (1, 2)] == [0, 0]
    assert majority({"a": -2, "b": -1, "c": 3}, 2) == -1
    assert majority({"a": 2, "b": 0, "c": 0}, 2) == 0 and majority({"a": 2, "b": 0}, 1) == 1


def test_auc_by_hand_ties_half():
    assert auc(np.array([3.0, 1.0, 1.0, 0.0]), np.array([1, 1, -1, -1])) == (1 + 1 + 0.5 + 1) / 4
    assert np.isnan(auc(np.array([1.0]), np.array([1])))


def test_planted_pitch_is_found_and_effort_is_not(tmp_path):
    manifest, _ = made(tmp_path)
    result = people(PeopleConfig(manifest))
    row = result["pairs"]["feminine/masculine"]
    assert (row["first"], row["second"], result["speakers"]) == (12, 12, 24)
    assert row["cues"]["f0_median_hz"]["value"] == 1 and row["people_accuracy"] == 1
    assert row["people"]["value"] == pytest.approx((1 + 1 + 0.5) / 3)  # the third is silent
    effort = row["cues"]["effort_db"]
    assert effort["low"] < 0.5 < effort["high"] and "duration_s" not in row["cues"]
    assert result["pairs"]["powerful/weak"]["cues"]["effort_db"]["value"] is None


def test_the_unit_is_the_speaker(tmp_path):
    once = people(PeopleConfig(made(tmp_path)[0]))
    _, utterances = made(tmp_path)
    more = [*utterances]
    for number, u in enumerate(utterances * 4):
        more.append(Utterance(f"again {number}", ".", u.audio, "made", speaker=u.speaker, extra=u.extra))
        more[-1].cues = u.cues
    write_manifest(tmp_path / "m.jsonl", more)
    again = people(PeopleConfig(str(tmp_path / "m.jsonl")))
    assert again["clips"] == 5 * once["clips"]
    a, b = (r["pairs"]["feminine/masculine"]["cues"]["effort_db"] for r in (once, again))
    assert a == pytest.approx(b)


def test_few_speakers_have_no_interval(tmp_path):
    row = people(PeopleConfig(made(tmp_path, speakers=10)[0]))["pairs"]["feminine/masculine"]
    assert row["cues"]["effort_db"]["value"] is not None and row["cues"]["effort_db"]["low"] is None


def test_claims_of_captions(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    manifest, utterances = made(tmp_path)
    texts = ["She sounds sad." if i % 2 == 0 else "He speaks in a low voice." for i in range(len(utterances))]
    texts[0] = "Somebody sounds sad."  # 11 of 12 women right, one tied with nobody
    rows = [{"id": u.id, "caption": text} for u, text in zip(utterances, texts)]
    write_jsonl(tmp_path / "c.jsonl", rows)
    assert main(["people", manifest, "--captions", f"{tmp_path}/c.jsonl", "--out", f"{tmp_path}/o.json"]) == 0
    assert "feminine/masculine" in capsys.readouterr().out
    row = json.loads((tmp_path / "o.json").read_text())["pairs"]["feminine/masculine"]
    assert row["claims"]["gender"]["value"] == 1 and row["claims"]["pitch"]["value"] == 1
    assert row["claims"]["rate"]["value"] == 0.5  # nobody claims one
    write_jsonl(tmp_path / "c.jsonl", [{**row, "caption": "She sounds sad."} for row in rows])
    blind = people(PeopleConfig(manifest, captions=f"{tmp_path}/c.jsonl"))["pairs"]["feminine/masculine"]
    assert blind["claims"]["gender"]["value"] == 0.5


def test_a_negated_claim_turns_round():
    assert claimed("He does not speak quickly.")["rate"] == -1
    assert claimed("A voice.") == dict.fromkeys(claimed("A voice."), 0.0)


def test_cues_are_measured_where_the_manifest_has_none(tmp_path):
    _, utterances = made(tmp_path, speakers=12)
    t = np.arange(16000) / 16000
    for u in utterances:
        hertz = u.cues["f0_median_hz"]
        u.cues = {}
        sf.write(
            tmp_path / u.audio, 0.1 * sum(np.sin(2 * np.pi * h * hertz * t) / h for h in (1, 2, 3)), 16000
        )
    write_manifest(tmp_path / "m.jsonl", utterances)
    row = people(PeopleConfig(str(tmp_path / "m.jsonl")))["pairs"]["feminine/masculine"]
    assert row["cues"]["f0_median_hz"]["value"] == 1
    (tmp_path / "3.wav").unlink()
    with pytest.raises(UserError, match="3.wav"):
        people(PeopleConfig(str(tmp_path / "m.jsonl")))


@pytest.mark.parametrize(
    "edit, message",
    [
        ({i: {"extra": {}} for i in range(24)}, "no clip has people's words"),
        ({1: {"extra": {"voice": ["calm"]}}}, r"1-0: extra.voice is to be"),
        ({1: {"extra": {"voice": {"a": "calm"}}}}, r"1-0: extra.voice is to be"),
        ({1: {"speaker": "0"}}, "other words of speaker 0"),
    ],
)
def test_bad_words_are_refused(tmp_path, edit, message):
    with pytest.raises(UserError, match=message):
        people(PeopleConfig(made(tmp_path, edit=edit)[0]))


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no captions"),
        ([{"id": "0-0"}], 'c.jsonl:1: "id" and "caption"'),
        ([{"id": "x", "caption": "She is sad."}], "c.jsonl:1: id 'x' is none"),
    ],
)
def test_bad_captions_are_refused(tmp_path, rows, message):
    write_jsonl(tmp_path / "c.jsonl", rows)
    with pytest.raises(UserError, match=message):
        people(PeopleConfig(made(tmp_path)[0], captions=f"{tmp_path}/c.jsonl"))


def test_pairs_name_known_cues_and_dimensions():
    known = load_data("cues.yaml")["cues"].keys()
    for name, pair in load_data("people.yaml")["pairs"].items():
        assert pair["cue"] in known and pair["claim"] in claimed(""), name
        assert not set(pair["first"]) & set(pair["second"])

"""The diagnosis finds what is planted: verdicts differ between models and are right."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import planted_subjects as planted
import pytest
from planted_subjects import LABELS, SENTENCES, Planted, write_clips
from tiny import save_model

from aligncap.cli import main
from aligncap.lab import diagnose as module
from aligncap.lab.diagnose import DiagnoseConfig, diagnose, labelled_clips
from aligncap.lab.diagnose_numbers import word_numbers
from aligncap.lab.diagnose_report import write_report
from aligncap.lab.verdict import judge
from aligncap.utils.errors import UserError
from aligncap.utils.journal import Journal


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


def found(subject, manifest, parts=("prompts",), **options):
    config = DiagnoseConfig(model="m", manifest=str(manifest), out="x", parts=list(parts), **options)
    chosen, _ = labelled_clips(config)
    numbers, answers = diagnose(subject, chosen, config, Journal(None, {}))
    return numbers, judge(numbers), answers


def kinds(findings) -> list[str]:
    return [finding.kind for finding in findings]


@pytest.mark.parametrize(
    "say, verdict",
    [
        (planted.hearing, "hears"),
        (planted.always_neutral, "one_answer"),
        (planted.silently, "hears_silently"),
        (planted.template, "repeats"),
        (planted.nonsense, "no_label"),
        (planted.random_labels, "deaf"),
    ],
)
def test_verdicts_differ_and_are_right(clips, say, verdict):
    _, findings, _ = found(Planted(say), clips, ["none"])
    assert findings[0].kind == verdict


def test_a_model_that_hears_is_right_in_every_wording_and_unbiased(clips):
    numbers, findings, answers = found(Planted(planted.hearing), clips)
    assert [w["uar"]["value"] for w in numbers["wordings"].values()] == [1.0] * 5
    assert numbers["main"] == "choice, en" and numbers["neutral"] == "neutral"
    assert "no_bias" in kinds(findings) and "few_speakers" not in kinds(findings)
    assert numbers["prompts"]["unrelated_names_emotion"]["value"] == 0
    assert numbers["prompts"]["answers"]["unrelated"]["commonest"] == [{"answer": "paris", "count": 48}]
    assert numbers["prompts"]["leading_right"]["value"] == 1
    assert len([row for row in answers if row["asked"] == "choice, zh"]) == 48


def test_neutral_for_all_is_said_with_its_share(clips):
    numbers, findings, _ = found(Planted(planted.always_neutral), clips)
    bias = next(f for f in findings if f.kind == "bias")
    assert numbers["wordings"]["choice, en"]["bias"]["neutral"]["value"] == 0.75
    assert "leans to “neutral”" in bias.text and "angry, happy, sad" in " ".join(bias.evidence)
    assert "template" in kinds(findings)
    assert numbers["prompts"]["noise_same"]["value"] == 1
    assert "“neutral” whatever the voice" in findings[0].text


def test_what_silence_gives_is_taken_off_and_frees_what_is_known(clips):
    numbers, findings, _ = found(Planted(planted.silently), clips)
    known = numbers["wordings"]["choice, en"]["probabilities"]
    assert known["raw"]["uar"]["value"] == 0.25 and known["silence"]["uar"]["value"] == 1
    bias = next(f for f in findings if f.kind == "bias")
    assert "silence" in bias.text and "helps" in bias.text


def test_who_follows_the_question_is_told_from_who_hears(clips):
    numbers, findings, _ = found(Planted(planted.follows_the_question), clips)
    assert numbers["prompts"]["leading_suggested"]["value"] == 1
    assert numbers["prompts"]["plain_right"]["value"] == 1
    led = next(f for f in findings if f.kind == "leading")
    assert led.text.endswith("is followed.")


def test_faults_cost_what_a_model_hears_by(clips):
    numbers, findings, _ = found(Planted(planted.hearing), clips, ["faults"])
    faults = numbers["faults"]["faults"]
    change = {name: fault["change"]["uar"]["value"] for name, fault in faults.items()}
    assert change["slow"] <= -0.25 and change["interleaved"] <= -0.25  # pitch is what it hears by
    assert change["quiet"] == -0.75  # below -45 dBFS it says neutral
    assert change["clipped"] == change["padded"] == change["truncated"] == change["stereo"] == 0
    assert not numbers["faults"]["hop"] and "hop" not in faults
    lines = " ".join(next(f for f in findings if f.kind == "faults").evidence)
    assert "40 dB softer" in lines and "clipped" not in lines
    assert findings[0].kind == "hears" and all(row["ok"] for row in numbers["features"])


def test_faults_cost_nothing_of_a_model_that_does_not_hear(clips):
    numbers, findings, _ = found(Planted(planted.always_neutral), clips, ["faults"])
    assert {f["change"]["uar"]["value"] for f in numbers["faults"]["faults"].values()} == {0.0}
    assert "No fault" in next(f for f in findings if f.kind == "faults").text


def test_audio_of_a_wrong_rate_is_found_by_what_undoes_it(tmp_path):
    slow = write_clips(tmp_path, slowed=1.5)
    numbers, findings, _ = found(Planted(planted.hearing), slow, ["faults"])
    assert findings[0].kind == "wrong_rate"
    assert "24 kHz read as 16 kHz" in " ".join(findings[0].evidence)
    assert numbers["faults"]["faults"]["fast"]["uar"]["value"] == 1


def test_a_captioner_that_cannot_be_asked_is_read_by_what_its_descriptions_name(clips):
    subject = Planted(planted.hearing, can_be_asked=False)
    numbers, findings, _ = found(subject, clips, ["prompts", "faults", "words"])
    assert list(numbers["wordings"]) == ["own description"] and findings[0].kind == "hears"
    assert "no place for a question" in numbers["why_not_asked"] and "leading" not in kinds(findings)
    words = next(f for f in findings if f.kind == "words")
    assert "not known" in words.text and "cannot be asked" in words.text


def words_of(texts: list[str], number: int = 48):
    from aligncap.data.manifest import Utterance

    clips = [
        Utterance(
            str(i), ".", "x", "made", speaker=f"s{i % 12}", emotion="sad", transcript=SENTENCES[i // 12 % 2]
        )
        for i in range(number)
    ]
    return word_numbers([{"said": text} for text in texts], clips)


def test_who_writes_down_the_words_is_told_from_who_always_writes_the_same():
    right = words_of([SENTENCES[i // 12 % 2] for i in range(48)])
    canned = words_of([SENTENCES[0]] * 48)
    refused = words_of(["I'm sorry, I cannot listen to audio."] * 24 + ["sad"] * 24)
    assert right["transcribes"] and right["wer"]["value"] == 0
    assert right["wer_other"]["value"] == pytest.approx(2 / 6)
    assert canned["wer"]["value"] == pytest.approx(1 / 6) and not canned["transcribes"]
    assert canned["repeated"]["share"]["value"] == 1
    assert not refused["transcribes"] and refused["refusals"]["value"] == refused["emotions"]["value"] == 0.5


def test_what_was_asked_is_not_asked_again(clips, tmp_path):
    config = DiagnoseConfig(model="m", manifest=str(clips), out="x", parts=["prompts"], batch_size=4)
    chosen, _ = labelled_clips(config)

    class Killed(Planted):
        def ask(self, sounds, asked):
            if self.asked > 200:
                raise KeyboardInterrupt
            return super().ask(sounds, asked)

    journal = Journal(tmp_path / "d.json", {})
    with pytest.raises(KeyboardInterrupt):
        diagnose(Killed(planted.hearing), chosen, config, journal)
    journal.close(done=False)
    kept = len(Journal(tmp_path / "d.json", {}).rows)
    again = Planted(planted.hearing)
    numbers, _ = diagnose(again, chosen, config, Journal(tmp_path / "d.json", {}))
    whole = Planted(planted.hearing)
    assert numbers == diagnose(whole, chosen, config, Journal(None, {}))[0]
    assert kept and again.asked <= whole.asked - 6 * kept


def test_the_page_shows_verdict_pictures_and_every_part(clips, tmp_path):
    numbers, findings, _ = found(Planted(planted.silently), clips, ["prompts", "faults", "words"])
    rows = [
        {"id": "a/b", "truth": "sad", "target": "happy", "files": {"clean": "a_b-clean.wav", "30": "x.wav"}}
    ]
    rows[0]["levels"] = [
        {"snr_db": 30.0, "turned": True, "said": "happy", "margin": 1.0, "passes": 3, "audible": 0.1}
    ]
    level = {"snr_db": 30.0, "clips": 1, "turned": 1, "changed": 1, "wer": None, "audible": 0.1}
    defence = {"clean": 1, "clean_right": 1, "attacked": 1, "attacked_right": 0}
    numbers["attack"] = {
        "clips": 1,
        "levels": [level],
        "defences": {"8 kHz and noise": defence},
        "rows": rows,
        "counts": {"answered": 48, "right": 12, "words_right": None},
        "transfer": {"model": "<other>", "clips": 1, "turned": 0, "changed": 1},
    }
    page = write_report(tmp_path, numbers, judge(numbers)).read_text()
    assert "but its answers do not say it" in page and "&lt;other&gt;" in page and "<other>" not in page
    for name in ("confusion", "labels", "mass", "faults", "attack"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"{name}.png" in page
    assert json.loads(json.dumps(numbers)) == numbers


def test_the_command_writes_its_report_of_a_whole_model(tmp_path, manifest, capsys, monkeypatch):
    """Random weights: nothing is heard, nothing is attacked, and everything is written."""
    monkeypatch.setattr(module, "FEWEST", 8)
    save_model(tmp_path / "model")
    options = ["--limit", "8", "--subset", "4", "--batch_size", "4", "--samples", "1", "--language", "en"]
    words = ["lab", "diagnose", "--model", str(tmp_path / "model"), "--manifest", str(manifest)]
    assert main([*words, *options, "--out", str(tmp_path / "report")]) == 0
    content = json.loads((tmp_path / "report" / "diagnose.json").read_text())
    assert content["labels"] == ["angry", "calm"] and content["faults"]["hop"]
    assert set(content["faults"]["faults"]) >= {"slow", "fast", "hop"}
    assert content["verdict"][0]["text"] in capsys.readouterr().out
    assert {"report.html", "answers.jsonl", "run.json", "confusion.png"} <= {
        p.name for p in (tmp_path / "report").iterdir()
    }
    asked = (tmp_path / "report" / "asked.partial").read_text()
    assert main([*words, *options, "--out", str(tmp_path / "report")]) == 0  # nothing is asked again
    assert (tmp_path / "report" / "asked.partial").read_text().strip() == asked.strip()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"parts": ["word"]}, "parts=word: choose among prompts"),
        ({"faults": ["slwo"]}, "faults=slwo: choose among"),
        ({"snr": [20.0, 40.0]}, "from the softest"),
        ({"parts": ["words"], "transfer": "x"}, "only with the part attack"),
        ({"language": "de"}, "language='de': choose from en, zh, both"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DiagnoseConfig(**{"model": "m", "manifest": "m", "out": "o"} | options)


def test_clips_that_cannot_be_used_are_named(tmp_path):
    from aligncap.data.manifest import read_manifest, write_manifest

    manifest = write_clips(tmp_path, speakers=2)
    clips = read_manifest(manifest)
    write_manifest(manifest, [replace(u, emotion="sad") for u in clips])
    config = DiagnoseConfig(model="m", manifest=str(manifest), out="x")
    with pytest.raises(UserError, match="one label"):
        labelled_clips(config)
    write_manifest(manifest, clips[:4])
    with pytest.raises(UserError, match="4 clips have a label"):
        labelled_clips(config)
    write_manifest(manifest, clips)
    (tmp_path / clips[0].audio).unlink()
    with pytest.raises(UserError, match="no such file .clip 00-angry"):
        labelled_clips(config)


def test_labels_are_in_one_order():
    assert sorted(LABELS) == LABELS and np.isfinite(planted.EVEN).all()

"""Attacks on models: only of clips that were right; gradients to samples; defences and transfer counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import make_model, voice
from tiny_qwen2_audio import make_qwen2_audio

from aligncap.data.manifest import Utterance
from aligncap.lab import attack_clips as module
from aligncap.lab.asking import Asked, SpeechSubject
from aligncap.lab.attack import Bounds, pgd
from aligncap.lab.attack_clips import (
    DEFENCES,
    AttackOptions,
    aim_at,
    attack_clip,
    attack_numbers,
    attackable,
    transferred,
)
from aligncap.lab.diagnose_parts import Wording
from aligncap.lab.families import AlignCapSpeech, Qwen2AudioSpeech

ASKED = Wording("question", "en", "Kids are talking by the door")
CLIP = voice(0.4, 180)


@pytest.fixture(scope="module")
def subject() -> SpeechSubject:
    return SpeechSubject(AlignCapSpeech(*make_model()), ["angry", "calm"])


def utterance(name: str = "a", **more) -> Utterance:
    return Utterance(name, ".", "x", "made", emotion="angry", transcript="Kids are talking", **more)


def test_gradients_turn_the_logits_of_labels(subject):
    """The margin is that of the answer position, and an attack raises it from the clip's own."""
    clip = torch.from_numpy(CLIP)
    margins = {}
    for target in subject.labels:
        aim = aim_at(subject.model, subject.tokens, ASKED, target, None)
        margins[target] = aim(clip).margin.item()
    assert margins["angry"] == pytest.approx(-margins["calm"], abs=1e-5)
    weak = min(margins, key=lambda label: margins[label])
    aim = aim_at(subject.model, subject.tokens, ASKED, weak, ("Describe how the speaker sounds.", "Kids"))
    found = pgd(aim, clip, Bounds(snr_db=10), steps=6, price=0.1, confidence=np.inf)
    assert found.margin > margins[weak] + 1e-3 and found.snr_db >= 10 - 1e-3
    heard = subject.model.listen([clip + found.delta])
    scores = subject.model.run(subject.model.prefill(heard, [module.Question(ASKED.question)])).logits
    assert torch.isfinite(scores).all()


def test_a_clip_is_attacked_from_the_softest_level_and_what_turned_it_stays(subject, monkeypatch):
    said = iter(["angry", "calm"])
    monkeypatch.setattr(module, "answers", lambda *_: [next(said)])
    options = AttackOptions(snrs=(40.0, 30.0, 20.0), steps=1)
    row, heard = attack_clip(subject, utterance(), CLIP, ASKED, "calm", options, written="kids are talking")
    assert [level["turned"] for level in row["levels"]] == [False, True, True]
    assert row["levels"][2]["passes"] == 0 and np.array_equal(heard[20.0], heard[30.0])
    assert all(level["wer"] >= 0 for level in row["levels"])
    assert np.sum((heard[40.0] - CLIP) ** 2) <= np.sum(CLIP**2) * 1e-4 * 1.01


def test_only_clips_whose_answer_and_words_were_right_are_attacked():
    clips = [utterance(name) for name in "abcd"]
    said = ["angry", "calm", "angry", "angry"]
    chosen, counts = attackable(clips, said, None, 2)
    assert len(chosen) == 2 and {u.id for u in chosen} < {"a", "c", "d"}
    chosen, counts = attackable(clips, said, None, 9)
    assert (
        [u.id for u in chosen] == ["a", "c", "d"] and counts["right"] == 3 and counts["words_right"] is None
    )
    words = {"a": "kids are walking about", "c": "Kids are talking.", "d": "kids are talking"}
    chosen, counts = attackable(clips, said, words, 5)
    assert [u.id for u in chosen] == ["c", "d"] and counts["words_right"] == 2


def level(turned: bool, said: str, **more):
    return {"snr_db": 30.0, "turned": turned, "said": said, "audible": 0.5, **more}


def test_successes_and_defences_are_counted_by_hand():
    defended = dict(zip(DEFENCES, ("sad", "happy")))
    rows = [
        {"truth": "sad", "target": "happy", "levels": [level(True, "happy", wer=0.5)]},
        {"truth": "sad", "target": "calm", "levels": [level(False, "angry", wer=0.0)]},
        {"truth": "sad", "target": "calm", "levels": [level(False, "sad", wer=0.1)]},
    ]
    for row in rows:
        row |= {"clean_defended": defended, "attacked_defended": defended}
    found = attack_numbers(rows, AttackOptions(snrs=(30.0,)))
    assert found["levels"] == [
        {"snr_db": 30.0, "clips": 3, "turned": 1, "changed": 2, "wer": pytest.approx(0.2), "audible": 0.5}
    ]
    assert found["defences"][DEFENCES[0]] == {
        "clean": 3,
        "clean_right": 3,
        "attacked": 1,
        "attacked_right": 1,
    }
    assert found["defences"][DEFENCES[1]]["attacked_right"] == 0


def test_transfer_counts_only_clips_that_the_other_model_answers_rightly(tmp_path, monkeypatch):
    import soundfile

    for name in ("clean.wav", "hit.wav"):
        soundfile.write(tmp_path / name, CLIP, 16_000, subtype="FLOAT")
    files = {"clean": "clean.wav", "30": "hit.wav"}
    rows = [
        {"truth": "sad", "target": "happy", "files": files, "levels": [level(turned, "happy")]}
        for turned in (True, True, True, False)
    ]
    replies = iter([["sad", "happy"], ["angry", "happy"], ["sad", "calm"]])
    monkeypatch.setattr(module, "answers", lambda *_: next(replies))
    found = transferred(None, rows, ASKED, tmp_path, "other")
    assert found == {"model": "other", "clips": 2, "turned": 1, "changed": 2}


def test_qwen2_audio_is_asked_and_attacked_too():
    """Answers, drawn answers, label probabilities and gradients; its features take no other hop."""
    other = SpeechSubject(Qwen2AudioSpeech(*make_qwen2_audio()), ["angry", "calm"])
    replies = other.ask([CLIP, CLIP[:4000]], [Asked([None, ASKED.question], 3, samples=2)])
    assert [len(row[0].samples) for row in replies] == [2, 2] and np.isfinite(replies[0][0].scores).all()
    assert np.logaddexp.reduce(replies[0][0].scores) < 0
    found = pgd(
        aim_at(other.model, other.tokens, ASKED, "calm", None),
        torch.from_numpy(CLIP),
        Bounds(snr_db=20),
        steps=3,
        confidence=np.inf,
    )
    assert found.delta.abs().max() > 0
    assert other.with_hop(2 / 3) is None and other.features()[1] == 16


def test_a_model_with_log_mel_can_be_given_another_hop_and_gets_its_own_back(subject):
    asked = [Asked([None], 1)]
    usual = subject.ask([CLIP], asked)[0][0].scores
    with subject.with_hop(2 / 3):
        assert subject.features()[0].hop_length == 107
        other = subject.ask([np.pad(CLIP, (0, len(CLIP) // 2))], asked)[0][0].scores
    assert subject.features()[0].hop_length == 160
    assert not np.allclose(other, usual) and np.allclose(subject.ask([CLIP], asked)[0][0].scores, usual)

"""Where nobody speaks, the caption says so and the model is not asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from tiny import make_model, save_model, voice

from aligncap import Captioner
from aligncap.audio.speech import has_speech  # the real one: conftest puts another in its place
from aligncap.cli import main
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.text.emotions import emotion_of
from aligncap.utils.errors import UserError

SILENCE = np.zeros(16_000, dtype=np.float32)
HISS = (1e-3 * np.random.default_rng(1).standard_normal(16_000)).astype(np.float32)  # -60 dBFS
NOISE = (0.1 * np.random.default_rng(0).standard_normal(24_000)).astype(np.float32)

NO_SPEECH = "No speech is heard."


@pytest.fixture
def loud_is_speech(monkeypatch):
    """A gate whose verdicts are known: tones are speech, hiss is not; and what it was asked about."""
    asked = []

    def gate(samples):
        asked.append(len(samples))
        return float(np.abs(np.fft.rfft(samples)).max() / np.abs(np.fft.rfft(samples)).mean()) > 20

    monkeypatch.setattr("aligncap.audio.speech.has_speech", gate)
    return asked


@pytest.fixture
def folder(tmp_path):
    """Two voices and hiss between."""
    (tmp_path / "sounds").mkdir()
    for i, samples in enumerate((voice(0.5), HISS, voice(0.9, 200))):
        soundfile.write(tmp_path / f"sounds/c{i}.wav", samples, 16_000)
    return tmp_path / "sounds"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), max_response_tokens=5)


def test_silence_and_noise_do_not_reach_the_model(monkeypatch):
    monkeypatch.setattr("aligncap.audio.speech.has_speech", has_speech)
    monkeypatch.setattr(AlignCapForConditionalGeneration, "generate", lambda *_, **__: pytest.fail("asked"))
    captioner = Captioner(*make_model(), gate=True)
    assert captioner([SILENCE, NOISE]) == ["No speech is heard."] * 2
    assert captioner(SILENCE) == NO_SPEECH and emotion_of(NO_SPEECH) is None


def test_a_silent_clip_is_refused_or_with_the_gate_has_no_speech(model, folder, tmp_path, capsys):
    soundfile.write(folder / "c1.wav", SILENCE, 16_000)
    captioner = Captioner.from_pretrained(model, "cpu", gate=False)
    for clip in (SILENCE, folder / "c1.wav"):
        with pytest.raises(UserError, match="silent"):
            captioner([clip])
    captioner.gate = True
    clips = [voice(0.5), folder / "c1.wav", SILENCE]
    assert captioner(clips, speakers="s")[1:] == [NO_SPEECH] * 2
    words = ["caption", str(folder), "--model", str(model), "--out", str(tmp_path / "out.jsonl")]
    assert main(words) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[1])["speech"] is False
    assert main([*words, "--no-speech-gate"]) == main([*words, "--condition", "whisper"]) == 1
    assert capsys.readouterr().err.count("c1.wav: silent") == 2


def test_the_others_of_a_batch_are_captioned_in_their_order(loud_is_speech):
    pair = make_model(seed=3)
    clips = [voice(0.5), HISS, voice(0.9, 200)]
    open_, gated = Captioner(*pair), Captioner(*pair, gate=True)
    plain = open_(clips, max_new_tokens=6)
    assert not loud_is_speech
    assert gated(clips, max_new_tokens=6) == [plain[0], NO_SPEECH, plain[2]] != plain
    assert len(loud_is_speech) == 3


def test_a_model_of_a_folder_has_the_gate_unless_it_is_left_out(model):
    assert Captioner.from_pretrained(model, "cpu").gate
    assert not Captioner.from_pretrained(model, "cpu", gate=False).gate


def test_the_command_marks_rows_without_speech(model, folder, tmp_path, loud_is_speech):
    def rows(*words):
        out = tmp_path / "out.jsonl"
        assert main(["caption", str(folder), "--model", str(model), "--out", str(out), *words]) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    first, silent, last = rows()
    assert silent == {"id": "c1", "audio": silent["audio"], "caption": NO_SPEECH, "speech": False}
    assert "speech" not in first | last and NO_SPEECH not in (first["caption"], last["caption"])
    sure = rows("--confidence", "--min_confidence", "0.9")[1]
    assert sure == silent | {"emotion": None, "confidence": None}
    loud_is_speech.clear()
    plain = rows("--no-speech-gate")
    assert not loud_is_speech and plain[0] == first and plain[2] == last
    assert "speech" not in plain[1] and plain[1]["caption"] != NO_SPEECH


@pytest.mark.parametrize("condition", ["wrong", "silence", "noise", "whisper"])
def test_conditions_test_the_model_itself(condition, model, folder, tmp_path, loud_is_speech):
    out = tmp_path / "out.jsonl"
    words = ["caption", str(folder), "--model", str(model), "--out", str(out), "--condition", condition]
    assert main(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert not loud_is_speech and all("speech" not in row for row in rows)
    assert NO_SPEECH not in [row["caption"] for row in rows]


def test_candidates_are_the_model_s_own_unless_asked(model, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("aligncap.audio.speech.has_speech", lambda samples: len(samples) > 9_000)
    found = []
    for words in ([], ["--speech_gate"]):
        out = tmp_path / "c.jsonl"
        command = ["candidates", "--model", str(model), "--manifest", str(manifest), "--num", "2"]
        assert main([*command, "--out", str(out), "--max_new_tokens", "4", "--device", "cpu", *words]) == 0
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    silent = [row for row in found[1] if "speech" in row]
    assert {row["id"] for row in silent} == {"clip0"} and len(silent) == 2  # half a second
    assert all(row["caption"] == NO_SPEECH and row["speech"] is False for row in silent)
    assert found[0][2:] == found[1][2:] and found[0][:2] != found[1][:2]
    assert not any("speech" in row for row in found[0])

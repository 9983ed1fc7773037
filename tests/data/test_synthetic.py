from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aligncap.data.corpora import prepare
from aligncap.data.manifest import Utterance, read_manifest
from aligncap.data.synthetic.plan import MAX_SPEAKERS, SENTENCES, plan, voices
from aligncap.data.synthetic.speech import make_speech, shape
from aligncap.data.validate import validate
from aligncap.utils.errors import UserError
from aligncap.utils.io import load_data

EIGHT = {"neutral", "calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised"}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(
        tmp_path_factory.mktemp("synthetic") / "speech", speakers=2, clips_per_speaker=16, seed=3
    )


def mean_of(speech: Path, emotion: str, key: str) -> float:
    clips = [u for u in read_manifest(speech) if u.emotion == emotion]
    return float(np.mean([u.extra["parameters"][key] for u in clips]))


def clip_of(speech: Path, emotion: str) -> tuple[Utterance, np.ndarray, int]:
    u = next(u for u in read_manifest(speech) if u.emotion == emotion)
    samples, rate = soundfile.read(speech.parent / u.audio)
    return u, samples, rate


def test_synthetic_speech_is_a_valid_manifest_that_calls_itself_synthetic(speech: Path) -> None:
    clips = read_manifest(speech)
    assert validate(speech).errors == []
    assert len(clips) == 32
    assert all(u.extra["synthetic"] is True and u.corpus == "synthetic" for u in clips)
    assert {u.emotion for u in clips} == EIGHT <= set(load_data("labels.yaml")["labels"])
    assert {u.gender for u in clips} == {"male", "female"}
    assert all(u.transcript in SENTENCES for u in clips)


def test_clips_are_one_to_four_seconds_of_sound(speech: Path) -> None:
    for u in read_manifest(speech):
        samples, rate = soundfile.read(speech.parent / u.audio)
        assert 1.0 < len(samples) / rate < 4.0, u.id
        assert 0.005 < np.sqrt(np.mean(samples**2)) < 0.5, u.id


def test_sad_speech_is_slower_and_quieter_than_angry_speech(speech: Path) -> None:
    assert mean_of(speech, "sad", "words_per_minute") < 0.8 * mean_of(speech, "angry", "words_per_minute")
    levels = {e: np.sqrt(np.mean(clip_of(speech, e)[1] ** 2)) for e in ("sad", "angry")}
    assert levels["sad"] < 0.5 * levels["angry"]


def test_angry_speech_has_more_energy_above_one_kilohertz_than_sad_speech(speech: Path) -> None:
    def share_above(emotion: str) -> float:
        _, samples, rate = clip_of(speech, emotion)
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float(power[np.fft.rfftfreq(len(samples), 1 / rate) > 1000].sum() / power.sum())

    assert share_above("angry") > 2 * share_above("sad")


def test_the_seed_decides_every_byte(speech: Path, tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        files = (p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    again = make_speech(tmp_path / "again", speakers=2, clips_per_speaker=16, seed=3)
    assert digests(again.parent) == digests(speech.parent)
    assert plan(2, 16, 3) != plan(2, 16, 4)


def test_prepare_fills_an_absent_folder_once_and_then_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = partial(make_speech, speakers=2, clips_per_speaker=3)
    monkeypatch.setattr("aligncap.data.synthetic.speech.make_speech", fewer)
    report = prepare("synthetic", tmp_path / "speech", tmp_path / "m.jsonl")
    assert (report.clips, list(report.speakers)) == (6, ["synthetic-01", "synthetic-02"])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "speech").rglob("*.wav")}
    assert prepare("synthetic", tmp_path / "speech", tmp_path / "m.jsonl").clips == 6
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "speech").rglob("*.wav")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl", "speech"]


def test_a_folder_of_something_else_is_neither_read_nor_written(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not the synthetic corpus"):
        prepare("synthetic", tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(UserError, match="not an empty folder"):
        make_speech(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("speakers", "clips", "seed"), [(0, 1, 0), (MAX_SPEAKERS + 1, 1, 0), (1, 0, 0), (1, 1, -1)]
)
def test_impossible_numbers_are_refused(tmp_path: Path, speakers: int, clips: int, seed: int) -> None:
    with pytest.raises(UserError):
        make_speech(tmp_path / "speech", speakers, clips, seed)
    assert not list(tmp_path.iterdir())


def test_the_default_plan_is_balanced_and_its_sentences_tell_nothing() -> None:
    clips = plan(24, 25, 0)
    assert set(Counter(c.emotion for c in clips).values()) == {75}
    pairs = Counter((c.emotion, c.sentence) for c in clips)
    assert len(pairs) == len(EIGHT) * len(SENTENCES)
    assert max(pairs.values()) <= 16


def test_no_two_speakers_share_a_voice() -> None:
    assert len({v.name for v in voices(MAX_SPEAKERS, 0)}) == MAX_SPEAKERS


def test_shape_sets_the_level_and_tilts_about_one_kilohertz() -> None:
    rate = 22_050
    clip = replace(plan(1, 1, 0)[0], tremor=0.0, level_dbfs=-30.0, tilt_db=6.0)
    time = np.arange(rate) / rate
    both = np.sin(2 * np.pi * 500 * time) + np.sin(2 * np.pi * 2000 * time)
    out = shape(0.1 * both, rate, clip)
    assert 20 * np.log10(np.sqrt(np.mean(out**2))) == pytest.approx(-30.0, abs=0.01)
    spectrum = np.abs(np.fft.rfft(out))
    assert 20 * np.log10(spectrum[2000] / spectrum[500]) == pytest.approx(12.0, abs=0.1)  # two octaves


def test_tremor_shakes_the_amplitude() -> None:
    rate = 22_050
    base = replace(plan(1, 1, 0)[0], level_dbfs=-20.0, tilt_db=0.0)
    tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(rate) / rate)

    def unrest(tremor: float) -> float:
        out = shape(tone, rate, replace(base, tremor=tremor))
        frames = np.sqrt(np.mean(out[: rate - rate % 441].reshape(-1, 441) ** 2, axis=1))
        return float(np.std(frames) / np.mean(frames))

    assert unrest(0.0) < 0.05 < 0.15 < unrest(0.8)


SPEAK = """
import hashlib
import subprocess
import sys
import time
from aligncap.data.synthetic.speech import Espeak
said = Espeak()("Kids are talking by the door.", "en-us+f3", words_per_minute=150, pitch=50, pitch_range=50)
print(hashlib.sha256(said.tobytes()).hexdigest())
"""


def test_a_breathy_voice_is_the_same_in_every_run() -> None:
    """eSpeak seeds the noise in such voices by the time of day unless it is given a seed."""
    first = subprocess.run([sys.executable, "-c", SPEAK], capture_output=True, text=True, check=True).stdout
    time.sleep(1.1)
    assert subprocess.run([sys.executable, "-c", SPEAK], capture_output=True, text=True).stdout == first

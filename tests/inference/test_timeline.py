"""Emotion through long recordings: planted changes are found, none is invented, and nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import os

import numpy as np
import pytest
import soundfile
from tiny import save_model, voice

from aligncap.audio.activity import Segment
from aligncap.audio.files import load_audio
from aligncap.cli import main
from aligncap.inference.captioner import Captioner
from aligncap.inference.smoothing import likeliest_path, speakers_of, transition_f1
from aligncap.inference.timeline import CaptionReader, Options, assemble, make_timeline
from aligncap.inference.timeline_files import as_csv, clock, subtitles, timeline_picture, write_timeline
from aligncap.utils.errors import UserError
from aligncap.utils.journal import Journal

EMOTIONS = ("neutral", "angry", "sad")
PITCH = {"neutral": 120.0, "angry": 300.0, "sad": 200.0}


def loud(samples):
    """Probability of speech by level, a frame of 32 ms each, with the margins of the real network."""
    x = np.pad(samples, (8 * 512, 8 * 512 + -len(samples) % 512)).reshape(-1, 512)
    return (np.abs(x).mean(1) > 0.02).astype(np.float32) * 0.9


@pytest.fixture(autouse=True)
def tones_are_speech(monkeypatch):
    monkeypatch.setattr("aligncap.audio.speech.speech_probabilities", loud)


def pitch_of(clip: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(clip))
    return float(np.argmax(spectrum) * 16_000 / len(clip))


class Pitched:
    """Hears emotion in the pitch of a tone, the second speaker 450 Hz above; errs where `wrong` says so."""

    emotions = EMOTIONS

    def __init__(self, wrong=(), sure=0.8, stop_after=None):
        self.wrong, self.sure, self.stop_after = set(wrong), sure, stop_after
        self.read_clips, self.remembered = 0, 0

    def voices(self, clips):
        return np.array([[float(pitch_of(c) > 450), float(pitch_of(c) <= 450), 0.1] for c in clips])

    def read(self, clips, speakers):
        if self.stop_after is not None and self.read_clips >= self.stop_after:
            raise KeyboardInterrupt
        rows = []
        for clip in clips:
            heard = min(EMOTIONS, key=lambda e: abs(PITCH[e] - pitch_of(clip) % 450))
            if self.remembered + self.read_clips in self.wrong:
                heard = EMOTIONS[(EMOTIONS.index(heard) + 1) % 3]
            share = {e: self.sure if e == heard else (1 - self.sure) / 2 for e in EMOTIONS}
            rows.append({"caption": f"He sounds {heard}.", "named": heard, "probabilities": share})
            self.read_clips += 1
        return rows

    def remember(self, rows, speakers):
        self.remembered += len(rows)


def talk(path, plan, pause=1.0):
    """Utterances of 2.5 s, (emotion, number) by (emotion, number); returns the true change points."""
    parts, truth, length = [], [], 0.0
    for emotion, number in plan:
        if parts:
            truth.append(length - pause / 2)
        for i in range(number):
            parts += [voice(2.5, PITCH[emotion], seed=i), np.zeros(round(pause * 16_000), dtype=np.float32)]
            length += 2.5 + pause
    soundfile.write(path, np.concatenate(parts), 16_000)
    return truth


PLAN = [("neutral", 8), ("angry", 6), ("sad", 8), ("neutral", 6)]


def test_planted_changes_are_found_where_they_are(tmp_path):
    truth = talk(tmp_path / "a.wav", PLAN)
    found = make_timeline(tmp_path / "a.wav", Pitched())
    times = [change.time for change in found.changes]
    assert transition_f1(times, truth, within=0.6) == (1.0, 1.0, 1.0)
    assert [(c.before, c.after) for c in found.changes] == [
        ("neutral", "angry"),
        ("angry", "sad"),
        ("sad", "neutral"),
    ]
    assert [s.utterances for s in found.stretches] == [8, 6, 8, 6]
    angry = found.stretches[1]
    assert (angry.valence, angry.arousal) == pytest.approx((-0.72, 0.58), abs=0.011)  # of 0.1 0.8 0.1
    assert angry.caption == "He sounds angry."


def test_readings_that_are_wrong_alone_are_dropped_and_changes_kept(tmp_path):
    truth = talk(tmp_path / "a.wav", PLAN)
    found = make_timeline(tmp_path / "a.wav", Pitched(wrong=[2, 5, 11, 18, 25]))
    assert transition_f1([change.time for change in found.changes], truth)[2] == 1.0
    assert found.utterances[2].heard == "angry" and found.utterances[2].emotion == "neutral"
    assert found.stretches[0].caption == "He sounds neutral."


def test_no_change_is_invented_in_an_hour_of_one_emotion():
    rng = np.random.default_rng(0)
    wrong = rng.random(720) < 0.25  # a quarter is read as something else, anything else
    names = np.where(wrong, rng.choice(EMOTIONS[1:], 720), "neutral")
    rows = [
        {"caption": "", "probabilities": {e: 0.7 if e == name else 0.15 for e in EMOTIONS}} for name in names
    ]
    segments = [Segment(5.0 * i, 5.0 * i + 4) for i in range(720)]
    found = assemble(segments, [0] * 720, rows, EMOTIONS, 3600.0)
    assert found.changes == [] and len(found.stretches) == 1
    assert (
        found.summary == "48:00 of speech by one speaker in 1:00:00: neutral 100%. The voice stays neutral."
    )
    rows[300:] = [{"caption": "", "probabilities": {"angry": 0.7, "neutral": 0.3}}] * 420
    assert len(assemble(segments, [0] * 720, rows, EMOTIONS, 3600.0).changes) == 1


def test_the_path_worked_by_hand():
    # two states, trust 1: staying costs -log .9, moving -log .1 (dwell chosen so that exp(-1/dwell) = .9)
    shares = np.array([[0.8, 0.2], [0.3, 0.7], [0.8, 0.2]])
    times, dwell = np.array([0.0, 1.0, 2.0]), -1 / np.log(0.9)
    # 000: .8*.9*.3*.9*.8 = .156; 010: .8*.1*.7*.1*.8 = .0045; 011: .8*.1*.7*.9*.2 = .0101
    assert likeliest_path(shares, times, dwell, trust=1.0).tolist() == [0, 0, 0]
    # after a silence of an hour what was heard before says nothing: .5 either way
    assert likeliest_path(shares, times * 3600, dwell, trust=1.0).tolist() == [0, 1, 0]
    assert likeliest_path(np.zeros((0, 2)), np.zeros(0)).tolist() == []


def test_long_pauses_invent_no_change():
    shares = np.array([[0.97, 0.01, 0.01, 0.01]] * 12)
    for gap in (60.0, 300.0, 6000.0):
        assert likeliest_path(shares, np.arange(12) * gap).tolist() == [0] * 12


def test_what_could_not_be_read_has_no_place_between_calm_and_aroused():
    read = {"caption": "", "probabilities": {"angry": 1.0}}
    unread = {"caption": None, "probabilities": None, "error": "silent"}
    segments = [Segment(i, i + 1.0) for i in range(3)]
    found = assemble(segments, [0] * 3, [read, unread, read], EMOTIONS, 3.0)
    assert [u.valence is None for u in found.utterances] == [False, True, False]
    [stretch] = found.stretches
    assert (stretch.valence, stretch.arousal) == (found.utterances[0].valence, found.utterances[0].arousal)
    timeline_picture(found)
    nothing = assemble(segments, [0] * 3, [unread] * 3, EMOTIONS, 3.0)
    assert nothing.stretches[0].arousal is None and as_csv(nothing).count("\n") == 4
    timeline_picture(nothing)


def test_what_names_no_emotion_has_none():
    rows = [{"caption": "A man speaks.", "probabilities": None}] * 3
    found = assemble([Segment(i, i + 1.0) for i in range(3)], [0] * 3, rows, EMOTIONS, 3.0)
    assert {u.emotion for u in found.utterances} == {None} and not found.changes
    assert "No emotion is named." in found.summary
    timeline_picture(found)


def test_a_stopped_command_goes_on_and_reads_nothing_twice(tmp_path):
    talk(tmp_path / "a.wav", PLAN)
    options, whole = (
        Options(batch_size=5),
        make_timeline(tmp_path / "a.wav", Pitched(), Options(batch_size=5)),
    )
    journal = Journal(tmp_path / "timeline.json", {"of": 1})
    with pytest.raises(KeyboardInterrupt):
        make_timeline(tmp_path / "a.wav", Pitched(stop_after=10), options, journal)
    journal.close(done=False)
    second = Pitched()
    found = make_timeline(tmp_path / "a.wav", second, options, Journal(tmp_path / "timeline.json", {"of": 1}))
    assert found == whole
    assert (second.remembered, second.read_clips) == (10, 18)


def test_two_speakers_have_each_their_own_emotion(tmp_path):
    parts = []
    for turn in range(8):  # 1 stays neutral, 2 turns from neutral to angry at the fifth turn
        first, second = 120.0, 450 + (120.0 if turn < 4 else 300.0)
        for pitch in (first, second):
            parts += [voice(2.5, pitch), np.zeros(16_000, dtype=np.float32)]
    soundfile.write(tmp_path / "a.wav", np.concatenate(parts), 16_000)
    for number in (2, 0):
        found = make_timeline(tmp_path / "a.wav", Pitched(), Options(speakers=number))
        assert [u.speaker for u in found.utterances] == [1, 2] * 8
        (change,) = found.changes
        assert (change.speaker, change.before, change.after) == (2, "neutral", "angry")
        assert abs(change.time - (4 * 7 + 3.5)) < 1.0
        assert "It turns speaker 2 angry at 0:30." in found.summary


def test_one_voice_is_one_speaker():
    rng = np.random.default_rng(0)
    assert speakers_of(rng.standard_normal((40, 64)), 0).tolist() == [0] * 40
    two = np.concatenate([rng.standard_normal((20, 64)) + 3, rng.standard_normal((20, 64)) - 3])
    assert speakers_of(two, 0).tolist() == [0] * 20 + [1] * 20
    assert speakers_of(np.zeros((1, 4)), 2).tolist() == [0]


def test_change_points_pair_once():
    assert transition_f1([10.0, 10.5], [10.2], 1.0) == (0.5, 1.0, pytest.approx(2 / 3))
    assert transition_f1([], [], 1.0) == (1.0, 1.0, 1.0)
    assert transition_f1([5.0], [], 1.0)[2] == transition_f1([], [5.0], 1.0)[2] == 0.0


def hostile(caption):
    rows = [{"caption": caption, "named": "sad", "probabilities": {"sad": 0.7, "neutral": 0.3}}]
    return assemble([Segment(0.5, 2.25)], [0], rows, EMOTIONS, 3.0)


def test_captions_cannot_break_the_files():
    found = hostile('=HYPERLINK("x")\n\n00:00 --> 00:01 <script>alert(1)</script> $x$')
    srt, vtt = subtitles(found), subtitles(found, vtt=True)
    assert srt.count("-->") == vtt.count("-->") == 1
    assert srt.startswith("1\n00:00:00,500 --> 00:00:02,250\n[sad] ")
    assert vtt.startswith("WEBVTT\n\n1\n00:00:00.500") and "<script>" not in vtt and "&lt;script&gt;" in vtt
    (row,) = csv.DictReader(io.StringIO(as_csv(found)))
    assert row["caption"].startswith("'=") and row["emotion"] == "sad"
    assert timeline_picture(found).startswith(b"\x89PNG")


def test_all_files_are_written(tmp_path):
    write_timeline(tmp_path, hostile("He sounds sad."))
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {f"timeline.{ending}" for ending in ("json", "srt", "vtt", "csv", "png")}
    row = json.loads((tmp_path / "timeline.json").read_text())
    assert row["utterances"][0]["confidence"] == 0.7 and row["changes"] == []
    assert row["summary"].startswith("0:01 of speech by one speaker in 0:03: sad 100%.")
    assert clock(59.9) == "0:59"


def test_the_command_with_a_model(tmp_path, capsys):
    model = save_model(tmp_path / "model", max_response_tokens=4, emotions=["angry", "sad"])
    talk(tmp_path / "a.wav", [("neutral", 2), ("angry", 1)])
    words = ["timeline", str(tmp_path / "a.wav"), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main([*words, "--batch_size", "2", "--speakers", "2"]) == 0
    assert "3 utterances" in capsys.readouterr().out
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"timeline.json", "timeline.png", "run.json"} <= names and "timeline.json.partial" not in names
    first = (tmp_path / "out" / "timeline.json").read_text()
    assert main([*words, "--batch_size", "2", "--speakers", "2"]) == 0
    assert (tmp_path / "out" / "timeline.json").read_text() == first


def test_a_recording_without_speech_and_one_that_is_none(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(80_000, dtype=np.float32), 16_000)
    found = make_timeline(tmp_path / "a.wav", Pitched())
    assert found.summary == "No speech is heard in 0:05." and found.utterances == []
    timeline_picture(found)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    with pytest.raises(UserError, match="not a sound file"):
        make_timeline(tmp_path / "b.wav", Pitched())
    assert main(["timeline", "none.wav", "--model", "m", "--out", str(tmp_path / "o")]) == 2
    assert main(["timeline", "none.wav", "--model", "m", "--out", "o", "--shortest", "9"]) == 2
    assert "shortest" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.slow
def test_changes_in_real_speech(corpora, tmp_path, monkeypatch):
    """Clips of one speaker in a row, four emotions of six clips each."""
    model = os.environ.get("ALIGNCAP_MODEL")
    if not model:
        pytest.skip("no trained captioner: set ALIGNCAP_MODEL to a folder that was not trained on actor 1")
    monkeypatch.undo()
    parts, truth = [], []
    for code in ("05", "04", "03", "01"):  # angry, sad, happy, neutral
        clips = sorted((corpora / "ravdess" / "Actor_01").glob(f"03-01-{code}-*.flac"))[:6]
        truth.append(sum(map(len, parts)) / 16_000)
        parts += [load_audio(path, normalise=False) for path in clips]
    soundfile.write(tmp_path / "a.wav", np.concatenate(parts), 16_000)
    reader = CaptionReader(Captioner.from_pretrained(model, "cpu"))
    found = make_timeline(tmp_path / "a.wav", reader)
    assert transition_f1([change.time for change in found.changes], truth[1:])[2] >= 0.8
    soundfile.write(tmp_path / "b.wav", np.concatenate(parts[:6] * 2), 16_000)
    assert make_timeline(tmp_path / "b.wav", reader).changes == []

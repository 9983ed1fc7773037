"""The sense of voice: learns planted pitch, finds nothing where nothing is, reads clips alike in a batch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import voice

from aligncap.cli import main
from aligncap.senses.acrnn import FRAMES, Acrnn, Shape, log_mel, windows
from aligncap.senses.moments import SEVEN, Moment, read_moments
from aligncap.senses.sense import load_sense, read_scores
from aligncap.senses.voice import VoiceSense
from aligncap.senses.voice_training import VoiceConfig, kept_log_mels, train
from aligncap.utils.errors import UserError, UserErrors

PITCH = {"angry": 420.0, "sad": 90.0, "happy": 200.0}
SMALL = "--seed 1 --width 4 --hidden 8 --heads 2 --dropout 0 --mixup 0 --channels 0 --augment false".split()
SMALL += "--batch_size 6 --learning_rate 5e-3 --plateau 20".split()


def make_parts(folder: Path, shuffled: bool = False) -> list[str]:
    """Tones whose pitch is their emotion's, in three files by speaker; the flags that name them."""
    words = []
    for flag, part, count in (("manifest", "train", 30), ("dev", "dev", 12), ("test", "test", 12)):
        rows = []
        for i in range(count):
            emotion = list(PITCH)[i % 3]
            f0 = PITCH[emotion] * (1 + 0.02 * (i % 5 - 2))
            soundfile.write(folder / f"{part}{i}.wav", voice(0.5 + 0.1 * (i % 4), f0, seed=i), 16_000)
            told = list(PITCH)[(i * 7 // 3) % 3] if shuffled else emotion
            row = {
                "id": f"{part}{i}",
                "audio": f"{part}{i}.wav",
                "emotion": told,
                "speaker": f"{part}{i % 4}",
            }
            rows.append(row)
        path = folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        words += [f"--{flag}", str(path)]
    return words


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    return make_parts(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("voice")
    words = ["--out", str(out), "--cache_dir", str(out / "cache"), "--epochs", "12"]
    assert main(["senses", "voice", *files, *SMALL, *words]) == 0
    return out


def test_planted_pitch_is_learnt_and_all_is_written(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["test_macro_f1"]["value"] > 0.9
    assert metrics["test_uar"]["units"] == "4 speakers; fewer than 12: no claim"
    rows, scores = read_scores(trained / "scores" / "test.jsonl")
    assert len(rows) == 12 and np.allclose(scores.sum(1), 1, atol=1e-5)
    assert (trained / "confusion.png").stat().st_size > 1000
    assert json.loads((trained / "run.json").read_text())["seed"] == 1
    assert not (trained / "state.safetensors").exists()


def test_nothing_is_found_where_labels_are_shuffled(tmp_path):
    words = make_parts(tmp_path, shuffled=True)
    out = ["--out", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--epochs", "2"]
    assert main(["senses", "voice", *words, *SMALL, *out]) == 0
    value = json.loads((tmp_path / "out" / "metrics.json").read_text())["test_uar"]["value"]
    assert 0.1 < value < 0.7


def test_a_batch_is_read_as_single_clips_are(trained, files, tmp_path):
    sense = load_sense(trained)
    soundfile.write(tmp_path / "long.wav", voice(7.3, 200.0), 16_000)
    moments = [*read_moments(files[5])[:3], Moment("long", audio=str(tmp_path / "long.wav")), Moment("text")]
    together = sense.read(moments)
    for place, moment in enumerate(moments):
        alone = sense.read([moment])
        assert np.allclose(together.scores[place], alone.scores[0], atol=1e-5, equal_nan=True)
        assert torch.allclose(together.features[place], alone.features[0], atol=1e-4)
    assert np.isnan(together.scores[4]).all() and together.features[4].shape == (0, sense.width)
    # a state each 93 ms of the long clip, none of them twice: 7.3 s are 314 frames, 79 steps
    assert abs(len(together.features[3]) - 79) <= 3


def test_padding_is_not_heard():
    torch.manual_seed(0)
    model = Acrnn(Shape(4, 8, 2)).eval()
    cut = windows(log_mel(voice(1.0)))
    assert cut.mel.shape == (1, 128, FRAMES) and int(cut.frames) == 44  # 1 + 16,000 // 372
    with torch.no_grad():
        _, own = model.states(cut.mel, cut.frames)
        told = model(cut.mel, cut.frames)
        noisy = cut.mel.clone()
        noisy[:, :, 44:] = torch.randn(86)
        assert torch.equal(model(noisy, cut.frames), told)
    assert own.sum() == 11 and own[0, :11].all()  # of 33 steps


def test_a_window_has_130_frames_and_long_clips_are_cut_to_their_end():
    assert log_mel(np.zeros(48_000, np.float32)).shape == (128, 130)
    mel = torch.arange(300.0).expand(128, 300)
    cut = windows(mel)
    assert cut.mel[:, 0, 0].tolist() == [0, 65, 130, 170] and cut.mel[-1, 0, -1] == 299
    assert cut.repeated == [0, 65, 65, 90]


def test_a_tone_lies_in_its_band():
    mel = log_mel(np.sin(2 * np.pi * 1000 * np.arange(48_000) / 16_000).astype(np.float32))
    # up to 1 kHz the bands of the slaney scale are linear: 15 of 45.25 mels
    assert mel[:, 60].argmax() == pytest.approx(128 * 15 / 45.25, abs=1.5)


def options(files: list[str], out: Path, **more: object) -> VoiceConfig:
    small = {"width": 4, "hidden": 8, "heads": 2, "channels": 0, "batch_size": 15, "device": "cpu"}
    paths = {"manifest": files[1], "dev": files[3], "out": str(out), "cache_dir": str(out.parent / "cache")}
    return VoiceConfig(**paths, **small, **more)  # type: ignore[arg-type]


def history_of(config: VoiceConfig) -> list[dict[str, float]]:
    """Losses and scores of every epoch."""
    parts = {"train": read_moments(config.manifest), "dev": read_moments(config.dev)}
    run = train(config, parts, kept_log_mels(config, parts), Path(config.out), "cpu")
    return run.history


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not_and_seeds_count(files, tmp_path, monkeypatch):
    whole = history_of(options(files, tmp_path / "whole", epochs=2))
    assert whole != history_of(options(files, tmp_path / "other", epochs=2, seed=1))

    def until_one(epochs: range, *_: object) -> Iterator[int]:
        yield from [epoch for epoch in epochs if epoch < 2]

    with monkeypatch.context() as patch:
        patch.setattr("aligncap.senses.voice_training.track", until_one)
        assert history_of(options(files, tmp_path / "broken", epochs=2)) == whole[:1]
    assert (tmp_path / "broken" / "state.safetensors").is_file()
    # the state of other options is not taken up
    assert history_of(options(files, tmp_path / "broken", epochs=1, mixup=0.0))[0]["loss"] != whole[0]["loss"]
    with monkeypatch.context() as patch:
        patch.setattr("aligncap.senses.voice_training.track", until_one)
        history_of(options(files, tmp_path / "broken", epochs=2))
    assert history_of(options(files, tmp_path / "broken", epochs=2)) == whole


def test_the_grid_shows_what_diverged_and_goes_on(files, tmp_path, capsys):
    words = ["--learning_rates", "1e-3", "1e6", "--batch_sizes", "15", "--smoothings", "0"]
    words += ["--out", str(tmp_path / "grid"), "--cache_dir", str(tmp_path / "cache"), "--epochs", "2"]
    small = "--width 4 --hidden 8 --heads 2 --channels 0".split()
    command = ["senses", "voice-grid", *files[:4], *small, *words]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "diverged in epoch" in shown and "best: --learning_rate 0.001 --batch_size 15" in shown
    cells = json.loads((tmp_path / "grid" / "grid.json").read_text())["cells"]
    assert [cell["diverged"] for cell in cells] == [False, True]
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "grid").rglob("result.json")}
    assert len(times) == 2 and main(command) == 0
    assert times == {p: p.stat().st_mtime_ns for p in times}


def test_what_cannot_be_trained_on_is_told_at_once(files, tmp_path):
    for name, rows in {
        "train": [{"id": "a", "emotion": "sad", "audio": "gone.wav", "speaker": "s"}],
        "dev": [{"id": "a", "emotion": "angry", "audio": "gone.wav", "speaker": "s"}],
        "text": [{"id": "t", "emotion": "sad", "transcript": "words"}],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from aligncap.senses.outcome import read_parts

    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "dev", "text", "none")}
    with pytest.raises(UserErrors) as told:
        read_parts({"train": paths["train"], "dev": paths["text"], "test": paths["none"]}, "voice")
    assert "no moment with voice" in told.value.errors[0] and "no such file" in told.value.errors[1]
    with pytest.raises(UserErrors) as told:
        read_parts({"train": paths["train"], "dev": paths["dev"]}, "voice")
    said = str(told.value)
    assert "every moment is sad" in said and "angry: no example in" in said
    assert said.count("gone.wav: no such") == 2
    assert "share 1 id(s): a" in said and "share 1 speaker(s): s" in said
    with pytest.raises(UserErrors, match="heads=3: must divide twice --hidden, 256"):
        VoiceConfig(manifest="m", dev="d", out="o", heads=3)


def test_files_and_weights_that_cannot_be_read_are_told(trained, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    bad = [Moment("a", audio=str(tmp_path / "bad.wav")), Moment("b", audio=str(tmp_path / "gone.wav"))]
    with pytest.raises(UserErrors) as told:
        load_sense(trained).read(bad)
    assert len(told.value.errors) == 2
    (tmp_path / "sense.json").write_text((trained / "sense.json").read_text())
    with pytest.raises(UserError, match="no sense of voice that can be used"):
        load_sense(tmp_path)


def test_saved_is_loaded(tmp_path):
    torch.manual_seed(1)
    sense = VoiceSense(Acrnn(Shape(4, 8, 2)))
    sense.save(tmp_path, {"epoch": 1})
    soundfile.write(tmp_path / "a.wav", voice(0.8), 16_000)
    moments = [Moment("a", audio=str(tmp_path / "a.wav"))]
    again = load_sense(tmp_path)
    assert isinstance(again, VoiceSense) and again.width == 16 and again.kind == "voice"
    assert np.array_equal(again.read(moments).scores, sense.read(moments).scores)
    assert again.read(moments).scores.shape == (1, len(SEVEN))

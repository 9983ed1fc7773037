"""The examples run as they stand, on tiny parts; what a stranger adds stays short."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import save_model, voice

from aligncap.cli import main
from aligncap.data.corpora import registry
from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.models.checkpoints import load_folder
from aligncap.models.projectors import PROJECTORS
from aligncap.utils.io import read_jsonl

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["add_corpus", "add_projector"])
def test_what_a_stranger_adds_takes_fewer_than_forty_lines(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 40 + 5  # the docstring beside it


def test_train_from_python(parts, manifest, tmp_path, capsys):
    out = tmp_path / "run"
    example("train_from_python").main(
        str(manifest), str(out), [str(manifest.parent / "clip0.wav")], parts["encoder"], parts["llm"], steps=2
    )
    assert capsys.readouterr().out.strip()
    assert (out / "model" / "model.safetensors").is_file() and (out / "model" / "README.md").is_file()
    text = (EXAMPLES / "train_from_python.py").read_text()
    assert len(text[text.index("def main") :].splitlines()) <= 30


def test_add_a_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_corpora", dict(registry._corpora))
    path = tmp_path / "urdu" / "Angry" / "SM1_F12_A012.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, voice(0.5), 16_000)
    module = example("add_corpus")
    module.prepare("urdu", tmp_path / "urdu", tmp_path / "m.jsonl")
    (utterance,) = read_manifest(tmp_path / "m.jsonl")
    assert (utterance.emotion, utterance.gender, utterance.language) == ("angry", "male", "ur")
    assert utterance.speaker == "urdu-SM1"


def test_add_a_projector(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("aligncap.models.projectors.PROJECTORS", PROJECTORS)
    example("add_projector").main(str(tmp_path / "model"), parts["encoder"], parts["llm"])
    model, _ = load_folder(tmp_path / "model")
    assert type(model.model.multi_modal_projector).__name__ == "MeanProjector"
    PROJECTORS.pop("mean")


def test_look_at_a_language_model(parts, capsys):
    loss = example("add_llm").main(parts["llm"], "He sounds sad.", parts["encoder"])
    out = capsys.readouterr().out
    assert np.isfinite(loss) and "Voice: sad, soft." in out and "<|audio|>" in out


def test_a_stage_over_a_pool_gives_the_rows_of_one_command(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="pip install 'ray>=2.50'")
    save_model(tmp_path / "model", emotions=["angry", "sad"])
    rows = []
    for i in range(7):
        soundfile.write(tmp_path / f"c{i}.wav", voice(0.3 + 0.1 * i, seed=i), 16_000)
        rows.append(Utterance(id=f"c{i}", root=".", audio=f"c{i}.wav", corpus="made"))
    write_manifest(tmp_path / "m.jsonl", rows)
    shards = str(tmp_path / "shards")
    assert main(["shard", str(tmp_path / "m.jsonl"), "--out", shards, "--size", "40K"]) == 0
    stages = {
        "caption": ["caption", "--model", str(tmp_path / "model"), "--speech_gate", "false"],
        "candidates": ["candidates", "--model", str(tmp_path / "model"), "--num", "2"],
    }
    for name, argv in stages.items():
        one, pool = tmp_path / f"{name}.jsonl", str(tmp_path / f"pool-{name}.jsonl")
        words = [*argv, "--manifest", f"{shards}/m.jsonl", "--out", str(one)]
        assert main(words) == 0
        example("ray_stage").main(shards, pool, argv)
        assert len(list(Path(f"{pool}.parts").iterdir())) > 2
        told = ("id", "audio", "caption", "candidate", "seed")
        both = ([{k: row.get(k) for k in told} for row in read_jsonl(path)] for path in (one, pool))
        assert next(both) == next(both)

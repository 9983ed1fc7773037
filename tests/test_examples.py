"""The examples run as they stand, on tiny parts; what a stranger adds stays short."""

import http.client
import importlib.util
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import save_model, voice

from aligncap.data.corpora import registry
from aligncap.data.manifest import read_manifest
from aligncap.models.checkpoints import load_folder
from aligncap.models.projectors import PROJECTORS

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


def test_caption_in_a_service(tmp_path):
    save_model(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", voice(0.6), 16_000)
    server = example("caption_service").server(str(tmp_path / "model"), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        for body, status, key in (
            ((tmp_path / "a.wav").read_bytes(), 200, "caption"),
            (b"no sound", 400, "error"),
        ):
            client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            client.request("POST", "/", body)
            answer = client.getresponse()
            assert (answer.status, list(json.loads(answer.read()))) == (status, [key])
    finally:
        server.shutdown()
        server.server_close()

"""What a folder or a machine lacks is told in one line before weights are loaded; code is never run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tiny import make_tokenizer, save_model

from aligncap.inference.captioner import Captioner
from aligncap.models.build import build, load_encoder, load_llm
from aligncap.models.checkpoints import load_checkpoint
from aligncap.models.precision import dtype_name, pick_device
from aligncap.utils.errors import UserError

EVIL = "open({path!r}, 'w').write('ran')\n"


@pytest.fixture(autouse=True)
def no_questions(monkeypatch):
    """transformers asks on the terminal whether to run a folder's code; nobody may be asked."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))


def mark_with_code(folder: Path, ran: Path, file: str = "config.json", **more: object) -> None:
    """Make every Auto class of the folder point to code that leaves a trace when it runs."""
    (folder / "evil.py").write_text(EVIL.format(path=str(ran)))
    path = folder / file
    content = json.loads(path.read_text())
    autos = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoFeatureExtractor")
    content["auto_map"] = {name: "evil.Evil" for name in autos} | {
        "AutoTokenizer": ["evil.Evil", "evil.Evil"]
    }
    path.write_text(json.dumps(content | more))


@pytest.mark.parametrize("part", ["llm", "encoder"])
def test_code_in_a_known_models_folder_is_passed_over(parts, tmp_path, part):
    folders = {name: shutil.copytree(parts[name], tmp_path / name) for name in parts}
    files = ["config.json", "tokenizer_config.json" if part == "llm" else "preprocessor_config.json"]
    for file in files:
        mark_with_code(folders[part], tmp_path / "ran", file)
    build(str(folders["encoder"]), str(folders["llm"]), encoder_layer=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("load", [load_llm, load_encoder])
def test_an_architecture_that_only_its_own_code_knows_is_refused(parts, tmp_path, load):
    folder = shutil.copytree(parts["llm"], tmp_path / "llm")
    mark_with_code(folder, tmp_path / "ran", model_type="evil")
    (folder / "model.safetensors").write_text("never read")
    with pytest.raises(UserError, match="no architecture 'evil'.*never run; .*(llama|Whisper)") as caught:
        load(str(folder))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_tokenizer_that_only_its_own_code_knows_is_refused(parts, tmp_path):
    folder = shutil.copytree(parts["llm"], tmp_path / "llm")
    (folder / "tokenizer.json").unlink()
    mark_with_code(folder, tmp_path / "ran", "tokenizer_config.json", tokenizer_class="Evil")
    with pytest.raises(UserError, match="cannot be loaded as AutoTokenizer") as caught:
        load_llm(str(folder))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_code_in_a_checkpoints_folder_is_passed_over(tmp_path):
    folder = save_model(tmp_path / "model")
    for file in ("config.json", "processor_config.json", "tokenizer_config.json"):
        mark_with_code(folder, tmp_path / "ran", file)
    Captioner.from_pretrained(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_around_an_unknown_language_model_is_one_line(tmp_path):
    folder = save_model(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    content["text_config"] |= {"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be loaded as AlignCapForConditionalGeneration") as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def tiny_qwen2_audio() -> transformers.Qwen2AudioConfig:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.Qwen2AudioConfig(text_config={"model_type": "qwen2", **text})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (tiny_qwen2_audio, "qwen2_audio"),
        (transformers.T5Config, "t5"),
        (transformers.Gemma3Config, "gemma3"),
        (transformers.WhisperConfig, "whisper"),
    ],
)
def test_language_models_that_are_not_text_alone_are_refused_before_weights(make, name, tmp_path):
    make().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("never read")
    with pytest.raises(UserError, match=f"model_type is '{name}'; .*such as llama, qwen2"):
        load_llm(str(tmp_path))


@pytest.mark.parametrize("make", [transformers.EncodecConfig, transformers.LlamaConfig])
def test_what_is_no_speech_encoder_is_refused_before_weights(make, tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("never read")
    with pytest.raises(UserError, match="is no known speech encoder; known are whisper"):
        load_encoder(str(tmp_path))


def test_damaged_weights_are_one_line(parts, tmp_path):
    folder = shutil.copytree(parts["llm"], tmp_path / "llm")
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(UserError, match="cannot be loaded as AutoModelForCausalLM"):
        load_llm(str(folder))


def test_pickled_weights_of_a_checkpoint_are_never_read(tmp_path):
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded as"):
        load_checkpoint(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        load_checkpoint(adapter)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "foo", "cuda:x", "mps"])
def test_a_device_that_is_unknown_or_absent_is_refused_before_anything_is_loaded(device, tmp_path):
    for call in (pick_device, lambda d: dtype_name("float32", d), lambda d: dtype_name("auto", d)):
        with pytest.raises(UserError, match=f"device '{device}': "):
            call(device)
    with pytest.raises(UserError, match=f"device '{device}': "):
        Captioner.from_pretrained(tmp_path / "there is none", device=device)


def test_the_device_is_chosen_where_none_is_named():
    assert pick_device("auto") == pick_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == "cpu"

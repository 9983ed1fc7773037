"""emotion2vec: it computes what FunASR's class computes, and of FunASR's folders nothing is run."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import voice

from aligncap.cli import main
from aligncap.models.build import load_encoder
from aligncap.models.configuration_emotion2vec import Emotion2vecConfig
from aligncap.models.feature_extraction_emotion2vec import Emotion2vecFeatureExtractor
from aligncap.models.funasr import convert, encoder_config
from aligncap.models.modeling_emotion2vec import Emotion2vecModel, alibi_slopes
from aligncap.utils.errors import UserError

CLIP = 0.02 * voice(1.31, 150)  # quiet: its variance is not far above the constant that is added to it
# config.yaml of the published base models, sizes made small; what a forward pass without training does not
# read is left out.
MODEL: dict[str, Any] = {
    "depth": 2,
    "num_heads": 3,
    "norm_eps": "1e-05",
    "norm_affine": True,
    "encoder_dropout": 0.1,
    "post_mlp_drop": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "layerdrop": 0.05,
    "embed_dim": 24,
    "mlp_ratio": 2.0,
    "layer_norm_first": False,
    "end_of_block_targets": True,  # published: False; then FunASR gives no state after a layer
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "clone_batch": 8,
    "normalize": True,
    "modalities": {
        "audio": {
            "type": "AUDIO",
            "prenet_depth": 2,
            "prenet_layerdrop": 0.05,
            "prenet_dropout": 0.1,
            "start_drop_path_rate": 0.0,
            "end_drop_path_rate": 0.0,
            "num_extra_tokens": 3,
            "init_extra_token_zero": True,
            "local_grad_mult": 1.0,
            "use_alibi_encoder": True,
            "alibi_scale": 1.0,
            "learned_alibi": False,
            "alibi_max_pos": None,
            "learned_alibi_scale": True,
            "learned_alibi_scale_per_head": True,
            "learned_alibi_scale_per_layer": False,
            "num_alibi_heads": 3,
            "model_depth": 2,
            "decoder": None,
            "extractor_mode": "layer_norm",
            "feature_encoder_spec": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] + [(8,2,2)]",
            "conv_pos_width": 24,
            "conv_pos_groups": 2,
            "conv_pos_depth": 2,
            "conv_pos_pre_ln": False,
        }
    },
}


def settings(**audio: Any) -> dict[str, Any]:
    """MODEL with other settings of its audio part."""
    return MODEL | {"modalities": {"audio": MODEL["modalities"]["audio"] | audio}}


def theirs(folder: Path, given: dict[str, Any], state: dict[str, Any]) -> Path:
    """A folder as FunASR fetches it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": "Emotion2vec", "model_conf": given}))
    torch.save(state, folder / "model.pt")
    return folder


def funasr_names(model: Emotion2vecModel, prenet: int) -> dict[str, torch.Tensor]:
    """The tensors of a model of ours under FunASR's names, the way back of `renamed`."""
    at, found = "modality_encoders.AUDIO.", dict[str, torch.Tensor]()
    names = {
        r"wave_layers\.(\d+)\.conv": at + r"local_encoder.conv_layers.\1.0",
        r"wave_layers\.(\d+)\.norm": at + r"local_encoder.conv_layers.\1.2.1",
        r"wave_norm": at + "project_features.1",
        r"projection": at + "project_features.2",
        r"norm": at + "context_encoder.norm",
        r"layers\.(\d+)\.attention_norm": r"blocks.\1.norm1",
        r"layers\.(\d+)\.final_norm": r"blocks.\1.norm2",
        r"layers\.(\d+)\.attention\.out_proj": r"blocks.\1.attn.proj",
        r"layers\.(\d+)\.(fc\d)": r"blocks.\1.mlp.\2",
    }
    state = model.state_dict()
    for name in ("extra_tokens", "alibi_scale"):
        found[at + name] = state.pop(name)
    for name, value in state.items():
        module, _, last = name.rpartition(".")
        if place := re.fullmatch(r"position_layers\.(\d+)\.conv", module):
            found[f"{at}relative_positional_encoder.{int(place[1]) + 1}.0.{last}"] = value
        elif whole := re.fullmatch(r"layers\.(\d+)\.attention\.([qkv])_proj", module):
            parts = [state[f"layers.{whole[1]}.attention.{part}_proj.{last}"] for part in "qkv"]
            found[f"blocks.{whole[1]}.attn.qkv.{last}"] = torch.cat(parts)
        else:
            new = next(m.expand(new) for old, new in names.items() if (m := re.fullmatch(old, module)))
            found[f"{new}.{last}"] = value

    def block(name: str) -> str:
        number = int(name.split(".")[1])
        rest = name.split(".", 2)[2]
        return (
            f"{at}context_encoder.blocks.{number}.{rest}"
            if number < prenet
            else f"blocks.{number - prenet}.{rest}"
        )

    return {block(name) if name.startswith("blocks.") else name: value for name, value in found.items()}


def random_model() -> Emotion2vecModel:
    torch.manual_seed(0)
    model = Emotion2vecModel(
        Emotion2vecConfig(
            hidden_size=24,
            num_hidden_layers=4,
            num_attention_heads=3,
            intermediate_size=48,
            conv_dim=[8] * 7,
            num_conv_pos_embeddings=2,
            conv_pos_kernel_size=12,
            num_conv_pos_embedding_groups=2,
            extra_tokens=3,
            alibi_scales=[1, 3],
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("by_layer", [False, True])
@torch.no_grad()
def test_it_computes_what_funasrs_class_computes(by_layer: bool, tmp_path: Path, capsys) -> None:
    pytest.importorskip("funasr", reason="FunASR, whose class is the reference, is not installed")
    reference = pytest.importorskip("funasr.models.emotion2vec.model", exc_type=ImportError).Emotion2vec
    given = settings(learned_alibi_scale_per_layer=by_layer)
    torch.manual_seed(0)
    stock = reference(model_conf=given | {"norm_eps": 1e-5}, vocab_size=9).eval()
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    audio = stock.modality_encoders["AUDIO"]
    scales = audio.alibi_scale
    scales.copy_(torch.linspace(-0.5, 4, scales.numel()).view_as(scales))  # negative ones count as 0
    folder = theirs(
        tmp_path / "funasr", given, {"model": {f"d2v_model.{n}": v for n, v in stock.state_dict().items()}}
    )
    assert main(["models", "convert", str(folder), "--out", str(tmp_path / "ours")]) == 0
    assert "left out 2 tensors of training or of a classifier, such as proj.weight" in capsys.readouterr().out
    model, extractor = load_encoder(str(tmp_path / "ours"))

    sound = torch.from_numpy(CLIP)[None]
    wave = torch.nn.functional.layer_norm(sound, sound.shape)
    read = torch.from_numpy(extractor(CLIP, sampling_rate=16_000)["input_values"][0])[None]
    torch.testing.assert_close(read, wave, atol=1e-5, rtol=1e-5)
    ours = model(read, output_hidden_states=True)
    whole = stock.extract_features(wave)
    after_prenet = audio(wave, None, False, False)["x"][:, 3:]
    close = {"atol": 1e-5, "rtol": 1e-4}
    assert ours.last_hidden_state.shape == whole["x"].shape and whole["x"].std() > 0.1
    torch.testing.assert_close(ours.last_hidden_state, whole["x"], **close)
    torch.testing.assert_close(ours.hidden_states[2], after_prenet, **close)
    for state, layer in zip(ours.hidden_states[3:], whole["layer_results"], strict=True):
        torch.testing.assert_close(state, layer[:, 3:], **close)


@torch.no_grad()
def test_a_folder_of_funasrs_is_converted_and_loads(tmp_path: Path) -> None:
    model = random_model()
    folder = theirs(tmp_path / "funasr", MODEL, {"model": funasr_names(model, prenet=2)})
    assert convert(folder, tmp_path / "ours") == []
    found, extractor = load_encoder(str(tmp_path / "ours"))
    assert {name for name in found.state_dict()} == {name for name in model.state_dict()}
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert type(extractor) is Emotion2vecFeatureExtractor
    files = {path.name for path in (tmp_path / "ours").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_published_sizes_are_the_default(tmp_path: Path) -> None:
    given = settings(
        prenet_depth=4,
        num_extra_tokens=10,
        num_alibi_heads=12,
        feature_encoder_spec="[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        conv_pos_width=95,
        conv_pos_groups=16,
        conv_pos_depth=5,
    )
    given |= {"depth": 8, "num_heads": 12, "embed_dim": 768, "mlp_ratio": 4.0}
    config, prenet = encoder_config(theirs(tmp_path / "base", given, {}) / "config.yaml")
    assert prenet == 4

    def plain(settings: Emotion2vecConfig) -> Any:
        return json.loads(json.dumps(settings.to_dict()))

    assert plain(config) == plain(Emotion2vecConfig())


def test_quiet_clips_are_scaled_as_by_a_layer_norm() -> None:
    clip = np.array([0.003, -0.001, 0.001, 0.001], dtype=np.float32)  # mean 0.001, variance 2e-6
    found = Emotion2vecFeatureExtractor(do_normalize=True)(clip, sampling_rate=16_000)["input_values"][0]
    np.testing.assert_allclose(found, [0.002 / 12e-6**0.5, -0.002 / 12e-6**0.5, 0, 0], rtol=1e-4, atol=1e-6)


def test_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(12)[8:] == alibi_slopes(16)[:8:2]


class Harm:
    def __reduce__(self) -> Any:
        return (print, ("it ran",))


def test_what_is_no_such_folder_is_refused_and_nothing_of_it_runs(tmp_path: Path, capsys) -> None:
    state = funasr_names(random_model(), prenet=2)
    folder = theirs(tmp_path / "a", MODEL, {"model": state})
    with pytest.raises(UserError, match="no config.json, but a config.yaml .*aligncap models convert"):
        load_encoder(str(folder))
    (folder / "more.pt").write_bytes(b"")
    with pytest.raises(UserError, match="2 .pt files, one is needed"):
        convert(folder, tmp_path / "out")
    with pytest.raises(UserError, match="is not empty"):
        convert(folder, folder)

    harmful = theirs(tmp_path / "b", MODEL, {})
    (harmful / "model.pt").write_bytes(pickle.dumps({"model": Harm()}, protocol=2))
    with pytest.raises(UserError, match="not read, since it holds more than tensors"):
        convert(harmful, tmp_path / "out")
    assert "it ran" not in capsys.readouterr().out
    state.pop("blocks.1.mlp.fc2.weight")
    with pytest.raises(UserError, match=r"1 tensors are missing .*layers\.3\.fc2\.weight"):
        convert(theirs(tmp_path / "c", MODEL, {"model": state}), tmp_path / "out")
    other = theirs(tmp_path / "d", settings(learned_alibi=True) | {"normalize": False}, {})
    with pytest.raises(UserError, match="normalize: False, not True; learned_alibi: True, not False"):
        convert(other, tmp_path / "out")
    (other / "config.yaml").write_text("model: Paraformer\n")
    with pytest.raises(UserError, match="no configuration of emotion2vec"):
        convert(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()

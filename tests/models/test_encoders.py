"""Every family of speech encoders: frames, batches, training, saving, resuming, captions."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_llm, make_tokenizer, make_whisper, voice

from aligncap.data.manifest import read_manifest
from aligncap.inference.captioner import Captioner
from aligncap.models.build import assemble, load_encoder
from aligncap.models.checkpoints import load_checkpoint, load_folder
from aligncap.models.configuration_emotion2vec import Emotion2vecConfig
from aligncap.models.encoders import FAMILIES, encode_frames
from aligncap.models.feature_extraction_emotion2vec import Emotion2vecFeatureExtractor
from aligncap.models.merge import merge
from aligncap.models.modeling_emotion2vec import Emotion2vecModel
from aligncap.training.distill import DistillConfig, run_distill
from aligncap.training.dpo import SpeechDPOConfig, run_dpo
from aligncap.training.sft import SpeechSFTConfig, run_sft
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_jsonl

CLIPS = [voice(1.31, 150), voice(0.7, 220), voice(0.5, 100)]  # none is a whole number of frames
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.3,
}
WAVE = SMALL | {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8}
NAMES = ["whisper", "qwen2_audio", *(name for name, f in FAMILIES.items() if f.reads != "log-mel")]


def save_encoder(name: str, folder: Path) -> str:
    """A tiny encoder with random weights and its feature extractor, as they lie on the hub."""
    import transformers as t

    torch.manual_seed(0)
    mel = t.WhisperFeatureExtractor()
    wave = t.Wav2Vec2FeatureExtractor(do_normalize=name in ("wavlm", "data2vec-audio"))
    layers = {"d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    model, extractor = {
        "whisper": lambda: (make_whisper(), mel),
        "qwen2_audio": lambda: (
            t.Qwen2AudioForConditionalGeneration(
                t.Qwen2AudioConfig(
                    audio_config=layers | {"model_type": "qwen2_audio_encoder", "num_mel_bins": 80},
                    text_config=make_llm(64).config.to_dict(),
                )
            ),
            mel,
        ),
        # One with the base models' group normalisation, one with the large models' layer normalisation.
        "wav2vec2": lambda: (t.Wav2Vec2Model(t.Wav2Vec2Config(**WAVE)), wave),
        "hubert": lambda: (
            t.HubertModel(t.HubertConfig(**WAVE, feat_extract_norm="layer", do_stable_layer_norm=True)),
            wave,
        ),
        "wavlm": lambda: (t.WavLMModel(t.WavLMConfig(**WAVE)), wave),
        "data2vec-audio": lambda: (t.Data2VecAudioModel(t.Data2VecAudioConfig(**WAVE)), wave),
        "emotion2vec": lambda: (
            Emotion2vecModel(
                Emotion2vecConfig(
                    **WAVE | {"num_conv_pos_embeddings": 2}, extra_tokens=3, alibi_scales=[3, 1]
                )
            ),
            Emotion2vecFeatureExtractor(do_normalize=True),
        ),
        "wav2vec2-bert": lambda: (
            t.Wav2Vec2BertModel(t.Wav2Vec2BertConfig(**SMALL, conv_depthwise_kernel_size=7)),
            t.SeamlessM4TFeatureExtractor(),
        ),
    }[name]()
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    save_encoder(request.param, folder / "encoder")
    return request.param, folder


@pytest.fixture(scope="module")
def parts(family: tuple[str, Path]):
    """The encoder, and a processor for it."""
    encoder, extractor = load_encoder(str(family[1] / "encoder"))
    tokenizer = make_tokenizer()
    return encoder, assemble(encoder, extractor, make_llm(len(tokenizer)), tokenizer, projector_hidden=24)[1]


@pytest.mark.parametrize("layer", ["last", "mix", 1])
@torch.no_grad()
def test_a_clip_has_its_frames_whatever_it_is_with(parts, layer) -> None:
    encoder, processor = parts
    read = processor.features(CLIPS)
    frames, mask = encode_frames(encoder, read["input_features"], read["input_features_mask"] > 0, layer)
    assert frames.shape[2:] == ((4, 16) if layer == "mix" else (16,))
    margin = round(processor.margin_seconds * 50)
    for row, clip in enumerate(CLIPS):
        one = processor.features([clip])
        alone, _ = encode_frames(encoder, one["input_features"], one["input_features_mask"] > 0, layer)
        own = math.ceil(len(clip) / 320)
        assert alone.shape[1] >= own + margin and mask[row].sum() == own + margin
        torch.testing.assert_close(frames[row, :own], alone[0, :own], atol=1e-5, rtol=1e-4)
        assert frames[row, :own].std() > 0.01


@torch.no_grad()
def test_a_lone_clip_is_encoded_as_by_transformers(family, parts) -> None:
    encoder, processor = parts
    if processor.family.reads == "log-mel":
        pytest.skip("the stock forward takes 30 s alone; tests of real models compare with it")
    read = processor.features(CLIPS[:1])
    frames, _ = encode_frames(encoder, read["input_features"], read["input_features_mask"] > 0, "mix")
    sound = np.pad(CLIPS[0], (0, 66 * 320 - len(CLIPS[0]) + processor.family.tail))
    if processor.family.reads == "waveform":
        read = processor.feature_extractor(CLIPS[0], sampling_rate=16_000, return_tensors="pt")
        sound = torch.nn.functional.pad(read["input_values"], (0, len(sound) - len(CLIPS[0])))
    else:
        read = processor.feature_extractor(sound, sampling_rate=16_000, return_tensors="pt")
        sound = read["input_features"]
    stock = encoder(sound, output_hidden_states=True)
    assert stock.last_hidden_state.shape == (1, 66, 16)
    torch.testing.assert_close(frames[0, :, -1], stock.last_hidden_state[0])
    for layer in range(3):
        torch.testing.assert_close(frames[0, :, layer], stock.hidden_states[layer][0])


def common(out: Path, **more):
    return {
        "output_dir": str(out),
        "max_steps": 2,
        "save_steps": 1,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "precision": "float32",
        "report_to": "none",
        "disable_tqdm": True,
        "cache_dir": str(out.parent / "cache"),
    } | more


def learnt_from(manifest: Path, family: Path, folder: Path) -> dict[str, str]:
    """Options of a run on the family's encoder and a tiny LLM, which is made in `folder`."""
    tokenizer = make_tokenizer()
    make_llm(len(tokenizer)).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return {"train_manifest": str(manifest), "encoder": str(family / "encoder"), "llm": str(folder / "llm")}


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_it_learns_goes_on_is_saved_and_captions(family, manifest: Path, tmp_path: Path) -> None:
    _, folder = family
    torch.manual_seed(1)
    data = learnt_from(manifest, folder, tmp_path)
    data |= {"projector_hidden": 24, "align_steps": 2, "feature_cache": "no"}
    run_distill(DistillConfig(**common(tmp_path / "distill", **data)))
    assert len(losses(tmp_path / "distill")) == 2

    shutil.copytree(tmp_path / "distill", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped/checkpoint-2")
    (tmp_path / "stopped/adapter_model.safetensors").unlink()
    run_distill(DistillConfig(**common(tmp_path / "stopped", **data, resume_from_checkpoint="true")))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "distill")
    first, second = (load_file(tmp_path / f"{n}/adapter_model.safetensors") for n in ("distill", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)

    merge(tmp_path / "distill", tmp_path / "start")
    pairs = [
        {"id": u.id, "manifest": os.path.relpath(manifest, tmp_path), "kind": "best-worst"}
        | {"chosen": u.captions[0], "rejected": "The voice."}
        for u in read_manifest(manifest)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    options = {"model": str(tmp_path / "start"), "train_pairs": str(tmp_path / "pairs.jsonl")}
    options |= {"eval_strategy": "no", "save_strategy": "no", "loss_type": ["sigmoid"], "loss_weights": None}
    run_dpo(SpeechDPOConfig(**common(tmp_path / "dpo", **options)))
    assert losses(tmp_path / "dpo")[0] == pytest.approx(0.6931, abs=1e-3)

    model, processor = load_folder(tmp_path / "start")
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    inputs = processor.captioning_inputs(CLIPS)
    with torch.no_grad():
        other, reader = load_folder(tmp_path / "again")
        assert torch.equal(other(**reader.captioning_inputs(CLIPS)).logits, model(**inputs).logits)
    captioner = Captioner(model.train(), processor)  # an encoder drops nothing even so
    model.model.language_model.eval()
    model.model.multi_modal_projector.eval()
    together = captioner(CLIPS, max_new_tokens=5)
    assert together == [captioner(clip, max_new_tokens=5) for clip in CLIPS]


def test_lora_in_the_encoder_learns_and_is_merged(family, manifest: Path, tmp_path: Path) -> None:
    name, folder = family
    data = learnt_from(manifest, folder, tmp_path)
    data |= {"projector_hidden": 24, "align_steps": 2, "encoder_lora": 2, "max_steps": 2}
    run_sft(SpeechSFTConfig(**common(tmp_path / "run", **data)))
    saved = load_file(tmp_path / "run/adapter_model.safetensors")
    ups = {key: value for key, value in saved.items() if "audio_tower" in key and "lora_B" in key}
    # B begins at zero: where no gradient comes, it stays there. The last layer's queries and keys of a mix of
    # layers get one through the last layer alone.
    assert ups and all(value.shape[1] == 2 and value.abs().max() > 0 for value in ups.values()), name
    adapted, _ = load_checkpoint(tmp_path / "run")
    whole, processor = load_folder(merge(tmp_path / "run", tmp_path / "merged"))
    inputs = processor.captioning_inputs(CLIPS)
    with torch.no_grad():
        assert torch.allclose(adapted(**inputs).logits, whole(**inputs).logits, atol=1e-3)


def test_the_last_layers_that_run_are_trained_in_full(family, manifest: Path, tmp_path: Path) -> None:
    """The second layer of three is the last that runs; LoRA changes the first, and nothing the third."""
    name, folder = family
    data = learnt_from(manifest, folder, tmp_path)
    data |= {"projector_hidden": 24, "align_steps": 2, "encoder_layer": "2"}
    data |= {"encoder_tuned": 1, "encoder_lora": 2, "encoder_learning_rate": 1e-3}
    run_sft(SpeechSFTConfig(**common(tmp_path / "run", **data)))
    base, _ = load_folder(tmp_path / "run/base")
    adapted, _ = load_checkpoint(tmp_path / "run")
    whole, processor = load_folder(merge(tmp_path / "run", tmp_path / "merged"))
    before, after = (model.model.audio_tower.state_dict() for model in (base, whole))
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    place = "layers" if hasattr(base.model.audio_tower, "layers") else "encoder.layers"
    # Softmax takes out what a bias of keys adds, so that it need not move.
    still = {key for key in before if key.startswith(f"{place}.1.") and key not in moved}
    assert all(key.endswith("k_proj.bias") for key in still), (name, still)
    assert any(key.startswith(f"{place}.0.") for key in moved)
    assert all(key.startswith((f"{place}.0.", f"{place}.1.")) for key in moved), name
    saved = load_file(tmp_path / "run/adapter_model.safetensors")
    assert not any("lora_" in key for key in saved if f"audio_tower.{place}.1." in key)
    inputs = processor.captioning_inputs(CLIPS)
    with torch.no_grad():
        assert torch.allclose(adapted(**inputs).logits, whole(**inputs).logits, atol=1e-3)


def test_what_is_no_encoder_of_16_khz_is_refused(tmp_path: Path) -> None:
    folder = Path(save_encoder("wav2vec2", tmp_path / "w"))
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"sampling_rate": 24_000}))
    with pytest.raises(UserError, match="reads 24000 Hz, clips have 16000 Hz"):
        load_encoder(str(folder))
    folder = Path(save_encoder("whisper", tmp_path / "m"))
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"hop_length": 107}))
    with pytest.raises(UserError, match="hop_length=107, 6.69 ms; 10 ms are needed"):
        load_encoder(str(folder))
    folder = Path(save_encoder("hubert", tmp_path / "h"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"conv_stride": [5, 2, 2, 2, 2, 2, 4]}))
    with pytest.raises(UserError, match="frames of another length than 20 ms"):
        load_encoder(str(folder))
    make_llm(64).save_pretrained(tmp_path / "llm")
    with pytest.raises(UserError, match="'llama' is no known speech encoder"):
        load_encoder(str(tmp_path / "llm"))

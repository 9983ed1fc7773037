"""Going on from a trained student: its projector and adapter learn on, on other clips or by another loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import voice
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligncap.data.manifest import read_manifest, write_manifest
from aligncap.data.provenance import read_provenance
from aligncap.inference.captioner import Captioner
from aligncap.models.checkpoints import llm_dtype, load_checkpoint, load_folder, load_for_inference
from aligncap.models.merge import merge
from aligncap.training.align import AlignConfig, run_align
from aligncap.training.distill import DistillConfig, run_distill
from aligncap.training.sft import SpeechSFTConfig, run_sft
from aligncap.utils.errors import UserError, UserErrors

CLIP = voice(0.9, 170)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "precision": "float32",
        "report_to": "none",
        "disable_tqdm": True,
        "lora_dropout": 0.0,
        "learning_rate": 0.01,
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="module")
def first(quiet, manifest: Path, parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student distilled for two steps."""
    out = tmp_path_factory.mktemp("first") / "run"
    shape = {"encoder_layer": "2", "projector_hidden": 24, "projector_dropout": 0.0, "align_steps": 2}
    data = {"train_manifest": str(manifest), "output_dir": str(out)}
    run_distill(DistillConfig(**quiet, **parts, **shape, **data))
    return out


@pytest.fixture(scope="module")
def other(manifest: Path) -> Path:
    """Half of the clips, as another corpus of other speakers."""
    clips = read_manifest(manifest)[:4]
    for u in clips:
        u.corpus, u.speaker, u.id = "other", f"other-{u.speaker}", f"o-{u.id}"
    return write_manifest(manifest.parent / "other.jsonl", clips) or manifest.parent / "other.jsonl"


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def logits(model, processor) -> torch.Tensor:
    with torch.no_grad():
        return model(**processor.captioning_inputs([CLIP])).logits


@pytest.mark.parametrize(("kind", "train"), [(SpeechSFTConfig, run_sft), (DistillConfig, run_distill)])
def test_a_run_begins_where_the_student_was(kind, train, first, other, quiet, tmp_path) -> None:
    """With no rate nothing moves: what comes out is the student that went in, adapter and all."""
    options = quiet | {"learning_rate": 1e-12, "projector_learning_rate": 1e-12, "weight_decay": 0.0}
    train(kind(**options, start=str(first), train_manifest=str(other), output_dir=str(tmp_path / "run")))
    before, after = (load_file(f / "adapter_model.safetensors") for f in (first, tmp_path / "run"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-7, rtol=0)
    assert any(tensor.abs().max() > 0 for name, tensor in after.items() if "lora_B" in name)
    wanted = logits(*load_checkpoint(first))
    torch.testing.assert_close(logits(*load_checkpoint(tmp_path / "run")), wanted, atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "run/align.jsonl").exists()


def test_it_learns_on_and_knows_what_all_of_it_was_trained_on(first, other, quiet, tmp_path) -> None:
    options = quiet | {"max_steps": 6, "train_manifest": str(other), "output_dir": str(tmp_path / "run")}
    run_sft(SpeechSFTConfig(**options, start=str(first)))
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
    heard, before = read_provenance(tmp_path / "run"), read_provenance(first)
    assert heard is not None and before is not None
    assert heard.corpora == before.corpora | {"other"} and heard.speakers > before.speakers
    assert Captioner.from_pretrained(tmp_path / "run", device="cpu")(CLIP, max_new_tokens=3)


def test_a_merged_student_goes_on_with_a_fresh_adapter(first, other, quiet, tmp_path) -> None:
    merged = merge(first, tmp_path / "merged")
    options = quiet | {"train_manifest": str(other), "output_dir": str(tmp_path / "run"), "lora_r": 4}
    run_sft(SpeechSFTConfig(**options, start=str(merged), max_response_tokens=40))
    base, processor = load_folder(tmp_path / "run/base")
    torch.testing.assert_close(logits(base, processor), logits(*load_folder(merged)))
    assert base.config.max_response_tokens == base.generation_config.max_new_tokens == 40


def test_a_stopped_run_goes_on_to_the_bit(first, other, quiet, tmp_path) -> None:
    options = quiet | {"start": str(first), "train_manifest": str(other), "max_steps": 4, "save_steps": 2}
    options |= {"save_strategy": "steps"}
    run_sft(SpeechSFTConfig(**options, output_dir=str(tmp_path / "whole")))
    run_sft(SpeechSFTConfig(**options, output_dir=str(tmp_path / "stopped")))
    for name in ("checkpoint-4/trainer_state.json", "adapter_model.safetensors"):
        (tmp_path / "stopped" / name).unlink()
    run_sft(SpeechSFTConfig(**options, output_dir=str(tmp_path / "stopped"), resume_from_checkpoint="true"))
    one, two = (load_file(tmp_path / f"{n}/adapter_model.safetensors") for n in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_projector_alone_is_aligned_on(first, other, quiet, tmp_path) -> None:
    own = {k: quiet[k] for k in ("cache_dir",)} | {"train_manifest": str(other)}
    run_align(AlignConfig(**own, start=str(first), align_steps=3, output_dir=str(tmp_path / "a")))
    assert len((tmp_path / "a/align.jsonl").read_text().splitlines()) == 3
    model, _ = load_folder(tmp_path / "a/base")
    before = load_file(first / "adapter_model.safetensors")
    key = "base_model.model.model.multi_modal_projector."
    found = model.model.multi_modal_projector.state_dict()
    assert torch.equal(found["feature_mean"], before[key + "feature_mean"])
    assert not torch.equal(found["linear_1.weight"], before[key + "linear_1.weight"])


def test_going_on_aligns_nothing_and_needs_no_acoustic_prompts(first, other, quiet, tmp_path) -> None:
    clips = read_manifest(other)
    for u in clips:
        u.p_act, u.clues = [], []
    write_manifest(other.parent / "bare.jsonl", clips)
    data = {"train_manifest": str(other.parent / "bare.jsonl"), "output_dir": str(tmp_path / "run")}
    assert run_sft(SpeechSFTConfig(**quiet, **data, start=str(first))) == 0


def test_what_does_not_fit_is_named_at_once(first, other, quiet, tmp_path) -> None:
    options = quiet | {"train_manifest": str(other), "output_dir": str(tmp_path / "run")}
    with pytest.raises(UserErrors, match="(?s)stack_size: with start it is .*projector: with start it is"):
        SpeechSFTConfig(**options, start=str(first), projector="conv", stack_size=2)
    with pytest.raises(UserErrors, match="start: nowhere: no such folder"):
        SpeechSFTConfig(**options, start="nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aligncap.training.align.cached_inputs", None)  # before anything long
        fresh = options | {"output_dir": str(tmp_path / "c"), "start": str(first)}
        for targets in ("q_proj,vproj", "mlp"):  # a block is no linear layer
            with pytest.raises(UserError, match="no such layers; choose from its linear layers"):
                run_sft(SpeechSFTConfig(**fresh, lora_targets=targets))
        with pytest.raises(UserError, match="lora_r: the adapter of .* has r=8, not 4; give the same"):
            run_sft(SpeechSFTConfig(**fresh, lora_r=4))
    with pytest.raises(UserError, match="no AlignCap checkpoint"):
        run_sft(SpeechSFTConfig(**options | {"output_dir": str(tmp_path / "b")}, start=str(tmp_path)))


@pytest.fixture(scope="module")
def tuning(quiet, manifest: Path, parts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a run that trains the last encoder layer that runs in full, and no LLM."""
    shape = {"encoder_layer": "2", "projector_hidden": 24, "projector_dropout": 0.0, "align_steps": 2}
    shape |= {"train_manifest": str(manifest), "output_dir": str(tmp_path_factory.mktemp("tuned") / "run")}
    shape |= {"encoder_tuned": 1, "encoder_learning_rate": 1e-3, "train_llm": False}
    return quiet | parts | shape | {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def tuned(tuning) -> Path:
    run_sft(SpeechSFTConfig(**tuning))
    return Path(tuning["output_dir"])


def test_layers_trained_in_full_go_on(tuned, other, quiet, tmp_path) -> None:
    base, processor = load_folder(tuned / "base")
    wanted = logits(*load_checkpoint(tuned))
    assert not torch.allclose(logits(base, processor), wanted, atol=1e-4)
    options = quiet | {"learning_rate": 1e-12, "projector_learning_rate": 1e-12, "weight_decay": 0.0}
    options |= {"train_manifest": str(other), "output_dir": str(tmp_path / "run"), "start": str(tuned)}
    run_distill(DistillConfig(**options, encoder_tuned=1, encoder_learning_rate=1e-12))
    torch.testing.assert_close(logits(*load_checkpoint(tmp_path / "run")), wanted, atol=1e-5, rtol=1e-5)
    options |= {"output_dir": str(tmp_path / "other"), "start": str(merge(tuned, tmp_path / "merged"))}
    run_sft(SpeechSFTConfig(**options))
    torch.testing.assert_close(logits(*load_checkpoint(tmp_path / "other")), wanted, atol=1e-5, rtol=1e-5)


def test_layers_trained_in_full_go_on_to_the_bit_after_a_stop(tuned, tuning, tmp_path) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(tuned, stopped)
    shutil.rmtree(stopped / "checkpoint-2")
    (stopped / "adapter_model.safetensors").unlink()
    run_sft(SpeechSFTConfig(**tuning | {"output_dir": str(stopped), "resume_from_checkpoint": "true"}))
    one, two = (load_file(f / "adapter_model.safetensors") for f in (tuned, stopped))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_layers_that_do_not_run_or_do_not_fit_are_refused(tuned, other, quiet, manifest, parts, tmp_path):
    options = quiet | {"train_manifest": str(other), "output_dir": str(tmp_path / "a")}
    with pytest.raises(UserError, match=r"encoder_tuned: .* trained layers audio_tower\.layers\.1, not none"):
        run_sft(SpeechSFTConfig(**options, start=str(tuned)))
    with pytest.raises(UserError, match="its encoder was trained too, .*align the merged model"):
        run_align(AlignConfig(start=str(tuned), train_manifest=str(other), output_dir=str(tmp_path / "b")))
    options |= parts | {"output_dir": str(tmp_path / "c"), "encoder_layer": "1"}
    with pytest.raises(UserError, match="encoder_tuned=2: .* encoder_layer=1 runs 1; choose up to 1"):
        run_sft(SpeechSFTConfig(**options, encoder_tuned=2))
    with pytest.raises(UserErrors, match="(?s)feature_cache=yes: .*encoder_learning_rate: has no effect"):
        SpeechSFTConfig(**options, encoder_lora=2, feature_cache="yes", encoder_learning_rate=0.1)


def test_small_steps_of_an_encoder_are_not_lost_in_half_precision(tuning, other, quiet, tmp_path) -> None:
    """Merged models are written in their LLM's precision; of an encoder nothing is lost, whoever goes on."""

    def exact(run: Path, merged: Path) -> Path:
        written = load_file(merge(run, merged) / "model.safetensors")
        assert written["model.language_model.embed_tokens.weight"].dtype == torch.bfloat16
        tower = load_for_inference(run)[0].model.audio_tower.state_dict()
        assert all(torch.equal(written[f"model.audio_tower.{n}"].float(), v) for n, v in tower.items())
        return merged

    AutoModelForCausalLM.from_pretrained(tuning["llm"], dtype=torch.bfloat16).save_pretrained(
        tmp_path / "llm"
    )
    AutoTokenizer.from_pretrained(tuning["llm"]).save_pretrained(tmp_path / "llm")
    small = tuning | {"llm": str(tmp_path / "llm"), "encoder_learning_rate": 1e-6, "save_strategy": "no"}
    run_sft(SpeechSFTConfig(**small | {"output_dir": str(tmp_path / "run")}))
    whole = exact(tmp_path / "run", tmp_path / "whole")
    saved = load_file(tmp_path / "run/adapter_model.safetensors")
    layers = {name: value for name, value in saved.items() if "audio_tower" in name}
    written = load_file(whole / "model.safetensors")
    assert layers
    assert all(torch.equal(written[n.removeprefix("base_model.model.")], v) for n, v in layers.items())
    assert llm_dtype(whole) == torch.bfloat16
    options = quiet | {"train_manifest": str(other), "output_dir": str(tmp_path / "on")}
    run_sft(SpeechSFTConfig(**options, start=str(whole)))
    exact(tmp_path / "on", tmp_path / "again")

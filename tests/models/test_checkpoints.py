"""A run's base names the models that it is made of, in place of a copy of their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aligncap.models.build import build
from aligncap.models.checkpoints import (
    PARTS,
    PROJECTOR,
    llm_dtype,
    load_checkpoint,
    load_folder,
    load_for_inference,
    model_key,
    save_base,
    save_whole,
)
from aligncap.utils.errors import UserError


@pytest.fixture
def own(tmp_path: Path, parts: dict[str, str]) -> dict[str, str]:
    """The tiny parts in folders of this test."""
    return {kind: str(shutil.copytree(parts[kind], tmp_path / kind)) for kind in ("encoder", "llm")}


@pytest.fixture
def base(tmp_path: Path, own: dict[str, str]) -> Path:
    torch.manual_seed(0)
    model, processor = build(own["encoder"], own["llm"], encoder_layer="mix", emotions=["joy", "anger"])
    folder = tmp_path / "run" / "base"
    processor.save_pretrained(folder)
    save_base(model, folder, **own)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    return folder


def test_a_base_gives_the_weights_and_logits_of_the_model_that_was_saved(base, tmp_path):
    named, whole = load_folder(base)[0], load_folder(tmp_path / "whole")[0]
    ours, theirs = named.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert named.config.to_dict().keys() == whole.config.to_dict().keys()
    assert named.generation_config.to_dict() == whole.generation_config.to_dict()
    ids = torch.arange(4)[None]
    assert torch.equal(named(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_a_base_holds_the_projector_alone(base, own):
    held = [path.name for path in base.glob("*.safetensors")]
    assert held == [PROJECTOR]
    assert all(name.count("lm_head") == 0 for name in load_file(base / PROJECTOR))
    assert json.loads((base / PARTS).read_text())["llm"]["folder"] == own["llm"]


def test_half_precision_is_that_of_a_whole_folder(base, tmp_path):
    ours, theirs = (load_folder(f, torch.bfloat16)[0].state_dict() for f in (base, tmp_path / "whole"))
    assert all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours
    )


def test_a_run_and_its_parts_can_be_moved_together_or_the_run_alone(base, tmp_path):
    state = load_folder(base)[0].state_dict()
    alone = shutil.copytree(base, tmp_path / "far" / "away" / "base")
    together = tmp_path / "other"
    for name in ("encoder", "llm", "run"):
        shutil.copytree(tmp_path / name, together / name)
    shutil.rmtree(tmp_path / "encoder")
    for folder in (alone, base):
        with pytest.raises(UserError, match=r"parts.json: its encoder, .*encoder, is gone; put it back"):
            load_folder(folder)
    moved = load_folder(together / "run" / "base")[0].state_dict()
    assert all(torch.equal(state[name], moved[name]) for name in state)


def test_a_part_with_other_weights_is_refused(base, own):
    path = Path(own["llm"]) / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, path, {"format": "pt"})
    with pytest.raises(UserError, match="its llm, .*, holds other weights than it was made with"):
        load_folder(base)


def test_the_key_of_a_checkpoint_changes_with_its_parts(base, own):
    before = model_key(base)
    path = Path(own["llm"]) / "model.safetensors"
    path.touch()
    assert model_key(base) != before
    assert str(path) in before


def test_a_base_can_stand_on_a_checkpoint_whose_adapter_is_folded_in(tmp_path, base):
    from peft import LoraConfig, get_peft_model

    model, processor = load_folder(base)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r"model\.language_model.*q_proj"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(base.parent)
    processor.save_pretrained(base.parent)
    merged, processor = load_for_inference(base.parent)
    second = tmp_path / "second" / "base"
    processor.save_pretrained(second)
    save_base(merged, second, student=base.parent)
    again = load_folder(second)[0].state_dict()
    assert all(torch.equal(again[name], value) for name, value in merged.state_dict().items())
    plain = load_checkpoint(base)[0].state_dict()
    assert any(not torch.equal(again[name], plain[name]) for name in plain if "q_proj" in name)


def test_merged_models_and_teachers_are_as_large_as_their_llm_was_published(tmp_path, own):
    """A bfloat16 LLM is not written in float32; tied weights stand once, the projector stays float32."""
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained(own["llm"], dtype=torch.bfloat16)
    llm.save_pretrained(own["llm"])
    assert llm_dtype(own["llm"]) == torch.bfloat16
    model, processor = build(own["encoder"], own["llm"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-4)  # as training leaves it: no number of bfloat16
    folder = tmp_path / "merged"
    processor.save_pretrained(folder)
    save_whole(model, folder, llm_dtype(own["llm"]))
    stored = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in stored) != model.config.tie_word_embeddings
    for name, tensor in stored.items():
        own = "projector" in name or "audio_tower" in name
        assert tensor.dtype == (torch.float32 if own else torch.bfloat16), name
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert llm_dtype(folder) == torch.bfloat16
    again = load_folder(folder)[0]
    for name, tensor in model.state_dict().items():
        found = again.state_dict()[name]
        assert found.dtype == tensor.dtype
        torch.testing.assert_close(found, tensor, atol=1e-2, rtol=1e-2)


def test_truth_values_of_an_old_checkpoint_do_not_tell_its_precision(tmp_path):
    save_file({"a.bias": torch.ones(1, dtype=torch.bool), "b": torch.ones(1)}, tmp_path / "model.safetensors")
    assert llm_dtype(tmp_path) == torch.float32


def test_an_encoder_takes_half_precision_where_that_loses_nothing(tmp_path, own):
    model, _ = build(own["encoder"], own["llm"])
    tower = dict(model.model.audio_tower.named_parameters())
    published, trained, *_ = [name for name, tensor in tower.items() if tensor.dim() == 2]
    with torch.no_grad():
        tower[published].copy_(tower[published].half())
        tower[trained].copy_(tower[trained].half()).add_(1e-6)
    save_whole(model, tmp_path / "merged", torch.bfloat16)
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    for name, dtype in ((published, torch.float16), (trained, torch.float32)):
        found = stored[f"model.audio_tower.{name}"]
        assert found.dtype == dtype and torch.equal(found.float(), tower[name])

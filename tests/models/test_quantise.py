"""A frozen LLM in 8 or 4 bits: what is computed stays near, adapters learn, and full weights are saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model
from torch import nn
from transformers import GPT2Config, GPT2Model

from aligncap.models import quantise as module
from aligncap.models.checkpoints import load_folder
from aligncap.models.merge import merge
from aligncap.models.quantise import quantise
from aligncap.training.distill import DistillConfig, run_distill
from aligncap.training.teacher import TeacherConfig, run_teacher
from aligncap.utils.errors import UserError, UserErrors

NEAR = {"int8": 0.02, "nf4": 0.12}  # relative error of one layer


@pytest.fixture
def bits() -> None:
    pytest.importorskip("bitsandbytes", reason="the extra aligncap[bits] is not installed")


def quiet(out: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "cache_dir": str(out.parent / "cache"),
    } | more


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_a_layer_computes_nearly_the_same_in_less_memory(weights, bits) -> None:
    model, _ = make_model()
    llm = model.model.language_model
    name = "layers.0.mlp.down_proj"
    plain = llm.get_submodule(name)
    before, size = plain.weight.detach().clone(), plain.weight.numel()
    torch.manual_seed(0)
    x = torch.randn(9, plain.in_features)
    wanted = x @ before.T
    quantise(model, llm, weights)
    held = llm.get_submodule(name)
    error = (held(x).float() - wanted).norm() / wanted.norm()
    assert 0 < error < NEAR[weights]
    assert held.weight.numel() * held.weight.element_size() == (size if weights == "int8" else size // 2)
    assert not [p for p in llm.parameters() if not p.is_floating_point() and p.requires_grad]
    assert isinstance(model.lm_head, nn.Linear) and model.lm_head.weight.is_floating_point()


@pytest.mark.parametrize(("weights", "precision"), [("nf4", "bfloat16"), ("int8", "float32")])
def test_a_student_learns_on_it_and_is_merged_onto_the_full_weights(
    weights, precision, bits, manifest: Path, parts: dict[str, str], tmp_path: Path
) -> None:
    shape = {"encoder_layer": "2", "projector_hidden": 24, "align_steps": 2, "precision": precision}
    for name in ("full", weights):
        out = tmp_path / name
        options = quiet(out, train_manifest=str(manifest), llm_weights=name, **shape, **parts)
        run_distill(DistillConfig(**options))
    losses = {
        name: [
            json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open() if '"loss"' in line
        ]
        for name in ("full", weights)
    }
    assert losses[weights] != losses["full"]
    assert losses[weights] == pytest.approx(losses["full"], rel=0.3)
    saved = load_file(tmp_path / weights / "adapter_model.safetensors")
    assert all(value.is_floating_point() for value in saved.values())
    assert any(value.abs().max() > 0 for key, value in saved.items() if "lora_B" in key)
    base, _ = load_folder(tmp_path / weights / "base")
    whole, _ = load_folder(merge(tmp_path / weights, tmp_path / "merged"))
    for model in (base, whole):
        assert all(p.is_floating_point() for p in model.parameters())


def test_a_teacher_learns_on_it_and_is_saved_whole(bits, manifest: Path, parts, tmp_path: Path) -> None:
    options = quiet(tmp_path / "run", train_manifest=str(manifest), llm=parts["llm"], llm_weights="nf4")
    del options["cache_dir"]
    run_teacher(TeacherConfig(**options))
    saved = load_file(tmp_path / "run/model.safetensors")
    assert all(value.dtype == torch.float32 for value in saved.values())


def test_a_model_without_plain_linear_layers_is_refused(bits) -> None:
    gpt2 = GPT2Model(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32, n_positions=16))
    with pytest.raises(UserError, match="gpt2 has no plain linear layers"):
        quantise(gpt2, gpt2, "nf4")


def test_without_bitsandbytes_the_extra_is_named(manifest: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(
        UserErrors, match=r"llm_weights=int8: needs bitsandbytes; pip install 'aligncap\[bits\]'"
    ):
        DistillConfig(**quiet(tmp_path / "run", train_manifest=str(manifest), llm_weights="int8"))

"""What only a GPU can tell: its precisions, kernels and shards give what float32 on the CPU gives.

scripts/gpu_check.sh runs these, or: python -m pytest -m gpu tests/gpu
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_trainer, voice

from aligncap.models.precision import autocast, suit_half
from aligncap.training.kernels import FLEX, attention, compile_layers
from aligncap.training.packing import language_model

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand"),
]
DPO = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
EXACT = {"lora_dropout": 0.0, "projector_dropout": 0.0}


@pytest.fixture()
def student(tmp_path):
    """A trainer on a student on the CPU, adapters away from zero, and a batch."""
    trainer, batch = make_trainer(tmp_path, EXACT | {"use_cpu": True}, projector_dropout=0.0)
    torch.manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return trainer, batch


def loss_and_gradient(trainer, model, batch, dtype=torch.float32, scale=1.0):
    """Of `model` where it is, as float32 on the CPU."""
    trainer.model = model.eval()
    device = next(model.parameters()).device
    moved = {name: value.to(device) for name, value in batch.items()}
    with autocast(device.type, dtype):
        loss = trainer.compute_loss(model, moved)
    (loss * scale).backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return loss.item(), gradient / scale


def turned(gradient, wanted):
    return float((gradient - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("dtype", "scale", "apart", "away"),
    [
        (torch.float32, 1.0, 1e-4, 1e-3),
        (torch.bfloat16, 1.0, 0.03, 0.25),
        (torch.float16, 2.0**10, 0.01, 0.05),
    ],
)
def test_each_precision_agrees_with_float32_on_the_cpu(dtype, scale, apart, away, student):
    trainer, batch = student
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU only emulates bfloat16, which is never chosen there")
    loss, gradient = loss_and_gradient(trainer, trainer.model, batch)
    model = copy.deepcopy(trainer.model).cuda()
    if dtype != torch.float32:
        suit_half(model, dtype)
    other, found = loss_and_gradient(trainer, model, batch, dtype, scale)
    assert other == pytest.approx(loss, rel=apart) and found.isfinite().all()
    assert turned(found, gradient) < away  # weights of a tiny random model are large


def test_compiled_layers_give_the_gradients_of_plain_ones(student):
    trainer, batch = student
    plain = trainer.model.cuda()
    compiled = copy.deepcopy(plain)
    compile_layers(language_model(compiled))
    (loss, gradient), (other, found) = (loss_and_gradient(trainer, m, batch) for m in (plain, compiled))
    assert other == pytest.approx(loss, rel=1e-4) and turned(found, gradient) < 1e-3


@DPO
@pytest.mark.parametrize("kind", ["sdpa", FLEX])
def test_shared_prefixes_give_what_plain_rows_give(kind, tmp_path):
    from test_shared_prefix import adapted, batch_of, scored

    model, processor = make_model(projector_dropout=0.0)
    batch = {name: value.cuda() for name, value in batch_of(processor).items()}
    model = adapted(model, tmp_path).cuda()
    plain, loss, gradients = scored(model, batch, False)
    with attention(language_model(model), kind):
        packed, other, found = scored(model, batch, True)
    torch.testing.assert_close(packed.log_probs, plain.log_probs, atol=1e-3, rtol=1e-4)
    assert other.item() == pytest.approx(loss.item(), abs=1e-4) and gradients.keys() == found.keys()
    whole, others = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, found))
    assert turned(others, whole) < 1e-3


def words_of(manifest, parts, out, **more):
    """A short distillation, as words of a command."""
    options = {
        **parts,
        "train_manifest": manifest,
        "output_dir": out,
        "cache_dir": out.parent / "cache",
        "encoder_layer": 2,
        "projector_hidden": 24,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "teacher_cache": "no",
        "align_steps": 2,
        "speaker_token": "false",
        "emotion_token": "false",
        **EXACT,
        **more,
    }
    return ["distill", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def launched(config, words, **variables):
    """`aligncap train` under accelerate's launcher, one process on one GPU; losses by step."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        ROOT / "configs/accelerate",
    ]
    command[-1] = f"{command[-1]}/{config}"
    command += ["--num_processes", "1", str(ROOT / "scripts/train.py"), *words]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0"} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    out = Path(words[words.index("--output_dir") + 1])
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_float16_trains_with_scaled_losses(manifest, parts, tmp_path):
    words = words_of(manifest, parts, tmp_path / "half", precision="float16")
    half = launched("gpu1.yaml", words)
    whole = launched("gpu1.yaml", words_of(manifest, parts, tmp_path / "whole", precision="float32"))
    assert half == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("config", ["fsdp2.yaml", "zero3.yaml"])
def test_weights_in_shards_train_save_and_load_on_one_device(config, manifest, parts, tmp_path):
    from aligncap.inference.captioner import Captioner

    if config.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    wanted = launched("gpu1.yaml", words_of(manifest, parts, tmp_path / "whole", precision="float32"))
    words = words_of(manifest, parts, tmp_path / "shards", precision="float32")
    assert launched(config, words) == pytest.approx(wanted, rel=1e-3)
    resumed = [*words, "--resume_from_checkpoint", str(tmp_path / "shards/checkpoint-2")]
    assert launched(config, resumed)[-1] == pytest.approx(wanted[-1], rel=1e-3)
    clip = next(Path(manifest).parent.glob("*.wav"))
    assert isinstance(Captioner.from_pretrained(tmp_path / "shards")(str(clip)), str)


def test_a_saved_model_loads_and_captions_alike_on_both_devices(tmp_path):
    from aligncap.inference.captioner import Captioner
    from aligncap.models.checkpoints import save_whole

    model, processor = make_model()
    processor.save_pretrained(tmp_path)
    save_whole(model.cuda(), tmp_path)
    clips = [voice(1.3), voice(0.5, 200)]
    written = {d: Captioner.from_pretrained(tmp_path, d)(clips) for d in ("cpu", "cuda")}
    assert written["cpu"] == written["cuda"]

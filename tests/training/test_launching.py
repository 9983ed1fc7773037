"""Launched by accelerate from configs/accelerate, distill and dpo give the losses of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from preferring import equal_adapters, log
from safetensors.torch import load_file
from tiny import make_model, voice

from aligncap.data.manifest import read_manifest
from aligncap.inference.captioner import Captioner
from aligncap.models.checkpoints import load_checkpoint, save_whole
from aligncap.training.distill import DistillConfig, run_distill
from aligncap.training.dpo import SpeechDPOConfig, run_dpo
from aligncap.utils.io import write_jsonl

ROOT = Path(__file__).resolve().parents[2]
SHARED = {
    "max_steps": 4,
    "logging_steps": 1,
    "save_steps": 2,
    "precision": "float32",
    "report_to": "none",
    "disable_tqdm": True,
    "lora_dropout": 0.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("launching")


@pytest.fixture(scope="module")
def distill(folder, manifest, parts) -> dict[str, Any]:
    """Two rates and a live teacher; eight clips a step; dev batches that two processes share unevenly."""
    exact = {"projector_dropout": 0.0, "speaker_dropout": 0.0, "teacher_cache": "no"}
    exact |= {"dev_manifest": str(manifest), "eval_steps": 2, "per_device_eval_batch_size": 3}
    return (
        SHARED
        | exact
        | parts
        | {
            "train_manifest": str(manifest),
            "encoder_layer": "2",
            "projector_hidden": 24,
            "cache_dir": str(folder / "cache"),
            "per_device_train_batch_size": 8,
        }
    )


@pytest.fixture(scope="module")
def dpo(folder, manifest) -> dict[str, Any]:
    """A live reference, and five dev clips, which two processes cannot share evenly; six pairs a step."""
    model, processor = make_model(projector_dropout=0.0)
    processor.save_pretrained(folder / "start")
    save_whole(model, folder / "start")
    clips = read_manifest(manifest)
    write_jsonl(
        folder / "pairs.jsonl",
        [
            {"id": u.id, "manifest": os.path.relpath(manifest, folder), "kind": "other-clip"}
            | {"chosen": u.captions[0], "rejected": rejected}
            for u in clips
            for rejected in ("The voice.", "He speaks.", "Fast.")
        ],
    )
    return SHARED | {
        "model": str(folder / "start"),
        "train_pairs": str(folder / "pairs.jsonl"),
        "dev_manifest": str(manifest),
        "dev_clips": 5,
        "eval_steps": 2,
        "cache_dir": str(folder / "cache"),
        "reference_cache": "no",
        "learning_rate": 1e-3,
        "loss_type": ["sigmoid"],
        "loss_weights": None,
        "per_device_train_batch_size": 6,
        "per_device_eval_batch_size": 1,
    }


@pytest.fixture(scope="module")
def alone(folder, distill, dpo) -> dict[str, Path]:
    """Both commands in this process."""
    out = {command: folder / f"alone-{command}" for command in ("distill", "dpo")}
    run_distill(DistillConfig(**distill, output_dir=str(out["distill"])))
    run_dpo(SpeechDPOConfig(**dpo, output_dir=str(out["dpo"])))
    return out


def launch(command: str, out: Path, options: dict[str, Any], config: str, *flags: str) -> None:
    """Run `command` in `out` as a user does, the batch divided among the processes."""
    processes = 1 if config == "cpu1" else 2
    share = options["per_device_train_batch_size"] // processes
    out.parent.mkdir(exist_ok=True)
    chosen = out.with_suffix(".json")  # JSON is YAML
    chosen.write_text(json.dumps(options | {"output_dir": str(out), "per_device_train_batch_size": share}))
    sharded = config == "fsdp2"
    script = ROOT / ("tests/training/shard_on_cpu.py" if sharded else "scripts/train.py")
    words = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / f"configs/accelerate/{config}.yaml")),
        *(("--num_processes", "2") if sharded else ()),
        *(str(script), command, "--config", str(chosen), "--use_cpu", "true", *flags),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "run.json").read_text())["processes"] == processes


@pytest.mark.slow
@pytest.mark.parametrize("command", ["distill", "dpo"])
@pytest.mark.parametrize("config", ["cpu1", "cpu2", "fsdp2"])
def test_the_losses_of_one_process(command, config, alone, folder, request):
    options = request.getfixturevalue(command)
    out = folder / f"{config}-{command}"
    launch(command, out, options, config)
    assert log(out) == pytest.approx(log(alone[command]), rel=1e-4)
    assert log(out, "eval_loss") == pytest.approx(log(alone[command], "eval_loss"), rel=1e-4)
    assert len(log(out, "eval_loss")) == (2 if command == "distill" else 0)
    assert log(out, "eval_rubric") == pytest.approx(log(alone[command], "eval_rubric"))
    assert len(log(out)) == 4 and len(log(out, "eval_rubric")) == (3 if command == "dpo" else 0)
    equal_adapters(alone[command], out, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_sharded_run_goes_on_to_the_bit_and_captions(alone, distill, folder):
    """Its checkpoint holds the projector too, which FSDP2 left out while peft had it frozen."""
    out = folder / "fsdp2-distill"
    if not out.is_dir():
        launch("distill", out, distill, "fsdp2")
    kept = load_file(out / "adapter_model.safetensors")
    for path in [*out.glob("adapter_model.safetensors"), *(out / "checkpoint-4").iterdir()]:
        path.unlink()
    (out / "checkpoint-4").rmdir()
    launch("distill", out, distill, "fsdp2", "--resume_from_checkpoint", "true")
    for name, value in load_file(out / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, kept[name], atol=0, rtol=0)
    clip = voice(0.6)
    assert Captioner(*load_checkpoint(out))(clip) == Captioner(*load_checkpoint(alone["distill"]))(clip)


@pytest.mark.slow
def test_a_sharded_run_in_bfloat16(distill, folder):
    """Its shards are bfloat16, its sums are not: the losses are near those of one process in bfloat16."""
    half = distill | {"precision": "bfloat16"}
    run_distill(DistillConfig(**half, output_dir=str(folder / "half")))
    launch("distill", folder / "fsdp2-half", half, "fsdp2")
    assert log(folder / "fsdp2-half") == pytest.approx(log(folder / "half"), rel=0.01)


@pytest.mark.slow
def test_a_sharded_run_reads_the_teacher_s_likeliest_tokens(distill, folder):
    """They were kept before the head was sharded, and training asks no head for the teacher's logits."""
    few = distill | {"teacher_cache": "auto", "teacher_top_k": 8}
    run_distill(DistillConfig(**few, output_dir=str(folder / "few")))
    launch("distill", folder / "fsdp2-few", few, "fsdp2")
    assert log(folder / "fsdp2-few") == pytest.approx(log(folder / "few"), rel=1e-4)
    coverage = [
        json.loads((folder / out / "run.json").read_text())["teacher_coverage"]
        for out in ("few", "fsdp2-few")
    ]
    assert coverage[0] == pytest.approx(coverage[1])

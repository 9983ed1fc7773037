"""Launched by accelerate from configs/accelerate, distill and dpo give the losses of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
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
HALF = {"precision": "bfloat16"}
FEW = {"teacher_cache": "auto", "teacher_top_k": 8}
TUNED = {"encoder_tuned": 1, "encoder_learning_rate": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("launching")


@pytest.fixture(scope="module")
def distill(folder, manifest, parts) -> dict[str, Any]:
    """Two rates and a live teacher; eight clips a step; dev batches that two processes share unevenly."""
    exact = {"projector_dropout": 0.0, "teacher_cache": "no"}
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
def buckets(distill, manifest) -> dict[str, Any]:
    """Batches of two or three of the sixteen rows; nine steps are three epochs of two processes."""
    return {key: value for key, value in distill.items() if key not in ("dev_manifest", "eval_steps")} | {
        "teacher_cache": "auto",
        "tokens_per_batch": 200,
        "max_steps": 9,
        "save_total_limit": None,
    }


def packed_from(buckets: dict[str, Any]) -> dict[str, Any]:
    """The same budget in packed rows, the teacher's too."""
    return buckets | {"packing": True, "teacher_cache": "no", "max_steps": 4}


@pytest.fixture(scope="module")
def alone(folder, distill, dpo) -> dict[str, Path]:
    """Both commands in this process."""
    out = {command: folder / f"alone-{command}" for command in ("distill", "dpo")}
    run_distill(DistillConfig(**distill, output_dir=str(out["distill"])))
    run_dpo(SpeechDPOConfig(**dpo, output_dir=str(out["dpo"])))
    return out


def launch(config: str, *words: object) -> None:
    """A script, and its words, as a user launches it."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", ROOT / f"configs/accelerate/{config}.yaml"),
        *(("--num_processes", 2) if config == "fsdp2" else ()),
        *words,
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(map(str, command), capture_output=True, text=True, cwd=ROOT, env=env, timeout=240)
    assert done.returncode == 0, done.stderr[-6000:]  # the last half is of torchrun


class Runs:
    """Runs of one configuration in `folder`, named `CONFIG-NAME`, the batch divided among the processes."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder, self.config, self.list = folder, config, []
        self.processes = 1 if config == "cpu1" else 2

    def __getitem__(self, name: str) -> Path:
        return self.folder / f"{self.config}-{name}"

    def words(self, command: str, name: str, options: dict[str, Any]) -> list[str]:
        rows = options["per_device_train_batch_size"]
        if "tokens_per_batch" not in options:
            rows //= self.processes
        chosen = self[name].with_suffix(".json")  # JSON is YAML
        chosen.write_text(
            json.dumps(options | {"output_dir": str(self[name]), "per_device_train_batch_size": rows})
        )
        return [command, "--config", str(chosen), "--use_cpu", "true"]

    def add(self, command: str, name: str, options: dict[str, Any]) -> None:
        self.list.append({"words": self.words(command, name, options)})

    def resume(self, command: str, name: str, options: dict[str, Any], *lost: str) -> None:
        """Go on with a copy of the run `name` that lost these files, as if it had been killed."""
        words = self.words(command, f"{name}-resumed", options) + ["--resume_from_checkpoint", "true"]
        copied = {"of": str(self[name]), "to": str(self[f"{name}-resumed"]), "without": lost}
        self.list.append({"words": words} | copied)

    def launch(self) -> Runs:
        """All of them in the same processes: most of the time of a launch goes into imports."""
        path = self[self.config].with_suffix(".json")
        path.write_text(json.dumps(self.list))
        launch(self.config, ROOT / "tests/training/launched.py", path)
        return self


@pytest.fixture(scope="module")
def cpu1(folder, distill) -> Runs:
    """One run, as a user starts it."""
    runs = Runs(folder, "cpu1")
    launch("cpu1", ROOT / "scripts/train.py", *runs.words("distill", "distill", distill))
    return runs


@pytest.fixture(scope="module")
def cpu2(folder, distill, dpo, buckets) -> Runs:
    runs = Runs(folder, "cpu2")
    runs.add("distill", "distill", distill)
    runs.add("dpo", "dpo", dpo)
    runs.add("distill", "buckets", buckets)
    # After step 5, in the middle of the second epoch.
    later = [f"checkpoint-{step}" for step in (6, 8, 9)]
    runs.resume("distill", "buckets", buckets, "adapter_model.safetensors", *later)
    runs.add("distill", "packed", packed_from(buckets))
    return runs.launch()


@pytest.fixture(scope="module")
def fsdp2(folder, distill, dpo) -> Runs:
    runs = Runs(folder, "fsdp2")
    runs.add("distill", "distill", distill)
    runs.add("dpo", "dpo", dpo)
    runs.resume("distill", "distill", distill, "adapter_model.safetensors", "checkpoint-4")
    runs.add("distill", "half", distill | HALF)
    runs.add("distill", "few", distill | FEW)
    runs.add("distill", "tuned", distill | TUNED)
    return runs.launch()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "command"),
    [("cpu1", "distill"), *((c, k) for c in ("cpu2", "fsdp2") for k in ("distill", "dpo"))],
)
def test_the_losses_of_one_process(command, config, alone, request):
    runs = request.getfixturevalue(config)
    out = runs[command]
    assert json.loads((out / "run.json").read_text())["processes"] == runs.processes
    assert log(out) == pytest.approx(log(alone[command]), rel=1e-4)
    assert log(out, "eval_loss") == pytest.approx(log(alone[command], "eval_loss"), rel=1e-4)
    assert len(log(out, "eval_loss")) == (2 if command == "distill" else 0)
    assert log(out, "eval_rubric") == pytest.approx(log(alone[command], "eval_rubric"))
    assert len(log(out)) == 4 and len(log(out, "eval_rubric")) == (3 if command == "dpo" else 0)
    equal_adapters(alone[command], out, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_buckets_give_the_losses_of_one_process_and_resume(cpu2, buckets, folder):
    """What two processes read at a step, one reads in two batches."""
    whole = folder / "alone-buckets"
    run_distill(DistillConfig(**buckets, gradient_accumulation_steps=2, output_dir=str(whole)))
    assert json.loads((whole / "run.json").read_text())["batches"]["batches"] == 2 * 3
    for name in ("buckets", "buckets-resumed"):
        assert json.loads((cpu2[name] / "run.json").read_text())["processes"] == 2
        assert log(cpu2[name]) == pytest.approx(log(whole), rel=1e-4) and len(log(whole)) == 9
        equal_adapters(whole, cpu2[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_packed_rows_give_the_losses_of_one_process(cpu2, buckets, folder):
    whole, options = folder / "alone-packed", packed_from(buckets)
    run_distill(DistillConfig(**options, gradient_accumulation_steps=2, output_dir=str(whole)))
    assert json.loads((cpu2["packed"] / "run.json").read_text())["batches"]["padding"] <= 0.03
    assert log(cpu2["packed"]) == pytest.approx(log(whole), rel=1e-4) and len(log(whole)) == 4
    equal_adapters(whole, cpu2["packed"], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_sharded_run_goes_on_to_the_bit_and_captions(alone, fsdp2):
    """Its checkpoint holds the projector too, which FSDP2 left out while peft had it frozen."""
    equal_adapters(fsdp2["distill"], fsdp2["distill-resumed"], atol=0, rtol=0)
    clip, out = voice(0.6), fsdp2["distill-resumed"]
    assert Captioner(*load_checkpoint(out))(clip) == Captioner(*load_checkpoint(alone["distill"]))(clip)


@pytest.mark.slow
def test_a_sharded_run_in_bfloat16(distill, fsdp2, folder):
    """Its shards are bfloat16, its sums are not: the losses are near those of one process in bfloat16."""
    run_distill(DistillConfig(**distill | HALF, output_dir=str(folder / "half")))
    assert log(fsdp2["half"]) == pytest.approx(log(folder / "half"), rel=0.01)


@pytest.mark.slow
def test_a_sharded_run_reads_the_teacher_s_likeliest_tokens(distill, fsdp2, folder):
    """They were kept before the head was sharded, and training asks no head for the teacher's logits."""
    run_distill(DistillConfig(**distill | FEW, output_dir=str(folder / "few")))
    assert log(fsdp2["few"]) == pytest.approx(log(folder / "few"), rel=1e-4)
    coverage = [
        json.loads((out / "run.json").read_text())["teacher_coverage"]
        for out in (folder / "few", fsdp2["few"])
    ]
    assert coverage[0] == pytest.approx(coverage[1])


@pytest.mark.slow
def test_layers_of_the_encoder_are_trained_in_shards(distill, fsdp2, folder):
    run_distill(DistillConfig(**distill | TUNED, output_dir=str(folder / "tuned")))
    assert log(fsdp2["tuned"]) == pytest.approx(log(folder / "tuned"), rel=1e-4)
    equal_adapters(folder / "tuned", fsdp2["tuned"], atol=1e-4, rtol=1e-3)
    saved = load_file(fsdp2["tuned"] / "adapter_model.safetensors")
    assert any(".audio_tower.layers." in name for name in saved)

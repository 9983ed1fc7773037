"""`train dpo` on tiny models, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from aligncap.training.dpo import SpeechDPOConfig, run_dpo

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def options(out, start, pairs, **more):
    return {
        "output_dir": str(out),
        "model": str(start),
        "train_pairs": str(pairs),
        "cache_dir": str(Path(out).parent / "cache"),
        "max_steps": 4,
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-3,
        "projector_learning_rate": None,
        "loss_type": ["sigmoid"],
        "loss_weights": None,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_steps": 2,
        "precision": "float32",
        "report_to": "none",
        "disable_tqdm": True,
    } | more


def run(out, start, pairs, **more):
    return run_dpo(SpeechDPOConfig(**options(out, start, pairs, **more)))


def log(out, name="loss") -> list[float]:
    rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def adapter(out) -> dict[str, torch.Tensor]:
    return load_file(Path(out) / "adapter_model.safetensors")


def equal_adapters(a, b, **tolerance):
    a, b = adapter(a), adapter(b)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or TOLERANCE))

"""The teacher's most likely tokens, cached: what is stored, what is reported, what a run makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from aligncap.training.distill import DistillConfig, DistillTrainer, run_distill, wants_teacher_cache
from aligncap.training.divergences import coverage, most_likely, pack, unpack
from aligncap.utils.errors import UserError, UserErrors


def arguments(out, manifest, parts, **more) -> DistillConfig:
    options = {
        "output_dir": str(out),
        "train_manifest": str(manifest),
        "cache_dir": str(Path(out).parent / "cache"),
        "encoder_layer": "2",
        "projector_hidden": 24,
        "projector_dropout": 0.0,
        "lora_dropout": 0.0,
        "align_steps": 5,
        "max_steps": 3,
        "logging_steps": 1,
        "precision": "float32",
        "report_to": "none",
        "disable_tqdm": True,
        **parts,
    }
    return DistillConfig(**options | more)


def losses(out) -> list[float]:
    rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def vocabulary(parts) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(parts["llm"]))


def test_packing_keeps_every_bit():
    logits = torch.randn(5, 40_000)
    ids, log_probs = most_likely(logits, 6)
    packed = pack(ids, log_probs)
    assert packed.dtype == torch.int32 and packed.shape == (5, 13)
    found = unpack(packed, 6)
    assert torch.equal(found[0], ids) and torch.equal(found[1], log_probs)


def test_coverage_by_hand():
    # Two tokens keep ½ + ¼ and 0.9 + 0.05 of their mass.
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.05, 0.9, 0.03, 0.02]]).log()
    rows = [pack(*most_likely(row[None], 2)) for row in p]
    assert coverage(rows, 2) == pytest.approx({"top_k": 2, "mean": 0.85, "least": 0.75})


@pytest.fixture(scope="module")
def exact(tmp_path_factory, manifest, parts):
    out = tmp_path_factory.mktemp("top") / "exact"
    run_distill(arguments(out, manifest, parts, temperature=2.0))
    return out


@pytest.mark.parametrize(("name", "precision"), [("forward_kl", "bfloat16"), ("jsd", "float32")])
def test_all_tokens_train_as_the_exact_teacher_does(name, precision, manifest, parts, tmp_path):
    size = vocabulary(parts)
    more = {"temperature": 2.0, "divergence": name, "precision": precision, "teacher_cache": "yes"}
    run_distill(arguments(tmp_path / "exact", manifest, parts, **more))
    run_distill(arguments(tmp_path / "top", manifest, parts, teacher_top_k=size, **more))
    # In bfloat16, gradients that were summed in another order round another way: later losses tell it.
    near = 1e-5 if precision == "float32" else 1e-3
    assert losses(tmp_path / "top") == pytest.approx(losses(tmp_path / "exact"), rel=near)
    held = json.loads((tmp_path / "top/run.json").read_text())["teacher_coverage"]
    assert held == pytest.approx({"top_k": size, "mean": 1.0, "least": 1.0})


def test_few_tokens_bound_the_loss_and_their_coverage_is_told(exact, manifest, parts, caplog, monkeypatch):
    def live(*_):
        raise AssertionError("the teacher's logits were computed in training")

    monkeypatch.setattr(DistillTrainer, "teacher_logits", live)
    out = exact.parent / "few"
    with caplog.at_level("INFO", "aligncap"):
        run_distill(arguments(out, manifest, parts, temperature=2.0, teacher_top_k=8))
    assert 0 < losses(out)[0] < losses(exact)[0]
    held = json.loads((out / "run.json").read_text())["teacher_coverage"]
    assert held["top_k"] == 8 and 0 < held["least"] < held["mean"] < 1
    assert f"8 likeliest tokens hold {held['mean']:.4f}" in caplog.text
    assert "teacher_coverage" not in json.loads((exact / "run.json").read_text())


def test_each_k_and_temperature_has_its_own_cache_and_a_filled_one_is_not_filled_again(
    manifest, parts, tmp_path
):
    def caches():
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("teacher-top-*/*.safetensors")}

    settings = [{"teacher_top_k": 4}, {"teacher_top_k": 5}, {"teacher_top_k": 4, "temperature": 2.0}]
    for i, more in enumerate(settings):
        run_distill(arguments(tmp_path / f"run{i}", manifest, parts, max_steps=1, **more))
    filled = caches()
    assert len({p.parent for p in filled}) == 3
    run_distill(arguments(tmp_path / "again", manifest, parts, max_steps=1, **settings[0]))
    assert caches() == filled
    first, again = (
        json.loads((tmp_path / name / "run.json").read_text())["teacher_coverage"]
        for name in ("run0", "again")
    )
    assert first == again


def test_sharded_runs_may_use_the_top_k_cache_alone(manifest, parts, tmp_path, monkeypatch):
    states = arguments(tmp_path / "a", manifest, parts, teacher_cache="yes")
    top = arguments(tmp_path / "b", manifest, parts, teacher_top_k=8)
    assert wants_teacher_cache(states, range(10)) and wants_teacher_cache(top, range(10**9))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not wants_teacher_cache(states, range(10)) and wants_teacher_cache(top, range(10**9))


def test_wrong_numbers_of_tokens_are_refused_before_anything_long(manifest, parts, tmp_path):
    with pytest.raises(UserErrors, match="teacher_top_k=-1: must be at least 0"):
        arguments(tmp_path / "run", manifest, parts, teacher_top_k=-1)
    with pytest.raises(UserErrors, match="teacher_top_k=8: .*leave out teacher_cache=no"):
        arguments(tmp_path / "run", manifest, parts, teacher_top_k=8, teacher_cache="no")
    size = vocabulary(parts)
    with pytest.raises(UserError, match=f"teacher_top_k={size + 1}: .* has {size} tokens"):
        run_distill(arguments(tmp_path / "run", manifest, parts, teacher_top_k=size + 1))
    assert not list((tmp_path / "run").iterdir()) and not (tmp_path / "cache").exists()

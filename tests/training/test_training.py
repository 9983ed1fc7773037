"""Training on tiny models: what the loss is; batch size, caches, resuming and processes do not change it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import with_adapters
from torch.nn import functional as F

from aligncap.data.manifest import read_manifest
from aligncap.models.checkpoints import load_checkpoint
from aligncap.training.collators import SpeechCollator
from aligncap.training.data import SpeechDataset
from aligncap.training.distill import DistillConfig, DistillTrainer, run_distill
from aligncap.training.sft import SpeechSFTConfig, SpeechSFTTrainer, run_sft
from aligncap.training.teacher import TeacherConfig, run_teacher
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.options import parse

TOLERANCE = {"atol": 2e-5, "rtol": 2e-4}


def options(out, manifest, parts, **more):
    base = {
        "output_dir": str(out),
        "train_manifest": str(manifest),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_steps": 2,
        "precision": "float32",
        "report_to": "none",
        "disable_tqdm": True,
        "lora_dropout": 0.0,
        **parts,
    }
    return base | more


def speech_options(out, manifest, parts, **more):
    cache = Path(out).parent / "cache"
    more = {
        "encoder_layer": "2",
        "projector_hidden": 24,
        "projector_dropout": 0.0,
        "cache_dir": str(cache),
    } | more
    return options(out, manifest, parts, **more)


def losses(out) -> list[float]:
    rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def adapter(out) -> dict[str, torch.Tensor]:
    return load_file(Path(out) / "adapter_model.safetensors")


def run(kind, out, manifest, parts, **more):
    train = {SpeechSFTConfig: run_sft, DistillConfig: run_distill}[kind]
    return train(kind(**speech_options(out, manifest, parts, **more)))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, manifest, parts):
    out = tmp_path_factory.mktemp("runs") / "distilled"
    run(DistillConfig, out, manifest, parts, teacher_cache="yes")
    return out


def batch_of(manifest, parts, tmp_path, kind=DistillTrainer, **more):
    """A trainer on an untrained student, and one batch of all rows, from audio and with a live teacher."""
    from aligncap.models.build import build

    torch.manual_seed(0)
    model, processor = build(
        parts["encoder"], parts["llm"], encoder_layer=2, projector_hidden=24, projector_dropout=0.0
    )
    model.requires_grad_(False)
    rows = SpeechDataset.from_manifest(manifest, processor)
    args = DistillConfig(**speech_options(tmp_path / "x", manifest, parts, **more))
    adapted = with_adapters(model, args, projector=True)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    trainer = kind(model=adapted, args=args, train_dataset=rows, data_collator=SpeechCollator(processor))
    return (
        trainer,
        adapted.eval(),
        SpeechCollator(processor)([rows[i] for i in range(len(rows))]),
        rows,
        processor,
    )


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_the_distillation_loss_equals_full_logits_and_a_loop(name, manifest, parts, tmp_path):
    trainer, model, batch, _, processor = batch_of(
        manifest, parts, tmp_path, divergence=name, temperature=2.0, ce_weight=0.3
    )
    limit = processor.audio_token_id
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(batch))
        student = model(
            **{k: v for k, v in batch.items() if not k.startswith("teacher_") and k != "labels"}
        ).logits
        with model.disable_adapter():
            teacher = model(
                input_ids=batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"]
            ).logits
    total, count = 0.0, 0
    for row in range(len(student)):
        places = (batch["labels"][row] != -100).nonzero().flatten()
        t_places = (batch["teacher_labels"][row] != -100).nonzero().flatten()
        assert batch["labels"][row][places[-1]] == processor.tokenizer.eos_token_id  # end-of-text is learnt
        for i, j in zip(places, t_places):
            q = F.log_softmax(student[row, i - 1, :limit] / 2.0, -1)
            p = F.log_softmax(teacher[row, j - 1, :limit] / 2.0, -1)
            if name == "forward_kl":
                d = (p.exp() * (p - q)).sum()
            elif name == "reverse_kl":
                d = (q.exp() * (q - p)).sum()
            else:
                m = (0.5 * p.exp() + 0.5 * q.exp()).log()
                d = 0.5 * (p.exp() * (p - m)).sum() + 0.5 * (q.exp() * (q - m)).sum()
            total += 4.0 * d + 0.3 * F.cross_entropy(student[row, i - 1, :limit], batch["labels"][row, i])
            count += 1
    torch.testing.assert_close(loss, total / count, **TOLERANCE)


def test_the_sft_loss_is_the_stock_loss(manifest, parts, tmp_path):
    trainer, model, batch, *_ = batch_of(manifest, parts, tmp_path, kind=SpeechSFTTrainer)
    inputs = {k: v for k, v in batch.items() if not k.startswith("teacher_")}
    with torch.no_grad():
        torch.testing.assert_close(
            trainer.compute_loss(model, dict(inputs)), model(**inputs).loss, **TOLERANCE
        )


def test_the_teacher_is_the_base_llm_reading_text(manifest, parts, tmp_path):
    from aligncap.models.build import load_llm

    trainer, model, batch, _, processor = batch_of(manifest, parts, tmp_path)
    teacher = {k.removeprefix("teacher_"): v for k, v in batch.items() if k.startswith("teacher_")}
    logits = trainer.teacher_logits(model, dict(teacher))
    llm, _ = load_llm(parts["llm"])
    with torch.no_grad():
        plain = llm(input_ids=teacher["input_ids"], attention_mask=teacher["attention_mask"]).logits[:, :-1]
    plain = plain[teacher["labels"][:, 1:] != -100][:, : processor.audio_token_id]
    torch.testing.assert_close(logits, plain, **TOLERANCE)


def test_caches_do_not_change_the_run(distilled, manifest, parts, tmp_path):
    run(DistillConfig, tmp_path / "plain", manifest, parts, feature_cache="no", teacher_cache="no")
    assert losses(tmp_path / "plain") == pytest.approx(losses(distilled), rel=1e-4)
    for name, value in adapter(tmp_path / "plain").items():
        torch.testing.assert_close(value, adapter(distilled)[name], atol=1e-4, rtol=1e-3)


def test_the_teacher_cache_holds_in_bfloat16(manifest, parts, tmp_path):
    for cache in ("yes", "no"):
        run(DistillConfig, tmp_path / cache, manifest, parts, precision="bfloat16", teacher_cache=cache)
    assert losses(tmp_path / "yes") == pytest.approx(losses(tmp_path / "no"), rel=0.02)


def test_one_by_eight_equals_eight_by_one(distilled, manifest, parts, tmp_path):
    run(
        DistillConfig,
        tmp_path / "acc",
        manifest,
        parts,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
    )
    assert losses(tmp_path / "acc") == pytest.approx(losses(distilled), rel=1e-4)
    for name, value in adapter(tmp_path / "acc").items():
        torch.testing.assert_close(value, adapter(distilled)[name], atol=1e-4, rtol=1e-3)


def test_a_resumed_run_equals_an_unbroken_one(distilled, manifest, parts, tmp_path):
    out = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="power cut"):
        breaking(out, manifest, parts, at=3)
    run(DistillConfig, out, manifest, parts, resume_from_checkpoint="true")
    assert losses(out)[-2:] == losses(distilled)[-2:]
    assert all(torch.equal(v, adapter(distilled)[k]) for k, v in adapter(out).items())


def breaking(out, manifest, parts, at, **more):
    import aligncap.training.trainer as runs

    class PowerCut(runs.JsonLog):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == at:
                raise RuntimeError("power cut")

    original = runs.JsonLog
    runs.JsonLog = PowerCut
    try:
        run(DistillConfig, out, manifest, parts, **more)
    finally:
        runs.JsonLog = original


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(manifest, parts, tmp_path, monkeypatch, caplog):
    import aligncap.training.trainer as runs

    class Pressing(runs.JsonLog):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(runs, "JsonLog", Pressing)
    with caplog.at_level("INFO", "aligncap"):
        assert run(DistillConfig, tmp_path / "run", manifest, parts) == 130
    assert (tmp_path / "run/checkpoint-2/adapter_model.safetensors").is_file()
    assert "--resume_from_checkpoint true" in caplog.text


def test_only_projector_and_adapters_move(distilled):
    model, _ = load_checkpoint(distilled)
    names = set(adapter(distilled))
    assert any("multi_modal_projector" in n for n in names) and any("lora" in n for n in names)
    assert all("multi_modal_projector" in n or "lora" in n for n in names)
    lora = [v for n, v in adapter(distilled).items() if "lora_B" in n]
    assert all(v.abs().max() > 0 for v in lora)


def test_a_run_leaves_its_record_and_its_log(distilled):
    record = json.loads((distilled / "run.json").read_text())
    assert record["verb"] == "train distill" and record["seed"] == 42 and record["versions"]["torch"]
    assert record["config"]["divergence"] == "forward_kl" and len(record["data"]) == 1
    assert len(losses(distilled)) == 4


def test_an_existing_run_is_not_overwritten(distilled, manifest, parts):
    with pytest.raises(UserError, match="resume_from_checkpoint true, or choose another"):
        run(DistillConfig, distilled, manifest, parts)


def test_sft_learns_its_captions(manifest, parts, tmp_path):
    more = {"max_steps": 60, "learning_rate": 1e-2, "save_steps": 100, "lora_r": 16}
    run(SpeechSFTConfig, tmp_path / "sft", manifest, parts, **more)
    found = losses(tmp_path / "sft")
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_teacher_is_saved_as_a_plain_llm(manifest, parts, tmp_path, precision):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parts = {"llm": parts["llm"]}
    more = {"max_steps": 30, "learning_rate": 1e-2, "precision": precision}
    assert run_teacher(TeacherConfig(**options(tmp_path / "t", manifest, parts, **more))) == 0
    out = tmp_path / "t"
    found = losses(tmp_path / "t")
    assert found[-1] < 0.7 * found[0]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.model_type == "llama" and AutoTokenizer.from_pretrained(out).eos_token


def test_captions_written_by_the_teacher_can_be_the_targets(manifest, parts, tmp_path):
    run(DistillConfig, tmp_path / "run", manifest, parts, targets="teacher")
    assert (tmp_path / "run/targets.jsonl").is_file()


def test_unknown_options_are_all_named_with_the_nearest(tmp_path, manifest):
    config = tmp_path / "c.yaml"
    config.write_text("temprature: 2\noutput_dir: x\n")
    with pytest.raises(UserErrors) as caught:
        parse(DistillConfig, ["--config", str(config), "--lerning_rate", "1"])
    assert 'nearest is "temperature"' in str(caught.value)
    assert 'nearest is "learning_rate"' in str(caught.value)


def test_flags_win_over_the_config(tmp_path, manifest):
    config = tmp_path / "c.yaml"
    config.write_text(f"temperature: 2\noutput_dir: {tmp_path}\ntrain_manifest: {manifest}\n")
    args = parse(DistillConfig, ["--config", str(config), "--temperature", "3"])
    assert args.temperature == 3 and args.train_manifest == str(manifest)


def test_wrong_values_are_one_clear_line(tmp_path, manifest):
    need = ["--output_dir", str(tmp_path), "--train_manifest", str(manifest)]
    for words, message in (
        (["--max_steps", "many"], "max_steps"),
        (["--divergence", "kl"], "forward_kl"),
        (["--config", str(tmp_path / "none.yaml")], "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            parse(DistillConfig, need + words)


def test_captions_and_prompts_are_asked_for_before_anything_long(tmp_path, parts, manifest):
    from aligncap.data.manifest import write_manifest

    utterances = read_manifest(manifest)
    for u in utterances:
        u.clues, u.p_act = [], []
    utterances[1].captions = []
    write_manifest(tmp_path / "m.jsonl", utterances)
    with pytest.raises(UserErrors) as caught:
        run(DistillConfig, tmp_path / "run", tmp_path / "m.jsonl", parts)
    assert len(caught.value.errors) == 8 and "aligncap clues" in str(caught.value)

"""Training from Python: parts, a dataset, a trainer, a caption; and what the trainers do by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import make_model, save_model, voice

from aligncap import (
    Captioner,
    DistillConfig,
    DistillTrainer,
    SpeechDataset,
    SpeechDPOConfig,
    SpeechDPOTrainer,
    SpeechSFTConfig,
    SpeechSFTTrainer,
    TeacherConfig,
    TeacherTrainer,
)
from aligncap.models.build import build
from aligncap.training.alignment import align
from aligncap.training.data import TextDataset
from aligncap.training.preference_data import PreferenceDataset

QUIET = {"report_to": "none", "disable_tqdm": True, "precision": "float32", "logging_steps": 1}


def moved(trainer) -> set[str]:
    """What of a trained model is not at its start: LoRA's B, which begins at zero, and the projector."""
    found = {n for n, p in trainer.model.named_parameters() if "lora_B" in n and p.abs().max() > 0}
    projector = getattr(trainer.model.get_base_model().model, "multi_modal_projector", None)
    if projector is not None:
        old, new = projector.original_module.state_dict(), projector.modules_to_save["default"].state_dict()
        found |= {name for name, value in new.items() if not torch.equal(value, old[name])}
    return found


def test_train_and_caption_in_thirty_lines(parts, manifest, tmp_path):
    model, processor = build(parts["encoder"], parts["llm"], encoder_layer=2, projector_hidden=24)
    data = SpeechDataset.from_manifest(manifest, processor)
    trainer = DistillTrainer(
        model=model,
        args=DistillConfig(output_dir=str(tmp_path / "run"), max_steps=3, learning_rate=1e-2, **QUIET),
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    caption = Captioner.from_pretrained(tmp_path / "model", device="cpu")(voice(0.6))
    assert isinstance(caption, str)


def test_features_cached_by_one_argument_give_the_losses_of_features_encoded_in_the_loop(
    parts, manifest, tmp_path
):
    found = []
    for cache in (None, tmp_path / "cache"):
        torch.manual_seed(0)
        model, processor = build(
            parts["encoder"], parts["llm"], encoder_layer=2, projector_hidden=24, projector_dropout=0.0
        )
        data = SpeechDataset.from_manifest(manifest, processor, model=model, cache_dir=cache, balance=True)
        args = DistillConfig(output_dir=str(tmp_path / "run"), max_steps=2, lora_dropout=0.0, **QUIET)
        trainer = DistillTrainer(model=model, args=args, train_dataset=data, processing_class=processor)
        trainer.train()
        found.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert list((tmp_path / "cache").iterdir()) and found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_student_with_word_tokens_is_aligned_and_trained(manifest, tmp_path):
    model, processor = make_model(speakers=["woman", "man"], emotions=["angry", "calm"], pool_size=4)
    data = SpeechDataset.from_manifest(manifest, processor, model=model, cache_dir=tmp_path, teacher=False)
    losses = align(model, data.inputs, data.rows.clips, steps=30, learning_rate=1e-2)
    assert losses[-1] < losses[0]
    args = SpeechSFTConfig(output_dir=str(tmp_path / "run"), max_steps=2, **QUIET)
    trainer = SpeechSFTTrainer(model=model, args=args, train_dataset=data, processing_class=processor)
    trainer.train()
    assert any("lora_B" in name for name in moved(trainer)) and "linear_1.weight" in moved(trainer)


def test_a_trainer_resumes_as_transformers_does(parts, manifest, tmp_path):
    def trained(out, steps, resume=None):
        model, processor = build(parts["encoder"], parts["llm"], encoder_layer=2, projector_hidden=24)
        data = SpeechDataset.from_manifest(manifest, processor, teacher=False)
        args = SpeechSFTConfig(output_dir=str(out), max_steps=steps, save_steps=2, warmup_steps=0, **QUIET)
        args.lr_scheduler_type = "constant"
        torch.manual_seed(0)
        trainer = SpeechSFTTrainer(model=model, args=args, train_dataset=data, processing_class=processor)
        trainer.train(resume_from_checkpoint=resume)
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]

    torch.manual_seed(0)
    whole = trained(tmp_path / "whole", 4)
    torch.manual_seed(0)
    trained(tmp_path / "part", 2)
    torch.manual_seed(0)
    assert trained(tmp_path / "part", 4, resume=str(tmp_path / "part/checkpoint-2")) == whole


def test_the_teacher_and_adapters_of_ones_own(parts, manifest, tmp_path):
    from peft import LoraConfig

    from aligncap.models.build import load_llm

    model, tokenizer = load_llm(parts["llm"])
    data = TextDataset.from_manifest(manifest, tokenizer)
    trainer = TeacherTrainer(
        model=model,
        args=TeacherConfig(output_dir=str(tmp_path), max_steps=2, **QUIET),
        peft_config=LoraConfig(r=2, target_modules=["k_proj"], task_type="CAUSAL_LM"),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    assert moved(trainer) and all("k_proj" in name for name in moved(trainer))


def test_preferences_are_trained_and_evaluated_on_pairs(pairs, tmp_path):
    from aligncap.models.checkpoints import load_folder
    from aligncap.training.data import ClipInputs

    folder = save_model(tmp_path / "start")
    model, processor = load_folder(folder)
    data = PreferenceDataset.from_pairs(pairs, ClipInputs(processor))
    (tmp_path / "pairs.jsonl").touch()
    args = SpeechDPOConfig(
        output_dir=str(tmp_path / "run"), max_steps=2, loss_type=["sigmoid"], loss_weights=None, **QUIET
    )
    trainer = SpeechDPOTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=processor
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert trainer.evaluate()["eval_loss"] < np.log(2)

"""Options of training: what is out of range, has no effect or is missing is one line, before all else."""

from __future__ import annotations

import pytest
import torch

from aligncap.cli import main
from aligncap.models.checkpoints import load_folder
from aligncap.training.align import AlignConfig, run_align
from aligncap.training.config import RunConfig
from aligncap.training.distill import DistillConfig, run_distill
from aligncap.training.dpo import SpeechDPOConfig
from aligncap.training.sft import SpeechSFTConfig
from aligncap.training.teacher import TeacherConfig
from aligncap.utils.errors import UserErrors
from aligncap.utils.options import parse

KINDS = [TeacherConfig, AlignConfig, SpeechSFTConfig, DistillConfig, SpeechDPOConfig]
TRAINED = [TeacherConfig, SpeechSFTConfig, DistillConfig, SpeechDPOConfig]


def refused(kind: type[RunConfig], **options: object) -> str:
    with pytest.raises(UserErrors) as caught:
        kind(output_dir="runs/x", **options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", -1),
        ("gradient_accumulation_steps", 0),
        ("max_steps", -2),
        ("max_steps", 0),
        ("num_train_epochs", -1.0),
        ("warmup_steps", -0.1),
        ("weight_decay", -0.1),
        ("max_grad_norm", -1.0),
        ("save_steps", 0),
        ("save_total_limit", 0),
        ("logging_steps", -5),
        ("adam_beta2", 1.0),
        ("seed", -1),
        ("lora_r", 0),
        ("lora_dropout", 1.0),
    ],
)
def test_numbers_out_of_their_range_are_refused_before_anything_is_loaded(kind, option, value):
    assert refused(kind, **{option: value}).startswith(f"{option}={value}: must be ")


def test_numbers_of_trl_have_ranges_too():
    text = refused(SpeechDPOConfig, beta=-0.1, label_smoothing=0.7, ld_alpha=2.0, dev_clips=0)
    found = {line.split("=")[0] for line in text.splitlines()}
    assert found == {"label_smoothing", "ld_alpha", "beta", "dev_clips"}


def test_a_wrong_number_on_the_command_line_is_one_line(capsys):
    assert main(["train", "distill", "--output_dir", "runs/x", "--learning_rate", "-1"]) == 2
    assert capsys.readouterr().err == "aligncap: learning_rate=-1.0: must be above 0\n"


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("bf16", True, "use precision"),
        ("fp16", True, "use precision"),
        ("bf16_full_eval", True, "use precision"),
        ("label_smoothing_factor", 0.1, "use "),
        ("do_eval", True, "leave it out"),
        ("prediction_loss_only", True, "leave it out"),
        ("use_liger_kernel", True, "leave it out"),
        ("length_column_name", "n", "leave it out"),
        ("remove_unused_columns", True, "leave it out"),
    ],
)
def test_inherited_options_without_effect_are_refused(kind, option, value, remedy):
    assert f"{option}: has no effect here; {remedy}" in refused(kind, **{option: value})


def test_options_that_others_make_idle_are_refused():
    assert "smoothing: has no effect with ce_weight=0" in refused(DistillConfig, smoothing=0.1, ce_weight=0.0)
    assert "jsd_beta: has no effect with divergence=forward_kl" in refused(DistillConfig, jsd_beta=0.3)
    assert "use length_buckets" in refused(SpeechSFTConfig, train_sampling_strategy="group_by_length")
    for name, value in (("learning_rate", 0.1), ("save_steps", 7), ("lora_r", 4), ("precision", "float32")):
        assert f"{name}: has no effect here" in refused(AlignConfig, **{name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_several_gpus_without_a_launcher_are_refused(kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "accelerate launch --multi_gpu -m aligncap train" in refused(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_command_needs_is_asked_for_by_the_command_alone(kind, tmp_path, capsys):
    config = kind(output_dir=str(tmp_path))  # a trainer of one's own is given its data
    command = {TeacherConfig: "teacher", AlignConfig: "align", SpeechSFTConfig: "sft", SpeechDPOConfig: "dpo"}
    assert main(["train", command.get(kind, "distill"), "--output_dir", str(tmp_path)]) == 2
    assert all(
        f"{name} is missing: e.g. --{name} " in capsys.readouterr().err for name in [*config.REQUIRED][:1]
    )


def test_evaluations_of_nothing_are_refused(manifest, tmp_path):
    config = DistillConfig(output_dir=str(tmp_path), train_manifest=str(manifest), eval_strategy="steps")
    with pytest.raises(UserErrors, match="set dev_manifest"):
        run_distill(config)


def test_epochs_take_the_place_of_steps():
    def steps(*words: str) -> tuple[int, float | None]:
        config = parse(DistillConfig, ["--output_dir", "x", *words])
        return config.max_steps, config.num_train_epochs

    assert steps() == (150, 3.0)
    assert steps("--num_train_epochs", "2") == (-1, 2.0)
    assert steps("--max_steps", "9", "--num_train_epochs", "2") == (-1, 2.0)
    assert steps("--num_train_epochs", "2", "--max_steps", "9")[0] == 9
    assert steps("--num_train_epochs", "2", "--max_steps", "150")[0] == 150  # the default too
    assert steps("--num_train_epochs", "2", "--max_steps", "-1") == (-1, 2.0)
    assert DistillConfig(output_dir="x", num_train_epochs=2).max_steps == -1


def test_the_untrained_student_is_of_the_students_architecture(parts, manifest, tmp_path):
    common = {
        "train_manifest": str(manifest),
        "encoder_layer": "2",
        "projector_hidden": 24,
        "cache_dir": str(tmp_path / "cache"),
        "max_response_tokens": 50,
        **parts,
    }
    assert run_align(AlignConfig(output_dir=str(tmp_path / "untrained"), align_steps=0, **common)) == 0
    quiet = {"max_steps": 1, "align_steps": 2, "report_to": "none", "disable_tqdm": True}
    assert run_distill(DistillConfig(output_dir=str(tmp_path / "distill"), **quiet, **common)) == 0
    untrained, student = (load_folder(tmp_path / name / "base")[0] for name in ("untrained", "distill"))
    ours, theirs = (m.config.to_dict() for m in (untrained, student))
    for config in (ours, theirs):  # of the folders that they were loaded from
        for part in (config, config["audio_config"], config["text_config"]):
            part.pop("_name_or_path", None)
    assert ours == theirs
    assert untrained.config.speakers and untrained.config.max_response_tokens == 50
    assert untrained.model.multi_modal_projector.feature_mean.abs().sum() > 0  # fitted, not aligned
    assert not (tmp_path / "untrained/align.jsonl").exists()
    assert (tmp_path / "untrained/provenance.json").is_file()


def test_none_stands_for_no_weights_of_losses(tmp_path):
    words = ["--output_dir", "x", "--loss_type", "ipo", "--loss_weights", "none"]
    assert parse(SpeechDPOConfig, words).loss_weights is None
    assert parse(SpeechDPOConfig, ["--output_dir", "x"]).loss_weights == [1.0, 0.2]
    assert parse(SpeechDPOConfig, [*words, "--report_to", "none"]).report_to in (
        "none",
        [],
    )  # transformers' own word

"""`train sft` and `train distill`: build the student, fill the caches, train, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from aligncap.errors import UserError
from aligncap.models.building import build
from aligncap.models.checkpoints import load_folder
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.tensor_cache import TensorCache
from aligncap.training.arguments import DistillArguments, SpeechArguments
from aligncap.training.caches import feature_cache, fill_features, fill_teacher, teacher_cache
from aligncap.training.collators import SpeechCollator
from aligncap.training.distill import DistillTrainer, SFTTrainer
from aligncap.training.examples import SpeechRows, audio_files, read_captioned
from aligncap.training.runs import add_adapters, last_checkpoint, prepare_folder, train
from aligncap.training.targets import write_targets

_MODEL_OPTIONS = (
    "encoder_layer",
    "pool_size",
    "stack_size",
    "projector_hidden",
    "projector_dropout",
    "summary_token",
)


def feature_statistics(frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all frames: (width,) or (layers, width) each."""
    count = sum(len(f) for f in frames)
    mean = sum(f.double().sum(0) for f in frames) / count
    variance = sum(((f.double() - mean) ** 2).sum(0) for f in frames) / count
    return mean.float(), variance.sqrt().float()


def build_base(
    args: SpeechArguments, folder: Path, paths: dict[str, Path]
) -> tuple[AlignCapForConditionalGeneration, AlignCapProcessor]:
    """The student before training, saved in `folder` once: parts, fresh projector, standardised features."""
    if (folder / "processor_config.json").is_file():
        return load_folder(folder)
    options: dict[str, Any] = {name: getattr(args, name) for name in _MODEL_OPTIONS}
    if str(options["encoder_layer"]).isdigit():
        options["encoder_layer"] = int(options["encoder_layer"])
    model, processor = build(args.encoder, args.llm, **options)
    cache = feature_cache(Path(args.cache_dir), model, processor)
    fill_features(cache, model, processor, paths)
    embedding = model.get_input_embeddings().weight
    rms = embedding.detach().float().pow(2).mean().sqrt().item()
    model.model.multi_modal_projector.fit(*feature_statistics([cache[k] for k in paths]), rms)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def train_speech(args: SpeechArguments) -> Path | None:
    """Train the student with cross-entropy (`SpeechArguments`) or by distillation (`DistillArguments`).

    Writes to `output_dir`: the trained adapter and projector, `base/` on which they stand, processor,
    `run.json`, `log.jsonl`, tensorboard logs and checkpoints.

    Returns:
        The folder, or None when the run was interrupted.
    """
    out = prepare_folder(args)
    distill = isinstance(args, DistillArguments)
    manifests = [m for m in (args.train_manifest, args.dev_manifest) if m]
    utterances = [read_captioned(m, need_p_act=distill) for m in manifests]
    files = [audio_files(m, u) for m, u in zip(manifests, utterances, strict=True)]
    if not args.resume_from_checkpoint and (out / "base").exists():
        raise UserError(
            f"{out}: holds a run already; add --resume_from_checkpoint true, or choose another --output_dir"
        )
    last_checkpoint(args)
    set_seed(args.seed)
    with args.main_process_first(local=False, desc="base model"):
        model, processor = build_base(args, out / "base", files[0][1])
    features: TensorCache | None = None
    if args.feature_cache:
        with args.main_process_first(local=False, desc="features"):
            features = feature_cache(Path(args.cache_dir), model, processor)
            fill_features(features, model, processor, {k: p for _, paths in files for k, p in paths.items()})
    model.requires_grad_(False)
    datasets = [
        SpeechRows(
            m, u, processor, teacher=distill, limit=args.max_response_tokens, features=features, keys=keys
        )
        for m, u, (keys, _) in zip(manifests, utterances, files, strict=True)
    ]
    if isinstance(args, DistillArguments):
        if args.targets == "teacher":
            with args.main_process_first(local=False, desc="teacher's captions"):
                write_targets(out / "targets.jsonl", model, processor.tokenizer, datasets)
        if args.teacher_cache:
            dtype = torch.bfloat16 if args.bf16 else torch.float32
            llm = model.model.language_model
            with args.main_process_first(local=False, desc="teacher's states"):
                states = teacher_cache(Path(args.cache_dir), llm, dtype)
                pairs = [pair for d in datasets for pair in d.teacher_pairs()]
                fill_teacher(states, llm, pairs, processor.tokenizer.pad_token_id, dtype)
            for d in datasets:
                d.states = states
    set_seed(args.seed)
    trainer_class = DistillTrainer if distill else SFTTrainer
    trainer = trainer_class(
        model=add_adapters(model, args, projector=True),
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1] if len(datasets) > 1 else None,
        data_collator=SpeechCollator(processor),
        processing_class=processor,
    )
    if not train(trainer, args, "train distill" if distill else "train sft", list(manifests)):
        return None
    trainer.save_model(str(out))
    return out

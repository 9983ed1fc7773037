"""`train sft` and `train distill`: build the student, fill the caches, train, save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import set_seed

from aligncap.data.manifest import Utterance, audio_files
from aligncap.data.provenance import training_provenance, write_provenance
from aligncap.models.checkpoints import build, embedding_rms, load_folder, model_key, save_whole
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.models.speakers import speaker_name
from aligncap.training.align import align_projector
from aligncap.training.caches import (
    check_top_k,
    feature_cache,
    fill_features,
    read_teacher,
    speaker_voices,
    wants_teacher_cache,
)
from aligncap.training.collators import SpeechCollator
from aligncap.training.config import AlignConfig, DistillConfig, SpeechSFTConfig
from aligncap.training.data import (
    SpeechRows,
    balanced,
    read_captioned,
    refuse_special_tokens,
    texts_of,
)
from aligncap.training.distill import DistillTrainer, SpeechSFTTrainer, write_targets
from aligncap.training.sharding import place
from aligncap.training.trainer import add_adapters, freeze_adapters, length_buckets, prepare_folder, train
from aligncap.utils.distributed import Group
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_json, write_jsonl
from aligncap.utils.run_record import write_run_record
from aligncap.utils.tensor_cache import TensorCache, digest

_MODEL_OPTIONS = (
    "encoder_layer",
    "pool_size",
    "stack_size",
    "projector_hidden",
    "projector_dropout",
    "summary_token",
    "speaker_relative",
)


def feature_statistics(frames: list[Tensor], centres: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all frames: (width,) or (layers, width) each.

    With `centres` (of each clip, nan: none) the deviation is from them.
    """
    count = sum(len(f) for f in frames)
    mean: Any = sum(f.double().sum(0) for f in frames) / count
    about = [mean if c.isnan().any() else c for c in centres or [mean] * len(frames)]
    variance: Any = sum(((f.double() - c) ** 2).sum(0) for f, c in zip(frames, about, strict=True)) / count
    return mean.float(), variance.sqrt().float()


def build_base(
    args: SpeechSFTConfig,
    folder: Path,
    utterances: list[Utterance],
    keys: list[str],
    paths: dict[str, Path],
    group: Group,
) -> tuple[AlignCapForConditionalGeneration, AlignCapProcessor]:
    """The student before decoding is trained, saved in `folder` once: parts, and a projector whose features
    are standardised and whose tokens are aligned with clue words (`align_steps`).

    Processes share the encoding of speech; the rest takes seconds and is the first one's.
    """
    model: Any
    made_of = digest(
        *(
            getattr(args, name)
            for name in (
                *_MODEL_OPTIONS,
                "speaker_dropout",
                "show_cues",
                "encoder",
                "llm",
                "align_by",
                "align_steps",
                "align_learning_rate",
                "seed",
            )
        ),
        keys,
        [(u.clues, u.p_act, u.gender, u.transcript) for u in utterances] if args.align_steps else None,
        [speaker_name(u) for u in utterances] if args.speaker_relative else None,
        model_key(args.llm) if Path(args.llm).is_dir() else None,
    )
    mark = folder / "made_of.json"
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8"))["digest"] != made_of:
            raise UserError(
                f"{folder}: was made with other options or data; "
                "resume with the same, or choose another output_dir"
            )
    else:
        make_base(args, folder, utterances, keys, paths, group)
        if group.rank == 0:
            write_json(mark, {"digest": made_of})  # last: a folder without it was not finished
        group.gather(None)
    # From the folder also when it has just been made: to the last bit what a resumed run starts from.
    model, processor = load_folder(folder)
    return place(model, args), processor


def make_base(
    args: SpeechSFTConfig,
    folder: Path,
    utterances: list[Utterance],
    keys: list[str],
    paths: dict[str, Path],
    group: Group,
) -> None:
    """Build the student, fit and align its projector, and save it in `folder`; see `build_base`."""
    model: Any
    options: dict[str, Any] = {name: getattr(args, name) for name in _MODEL_OPTIONS}
    if str(options["encoder_layer"]).isdigit():
        options["encoder_layer"] = int(options["encoder_layer"])
    model, processor = build(
        args.encoder, args.llm, speaker_dropout=args.speaker_dropout, show_cues=args.show_cues, **options
    )
    place(model, args)
    cache = feature_cache(Path(args.cache_dir), model, processor)
    fill_features(cache, model, processor, paths, group=group)
    if group.rank:
        return
    table: Any = model.get_input_embeddings()
    embeddings = table.weight.detach().to(args.device)
    projector = model.model.multi_modal_projector
    voices = (
        speaker_voices(cache, keys, [speaker_name(u) for u in utterances]) if args.speaker_relative else None
    )
    centres = [voices[k] for k in paths] if voices else None
    projector.fit(*feature_statistics([cache[k] for k in paths], centres), embedding_rms(table))
    if args.align_steps:
        frames = [cache[k] for k in keys]
        losses = align_projector(
            projector,
            embeddings,
            utterances,
            frames,
            processor.tokenizer,
            steps=args.align_steps,
            way=args.align_by,
            speaker_means=[voices[k] for k in keys] if voices else None,
            learning_rate=args.align_learning_rate,
            seed=args.seed,
        )
        write_jsonl(folder.parent / "align.jsonl", [{"step": i + 1, "loss": v} for i, v in enumerate(losses)])
    processor.save_pretrained(folder)
    save_whole(model, folder)


def train_align(args: AlignConfig) -> Path:
    """The student with its projector aligned and nothing else trained: `output_dir`/base."""
    out = prepare_folder(args)
    group = Group(args.process_index, args.world_size)
    manifest = str(args.train_manifest)
    utterances = read_captioned(manifest, need_p_act=True)
    keys, paths = audio_files(manifest, utterances)
    if args.balance:
        repeated = balanced(utterances)
        utterances, keys = [utterances[i] for i in repeated], [keys[i] for i in repeated]
    set_seed(args.seed)
    model, processor = build_base(args, out / "base", utterances, keys, paths, group)
    refuse_special_tokens(manifest, texts_of(utterances), processor.tokenizer)
    write_provenance(out, training_provenance([manifest], [args.llm]))
    write_run_record(out, "train align", args.to_dict(), [manifest], seed=args.seed)
    return out


def train_speech(args: SpeechSFTConfig) -> Path | None:
    """Train the student with cross-entropy (`SpeechSFTConfig`) or by distillation (`DistillConfig`).

    Writes to `output_dir`: the trained adapter and projector, `base/` on which they stand, processor,
    `run.json`, `log.jsonl`, tensorboard logs and checkpoints.

    Returns:
        The folder, or None when the run was interrupted.
    """
    out = prepare_folder(args)
    group = Group(args.process_index, args.world_size)
    distill = isinstance(args, DistillConfig)
    if isinstance(args, DistillConfig):
        check_top_k(args)
    manifests = [m for m in (args.train_manifest, args.dev_manifest) if m]
    utterances = [read_captioned(m, need_p_act=distill or args.align_steps > 0) for m in manifests]
    files = [audio_files(m, u) for m, u in zip(manifests, utterances, strict=True)]
    if args.balance:
        # Repeated clips do not change the order of the others, from which speakers' clips are chosen.
        repeated = balanced(utterances[0])
        utterances[0] = [utterances[0][i] for i in repeated]
        files[0] = ([files[0][0][i] for i in repeated], files[0][1])
    set_seed(args.seed)
    model, processor = build_base(args, out / "base", utterances[0], *files[0], group)
    for path, part in zip(manifests, utterances, strict=True):
        refuse_special_tokens(path, texts_of(part), processor.tokenizer)
    features: TensorCache | None = None
    voices: dict[str, Tensor] | None = None
    if args.feature_cache or args.speaker_relative:
        features = feature_cache(Path(args.cache_dir), model, processor)
        every = {key: path for _, paths in files for key, path in paths.items()}
        fill_features(features, model, processor, every, group=group)
        if args.speaker_relative:
            voices = {}
            for part, (keys, _) in zip(utterances, files, strict=True):
                voices |= speaker_voices(features, keys, [speaker_name(u) for u in part])
        if not args.feature_cache:
            features = None
    model.requires_grad_(False)
    datasets = [
        SpeechRows(
            m,
            u,
            processor,
            teacher=distill,
            limit=args.max_response_tokens,
            features=features,
            keys=keys,
            voices=voices,
            use_p_act=getattr(args, "use_p_act", True),
        )
        for m, u, (keys, _) in zip(manifests, utterances, files, strict=True)
    ]
    record: dict[str, Any] = {}
    if isinstance(args, DistillConfig):
        whole: Any = model
        if args.targets == "teacher":
            whole.to(args.device)  # `place` may have left the language model on the host
            write_targets(out / "targets.jsonl", model, processor.tokenizer, datasets, group=group)
        buckets = length_buckets(args, datasets[0])
        batch = len(datasets[0]) / len(buckets) if buckets else args.train_batch_size
        if wants_teacher_cache(args, len(datasets[0]), batch):
            whole.to(args.device)
            pairs = [pair for d in datasets for pair in d.teacher_pairs()]
            states, record = read_teacher(args, model, processor.tokenizer.pad_token_id, pairs, group)
            for d in datasets:
                d.states = states
    set_seed(args.seed)
    trainer_class = DistillTrainer if distill else SpeechSFTTrainer
    student = add_adapters(model, args, projector=True)
    if not args.train_llm:
        freeze_adapters(student)
    trainer = trainer_class(
        model=student,
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1] if len(datasets) > 1 else None,
        data_collator=SpeechCollator(processor),
        processing_class=processor,
    )
    if not train(trainer, args, "train distill" if distill else "train sft", list(manifests), **record):
        return None
    trainer.save_model(str(out))
    return out

"""`train prefer`: DPO on judged caption pairs (AlignCap, PO-Regularisation; Rafailov et al. 2023, eq. 7).

The printed loss of AlignCap has β outside log σ and no minus sign; this is the standard one,
−log σ(β (log π/π_ref (chosen) − log π/π_ref (rejected))), and trl's other loss types by option.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import set_seed
from trl import DPOTrainer

from aligncap.data.manifest import audio_files, read_manifest
from aligncap.data.split import choose_evenly
from aligncap.inference.captioner import Captioner
from aligncap.models.checkpoints import load_checkpoint, load_folder, model_key, save_whole
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.models.speakers import speaker_name
from aligncap.text.emotions import emotion_of
from aligncap.text.prompts import measured_cues
from aligncap.text.rubric import evidence, score
from aligncap.training.caches import feature_cache, fill_features, speaker_voices
from aligncap.training.collators import SpeechCollator, audio_batch, pad_prompts
from aligncap.training.config import SpeechDPOConfig
from aligncap.training.data import (
    ClipInputs,
    PreferenceCollator,
    PreferenceRows,
    manifest_of_pairs,
    read_captioned,
    read_pairs,
    reference_key,
    refuse_special_tokens,
)
from aligncap.training.sharding import place, shards_weights
from aligncap.training.shared_prefix import score_responses, why_not_packed
from aligncap.training.trainer import BucketedTrainer, lora_config, prepare_folder, train, two_rate_optimizer
from aligncap.training.watch import Patience, Watch
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_json
from aligncap.utils.tensor_cache import AUDIO_VERSION, TensorCache, digest, fill, fingerprint, hash_of


class DevScore:
    """Captions of a fixed choice of dev clips, scored: call it with the model under training."""

    def __init__(self, manifest: str, processor: AlignCapProcessor, args: SpeechDPOConfig) -> None:
        every = read_captioned(manifest, need_p_act=False)
        keys, paths = audio_files(manifest, every)
        chosen = choose_evenly(every, args.dev_clips, seed=0)
        self.utterances = [every[i] for i in chosen]
        # A speaker's norm is that of all the clips, not of those few that are captioned.
        known = evidence(every)
        self.evidence = [known[i] for i in chosen]
        self.keys, self.paths, self.speakers = keys, paths, [speaker_name(u) for u in every]
        self.clips = [(keys[i], paths[keys[i]]) for i in chosen]
        self.processor = processor
        self.inputs = ClipInputs(processor, None)
        self.batch, self.limit = args.per_device_eval_batch_size, args.max_response_tokens

    @torch.no_grad()
    def captions(self, model: Any, indices: list[int], sharded: bool = False) -> dict[int, str]:
        """Greedy captions of some of the clips."""
        found: dict[int, str] = {}
        rows = {i: self.inputs(*self.clips[i], measured_cues(self.utterances[i].cue_words)) for i in indices}
        ordered = sorted(indices, key=lambda i: -len(rows[i]["prompt_ids"]))
        for start in range(0, len(ordered), self.batch):
            part = ordered[start : start + self.batch]
            own = [rows[i] for i in part]
            inputs = pad_prompts([row["prompt_ids"] for row in own], self.processor.tokenizer.pad_token_id)
            inputs |= audio_batch(own, self.processor)
            output = model.generate(
                **{k: v.to(model.device) for k, v in inputs.items()},
                max_new_tokens=self.limit,
                do_sample=False,
                synced_gpus=sharded or None,  # weights in shards are gathered by all processes, or by none
            )
            texts = Captioner(model, self.processor).texts(output[:, inputs["input_ids"].shape[1] :])
            found.update(zip(part, texts, strict=True))
        return found

    def __call__(
        self, model: Any, process: int = 0, processes: int = 1, sharded: bool = False
    ) -> dict[str, float]:
        """Scores of the dev clips, each process captioning its share: of as many clips, since with weights in
        shards (`sharded`) all processes must take the same steps.

        Returns:
            rubric (mean overall, 0 to 10, fluency left out), uar of emotions, length in words, top_share (of
            the most frequent caption).
        """
        every = -(-len(self.clips) // processes) * processes
        share = [i % len(self.clips) for i in range(process, every, processes)]
        own = self.captions(model, share, sharded)
        parts = gather_object([own]) if processes > 1 else [own]
        captions = {i: text for part in parts for i, text in part.items()}
        texts = [captions[i] for i in range(len(self.clips))]
        right: dict[str, list[bool]] = {}
        for u, text in zip(self.utterances, texts, strict=True):
            if u.emotion is not None:
                right.setdefault(u.emotion, []).append(emotion_of(text) == u.emotion)
        scores = {
            "rubric": fmean(score(t, e).overall for t, e in zip(texts, self.evidence, strict=True)),
            "length": fmean(len(text.split()) for text in texts),
            "top_share": Counter(texts).most_common(1)[0][1] / len(texts),
        }
        if right:
            scores["uar"] = fmean(fmean(hits) for hits in right.values())
        return scores


class SpeechDPOTrainer(BucketedTrainer, DPOTrainer):
    """trl's DPOTrainer on rows that hold audio; the dev score takes the place of an evaluation loss."""

    model: Any
    args: SpeechDPOConfig

    def __init__(self, *, rows: PreferenceRows, dev: DevScore | None = None, **kwargs: Any) -> None:
        self.rows, self.dev = rows, dev
        # trl insists on a datasets.Dataset, which would copy the audio; `_prepare_dataset` puts the rows in.
        numbers = datasets.Dataset.from_dict({"row": list(range(len(rows)))})
        # The Trainer asks for a set to evaluate on, though `evaluate` does without.
        super().__init__(train_dataset=numbers, eval_dataset=numbers if dev else None, **kwargs)
        base = self.model.get_base_model()
        reason = why_not_packed(base.model.language_model) if self.args.shared_prefix else None
        if reason and self.is_world_process_zero():
            print(f"shared_prefix: off, since {reason}; each caption takes a row of its own", file=sys.stderr)
        score_responses(base, self.args.shared_prefix and reason is None)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rows

    def describe_batches(self) -> dict[str, float]:
        """Nothing: the rows whose padding it would tell are packed in pairs."""
        return {}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = two_rate_optimizer(self)
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """trl's loss; audio that is not cached is encoded once for policy and reference."""
        inputs = dict(inputs)
        if "input_features" in inputs:
            mel = {name: inputs.pop(name) for name in ("input_features", "input_features_mask")}
            with torch.no_grad():
                inputs |= model(**mel, encode_only=True)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Caption the dev clips and judge them by the rubric."""
        if self.dev is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self.model.eval()
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            own = self.accelerator.process_index, self.accelerator.num_processes
            scores = self.dev(model, *own, sharded=own[1] > 1 and shards_weights(self.args))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def fill_reference(self, root: Path, start: str, batch: int = 16, group: Group = ALONE) -> None:
        """Compute the reference's log-probability of every caption before training, and read it from then on.

        Cached in `root` by a hash of the reference's weights (`start`), precision, the clip, prompt and
        caption.
        """
        rows = self.rows
        model = self.accelerator.unwrap_model(self.model)
        description = {
            "kind": "reference log-probabilities",
            "model": start,
            "bf16": bool(self.args.bf16),
            "audio_version": AUDIO_VERSION,
            "prompt": rows.inputs.processor.prompt,
            "voices": hash_of(rows.inputs.voices or {}),  # what clips are heard against
        }
        cache = TensorCache(root / f"reference-{digest(description)}", description)
        sides: dict[str, tuple[int, str]] = {}
        shown = rows.inputs.processor.show_cues
        for index, source in enumerate(rows.rows):
            for side in ("chosen_ids", "rejected_ids"):
                sides.setdefault(reference_key(source, side, shown), (index, side))
        collate = SpeechCollator(rows.inputs.processor)

        def compute(keys: Sequence[str]) -> dict[str, Tensor]:
            chosen = [(rows[i], side) for i, side in (sides[key] for key in keys)]
            batch = collate([{**row, "response_ids": row[side]} for row, side in chosen])
            inputs = {name: value.to(self.args.device) for name, value in batch.items()}
            with self.accelerator.autocast(), model.disable_adapter():
                output = model(**inputs, fused_lm_head=True, use_cache=False)
            return {k: v.reshape(1).cpu() for k, v in zip(keys, output.log_probs.sum(1), strict=True)}

        model.eval()
        ordered = sorted(sides, key=lambda k: len(rows.rows[sides[k][0]][sides[k][1]]))
        fill(cache, ordered, compute, batch, "reference reads", group)
        rows.reference = cache
        self.precompute_ref_logps = True


def wants_reference_cache(args: SpeechDPOConfig, pairs: int) -> bool:
    """Whether the reference's word on every pair, computed beforehand, costs no more than computed live."""
    if args.ld_alpha is not None:
        return False  # a caption's sum then depends on the length of the other one
    if args.reference_cache != "auto":
        return args.reference_cache == "yes"
    if shards_weights(args):
        return False  # one device might not hold the model whole
    steps = args.max_steps if args.max_steps > 0 else pairs  # by epochs: each pair is read
    return steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size >= pairs


def load_start(
    args: SpeechDPOConfig, folder: Path
) -> tuple[AlignCapForConditionalGeneration, AlignCapProcessor]:
    """The checkpoint to start from, its adapter folded in.

    An adapter's whole model is saved in `folder`, since the new adapter stands on it.
    """
    start = Path(str(args.model)).resolve()
    if not (start / "adapter_config.json").is_file():
        return load_checkpoint(start)  # type: ignore[return-value]
    mark = folder / "made_of.json"
    made_of = model_key(start)
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8"))["start"] != made_of:
        raise UserError(
            f"{folder}: was made from another --model; go on with that one, or choose another output_dir"
        )
    if not mark.is_file():
        model: Any
        model, processor = load_checkpoint(start)
        processor.save_pretrained(folder)
        save_whole(model.merge_and_unload(), folder)
        write_json(mark, {"start": made_of})
    return load_folder(folder)


def train_dpo(args: SpeechDPOConfig) -> Path | None:
    """Refine a checkpoint on pairs.

    Writes to `output_dir`: the trained adapter (and projector), `base/` on which they stand when the start
    was an adapter, processor, `run.json`, `log.jsonl`, tensorboard logs and checkpoints.

    Returns:
        The folder, or None when the run was interrupted.

    Raises:
        UserError, UserErrors: pairs, manifest or start that cannot be used.
    """
    if args.n_gpu > 1:
        raise UserError(
            "several GPUs need a launcher: accelerate launch --config_file configs/accelerate/gpu8.yaml "
            "scripts/train.py prefer …, or CUDA_VISIBLE_DEVICES=0 for one"
        )
    out = prepare_folder(args)
    group = Group(args.process_index, args.world_size)
    manifest = manifest_of_pairs(str(args.train_pairs), args.train_manifest)
    utterances = read_manifest(Path(manifest))
    pairs = read_pairs(str(args.train_pairs), manifest, utterances, args.kinds())
    keys, paths = audio_files(manifest, utterances)
    key_of = {u.id: key for u, key in zip(utterances, keys, strict=True)}
    set_seed(args.seed)
    model: Any
    with args.main_process_first(local=False, desc="base model"):
        model, processor = load_start(args, out / "base")
    said = [(pair.line, pair.utterance.id, (pair.chosen, pair.rejected)) for pair in pairs]
    refuse_special_tokens(str(args.train_pairs), said, processor.tokenizer)
    place(model, args).requires_grad_(False)
    if args.disable_dropout:  # trl finds modules only, and chosen and rejected must hear one speaker
        model.model.multi_modal_projector.speaker_dropout = 0.0
    used = [key_of[pair.utterance.id] for pair in pairs]
    dev = DevScore(args.dev_manifest, processor, args) if args.dev_manifest else None
    features = None
    voices: dict[str, Tensor] | None = None
    if args.feature_cache or processor.speaker_relative:
        features = feature_cache(Path(args.cache_dir), model, processor)
        wanted = {key: paths[key] for key in used} | dict(dev.clips if dev else ())
        if processor.speaker_relative:  # speakers are heard in all their clips
            wanted |= paths | (dev.paths if dev else {})
        fill_features(features, model, processor, wanted, group=group)
        if processor.speaker_relative:
            voices = speaker_voices(features, keys, [speaker_name(u) for u in utterances])
            if dev:
                voices |= speaker_voices(features, dev.keys, dev.speakers)
        if not args.feature_cache:
            features = None
    if dev:
        dev.inputs = ClipInputs(processor, features, voices)
    rows = PreferenceRows(
        pairs, used, paths, processor, limit=args.max_response_tokens, features=features, voices=voices
    )
    start = fingerprint(model)
    set_seed(args.seed)
    trainer = SpeechDPOTrainer(
        model=model,
        peft_config=lora_config(model, args, projector=args.train_projector),
        args=args,
        rows=rows,
        data_collator=PreferenceCollator(processor),
        processing_class=processor,
        dev=dev,
    )
    if args.patience:
        trainer.add_callback(Patience(args.patience))
    trainer.add_callback(Watch(args))
    if wants_reference_cache(args, len(rows)):
        model.to(args.device)
        trainer.fill_reference(Path(args.cache_dir), start, group=group)
    data: list[str | Path] = [path for path in (args.train_pairs, manifest, args.dev_manifest) if path]
    if not train(trainer, args, "train prefer", data, start=str(args.model), pairs=len(rows)):
        return None
    trainer.save_model(str(out))
    if trainer.is_world_process_zero():
        _compare_with_start(trainer)
    return out


def _compare_with_start(trainer: SpeechDPOTrainer) -> None:
    scores = {r["step"]: r["eval_rubric"] for r in trainer.state.log_history if "eval_rubric" in r}
    if 0 in scores and len(scores) > 1:
        best = max((step for step in scores if step), key=lambda step: scores[step])
        print(f"dev rubric score: {scores[0]:.2f} at the start, {scores[best]:.2f} at step {best}, now kept")
        if scores[best] <= scores[0]:
            print("alarm: no checkpoint did better than the start; keep the start", file=sys.stderr)

"""`train distill`: KL from the same LLM, adapters off, that reads transcript and acoustic prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset
from transformers import AutoTokenizer

from aligncap.models.hub import load_pretrained, resolve
from aligncap.text.prompts import end_token_id
from aligncap.training.align import make_student
from aligncap.training.batches import length_buckets
from aligncap.training.caches import MOST, cached_teacher, head_logits, states_size
from aligncap.training.clips import read_clips
from aligncap.training.collators import pad_prompts
from aligncap.training.config import USE_P_ACT
from aligncap.training.data import CaptionRows, SpeechDataset, speech_datasets
from aligncap.training.divergences import chunked, divergence, top_k_divergence, unpack
from aligncap.training.responses import TokenLists
from aligncap.training.resume import begin
from aligncap.training.sft import SpeechSFTConfig, SpeechSFTTrainer
from aligncap.training.sharding import adapters_off, shards_weights
from aligncap.training.trainer import fit
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserError
from aligncap.utils.io import read_jsonl, write_jsonl
from aligncap.utils.journal import journaled
from aligncap.utils.options import NaturalInt, NonNegativeFloat, PositiveFloat, Range, option
from aligncap.utils.tensor_cache import digest

_log = logging.getLogger(__name__)
TOP_K = 64  # tokens of the teacher that are cached where all would take too much


@dataclass
class DistillConfig(SpeechSFTConfig):
    """KL to the same LLM reading transcript and P_act, and cross-entropy on the captions.

    Writes to OUTPUT_DIR what `train sft` writes.

    Examples:
        aligncap train distill --config distill
        aligncap train distill --config distill --seed 1 --output_dir runs/distill-1
        accelerate launch --config_file configs/accelerate/cpu2.yaml scripts/train.py distill --config distill
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = option(
        "forward_kl", "forward_kl, reverse_kl or jsd."
    )
    temperature: PositiveFloat = option(1.0, "Softens both distributions; the loss is scaled by T².")
    jsd_beta: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = option(
        0.5, "β of the generalised Jensen-Shannon divergence."
    )
    ce_weight: NonNegativeFloat = option(1.0, "λ of the added cross-entropy.")
    use_p_act: bool = option(True, USE_P_ACT)
    targets: Literal["references", "teacher"] = option(
        "references", "What is answered: references, or captions that the teacher writes."
    )
    teacher_cache: Literal["auto", "yes", "no"] = option(
        "auto", "Compute the teacher's states before training; auto: if each is read at least once."
    )
    teacher_top_k: NaturalInt | None = option(
        None,
        "Cache the teacher's k likeliest tokens, others in one bucket; 0: all tokens, exactly; none: all, or "
        "64 where all would take more than 20 GB.",
    )

    def own_errors(self) -> list[str]:
        errors = super().own_errors()
        if self.teacher_top_k and self.teacher_cache == "no":
            errors.append(
                f"teacher_top_k={self.teacher_top_k}: is read from a cache; leave out teacher_cache=no"
            )
        if self.jsd_beta != type(self).jsd_beta and self.divergence != "jsd":
            errors.append(f"jsd_beta: has no effect with divergence={self.divergence}; leave it out")
        if self.smoothing and not self.ce_weight:
            errors.append("smoothing: has no effect with ce_weight=0; leave it out")
        return errors


class DistillTrainer(SpeechSFTTrainer):
    """L = T² · D(p ‖ q) + λ · CE over response tokens.

    D is forward KL by default (AlignCap, KD-Regularisation).
    The teacher's pass is live (`teacher_input_ids` in the batch), or starts from cached last hidden states
    (`teacher_hidden`), to which the same frozen head is applied, or is left out (`teacher_top_k`: its most
    likely tokens and one bucket for all others, by which D is bounded from below).
    """

    args: DistillConfig

    def teacher_logits(self, model: nn.Module, teacher: dict[str, Tensor]) -> Tensor:
        """Logits (response tokens, text vocabulary) of a batch's `teacher_*` entries."""
        with torch.no_grad():
            if "hidden" in teacher:
                head = self.accelerator.unwrap_model(model).get_output_embeddings()
                return self.drop_placeholder(head_logits(head, teacher["hidden"]))
            order = teacher.pop("order", None)
            was_training = model.training
            model.eval()
            with adapters_off(self.accelerator.unwrap_model(model)):
                logits = self.drop_placeholder(self.kept_logits(model, teacher))
            model.train(was_training)
            return (
                logits if order is None else logits[order]
            )  # packed rows of its own, in the student's order

    def predictions(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Student's logits, tokens, and of the teacher logits or packed likeliest tokens (int32)."""
        teacher = {k.removeprefix("teacher_"): v for k, v in inputs.items() if k.startswith("teacher_")}
        # Teacher first: switching adapters off and on must be over before the student's graph is built.
        target = teacher["top_k"] if "top_k" in teacher else self.teacher_logits(model, teacher)
        return (*self.response_logits(model, inputs), target)

    def summed_loss(self, logits: Tensor, tokens: Tensor, target: Tensor | None = None) -> Tensor:
        args = self.args
        if target is None or len(target) != len(logits):
            raise ValueError("the batch does not hold what the teacher says of each response token")
        options: dict[str, Any] = {
            "name": args.divergence,
            "temperature": args.temperature,
            "beta": args.jsd_beta,
        }
        if target.dtype == torch.int32:
            loss = chunked(top_k_divergence, logits, *unpack(target, target.shape[1] // 2), **options)
        else:
            loss = chunked(divergence, logits, target, **options)
        loss = args.temperature**2 * loss
        if args.ce_weight:
            loss = loss + args.ce_weight * super().summed_loss(logits, tokens)
        return loss


def run_distill(config: DistillConfig) -> int:
    """Train the student by distillation; 130 when interrupted."""
    run = begin("train distill", config)
    check_top_k(config.start or config.llm, config.teacher_top_k or 0)
    manifests = [
        read_clips(path, p_act=config.use_p_act or config.aligns, group=run.group) for path in run.manifests
    ]
    student = make_student(run, config, manifests, use_p_act=config.use_p_act)
    rows = student.rows
    inputs = student.inputs
    if config.targets == "teacher":
        rows = written_by_teacher(run.out / "targets.jsonl", student.model.to(run.device), rows, run.group)
    states, held = None, None
    if wants_teacher_cache(config, SpeechDataset(rows[0], inputs)):
        dtype = config.compute_dtype
        tokens, top_k = sum(part.tokens_once() for part in rows), config.teacher_top_k
        if top_k is None:
            top_k = TOP_K if states_size(tokens, student.model, dtype, 0) > MOST else 0
        states, held = cached_teacher(
            run.cache,
            student.model.to(run.device),  # where weights will be sharded, its LLM is still on the host
            ConcatDataset(rows),
            student.processor.tokenizer.pad_token_id,
            dtype=dtype,
            top_k=top_k,
            temperature=config.temperature,
            group=run.group,
        )
    train, *dev = speech_datasets(rows, inputs, teacher=True, states=states)
    trainer = DistillTrainer(
        model=student.model,
        args=config,
        train_dataset=train,
        eval_dataset=dev[0] if dev else None,
        processing_class=student.processor,
    )
    record = {"teacher_coverage": held} if held else {}
    return fit(trainer, run, manifests, record)


def check_top_k(llm: str, top_k: int) -> None:
    """Before anything long: there are as many tokens as are to be cached.

    Raises:
        UserError: `top_k` is above the vocabulary.
    """
    words = len(load_pretrained(AutoTokenizer, resolve(llm))) if top_k else 0
    if top_k > words:
        raise UserError(
            f"teacher_top_k={top_k}: {llm} has {words} tokens; choose fewer, or 0 for all of them, exactly"
        )


def wants_teacher_cache(args: DistillConfig, dataset: SpeechDataset) -> bool:
    """Whether the teacher is read before training: as asked, or where it costs no more than reading live."""
    if args.teacher_top_k:
        return True  # training reads no head of it, which may then be sharded
    if shards_weights(args):  # only the model's own forward may use the head's weights
        if args.teacher_cache == "yes" and args.process_index == 0:
            _log.warning(
                "teacher_cache=yes: cannot be read with weights in shards, so the teacher is read live; "
                "teacher_top_k can"
            )
        return False
    if args.teacher_cache != "auto":
        return args.teacher_cache == "yes"
    if args.max_steps < 0:  # by epochs
        return args.num_train_epochs is not None and args.num_train_epochs >= 1
    buckets = length_buckets(args, dataset)
    batch = len(dataset) / len(buckets) if buckets else args.train_batch_size
    return args.max_steps * batch * args.gradient_accumulation_steps * args.world_size >= len(dataset)


@torch.no_grad()
def written_by_teacher(
    path: Path,
    model: Any,
    parts: Sequence[CaptionRows],
    group: Group = ALONE,
    batch: int = 32,
) -> list[CaptionRows]:
    """The rows with the teacher's greedy captions as responses; captions are kept in `path` and reused.

    A caption that does not end within the length limit keeps its reference, since a cut sentence teaches
    the student not to stop. Processes share the captions, and what is written survives a kill.
    """
    tokenizer, limit = parts[0].tokenizer, parts[0].max_response_tokens
    known = {tuple(r["prompt_ids"]): r["response_ids"] for r in read_jsonl(path)} if path.exists() else {}
    end, pad = end_token_id(tokenizer), tokenizer.pad_token_id
    asked = dict.fromkeys(tuple(part.prompt(i)) for part in parts for i in range(len(part)))
    prompts = {digest(list(p)): p for p in sorted((p for p in asked if p not in known), key=len)}
    keys = list(prompts)

    def compute(chosen: Sequence[str]) -> dict[str, list[int] | None]:
        inputs = pad_prompts([list(prompts[key]) for key in chosen], pad)
        width = inputs["input_ids"].shape[1]
        made = model.generate(
            **{name: value.to(model.device) for name, value in inputs.items()},
            max_new_tokens=limit,
            do_sample=False,
        )
        found = zip(chosen, made[:, width:].tolist(), strict=True)
        return {key: ids[: ids.index(end) + 1] if end in ids else None for key, ids in found}

    with journaled(path, {"limit": limit}, group) as journal:
        batches = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        group.share_out(journal, batches, compute, "teacher writes")
        # None is kept too: what has no end is not written again with other batch mates on a resume.
        known |= {prompts[key]: journal[key] for key in keys}
        if group.rank == 0:
            write_jsonl(path, [{"prompt_ids": list(p), "response_ids": r} for p, r in known.items()])
    return [
        replace(
            part,
            responses=TokenLists(known[tuple(part.prompt(i))] or part.responses[i] for i in range(len(part))),
        )
        for part in parts
    ]

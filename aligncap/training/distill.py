"""SFT and KL distillation of the speech student. The teacher is the same LLM, adapters off, reading text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aligncap.text.prompts import end_token_id
from aligncap.training.caches import head_logits
from aligncap.training.collators import IGNORE, pad_prompts, response_positions
from aligncap.training.config import CaptionConfig, DistillConfig
from aligncap.training.divergences import chunked_divergence, chunked_top_k_divergence
from aligncap.training.sharding import adapters_off
from aligncap.training.top_k import unpack
from aligncap.training.trainer import BucketedTrainer, two_rate_optimizer
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.io import read_jsonl, write_jsonl
from aligncap.utils.journal import journaled
from aligncap.utils.tensor_cache import digest


class SpeechSFTTrainer(BucketedTrainer):
    """Cross-entropy on response tokens, end-of-text included.

    Logits are computed at response positions only.
    """

    args: CaptionConfig
    model: Any
    # The loss is divided by the global number of response tokens here, so accumulation must not divide again.
    loss_is_scaled_for_ga = True

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = two_rate_optimizer(self)
        return super().create_optimizer(*args, **kwargs)

    def response_logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (response tokens, text vocabulary) and the tokens themselves."""
        labels = inputs["labels"]
        arguments = {k: v for k, v in inputs.items() if k != "labels"}
        logits = model(**arguments, logits_to_keep=response_positions(labels), use_cache=False).logits
        targets = labels[:, 1:][labels[:, 1:] != IGNORE]
        if logits.dim() != 2 or len(logits) != len(targets):
            raise ValueError("the model ignores boolean logits_to_keep; its forward cannot be trained here")
        return self.drop_placeholder(logits), targets

    def drop_placeholder(self, logits: Tensor) -> Tensor:
        """Cut off the masked ids from the audio placeholder upwards: their log-probability is no number."""
        limit = getattr(self.accelerator.unwrap_model(self.model).config, "audio_token_id", None)
        return logits[:, :limit]

    def token_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Summed loss over the response tokens of `inputs`."""
        logits, targets = self.response_logits(model, inputs)
        return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=self.args.smoothing)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        tokens = (inputs["labels"][:, 1:] != IGNORE).sum()
        loss = self.token_loss(model, dict(inputs))
        if num_items_in_batch is None:
            loss = loss / tokens
        else:
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # the count is global, DDP averages gradients
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


class DistillTrainer(SpeechSFTTrainer):
    """L = T² · D(p ‖ q) + λ · CE over response tokens.

    D is forward KL by default (AlignCap, KD-Regularisation).
    The teacher's pass is live (`teacher_input_ids` in the batch), or starts from cached last hidden states
    (`teacher_hidden`), to which the same frozen head is applied, or is left out (`teacher_top_k`: its most
    likely tokens and one bucket for all others, by which D is bounded from below).
    """

    args: DistillConfig

    def teacher_logits(self, model: nn.Module, teacher: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            if "hidden" in teacher:
                head = self.accelerator.unwrap_model(model).get_output_embeddings()
                return self.drop_placeholder(head_logits(head, teacher["hidden"]))
            labels = teacher.pop("labels")
            was_training = model.training
            model.eval()
            with adapters_off(self.accelerator.unwrap_model(model)):
                logits = model(**teacher, logits_to_keep=response_positions(labels), use_cache=False).logits
            model.train(was_training)
            return self.drop_placeholder(logits)

    def token_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        teacher = {
            k.removeprefix("teacher_"): inputs.pop(k) for k in list(inputs) if k.startswith("teacher_")
        }
        options: dict[str, Any] = {
            "name": self.args.divergence,
            "temperature": self.args.temperature,
            "beta": self.args.jsd_beta,
        }
        # Teacher first: switching adapters off and on must be over before the student's graph is built.
        target = None if "top_k" in teacher else self.teacher_logits(model, teacher)
        logits, tokens = self.response_logits(model, inputs)
        if target is None:
            ids, log_probs = unpack(teacher["top_k"], self.args.teacher_top_k)
            loss = chunked_top_k_divergence(logits, ids, log_probs, **options)
        elif logits.shape != target.shape:
            raise ValueError(
                f"teacher {tuple(target.shape)} and student {tuple(logits.shape)} logits do not match"
            )
        else:
            loss = chunked_divergence(logits, target, **options)
        loss = self.args.temperature**2 * loss
        if self.args.ce_weight:
            loss = loss + self.args.ce_weight * F.cross_entropy(logits.float(), tokens, reduction="sum")
        return loss


@torch.no_grad()
def write_targets(
    path: Path, model: Any, tokenizer: Any, datasets: list[Any], batch: int = 32, group: Group = ALONE
) -> None:
    """Replace each row's response by the teacher's greedy caption; captions are kept in `path` and reused.

    A caption that does not end within the length limit keeps its reference, since a cut sentence teaches
    the student not to stop. Processes share the captions, and what is written survives a kill.
    """
    known = {tuple(r["prompt_ids"]): r["response_ids"] for r in read_jsonl(path)} if path.exists() else {}
    end = end_token_id(tokenizer)
    limit = max(len(r["response_ids"]) for d in datasets for r in d.rows) + 8
    missing = list(
        dict.fromkeys(tuple(r["teacher_prompt_ids"]) for d in datasets for r in d.rows) - known.keys()
    )
    missing.sort(key=len)
    prompts = {digest(list(prompt)): prompt for prompt in missing}
    keys = list(prompts)

    def compute(chosen: Sequence[str]) -> dict[str, list[int] | None]:
        inputs = pad_prompts([list(prompts[key]) for key in chosen], tokenizer.pad_token_id)
        width = inputs["input_ids"].shape[1]
        made = model.generate(
            **{name: value.to(model.device) for name, value in inputs.items()},
            max_new_tokens=limit,
            do_sample=False,
        )
        rows = zip(chosen, made[:, width:].tolist(), strict=True)
        return {key: row[: row.index(end) + 1] if end in row else None for key, row in rows}

    with journaled(path, {"limit": limit}, group) as journal:
        batches = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        group.share_out(journal, batches, compute, "teacher writes")
        # None is kept too: what has no end is not written again with other batch mates on a resume.
        known |= {prompts[key]: journal[key] for key in keys}
        if group.rank == 0:
            write_jsonl(path, [{"prompt_ids": list(p), "response_ids": r} for p, r in known.items()])
    for d in datasets:
        for row in d.rows:
            row["response_ids"] = known[tuple(row["teacher_prompt_ids"])] or row["response_ids"]

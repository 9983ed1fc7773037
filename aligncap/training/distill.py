"""SFT and KL distillation of the speech student. The teacher is the same LLM, adapters off, reading text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aligncap.training.arguments import CaptionArguments, DistillArguments
from aligncap.training.batches import BucketedTrainer
from aligncap.training.collators import IGNORE, response_positions
from aligncap.training.divergences import chunked_divergence, chunked_top_k_divergence
from aligncap.training.runs import two_rate_optimizer
from aligncap.training.sharding import adapters_off
from aligncap.training.teacher_cache import head_logits
from aligncap.training.top_k import unpack


class SFTTrainer(BucketedTrainer):
    """Cross-entropy on response tokens, end-of-text included.

    Logits are computed at response positions only.
    """

    args: CaptionArguments
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


class DistillTrainer(SFTTrainer):
    """L = T² · D(p ‖ q) + λ · CE over response tokens.

    D is forward KL by default (AlignCap, KD-Regularisation).
    The teacher's pass is live (`teacher_input_ids` in the batch), or starts from cached last hidden states
    (`teacher_hidden`), to which the same frozen head is applied, or is left out (`teacher_top_k`: its most
    likely tokens and one bucket for all others, by which D is bounded from below).
    """

    args: DistillArguments

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

"""What is trained of a model: LoRA in its LLM and encoder, and parts of it in full."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from aligncap.models.checkpoints import is_adapter
from aligncap.models.encoders import family_of, last_layers
from aligncap.training.config import RunConfig
from aligncap.utils.errors import UserError

_TARGETS = (("q_proj", "v_proj"), ("c_attn",), ("query_key_value",), ("qkv_proj",))


def lora_targets(llm: nn.Module, wanted: str, prefix: str = "") -> str:
    """Regular expression of the linear layers to adapt, anchored at the language model.

    Anchoring matters: Whisper's layers carry the same names.

    Raises:
        UserError: the language model has no such layers.
    """
    linear = (nn.Linear, Conv1D, BaseTunerLayer)  # the last: one that peft has wrapped before
    names = {name.rsplit(".", 1)[-1] for name, module in llm.named_modules() if isinstance(module, linear)}
    groups = _TARGETS if wanted == "auto" else (tuple(part.strip() for part in wanted.split(",")),)
    for group in groups:
        if set(group) <= names:
            return rf"{prefix}.*\.({'|'.join(map(re.escape, group))})"
    raise UserError(
        f"lora_targets={wanted!r}: the language model has no such layers; choose from its linear layers"
    )


def lora_config(model: Any, args: RunConfig, *, projector: bool) -> LoraConfig:
    """LoRA on the language model and, as asked, the encoder; beside it `projector` and the encoder's last
    layers are trained in full.

    Raises:
        UserError: the language model has no such layers, or the encoder not so many.
    """
    speech = hasattr(getattr(model, "model", None), "multi_modal_projector")
    llm, prefix = (model.model.language_model, r"model\.language_model") if speech else (model, "")
    targets, ranks = lora_targets(llm, args.lora_targets, prefix), dict[str, int]()
    if rank := getattr(args, "encoder_lora", 0):
        own = family_of(model.model.audio_tower.config).adapts
        encoder = rf"model\.audio_tower\..*\.({'|'.join(own)})"
        targets, ranks = f"{targets}|{encoder}", {encoder: rank}
    tuned = list[str]()
    if count := getattr(args, "encoder_tuned", 0):
        layers = last_layers(model.model.audio_tower, model.config.encoder_layer, count)
        tuned = [f"audio_tower.{layer}" for layer in layers]
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        rank_pattern=ranks,
        alpha_pattern={name: 2 * rank for name, rank in ranks.items()},
        modules_to_save=[*(["multi_modal_projector"] if projector else []), *tuned] or None,
        exclude_modules=rf"model\.({'|'.join(map(re.escape, tuned))})\..*" if tuned else None,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in llm.modules()),  # GPT-2's layers
    )


def take_up_adapter(model: PeftModel, start: str | Path) -> None:
    """Put what a trained student learnt into fresh adapters, LoRA and layers of the encoder; nothing of a
    merged one, and not its projector, which the base has.

    Raises:
        UserError: its adapters are of another shape.
    """
    if not is_adapter(start):
        return
    check_adapter(model.peft_config["default"], start)
    saved = load_file(Path(start) / "adapter_model.safetensors")
    learnt = {name: value for name, value in saved.items() if "lora_" in name or "audio_tower." in name}
    set_peft_model_state_dict(model, get_peft_model_state_dict(model) | learnt)


def check_adapter(ours: PeftConfig, start: str | Path) -> None:
    """
    Raises:
        UserError: the adapter of `start`, if it has one, is of another shape.
    """
    if not is_adapter(start):
        return
    theirs = PeftConfig.from_pretrained(str(start))
    remedy = "give the same, or go on from the merged model (`aligncap merge`)"
    ranks = [next(iter(getattr(config, "rank_pattern", {}).values()), 0) for config in (theirs, ours)]
    if ranks[0] != ranks[1]:
        raise UserError(f"encoder_lora: the adapter of {start} has {ranks[0]}, not {ranks[1]}; {remedy}")
    whole = [getattr(config, "modules_to_save", None) or () for config in (theirs, ours)]
    layers = [{name for name in names if name.startswith("audio_tower.")} for names in whole]
    if layers[0] != layers[1]:
        had, has = (", ".join(sorted(names)) or "none" for names in layers)
        raise UserError(f"encoder_tuned: {start} trained layers {had}, not {has}; {remedy}")
    for option, name in (("lora_r", "r"), ("lora_alpha", "lora_alpha"), ("lora_targets", "target_modules")):
        had, has = getattr(theirs, name), getattr(ours, name)
        if had != has:
            raise UserError(f"{option}: the adapter of {start} has {name}={had}, not {has}; {remedy}")


def freeze_adapters(model: nn.Module) -> None:
    """Leave the adapters as they begin, which changes nothing of the LLM: only the projector is trained."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)

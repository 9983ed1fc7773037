"""What a run needs where weights lie in shards over processes: FSDP2, DeepSpeed ZeRO-3 (docs/scaling.md)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import is_deepspeed_available
from peft import PeftModel
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.utils import strtobool


def _asked(name: str) -> bool:
    return bool(strtobool(os.environ.get(name, "false")))


def launch_errors(args: TrainingArguments) -> list[str]:
    """What the launcher's configuration asks for and cannot be had."""
    errors = []
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone and not args.use_cpu and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        errors.append(
            "several GPUs need a launcher: accelerate launch --multi_gpu -m aligncap train …, "
            "or CUDA_VISIBLE_DEVICES=0 for one"
        )
    if (args.deepspeed or _asked("ACCELERATE_USE_DEEPSPEED")) and not is_deepspeed_available():
        errors.append("deepspeed: is not installed; pip install 'aligncap[deepspeed]', or choose fsdp2.yaml")
    version = os.environ.get("FSDP_VERSION", "1")
    if _asked("ACCELERATE_USE_FSDP") and version != "2":
        errors.append(
            f"fsdp_version: {version}: shards frozen and trained weights alike; set 2, as in fsdp2.yaml"
        )
    return errors


def launch_flags() -> list[str]:
    """Flags of `accelerate launch` under which this process's way of sharing weights is taken up again."""
    if _asked("ACCELERATE_USE_FSDP"):
        return ["--config_file", "configs/accelerate/fsdp2.yaml"]
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return ["--config_file", f"configs/accelerate/zero{stage}.yaml"]
    return ["--multi_gpu"]  # without it accelerate starts one process where there is no GPU


def shards_weights(args: TrainingArguments) -> bool:
    """Whether weights will be sharded: then only the model's own forward may use them."""
    plugin = getattr(args, "deepspeed_plugin", None)
    return bool(args.fsdp) or _asked("ACCELERATE_USE_FSDP") or (plugin is not None and plugin.zero_stage == 3)


def place(model: Any, device: torch.device, sharded: bool) -> Any:
    """`model` (AlignCapForConditionalGeneration) on the run's device.

    Where weights will be sharded, the language model stays on the host until they are: one device need not
    hold all of it. What is done before, features and projector alignment, does not run it.
    """
    if not sharded:
        return model.to(device)
    model.model.audio_tower.to(device)
    model.model.multi_modal_projector.to(device)
    return model


def load_whole(args: TrainingArguments) -> None:
    """Have models loaded whole under ZeRO-3 too.

    transformers would load each part in shards already, but parts are joined, embeddings read and speech is
    encoded before training. `shard_as_configured` undoes it.
    """
    if getattr(args, "deepspeed_plugin", None) is not None:
        unset_hf_deepspeed_config()


def shard_as_configured(trainer: Trainer) -> None:
    """The last word on the configuration before training begins.

    DeepSpeed's is known again (generation asks for it). FSDP2 in bfloat16 rounds neither what the model
    gives, since a caption's log-probability is a sum of tens of nats, nor the sum of gradients.
    """
    state = trainer.accelerator.state
    deepspeed = getattr(state, "deepspeed_plugin", None)
    if deepspeed is not None:
        set_hf_deepspeed_config(deepspeed.hf_ds_config)
    fsdp = getattr(state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.mixed_precision_policy is not None:
        fsdp.mixed_precision_policy = dataclasses.replace(
            fsdp.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


@contextlib.contextmanager
def adapters_off(model: PeftModel) -> Iterator[None]:
    """`model.disable_adapter()`, within which and after which the same parameters are trainable as before.

    peft freezes adapters while they are off, and frees all of them after. FSDP2 looks at its first pass at
    what is trainable: a shard frozen then is left out of checkpoints and takes no gradient in bfloat16.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def restore() -> None:
        for name, parameter in model.named_parameters():  # FSDP2 may have put others in their place
            parameter.requires_grad_(name in trained)

    with model.disable_adapter():
        restore()
        yield
    restore()

"""`merge`: fold the adapter of a run into its base."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from aligncap.data.provenance import checkpoint_provenance, write_provenance
from aligncap.models.checkpoints import (
    CALIBRATION,
    is_adapter,
    llm_dtype,
    load_folder,
    load_for_inference,
    save_whole,
)
from aligncap.models.model_card import read_record, write_model_card
from aligncap.utils.errors import UserError
from aligncap.utils.io import whole_folder
from aligncap.utils.options import Config, option
from aligncap.utils.run_record import write_run_record


@dataclass
class MergeConfig(Config):
    """Fold the adapter of a training run into its base: one folder that `from_pretrained` loads.

    Examples:
        aligncap merge runs/distill --out runs/model
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: str = option(help="output_dir of a training run, or a checkpoint-N in it.")
    out: str = option(help="Folder to write; it must not exist or be empty.")
    llm: str | None = option(
        None, "Folder for the language model alone, adapted, which AutoModelForCausalLM loads."
    )


def run_merge(config: MergeConfig) -> int:
    """`aligncap merge`."""
    if config.llm:
        refuse_filled(config.llm)
        if Path(config.llm).resolve() == Path(config.out).resolve():
            raise UserError(f"{config.llm}: name another folder for the language model than --out")
    print(f"merged: {merge(config.checkpoint, config.out)}")
    if config.llm:
        print(f"language model: {save_llm(config.out, config.llm)}")
    return 0


def refuse_filled(folder: str | Path) -> None:
    """
    Raises:
        UserError: the folder exists and is not empty.
    """
    if Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise UserError(f"{folder}: exists and is not empty; choose another folder")


def merge(folder: str | Path, out: str | Path) -> Path:
    """Fold an adapter into its base and save one folder that loads with `from_pretrained`.

    The language model is written in the precision in which it was published.

    Raises:
        UserError: `folder` holds no adapter, or `out` exists and is not empty.
    """
    folder, out = Path(folder), Path(out)
    if not is_adapter(folder):
        remedy = "give the output_dir of a training run"
        raise UserError(f"{folder}: no adapter here (adapter_config.json); {remedy}")
    refuse_filled(out)
    model, processor = load_for_inference(folder)
    run = folder if (folder / "run.json").is_file() else folder.parent
    record = {"checkpoint_run": read_record(run / "run.json")}
    weights: list[str | Path] = [folder / "adapter_model.safetensors"]
    with whole_folder(out) as made:
        processor.save_pretrained(made)
        if (folder / CALIBRATION).is_file():
            shutil.copyfile(folder / CALIBRATION, made / CALIBRATION)
        save_whole(model, made, llm_dtype(folder))
        write_provenance(made, checkpoint_provenance(folder))
        write_run_record(made, "merge", {"checkpoint": str(folder)}, weights, **record)
        write_model_card(made, run, name=out.resolve().name)
    return out


def save_llm(folder: str | Path, out: str | Path) -> Path:
    """Save the language model of a merged checkpoint alone: `AutoModelForCausalLM` loads it without aligncap.

    Its tokenizer keeps the placeholders of audio and speaker, which it never generates.

    Raises:
        UserError: `folder` is no whole checkpoint, or `out` exists and is not empty.
    """
    refuse_filled(out)
    model, processor = load_folder(folder)
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(model.config.text_config)
    setattr(llm, llm.base_model_prefix, model.model.language_model)
    llm.set_output_embeddings(model.lm_head)
    generation = cast(GenerationConfig, model.generation_config)
    # Placeholders have no meaning in text, and their logits, which AlignCap masks, are those of empty rows.
    generation.suppress_tokens = list(range(model.config.audio_token_id, model.lm_head.out_features))
    generation.max_new_tokens = None  # a caption's
    llm.generation_config = generation
    with whole_folder(out) as made:
        processor.tokenizer.save_pretrained(made)
        save_whole(llm, made, llm_dtype(folder))
        write_provenance(made, checkpoint_provenance(folder))
    return Path(out)

"""Load and merge AlignCap checkpoints: whole folders, and adapters with the base they stand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from aligncap.errors import UserError
from aligncap.heard import heard_by, write_heard
from aligncap.io import workplace
from aligncap.models.building import check_architecture
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.run_record import write_run_record


def load_folder(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[AlignCapForConditionalGeneration, AlignCapProcessor]:
    """A whole checkpoint (merged, or a run's `base/`)."""
    check_architecture(folder, "aligncap")
    model = AlignCapForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return model.eval(), AlignCapProcessor.from_pretrained(folder)


def base_of(folder: Path) -> Path:
    """The base of an adapter folder: `base/` in it (beside it for a checkpoint), else the one recorded."""
    places = [folder / "base"]
    if folder.name.startswith("checkpoint-"):
        places.append(folder.parent / "base")
    for candidate in places:
        if (candidate / "config.json").is_file():
            return candidate
    recorded = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    if recorded and (Path(recorded) / "config.json").is_file():
        return Path(recorded)
    raise UserError(f"{folder}: the base model of this adapter is missing; expected {folder / 'base'}")


def load_checkpoint(
    folder: str | Path, dtype: torch.dtype = torch.float32, *, trainable: bool = False
) -> tuple[AlignCapForConditionalGeneration | PeftModel, AlignCapProcessor]:
    """A whole checkpoint, or an adapter on its base.

    Raises:
        UserError: the folder is missing, or of another architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a trained model")
    if not (folder / "adapter_config.json").is_file():
        return load_folder(folder, dtype)
    base = base_of(folder)
    model, processor = load_folder(base, dtype)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable).eval(), processor


def model_key(folder: str | Path) -> str:
    """What identifies a checkpoint's weights on this machine: path, size and time of its weight files.

    An adapter's are those of its base too.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").is_file():
        files += sorted(base_of(folder).glob("*.safetensors"))
    return "|".join(f"{f.resolve()}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)


def save_whole(model: Any, folder: str | Path) -> None:
    """Save weights, and config.json last: a folder that has it is complete, whenever a run is killed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with workplace(folder / "weights") as temporary:
        model.save_pretrained(temporary)
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == "config.json"):
            path.replace(folder / path.name)


def merge(folder: str | Path, out: str | Path) -> Path:
    """Fold an adapter into its base and save one folder that loads with `from_pretrained`.

    Raises:
        UserError: `folder` holds no adapter, or `out` exists and is not empty.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: no adapter here (adapter_config.json); give the output_dir of a training run"
        )
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not empty; choose another --out")
    model: Any
    model, processor = load_checkpoint(folder)
    processor.save_pretrained(out)
    save_whole(model.merge_and_unload(), out)
    write_heard(out, heard_by(folder))
    write_run_record(out, "merge", {"checkpoint": str(folder)}, [folder / "adapter_model.safetensors"])
    return out

"""Load and save AlignCap models: whole folders, bases that name their parts, and adapters on their base."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from aligncap.data.hashes import Known, hashes_of
from aligncap.models.build import Loaded, add_placeholders, join, load_encoder, load_llm
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.hub import load_pretrained, resolve
from aligncap.models.model_card import read_record, write_model_card
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.models.projectors import make_projector
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, workplace, write_json
from aligncap.utils.tensor_cache import digest

CALIBRATION = "calibration.json"  # in a model's folder: how far its confidence is to be trusted
PARTS = "parts.json"  # in a base's folder: the models that it is made of, by place and hash
PROJECTOR = "projector.safetensors"  # beside it: all of the base that is in no other folder


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> Loaded:
    """A whole checkpoint (merged, or a run's `base/`, which names its parts).

    Raises:
        UserError: `folder` holds none, or one of another architecture; nothing heavy is loaded then.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        hint = "; it is an adapter: run `aligncap merge` first" if is_adapter(folder) else ""
        raise UserError(f"{folder}: no config.json here, so no AlignCap checkpoint{hint}")
    found = read_record(path).get("model_type")
    if found != "aligncap":
        remedy = "'aligncap' is needed; give the folder of an AlignCap model"
        raise UserError(f"{path}: model_type is {found!r}, {remedy}")
    if (Path(folder) / PARTS).is_file():
        model = _load_parts(Path(folder), dtype)
    else:
        model = load_pretrained(AlignCapForConditionalGeneration, folder, dtype=dtype, use_safetensors=True)
    return model.eval(), load_pretrained(AlignCapProcessor, folder)


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter, which stands on a base, and not a whole model."""
    return (Path(folder) / "adapter_config.json").is_file()


def base_of(folder: Path) -> Path:
    """The base of an adapter folder: `base/` in it (beside it for a checkpoint), else the one recorded."""
    places = [folder / "base"]
    if folder.name.startswith("checkpoint-"):
        places.append(folder.parent / "base")
    if recorded := read_record(folder / "adapter_config.json").get("base_model_name_or_path"):
        places.append(Path(recorded))
    for candidate in places:
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"{folder}: the base model of this adapter is missing; expected {folder / 'base'}")


def load_checkpoint(
    folder: str | Path, dtype: torch.dtype = torch.float32, *, trainable: bool = False
) -> tuple[AlignCapForConditionalGeneration | PeftModel, AlignCapProcessor]:
    """A whole checkpoint, or an adapter on its base.

    Raises:
        UserError: the folder is missing, of another architecture, or not of safetensors.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a trained model")
    if not is_adapter(folder):
        return load_folder(folder, dtype)
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"{folder}: no adapter_model.safetensors, and no other weights are ever loaded")
    model, processor = load_folder(base_of(folder), dtype)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable).eval(), processor


def load_for_inference(folder: str | Path, dtype: torch.dtype = torch.float32) -> Loaded:
    """A checkpoint with its adapter, if any, folded in: the numbers of the folder that `merge` writes."""
    model, processor = load_checkpoint(folder, torch.float32 if is_adapter(folder) else dtype)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
        _cast(model, dtype)
    return model.eval(), processor


def llm_dtype(folder: str | Path) -> torch.dtype:
    """In which precision the language model of a checkpoint, or a plain LLM, lies on disk."""
    folder = Path(folder)
    if is_adapter(folder):
        return llm_dtype(base_of(folder))
    if (folder / PARTS).is_file():
        parts = _parts(folder)
        return llm_dtype(parts["llm" if "llm" in parts else "student"][0])
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                # Masks of old checkpoints lie there as truth values.
                dtype = file.get_slice(name)[:1].dtype
                if dtype.is_floating_point and not re.search("audio_tower|multi_modal_projector", name):
                    return dtype
    return torch.float32


def save_whole(model: PreTrainedModel, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Save weights, and config.json last: a folder that has it is complete, whenever a run is killed.

    Args:
        dtype: of the language model on disk. The encoder takes half precision where that holds its weights
            exactly, which those that were trained are not; the projector stays float32. Whoever loads the
            folder gets float32 unless another precision is asked for.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with workplace(folder / "weights") as temporary:
        model.save_pretrained(temporary, state_dict=_stored(model, dtype))
        (temporary / "README.md").unlink(missing_ok=True)  # of the temporary folder's name
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == "config.json"):
            path.replace(folder / path.name)
    if isinstance(model, AlignCapForConditionalGeneration):
        write_model_card(folder)


def _stored(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights as they are written; tensors that are shared stay shared."""
    written: dict[int, torch.Tensor] = {}
    found = {}
    for name, tensor in model.state_dict().items():
        key = tensor.data_ptr() or id(tensor)
        if key not in written or written[key].shape != tensor.shape:
            if dtype == torch.float32 or not tensor.is_floating_point() or "multi_modal_projector" in name:
                written[key] = tensor
            else:
                written[key] = _exactly(tensor) if "audio_tower" in name else tensor.to(dtype)
        found[name] = written[key]
    return found


def _exactly(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the shortest precision that loses nothing of it."""
    halves = (tensor.to(half) for half in (torch.float16, torch.bfloat16))
    return next((half for half in halves if torch.equal(half.to(tensor.dtype), tensor)), tensor)


def save_base(model: AlignCapForConditionalGeneration, folder: str | Path, **parts: str | Path) -> None:
    """Save a student before decoding is trained as its projector and the names of its other parts, with
    their hashes: a language model is not written again for every run that stands on it.

    Args:
        parts: `encoder` and `llm`, by name or folder; or `student`, a checkpoint that has both, whose
            adapter, if any, is folded in.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with workplace(folder / "weights") as temporary:
        tensors = model.model.multi_modal_projector.state_dict()
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary / PROJECTOR
        )
        write_json(temporary / PARTS, {kind: _named(str(part), folder) for kind, part in parts.items()})
        if model.generation_config is not None:
            model.generation_config.save_pretrained(temporary)
        model.config.save_pretrained(temporary)
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == "config.json"):
            path.replace(folder / path.name)
    write_model_card(folder)


def _named(part: str, base: Path) -> Row:
    """A part of `base` as PARTS names it: by its model's name, or where it lies from there and at all."""
    place = resolve(part).resolve() if not Path(part).is_dir() else Path(part).resolve()
    own = {"name": part} if not Path(part).is_dir() else {"from_here": os.path.relpath(place, base.resolve())}
    return own | {"folder": str(place), "sha256": weights_hash(place, base)}


def _parts(base: Path) -> dict[str, tuple[Path, str]]:
    """Of each part of a base, by kind, its folder and the hash of its weights when the base was made.

    Raises:
        UserError: a part is gone.
    """
    found = {}
    for kind, named in json.loads((base / PARTS).read_text(encoding="utf-8")).items():
        places = [base / named["from_here"]] if "from_here" in named else []
        places += [Path(named["folder"])]
        place = next((place for place in places if place.is_dir()), None)
        if place is None and "name" in named:
            place = resolve(named["name"])
        if place is None:
            remedy = f"put it back there, or beside the run as {named['from_here']}"
            raise UserError(f"{base / PARTS}: its {kind}, {named['folder']}, is gone; {remedy}")
        found[kind] = place.resolve(), named["sha256"]
    return found


def _load_parts(folder: Path, dtype: torch.dtype) -> AlignCapForConditionalGeneration:
    """The model of a folder that `save_base` wrote.

    Raises:
        UserError: a part is gone, or holds other weights than when the base was made.
    """
    parts = {}
    for kind, (place, sha256) in _parts(folder).items():
        if weights_hash(place, folder) != sha256:
            changed = "holds other weights than it was made with; bring them back, or train again"
            raise UserError(f"{folder / PARTS}: its {kind}, {place}, {changed}")
        parts[kind] = place
    config = load_pretrained(AlignCapConfig, folder)
    if "student" in parts:
        model = load_for_inference(parts["student"], dtype)[0]
        model.config.max_response_tokens = config.max_response_tokens
    else:
        tower: Any = load_encoder(str(parts["encoder"]))[0]
        llm, tokenizer = load_llm(str(parts["llm"]), dtype)
        add_placeholders(llm, tokenizer)
        config.audio_config, config.text_config = tower.config, llm.config
        model = join(config, tower.to(dtype), llm)
        width = cast(nn.Embedding, llm.get_input_embeddings()).embedding_dim
        model.model.multi_modal_projector = make_projector(config, width)
    projector = model.model.multi_modal_projector
    projector.load_state_dict(load_file(folder / PROJECTOR))
    _cast(projector, dtype)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Cast what a checkpoint holds, as from_pretrained does; rotary frequencies keep their precision."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.data = tensor.data.to(dtype)


def weight_files(folder: str | Path) -> list[Path]:
    """The weight files of a checkpoint; of an adapter those of its base too, of a base those of its parts."""
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if is_adapter(folder):
        files += weight_files(base_of(folder))
    elif (folder / PARTS).is_file():
        for place, _ in _parts(folder).values():
            files += weight_files(place)
    return files


def weights_hash(folder: str | Path, known: Path) -> str:
    """SHA-256 over the weight files of a checkpoint; what was hashed for `known` before is not read again."""
    stats = {str(path): path.stat() for path in weight_files(folder)}
    files = {path: Known(stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}
    return digest(sorted(hashes_of(known / PARTS, files).values()))


def model_key(folder: str | Path) -> str:
    """What identifies a checkpoint's weights on this machine: path, size and time of its weight files."""
    files = ((path.resolve(), path.stat()) for path in weight_files(folder))
    return "|".join(f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in files)

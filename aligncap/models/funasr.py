"""emotion2vec as FunASR keeps it, a pickle of weights beside config.yaml, rewritten once as safetensors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import Tensor

from aligncap.models.configuration_emotion2vec import Emotion2vecConfig
from aligncap.models.feature_extraction_emotion2vec import Emotion2vecFeatureExtractor
from aligncap.models.modeling_emotion2vec import Emotion2vecModel
from aligncap.utils.errors import UserError
from aligncap.utils.io import workplace
from aligncap.utils.options import Config, option


@dataclass
class ConvertConfig(Config):
    """Convert an emotion2vec folder of FunASR's (config.yaml and one .pt file) to one that `--encoder` takes.

    The .pt file is a pickle. It is read with torch's weights-only reader, which builds tensors and plain
    containers and refuses everything else; nowhere else does aligncap read one.

    Examples:
        aligncap models convert emotion2vec_plus_base --out emotion2vec-plus-base
        aligncap train distill --config distill --encoder emotion2vec-plus-base
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str = option(help="Folder with config.yaml and one .pt file.")
    out: str = option(help="Folder to write; it must not exist or be empty.")


def run_convert(config: ConvertConfig) -> int:
    """`aligncap models convert`."""
    left = convert(Path(config.folder), Path(config.out))
    if left:
        print(f"left out {len(left)} tensors of training or of a classifier, such as {left[0]}")
    print(f"encoder: {config.out}")
    return 0


# Settings of FunASR's that change what is computed, and the values that all published models have.
_BLOCKS: dict[str, object] = {
    "layer_norm_first": False,
    "norm_affine": True,
    "norm_eps": 1e-5,
    "normalize": True,
}
_AUDIO: dict[str, object] = {"use_alibi_encoder": True, "learned_alibi": False, "conv_pos_pre_ln": False}
_AUDIO |= {"extractor_mode": "layer_norm"}
_AT = r"(?:modality_encoders\.AUDIO\.)"
_BLOCK = rf"(?P<prenet>{_AT}context_encoder\.)?blocks\.(?P<block>\d+)"
# Tensors of FunASR's and of `Emotion2vecModel`; a layer's number stands for {layer}, one less than {next}.
_NAMES = {
    rf"{_AT}local_encoder\.conv_layers\.(?P<n>\d+)\.0": "wave_layers.{n}.conv",
    rf"{_AT}local_encoder\.conv_layers\.(?P<n>\d+)\.2\.1": "wave_layers.{n}.norm",
    rf"{_AT}project_features\.1": "wave_norm",
    rf"{_AT}project_features\.2": "projection",
    rf"{_AT}relative_positional_encoder\.(?P<next>\d+)\.0": "position_layers.{n}.conv",
    rf"{_AT}context_encoder\.norm": "norm",
    rf"{_BLOCK}\.attn\.qkv": "layers.{layer}.attention",
    rf"{_BLOCK}\.attn\.proj": "layers.{layer}.attention.out_proj",
    rf"{_BLOCK}\.norm1": "layers.{layer}.attention_norm",
    rf"{_BLOCK}\.mlp\.(?P<n>fc[12])": "layers.{layer}.{n}",
    rf"{_BLOCK}\.norm2": "layers.{layer}.final_norm",
}


def convert(folder: Path, out: Path) -> list[str]:
    """Write the emotion2vec model of a FunASR folder as safetensors, with its feature extractor.

    Returns:
        names of the tensors that an encoder has no use for.

    Raises:
        UserError: files are missing, the model is another one or has settings that no published one has, the
            .pt file holds more than tensors or lacks some.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not empty; choose another folder")
    config, prenet = encoder_config(folder / "config.yaml")
    files = sorted(folder.glob("*.pt"))
    if len(files) != 1:
        raise UserError(
            f"{folder}: {len(files)} .pt files, one is needed: the weights as FunASR fetches them"
        )
    state, left = renamed(read_tensors(files[0]), prenet)
    with torch.device("meta"):
        model = Emotion2vecModel(config)
    wanted = model.state_dict()
    wrong = sorted(n for n in wanted if n not in state or state[n].shape != wanted[n].shape)
    if wrong:
        raise UserError(
            f"{files[0]}: {len(wrong)} tensors are missing or of another shape than config.yaml says, such "
            f"as {wrong[0]}; fetch the folder again"
        )
    model.load_state_dict({name: state[name].float().clone() for name in wanted}, assign=True)
    with workplace(out / "weights") as temporary:
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(temporary)
        Emotion2vecFeatureExtractor(do_normalize=True).save_pretrained(temporary)
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == "config.json"):
            path.replace(out / path.name)
    return left


def encoder_config(path: Path) -> tuple[Emotion2vecConfig, int]:
    """The configuration of FunASR's config.yaml, and how many of the layers are the prenet's.

    Raises:
        UserError: there is none, of another model, or with a setting that is not built here.
    """
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = read["model_conf"]
        audio = given["modalities"]["audio"]
        kind = read["model"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        remedy = "give a folder of emotion2vec as FunASR fetches it"
        raise UserError(f"{path}: no configuration of emotion2vec ({error!r}); {remedy}") from None
    wrong = [f"model: {kind}"] if kind != "Emotion2vec" else []
    for part, needed in ((given, _BLOCKS), (audio, _AUDIO)):
        wrong += [f"{n}: {part.get(n)}, not {v}" for n, v in needed.items() if _number(part.get(n)) != v]
    spec = str(audio.get("feature_encoder_spec", ""))
    found = re.findall(r"\[\s*\((\d+), *(\d+), *(\d+)\)\s*\](?: *\* *(\d+))?", spec)
    convolutions = [tuple(map(int, row[:3])) for row in found for _ in range(int(row[3] or 1))]
    if not convolutions:
        wrong.append(f"feature_encoder_spec: {spec!r}")
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}: no published emotion2vec is so, and none is read")
    dims, kernels, strides = zip(*convolutions, strict=True)
    layers, heads = audio["prenet_depth"] + given["depth"], given["num_heads"]
    sizes = Emotion2vecConfig(
        hidden_size=given["embed_dim"],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=int(given["embed_dim"] * given["mlp_ratio"]),
        conv_dim=dims,
        conv_kernel=kernels,
        conv_stride=strides,
        num_conv_pos_embeddings=audio["conv_pos_depth"],
        conv_pos_kernel_size=max(3, audio["conv_pos_width"] // audio["conv_pos_depth"]),
        num_conv_pos_embedding_groups=audio["conv_pos_groups"],
        extra_tokens=audio["num_extra_tokens"],
        alibi_scales=(
            layers if audio["learned_alibi_scale_per_layer"] else 1,
            heads if audio["learned_alibi_scale_per_head"] else 1,
        ),
    )
    return sizes, audio["prenet_depth"]


def _number(value: object) -> object:
    """YAML 1.1 reads 1e-05 as text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt file by name, without the prefixes that wrappers gave them.

    Raises:
        UserError: it holds anything but tensors in plain containers; nothing of it is run.
    """
    try:
        read: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise UserError(
            f"{path}: not read, since it holds more than tensors or is damaged ({reason}). Where you trust "
            "it, load it elsewhere and save its tensors alone: torch.save({'model': state_dict}, 'model.pt')"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        read = read[key] if isinstance(read, Mapping) and key in read else read
    if not isinstance(read, Mapping):
        raise UserError(f"{path}: holds no tensors by name")
    tensors = {str(name): value for name, value in read.items() if isinstance(value, Tensor)}
    return {re.sub(r"^(module\.|d2v_model\.)*", "", name): value for name, value in tensors.items()}


def renamed(tensors: Mapping[str, Tensor], prenet: int) -> tuple[dict[str, Tensor], list[str]]:
    """FunASR's tensors under the names of `Emotion2vecModel`, and the names of those that it has not.

    Args:
        prenet: layers of the prenet, which come before the others.
    """
    state, left = dict[str, Tensor](), list[str]()
    for name, value in tensors.items():
        module, _, last = name.rpartition(".")
        if re.fullmatch(_AT, f"{module}.") and last in ("extra_tokens", "alibi_scale"):
            state[last] = value[None] if value.dim() == 4 else value  # a scale as fairseq kept it at first
            continue
        found = [
            (ours, m.groupdict()) for theirs, ours in _NAMES.items() if (m := re.fullmatch(theirs, module))
        ]
        if not found:
            left.append(name)
            continue
        ours, parts = found[0]
        if "next" in parts:
            parts["n"] = int(parts["next"]) - 1
        if "block" in parts:
            parts["layer"] = int(parts["block"]) + (0 if parts["prenet"] else prenet)
        ours = ours.format(**parts)
        if ours.endswith(".attention"):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                state[f"{ours}.{part}_proj.{last}"] = piece
        else:
            state[f"{ours}.{last}"] = value
    return state, left

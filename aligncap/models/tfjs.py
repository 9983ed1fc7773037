"""Weights of TensorFlow.js rewritten as safetensors, in torch's order of axes.

A model is a weights manifest, `NAME_model-weights_manifest.json`, and its bytes, `NAME_model.bin`, in the
manifest's order: float32, or uint8 with `scale` and `min` (value = q · scale + min). Filters are [height,
width, in, out], those of single channels [height, width, channels, 1], matrices [in, out].
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from aligncap.utils.errors import UserError
from aligncap.utils.io import write_json

# nets of the face package, by the prefix that their weights get
_FACES = {"detector": "tiny_face_detector", "expression": "face_expression", "descriptor": "face_recognition"}


def convert_faces(source: Path, target: Path) -> None:
    """Write the three nets of `senses/face_nets.py` as one `model.safetensors`.

    Args:
        source: folder with the manifests and their bytes.
        target: an existing empty folder.

    Raises:
        UserError: a manifest or its bytes are missing, cut off, or of another kind.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, name in _FACES.items():
        read = dict(read_tfjs(source / f"{name}_model-weights_manifest.json"))
        tensors |= {f"{prefix}.{key}": value for key, value in named(read).items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    write_json(target / "config.json", {"model_type": "face-api", "nets": _FACES})


def read_tfjs(manifest: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values (float32) of each tensor of a weights manifest.

    Raises:
        UserError: what `convert_faces` raises.
    """
    try:
        groups = json.loads(manifest.read_text(encoding="utf-8"))
        for group in groups:
            data, at = b"".join((manifest.parent / path).read_bytes() for path in group["paths"]), 0
            for weight in group["weights"]:
                packed, count = weight.get("quantization"), int(np.prod(weight["shape"]))
                kind = np.dtype(np.uint8 if packed else "<f4")
                if (packed or weight)["dtype"] != kind.name:
                    raise UserError(f"{manifest}: {weight['name']} is neither float32 nor uint8")
                values = np.frombuffer(data, kind, count, at).astype(np.float32)
                if packed:
                    values = values * np.float32(packed["scale"]) + np.float32(packed["min"])
                at += count * kind.itemsize
                yield weight["name"], values.reshape(weight["shape"])
        if at != len(data):
            raise UserError(f"{manifest}: {len(data) - at} bytes are left over")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest}: no weights of TensorFlow.js, or cut off ({error})") from error


def named(read: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors by torch's names and in its order of axes; scales that follow a convolution are folded in.

    `a/filters`, `a/bias` become `a.weight`, `a.bias`; `a/depthwise_filter`, `a/pointwise_filter`, `a/bias`
    become `a.depthwise.weight`, `a.pointwise.weight`, `a.pointwise.bias`; `a/conv/…` with `a/scale/weights`
    and `a/scale/biases` become `a.weight`, `a.bias`.
    """
    tensors = {}
    for name, values in read.items():
        place, _, last = name.rpartition("/")
        if last in ("filters", "depthwise_filter", "pointwise_filter"):
            # of single channels [height, width, channels, 1] the channels come first as well
            moved = (
                values.transpose(2, 3, 0, 1) if last == "depthwise_filter" else values.transpose(3, 2, 0, 1)
            )
            place += "" if last == "filters" else f"/{last.removesuffix('_filter')}"
            tensors[f"{place}/weight"] = moved
        elif values.ndim == 2:  # fc/weights, or fc by itself
            tensors[f"{place or name}/weight"] = values.T
        elif last == "bias":
            deep = f"{place}/pointwise_filter" in read
            tensors[f"{place}/{'pointwise/' * deep}bias"] = values
        elif last in ("weights", "biases") and place.endswith("/scale"):
            continue
        else:
            raise UserError(f"{name}: a kind of weight that no face net has")
    for name in [n for n in tensors if n.endswith("/conv/weight")]:
        place = name.removesuffix("/conv/weight")
        scale, shift = read[f"{place}/scale/weights"], read[f"{place}/scale/biases"]
        tensors[f"{place}/weight"] = tensors.pop(name) * scale[:, None, None, None]
        tensors[f"{place}/bias"] = tensors.pop(f"{place}/conv/bias") * scale + shift
    return {
        name.replace("/", "."): torch.from_numpy(np.ascontiguousarray(value))
        for name, value in tensors.items()
    }

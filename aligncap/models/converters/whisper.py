"""CTranslate2's Whisper file, read byte by byte and rewritten as a transformers folder.

The layout is that of CTranslate2 model binaries, version 6 (little endian)::

    u32 version, str specification, u32 revision,
    u32 n, n x (str name, u8 rank, rank x u32 dimension, u8 type, u32 bytes, data),
    u32 m, m x (str alias, str name)

where `str` is a u16 length that counts a closing NUL, then the bytes. Weights keep their stored precision on
disk (float16 for the packaged Whisper, exact); by its configuration `from_pretrained` computes in float32.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aligncap.utils.errors import UserError
from aligncap.utils.io import write_json

VERSION = 1
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_GELU = 3  # CTranslate2's ActivationType.GELU, the exact one that Whisper uses
_LANGUAGES = 99  # of the first multilingual Whisper; large-v3 has 100
_END, _START = 50257, 50258
_TIMESTAMPS = [f"<|{i * 0.02:.2f}|>" for i in range(1501)]  # 0 to 30 s in steps of 20 ms


@dataclass
class CT2File:
    """Tensors of a CTranslate2 binary by their names; scalars are arrays of shape ()."""

    specification: str
    revision: int
    tensors: dict[str, np.ndarray]
    aliases: dict[str, str] = field(default_factory=dict)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, size: int) -> memoryview:
        if self.at + size > len(self.data):
            raise UserError(
                f"{self.path}: ends at byte {len(self.data)}, more were announced; fetch it again"
            )
        self.at += size
        return memoryview(self.data)[self.at - size : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def string(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8")


def read_ct2(path: Path) -> CT2File:
    """Read a CTranslate2 model binary.

    Raises:
        UserError: another version or element type, a size that disagrees with its shape, or a wrong length.
    """
    reader = _Reader(path)
    version = reader.number("I")
    if version != 6:
        raise UserError(f"{path}: CTranslate2 binary version {version}; only version 6 is read")
    file = CT2File(reader.string(), reader.number("I"), {})
    for _ in range(reader.number("I")):
        name = reader.string()
        shape = tuple(reader.number("I") for _ in range(reader.number("B")))
        kind, size = reader.number("B"), reader.number("I")
        if kind not in _DTYPES:
            raise UserError(
                f"{path}: {name} has element type {kind}; convert the model with --quantization float16"
            )
        dtype = np.dtype(_DTYPES[kind])
        if size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise UserError(
                f"{path}: {name} of shape {shape} has {size} bytes; the file is damaged, fetch it again"
            )
        file.tensors[name] = np.frombuffer(reader.take(size), dtype=dtype).reshape(shape)
    file.aliases = {reader.string(): reader.string() for _ in range(reader.number("I"))}
    if reader.at != len(reader.data):
        raise UserError(f"{path}: {len(reader.data) - reader.at} bytes too many; fetch it again")
    return file


_NORMS_AND_FFN = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
# fused projections: CTranslate2 name -> the parts stacked along its rows
_FUSED = {
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
}
_PLAIN = {
    "encoder/position_encodings/encodings": "model.encoder.embed_positions.weight",
    "decoder/position_encodings/encodings": "model.decoder.embed_positions.weight",
    "decoder/embeddings/weight": "model.decoder.embed_tokens.weight",
}
_SUFFIX = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def rename(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CTranslate2's tensors under transformers' names, fused projections taken apart; settings are left out.

    Raises:
        UserError: a weight of unknown name, quantised weights, or a key projection with a bias, which Whisper
            has not.
    """
    state: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if value.ndim == 0 or name == "decoder/alignment_heads":
            continue
        if value.dtype.kind != "f":
            raise UserError(
                f"{name}: quantised weights are not read; convert the model with --quantization float16"
            )
        if name in _PLAIN:
            state[_PLAIN[name]] = value
            continue
        side, _, rest = name.partition("/")
        rest, _, last = rest.rpartition("/")
        layer = re.fullmatch(r"layer_(\d+)/(.+)", rest)
        prefix = f"model.{side}." + (f"layers.{layer[1]}." if layer else "")
        part = layer[2] if layer else rest
        if layer and part in _FUSED:
            parts = _FUSED[part]
            for target, piece in zip(parts, np.split(value, len(parts)), strict=True):
                if target.endswith("k_proj") and last == "bias":
                    if np.any(piece):
                        raise UserError(
                            f"{name}: the key projection has a bias, so this is not a Whisper model"
                        )
                    continue
                state[f"{prefix}{target}.{_SUFFIX[last]}"] = piece
        elif layer and part in _NORMS_AND_FFN:
            state[f"{prefix}{_NORMS_AND_FFN[part]}.{_SUFFIX[last]}"] = value
        elif not layer and part in {"conv1", "conv2", "layer_norm"}:
            state[f"{prefix}{part}.{_SUFFIX[last]}"] = value
        else:
            raise UserError(f"{name}: no such weight in Whisper; the file is of another model")
    return state


def config_of(file: CT2File) -> dict[str, Any]:
    """Arguments of `WhisperConfig`, from the shapes and settings of the tensors."""
    tensors = file.tensors
    if file.specification != "WhisperSpec":
        raise UserError(f"a CTranslate2 {file.specification}, not a WhisperSpec; name a Whisper model")
    activation = int(tensors["decoder/activation"])
    if activation != _GELU:
        raise UserError(
            f"activation {activation} is not Whisper's GELU ({_GELU}); the file is of another model"
        )

    def count(side: str) -> int:
        found = {m[1] for name in tensors if (m := re.match(rf"{side}/layer_(\d+)/", name))}
        return len(found)

    width, mels, _ = tensors["encoder/conv1/weight"].shape
    return {
        "vocab_size": tensors["decoder/embeddings/weight"].shape[0],
        "num_mel_bins": mels,
        "d_model": width,
        "encoder_layers": count("encoder"),
        "decoder_layers": count("decoder"),
        "encoder_attention_heads": int(tensors["encoder/num_heads"]),
        "decoder_attention_heads": int(tensors["decoder/num_heads"]),
        "encoder_ffn_dim": tensors["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        "decoder_ffn_dim": tensors["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        "max_source_positions": tensors["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": tensors["decoder/position_encodings/encodings"].shape[0],
        "bos_token_id": _END,
        "eos_token_id": _END,
        "pad_token_id": _END,
        "decoder_start_token_id": _START,
    }


def convert(source: Path, target: Path) -> None:
    """Write a `WhisperForConditionalGeneration` folder with tokenizer and feature extractor.

    Args:
        source: folder with model.bin (or model.bin.part1, .part2 …), config.json and tokenizer.json.
        target: an existing empty folder.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    file = read_ct2(_joined(source))
    settings = config_of(file)
    ct2 = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = WhisperConfig(
        **settings,
        begin_suppress_tokens=ct2["suppress_ids_begin"],
        architectures=["WhisperForConditionalGeneration"],
        dtype="float32",
    )
    state = {name: torch.from_numpy(value.copy()) for name, value in rename(file.tensors).items()}
    with torch.device("meta"):
        shell = WhisperForConditionalGeneration(config)
    tied = {"proj_out.weight": state["model.decoder.embed_tokens.weight"]}
    shell.load_state_dict(
        {**state, **tied}, strict=True, assign=True
    )  # names and shapes proved against the class
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    _save_tokenizer(source / "tokenizer.json", target)
    WhisperFeatureExtractor(feature_size=settings["num_mel_bins"]).save_pretrained(target)
    _save_generation(ct2, target, settings)


def _joined(source: Path) -> Path:
    """model.bin, put together from its parts where it came in several packages."""
    whole = source / "model.bin"
    parts = sorted(source.glob("model.bin.part*"))
    if not whole.exists() and not parts:
        raise UserError(f"{source}: no model.bin; name a folder of a CTranslate2 Whisper model")
    if not whole.exists():
        with whole.open("wb") as out:
            for part in parts:
                out.write(part.read_bytes())
    return whole


def _save_tokenizer(path: Path, target: Path) -> None:
    from tokenizers import AddedToken, Tokenizer
    from transformers import WhisperTokenizer

    backend = Tokenizer.from_file(str(path))
    missing = [t for t in _TIMESTAMPS if backend.token_to_id(t) is None]
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in missing])
    backend.save(str(target / "tokenizer.json"))
    settings = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, "add_prefix_space": False}
    marks = {key: "<|endoftext|>" for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    write_json(target / "tokenizer_config.json", {**settings, **marks})
    tokenizer = WhisperTokenizer.from_pretrained(target)
    tokenizer.save_pretrained(target)


def _save_generation(ct2: dict[str, Any], target: Path, settings: dict[str, Any]) -> None:
    """Language, task and suppression ids, which CTranslate2 keeps in its config.json."""
    from transformers import GenerationConfig, WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(target)
    languages = {tokenizer.convert_ids_to_tokens(i): i for i in ct2["lang_ids"][:_LANGUAGES]}
    tasks = {task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("transcribe", "translate")}
    GenerationConfig(
        max_length=settings["max_target_positions"],
        bos_token_id=_END,
        eos_token_id=_END,
        pad_token_id=_END,
        decoder_start_token_id=_START,
        is_multilingual=True,
        lang_to_id=languages,
        task_to_id=tasks,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        max_initial_timestamp_index=50,
        suppress_tokens=ct2["suppress_ids"],
        begin_suppress_tokens=ct2["suppress_ids_begin"],
        alignment_heads=ct2["alignment_heads"],
    ).save_pretrained(target)

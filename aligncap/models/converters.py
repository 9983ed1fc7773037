"""Packaged weights rewritten as transformers folders: language models from GGUF, Whisper from CTranslate2's.

transformers reads and dequantises GGUF files; what it makes of them refuses to be saved, splits SmolLM's
digits not as the field `tokenizer.ggml.pre = smollm` asks for, and takes Qwen2.5's tied head for one of its
own, since the file has two copies of one matrix in different precisions. All three are mended here. Values
are expanded once: what is saved equals `gguf.dequantize` of the file rounded to float16. Of SmolLM2 this is
half the size of float32, at a relative error of 2e-4 (root mean square, worst tensor) and a perplexity that
differs by 0.03 percent.

Whisper's file is read byte by byte. The layout is that of CTranslate2 model binaries, version 6 (little
endian)::

    u32 version, str specification, u32 revision,
    u32 n, n x (str name, u8 rank, rank x u32 dimension, u8 type, u32 bytes, data),
    u32 m, m x (str alias, str name)

where `str` is a u16 length that counts a closing NUL, then the bytes. Weights keep their stored precision on
disk (float16 for the packaged Whisper, exact). By their configurations `from_pretrained` computes with both
models in float32. A converter that comes to write other files needs another mark in `hub._CONVERTERS`.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGUFReader
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from aligncap.models.hub import load_pretrained
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, write_json

_GGUF = (("llama", "smollm"), ("qwen2", "qwen2"), ("gemma3", "default"))
ALIKE = 0.99  # correlation of two copies of one matrix, in 5 and 8 bits
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_GELU = 3  # CTranslate2's ActivationType.GELU, the exact one that Whisper uses
_LANGUAGES = 99  # of the first multilingual Whisper; large-v3 has 100
_END, _START = 50257, 50258
_TIMESTAMPS = [f"<|{i * 0.02:.2f}|>" for i in range(1501)]  # 0 to 30 s in steps of 20 ms


def convert_gguf(source: Path, target: Path) -> None:
    """Write the folder of a causal language model with its tokenizer and, where it has one, chat template.

    Args:
        source: folder with one GGUF file, or with its parts, in the order of their names.
        target: an existing empty folder.

    Raises:
        UserError: no GGUF file, a kind that was not tried, or a head that is not the embeddings.
    """
    path = _whole(source)
    reader = GGUFReader(path)
    kind = tuple(reader.fields[k].contents() for k in ("general.architecture", "tokenizer.ggml.pre"))
    if kind not in _GGUF:
        known = ", ".join(" ".join(names) for names in _GGUF)
        raise UserError(f"{path}: architecture and tokenizer {' '.join(map(str, kind))}; tried were {known}")
    model = load_pretrained(AutoModelForCausalLM, source, gguf_file=path.name, dtype=torch.float32)
    state = model.state_dict()
    head = state.pop("lm_head.weight")
    if any(tensor.name == "output.weight" for tensor in reader.tensors):
        embeddings = state["model.embed_tokens.weight"]
        alike = torch.corrcoef(torch.stack([part[:2000].flatten() for part in (embeddings, head)]))[0, 1]
        if alike < ALIKE:
            raise UserError(f"{path}: its head is not its embeddings (correlation {alike:.3f})")
        state["model.embed_tokens.weight"] = head  # the copy that is stored more exactly
    save_file(
        {name: value.half().contiguous() for name, value in state.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    settings = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "float32"}
    settings["tie_word_embeddings"] = True
    for key in ("quantization_config", "unk_token_id", "_model_name_or_path"):
        settings.pop(key, None)
    type(model.config)(**settings).save_pretrained(target)
    ids = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(target)
    read = load_pretrained(AutoTokenizer, source, gguf_file=path.name)
    if kind == ("llama", "smollm"):
        read.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer,
        chat_template=read.chat_template,
        model_max_length=settings["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        **read.special_tokens_map,
    ).save_pretrained(target)


def _whole(source: Path) -> Path:
    """The GGUF file of a folder; parts are joined into one."""
    paths = sorted(source.iterdir())
    if [path.suffix for path in paths] == [".gguf"]:
        return paths[0]
    whole = source / "model.gguf"
    with whole.open("wb") as file:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, file)
            path.unlink()
    with whole.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{source}: holds neither one .gguf file nor the parts of one")
    return whole


class CT2File(NamedTuple):
    """Tensors of a CTranslate2 binary by their names; scalars are arrays of shape ()."""

    specification: str
    revision: int
    tensors: dict[str, np.ndarray]
    aliases: dict[str, str]


def read_ct2(path: Path) -> CT2File:
    """Read a CTranslate2 model binary.

    Raises:
        UserError: another version or element type, a size that disagrees with its shape, or a wrong length.
    """
    data, at = path.read_bytes(), 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        if at > len(data):
            raise UserError(f"{path}: ends at byte {len(data)}, more were announced; fetch it again")
        return data[at - size : at]

    def number(code: str) -> int:
        return int(struct.unpack("<" + code, take(struct.calcsize(code)))[0])

    def string() -> str:
        return take(number("H")).rstrip(b"\0").decode("utf-8")

    if (version := number("I")) != 6:
        raise UserError(f"{path}: CTranslate2 binary version {version}; only version 6 is read")
    specification, revision, tensors = string(), number("I"), {}
    for _ in range(number("I")):
        name = string()
        shape = tuple(number("I") for _ in range(number("B")))
        kind, size = number("B"), number("I")
        if kind not in _DTYPES:
            remedy = "convert the model with --quantization float16"
            raise UserError(f"{path}: {name} has element type {kind}; {remedy}")
        dtype = np.dtype(_DTYPES[kind])
        if size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            remedy = "the file is damaged, fetch it again"
            raise UserError(f"{path}: {name} of shape {shape} has {size} bytes; {remedy}")
        tensors[name] = np.frombuffer(take(size), dtype=dtype).reshape(shape)
    aliases = {string(): string() for _ in range(number("I"))}
    if at != len(data):
        raise UserError(f"{path}: {len(data) - at} bytes too many; fetch it again")
    return CT2File(specification, revision, tensors, aliases)


# CTranslate2's part of a layer -> the parts stacked along its rows
_PARTS = {
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
    "self_attention/layer_norm": ["self_attn_layer_norm"],
    "attention/layer_norm": ["encoder_attn_layer_norm"],
    "ffn/layer_norm": ["final_layer_norm"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
}
_OUTSIDE_LAYERS = ("conv1", "conv2", "layer_norm")
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
        found = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(gamma|beta|weight|bias)", name)
        side, layer, part, last = found.groups() if found else ("", None, "", "")
        targets = [part] if layer is None and part in _OUTSIDE_LAYERS else _PARTS.get(part) if layer else None
        if targets is None:
            raise UserError(f"{name}: no such weight in Whisper; the file is of another model")
        prefix = f"model.{side}." + (f"layers.{layer}." if layer else "")
        for target, piece in zip(targets, np.split(value, len(targets)), strict=True):
            if target.endswith("k_proj") and last == "bias":
                if np.any(piece):
                    raise UserError(f"{name}: the key projection has a bias, so this is not a Whisper model")
                continue
            state[f"{prefix}{target}.{_SUFFIX[last]}"] = piece
    return state


def config_of(file: CT2File) -> Row:
    """Arguments of `WhisperConfig`, from the shapes and settings of the tensors."""
    tensors = file.tensors
    if file.specification != "WhisperSpec":
        raise UserError(f"a CTranslate2 {file.specification}, not a WhisperSpec; name a Whisper model")
    if (activation := int(tensors["decoder/activation"])) != _GELU:
        remedy = "the file is of another model"
        raise UserError(f"activation {activation} is not Whisper's GELU ({_GELU}); {remedy}")
    width, mels, _ = tensors["encoder/conv1/weight"].shape
    sizes = {
        "vocab_size": len(tensors["decoder/embeddings/weight"]),
        "num_mel_bins": mels,
        "d_model": width,
        "max_source_positions": len(tensors["encoder/position_encodings/encodings"]),
        "max_target_positions": len(tensors["decoder/position_encodings/encodings"]),
    }
    for side in ("encoder", "decoder"):
        sizes[f"{side}_layers"] = len({m[1] for n in tensors if (m := re.match(rf"{side}/layer_(\d+)/", n))})
        sizes[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = len(tensors[f"{side}/layer_0/ffn/linear_0/weight"])
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _END)
    return {**sizes, **ends, "decoder_start_token_id": _START}


def convert_whisper(source: Path, target: Path) -> None:
    """Write a `WhisperForConditionalGeneration` folder with tokenizer and feature extractor.

    Args:
        source: folder with model.bin (or model.bin.part1, .part2 …), config.json and tokenizer.json.
        target: an existing empty folder.
    """
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
    shell.load_state_dict(state | tied, strict=True, assign=True)  # proves names and shapes
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    WhisperFeatureExtractor(feature_size=settings["num_mel_bins"]).save_pretrained(target)
    _save_tokenizer(source / "tokenizer.json", target, ct2, settings["max_target_positions"])


def _joined(source: Path) -> Path:
    """model.bin, put together from its parts where it came in several packages."""
    whole = source / "model.bin"
    if not whole.exists():
        parts = sorted(source.glob("model.bin.part*"))
        if not parts:
            raise UserError(f"{source}: no model.bin; name a folder of a CTranslate2 Whisper model")
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    return whole


def _save_tokenizer(path: Path, target: Path, ct2: Row, longest: int) -> None:
    """The tokenizer with its timestamps, and the ids of languages, tasks and suppressed tokens, which
    CTranslate2 keeps in its config.json and transformers in the generation configuration."""
    backend = Tokenizer.from_file(str(path))
    missing = [t for t in _TIMESTAMPS if backend.token_to_id(t) is None]
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in missing])
    backend.save(str(target / "tokenizer.json"))
    settings = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, "add_prefix_space": False}
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    write_json(target / "tokenizer_config.json", {**settings, **marks})
    tokenizer = WhisperTokenizer.from_pretrained(target)
    tokenizer.save_pretrained(target)
    GenerationConfig(
        max_length=longest,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _END),
        decoder_start_token_id=_START,
        is_multilingual=True,
        lang_to_id={tokenizer.convert_ids_to_tokens(i): i for i in ct2["lang_ids"][:_LANGUAGES]},
        task_to_id={t: tokenizer.convert_tokens_to_ids(f"<|{t}|>") for t in ("transcribe", "translate")},
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        max_initial_timestamp_index=50,
        suppress_tokens=ct2["suppress_ids"],
        begin_suppress_tokens=ct2["suppress_ids_begin"],
        alignment_heads=ct2["alignment_heads"],
    ).save_pretrained(target)

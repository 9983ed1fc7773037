"""A CTranslate2 file written here byte by byte comes back as the Whisper it was made of."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from aligncap.models.converters import config_of, convert_whisper, read_ct2, rename
from aligncap.utils.errors import UserError

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
MELS, WIDTH, FRAMES = 8, 8, 20


def write_ct2(
    path: Path, tensors: dict[str, np.ndarray], version: int = 6, spec: str = "WhisperSpec"
) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(tensors))
    for name, value in tensors.items():
        out += text(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        out += struct.pack("<BI", CODES[value.dtype.name], value.nbytes) + value.tobytes()
    out += struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")
    path.write_bytes(out)


def as_ct2(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Whisper's weights in CTranslate2's names, projections fused along their rows."""
    half = {name.removeprefix("model."): value.half().numpy() for name, value in state.items()}
    tensors: dict[str, np.ndarray] = {}

    def put(target: str, *names: str, bias: bool = True) -> None:
        tensors[f"{target}/weight"] = np.concatenate([half[f"{name}.weight"] for name in names])
        if bias:
            zero = np.zeros(WIDTH, np.float16)  # where Whisper has no bias: the key projection
            tensors[f"{target}/bias"] = np.concatenate([half.get(f"{name}.bias", zero) for name in names])

    def norm(target: str, name: str) -> None:
        tensors[f"{target}/gamma"], tensors[f"{target}/beta"] = half[f"{name}.weight"], half[f"{name}.bias"]

    for side, layers in (("encoder", 2), ("decoder", 1)):
        for i in range(layers):
            here, layer = f"{side}/layer_{i}", f"{side}.layers.{i}"
            attention = f"{layer}.self_attn"
            put(f"{here}/self_attention/linear_0", *(f"{attention}.{part}_proj" for part in "qkv"))
            put(f"{here}/self_attention/linear_1", f"{attention}.out_proj")
            norm(f"{here}/self_attention/layer_norm", f"{layer}.self_attn_layer_norm")
            if side == "decoder":
                cross = f"{layer}.encoder_attn"
                put(f"{here}/attention/linear_0", f"{cross}.q_proj")
                put(f"{here}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                put(f"{here}/attention/linear_2", f"{cross}.out_proj")
                norm(f"{here}/attention/layer_norm", f"{layer}.encoder_attn_layer_norm")
            put(f"{here}/ffn/linear_0", f"{layer}.fc1")
            put(f"{here}/ffn/linear_1", f"{layer}.fc2")
            norm(f"{here}/ffn/layer_norm", f"{layer}.final_layer_norm")
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        tensors[f"{side}/position_encodings/encodings"] = half[f"{side}.embed_positions.weight"]
        tensors[f"{side}/num_heads"] = np.int16(2).reshape(())
    put("encoder/conv1", "encoder.conv1")
    put("encoder/conv2", "encoder.conv2")
    put("decoder/embeddings", "decoder.embed_tokens", bias=False)
    tensors["decoder/activation"] = np.int8(3).reshape(())
    tensors["decoder/alignment_heads"] = np.array([[0, 1]], np.int16)
    return dict(sorted(tensors.items()))


@pytest.fixture(scope="module")
def whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    sizes = dict(d_model=WIDTH, encoder_layers=2, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=12)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    config = WhisperConfig(
        **sizes, **heads, num_mel_bins=MELS, max_source_positions=FRAMES, max_target_positions=10
    )
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter).half() * 0.3)
            parameter.copy_(parameter.half())
    return model


@pytest.fixture(scope="module")
def source(whisper, tmp_path_factory):
    """The folder of a packaged model: the binary in two parts, its settings and a word list."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("ct2")
    write_ct2(folder / "whole", as_ct2(whisper.state_dict() | {}))
    data = (folder / "whole").read_bytes()
    (folder / "whole").unlink()
    (folder / "model.bin.part1").write_bytes(data[:1001])
    (folder / "model.bin.part2").write_bytes(data[1001:])
    settings = {
        "lang_ids": list(range(50259, 50358)),
        "suppress_ids": [1, 2],
        "suppress_ids_begin": [220, 50257],
    }
    (folder / "config.json").write_text(json.dumps({**settings, "alignment_heads": [[0, 1]]}))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*alphabet, *(f"filler{i}" for i in range(50257 - 256))])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|l{i}|>" for i in range(99)), "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted")
    convert_whisper(source, target)
    return target


def test_every_tensor_comes_back_exactly(whisper, converted):
    from transformers import WhisperForConditionalGeneration

    model, info = WhisperForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.float32
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    expected = whisper.state_dict()
    assert set(model.state_dict()) == set(expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_converted_model_computes_the_same(whisper, converted):
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(converted).eval()
    mel, ids = torch.randn(2, MELS, 2 * FRAMES), torch.tensor([[50258, 5], [50258, 7]])
    with torch.no_grad():
        got = model(input_features=mel, decoder_input_ids=ids).logits
        expected = whisper(input_features=mel, decoder_input_ids=ids).logits
    assert torch.equal(got, expected) and expected.std() > 0.1


def test_the_folder_loads_by_the_auto_classes(converted):
    from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer, GenerationConfig

    assert AutoModel.from_pretrained(converted).config.max_source_positions == FRAMES
    extractor = AutoFeatureExtractor.from_pretrained(converted)
    assert (extractor.feature_size, extractor.sampling_rate, extractor.hop_length) == (MELS, 16_000, 160)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.convert_tokens_to_ids(["<|0.00|>", "<|30.00|>"]) == [50364, 51864]
    assert tokenizer.decode(tokenizer("a  é").input_ids, skip_special_tokens=True) == "a  é"
    assert type(AutoProcessor.from_pretrained(converted)).__name__ == "WhisperProcessor"
    generation = GenerationConfig.from_pretrained(converted)
    assert generation.no_timestamps_token_id == 50363 and generation.lang_to_id["<|l0|>"] == 50259
    assert generation.task_to_id == {"transcribe": 50359, "translate": 50358}
    assert generation.begin_suppress_tokens == [220, 50257]


def test_scalars_types_and_aliases_are_read(tmp_path):
    values = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([-1, 2], np.int8),
        "c": np.int32(7).reshape(()),
    }
    write_ct2(tmp_path / "m", values)
    file = read_ct2(tmp_path / "m")
    assert (file.specification, file.revision) == ("WhisperSpec", 3)
    assert file.aliases == {"decoder/projection/weight": "decoder/embeddings/weight"}
    for name, value in values.items():
        assert file.tensors[name].dtype == value.dtype and np.array_equal(file.tensors[name], value)


def test_a_damaged_file_is_told_from_another_format(tmp_path):
    path = tmp_path / "m"
    write_ct2(path, {"a": np.zeros(3, np.float32)})
    whole = path.read_bytes()
    for size in (3, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="fetch it again"):
            read_ct2(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="1 bytes too many"):
        read_ct2(path)
    write_ct2(path, {}, version=5)
    with pytest.raises(UserError, match="version 5; only version 6"):
        read_ct2(path)


def test_what_is_not_a_float_whisper_is_refused(tmp_path, whisper):
    tensors = as_ct2(whisper.state_dict())
    with pytest.raises(UserError, match="no such weight in Whisper"):
        rename(tensors | {"decoder/layer_0/gate/weight": np.zeros((2, 2), np.float16)})
    with pytest.raises(UserError, match="quantised.*float16"):
        rename(tensors | {"encoder/conv1/weight": np.zeros((2, 2), np.int8)})
    biased = tensors["encoder/layer_0/self_attention/linear_0/bias"].copy()
    biased[WIDTH] = 1
    with pytest.raises(UserError, match="key projection has a bias"):
        rename(tensors | {"encoder/layer_0/self_attention/linear_0/bias": biased})
    write_ct2(tmp_path / "m", tensors, spec="TransformerSpec")
    with pytest.raises(UserError, match="TransformerSpec, not a WhisperSpec"):
        config_of(read_ct2(tmp_path / "m"))
    write_ct2(tmp_path / "m", tensors | {"decoder/activation": np.int8(0).reshape(())})
    with pytest.raises(UserError, match="activation 0"):
        config_of(read_ct2(tmp_path / "m"))


def test_a_folder_without_the_binary_is_named(tmp_path):
    with pytest.raises(UserError, match="no model.bin"):
        convert_whisper(tmp_path, tmp_path)

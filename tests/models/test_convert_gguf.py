"""What the GGUF converter refuses; what it makes is proved in test_real_models.py."""

from pathlib import Path

import pytest
from gguf import GGUFWriter

from aligncap.models.converters import convert_gguf
from aligncap.utils.errors import UserError


def write(path: Path, architecture: str, pre: str) -> None:
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_pre(pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_kind_that_was_not_tried_is_named(tmp_path):
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw/m.gguf", "mamba", "llama-bpe")
    with pytest.raises(UserError, match="mamba llama-bpe; tried were llama smollm, qwen2 qwen2, gemma3"):
        convert_gguf(tmp_path / "raw", tmp_path / "out")


def test_parts_are_joined_in_the_order_of_their_names(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write(tmp_path / "m.gguf", "mamba", "llama-bpe")
    content = (tmp_path / "m.gguf").read_bytes()
    (raw / "part02.bin").write_bytes(content[20:])
    (raw / "part01.bin").write_bytes(content[:20])
    with pytest.raises(UserError, match="mamba"):  # it was read whole
        convert_gguf(raw, tmp_path / "out")
    assert [path.name for path in raw.iterdir()] == ["model.gguf"]
    assert (raw / "model.gguf").read_bytes() == content


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"something else")
    with pytest.raises(UserError, match="neither one .gguf file nor the parts of one"):
        convert_gguf(tmp_path, tmp_path / "out")

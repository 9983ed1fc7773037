"""SmolLM2's GGUF file rewritten as a transformers folder.

The 4-bit values are expanded once: what is saved equals `gguf.dequantize` of the file rounded to float16, and
`from_pretrained` computes in float32. Against float32 on disk this is half the size, at a relative error of
2e-4 (root mean square, worst tensor) and a perplexity that differs by 0.03 percent. transformers' own GGUF
loader gives the same weights, but it forgets the splitting of digits that the field
`tokenizer.ggml.pre = smollm` asks for, and its result refuses to be saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aligncap.utils.errors import UserError

VERSION = 1
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_CONTROL = 3  # GGUF token type of special tokens


def convert(source: Path, target: Path) -> None:
    """Write a `LlamaForCausalLM` folder with its tokenizer and chat template.

    Args:
        source: folder with exactly one `.gguf` file.
        target: an existing empty folder.

    Raises:
        UserError: not one GGUF file, or not a Llama with tied embeddings and the SmolLM pre-tokenizer.
    """
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    paths = list(source.glob("*.gguf"))
    if len(paths) != 1:
        raise UserError(f"{source}: {len(paths)} .gguf files, one is needed")
    reader = GGUFReader(paths[0])
    found = (_field(reader, "general.architecture"), _field(reader, "tokenizer.ggml.pre"))
    if found != ("llama", "smollm") or any(tensor.name == "output.weight" for tensor in reader.tensors):
        raise UserError(
            f"{paths[0]}: architecture and tokenizer {found}, tied embeddings needed; this is not SmolLM2"
        )
    ids = {f"{key}_token_id": _field(reader, f"tokenizer.ggml.{name}_token_id") for key, name in _IDS.items()}
    config = LlamaConfig(**_config(reader), **ids, architectures=["LlamaForCausalLM"], dtype="float32")
    heads = {
        "attn_q": _field(reader, "llama.attention.head_count"),
        "attn_k": _field(reader, "llama.attention.head_count_kv"),
    }
    state = {name: torch.from_numpy(value).half() for name, value in weights(reader, heads).items()}

    with torch.device("meta"):
        shell = LlamaForCausalLM(config)
    tied = {"lm_head.weight": state["model.embed_tokens.weight"]}
    shell.load_state_dict(
        {**state, **tied}, strict=True, assign=True
    )  # names and shapes proved against the class
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    GenerationConfig(**ids).save_pretrained(target)
    _tokenizer(reader, config.max_position_embeddings).save_pretrained(target)


_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _config(reader: Any) -> dict[str, Any]:
    keys = {
        "vocab_size": "vocab_size",
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    }
    values = {key: _field(reader, f"llama.{name}") for key, name in keys.items()}
    rope = {"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")}
    return {**values, "rope_parameters": rope, "tie_word_embeddings": True}


def weights(reader: Any, heads: dict[str, int]) -> dict[str, np.ndarray]:
    """Dequantised float32 weights under transformers' names.

    Args:
        reader: a `gguf.GGUFReader`.
        heads: number of heads of `attn_q` and `attn_k`, whose rows GGUF stores with the two members of each
            rotary pair side by side, where transformers wants all first members, then all second.
    """
    from gguf import dequantize

    state = {}
    for tensor in reader.tensors:
        value = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_LAYER[part]}.weight"
            if part in heads:
                pairs = value.reshape(heads[part], -1, 2, value.shape[1])
                value = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(value.shape)
        state[name] = value
    return state


def _tokenizer(reader: Any, longest: int) -> Any:
    """Byte-level BPE that takes digits one by one, with the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    marks = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    named = {
        f"{key}_token": tokens[_field(reader, f"tokenizer.ggml.{name}_token_id")]
        for key, name in marks.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=longest,
        chat_template=_field(reader, "tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **named,
    )

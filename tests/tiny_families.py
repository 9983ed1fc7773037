"""Tiny language models in the shapes of the families that AlignCap trains, with tokenizer and template."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny import SENTENCES

WORDS = [*SENTENCES, "A woman says: Kids are talking by the door", "system user assistant\n"]

# The two kinds of chat template of the named families: ChatML (Qwen2.5, SmolLM2), which inserts a system
# message where there is none, and Llama 3's, which writes the day's date and the start-of-text token.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}"
    "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set day = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + day }}"
    "{{- '\n\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**SIZE, "intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.3}


def byte_level_bpe(first: tuple[str, ...] = ()) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a small byte-level BPE; `first` take the ids from 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=list(first), initial_alphabet=alphabet, show_progress=False
        ),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _gpt2() -> tuple[Any, Any]:
    """No chat template, one special token for start and end, no padding token, absolute positions, tied."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    tokenizer = GPT2Tokenizer(*byte_level_bpe())
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=160,
        initializer_range=0.3,
        bos_token_id=end,
        eos_token_id=end,
    )
    return GPT2LMHeadModel(config), tokenizer


def _opt(**more: Any) -> tuple[Any, Any]:
    """No chat template, `</s>` starts and ends, positions offset by two, rows beyond the vocabulary, tied."""
    from transformers import GPT2Tokenizer, OPTConfig, OPTForCausalLM

    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    tokenizer = GPT2Tokenizer(*byte_level_bpe(("<s>", "<pad>", "</s>")), add_bos_token=True, **special)
    options = {**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3} | more
    config = OPTConfig(
        vocab_size=len(tokenizer) + 7,
        max_position_embeddings=160,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
        **options,
    )
    return OPTForCausalLM(config), tokenizer


def _opt_projected() -> tuple[Any, Any]:
    """OPT-350m: embeddings narrower than the hidden states, norms after the layers."""
    return _opt(word_embed_proj_dim=16, do_layer_norm_before=False)


def _llama(chat: bool, tied: bool) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.models.gpt2 import GPT2Tokenizer

    bytes_only = GPT2Tokenizer(*byte_level_bpe(), unk_token=None, bos_token=None, eos_token=None)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only.backend_tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>" if chat else "<|end_of_text|>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
    )
    tokenizer.chat_template = LLAMA3 if chat else None
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64, "rope_theta": 500000.0}
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=tied, rope_parameters=rope, **ids, **SMALL
    )
    return LlamaForCausalLM(config), tokenizer


def _llama_instruct() -> tuple[Any, Any]:
    """Llama 3.2 1B Instruct: chat template with start-of-text and date, no padding token, tied."""
    return _llama(chat=True, tied=True)


def _llama_base() -> tuple[Any, Any]:
    """Llama 3 base: start-of-text, no chat template, no padding token, untied."""
    return _llama(chat=False, tied=False)


def _llama2() -> tuple[Any, Any]:
    """Llama 2 base: words with a space of their own in front, bytes as a fallback, untied."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=first, show_progress=False)
    plain.train_from_iterator(WORDS, trainer)
    model = json.loads(plain.to_str())["model"]
    tokenizer = LlamaTokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]], add_bos_token=True)
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **SMALL)
    return LlamaForCausalLM(config), tokenizer


def _qwen2(tied: bool = True) -> tuple[Any, Any]:
    """Qwen2.5 Instruct: chat template, no start token, padding apart from end, biases, spare rows."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        *byte_level_bpe(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHATML
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 40,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SMALL,
    )
    return Qwen2ForCausalLM(config), tokenizer


def _qwen2_untied() -> tuple[Any, Any]:
    """Qwen2.5 from 7B on: the head has weights of its own."""
    return _qwen2(tied=False)


def _smollm2() -> tuple[Any, Any]:
    """SmolLM2 Instruct: a Llama with ChatML, whose turn marks are the start, end and padding tokens; tied."""
    from transformers import GPT2Tokenizer, LlamaConfig, LlamaForCausalLM

    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = GPT2Tokenizer(*byte_level_bpe(), unk_token="<|endoftext|>", **special)
    tokenizer.chat_template = CHATML
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **ids, **SMALL)
    ), tokenizer


@dataclass(frozen=True)
class Family:
    """What a family's model and tokenizer are like, and how to build a tiny one with random weights."""

    make: Callable[[], tuple[Any, Any]]
    chat: bool
    tied: bool
    bos: bool


FAMILIES = {
    "gpt2": Family(_gpt2, chat=False, tied=True, bos=True),
    "opt": Family(_opt, chat=False, tied=True, bos=True),
    "llama": Family(_llama_base, chat=False, tied=False, bos=True),
    "qwen2": Family(_qwen2, chat=True, tied=True, bos=False),
    "smollm2": Family(_smollm2, chat=True, tied=True, bos=True),
}
VARIANTS = {
    "opt-projected": Family(_opt_projected, chat=False, tied=True, bos=True),
    "llama-instruct": Family(_llama_instruct, chat=True, tied=True, bos=True),
    "llama2": Family(_llama2, chat=False, tied=False, bos=True),
    "qwen2-untied": Family(_qwen2_untied, chat=True, tied=False, bos=False),
}


def save_family(name: str, folder: Path) -> str:
    """Write a tiny model of the family with its tokenizer, as a hub's folder holds them."""
    torch.manual_seed(0)
    model, tokenizer = (FAMILIES | VARIANTS)[name].make()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)

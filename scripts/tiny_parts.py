"""A tiny Whisper and a tiny language model with random weights, as folders that `build` reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)


def write_parts(folder: Path, texts: Iterable[str]) -> tuple[Path, Path]:
    """Write `folder`/whisper and `folder`/llm, whose words are those of `texts`; returns the two."""
    torch.manual_seed(0)
    encoder, llm = folder / "whisper", folder / "llm"
    special: dict[str, Any] = {
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 0,
    }
    width: dict[str, Any] = {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers: dict[str, Any] = {
        "encoder_layers": 3,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_ffn_dim": 64,
    }
    WhisperModel(WhisperConfig(vocab_size=50, init_std=0.2, **width, **layers, **special)).save_pretrained(
        encoder
    )
    WhisperFeatureExtractor().save_pretrained(encoder)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=["<eos>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    tokenizer.save_pretrained(llm)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=0,
        )
    ).save_pretrained(llm)
    return encoder, llm

"""A tiny Qwen2-Audio with random weights: two seconds of sound at most."""

from __future__ import annotations

import torch
from tiny_families import CHATML, SMALL, byte_level_bpe

TEMPLATE = CHATML.replace(
    "{{ m['content'] }}",
    "{% for c in m['content'] %}{% if c['type'] == 'audio' %}Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}",
)


def make_qwen2_audio(seed: int = 0):
    """(model, processor) in transformers' classes."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        Qwen2Tokenizer,
        WhisperFeatureExtractor,
    )

    torch.manual_seed(seed)
    special = ["<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer = Qwen2Tokenizer(
        *byte_level_bpe(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
    )
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "max_source_positions": 100,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer) + 8,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            **SMALL,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = Qwen2AudioForConditionalGeneration(config)
    return model, Qwen2AudioProcessor(extractor, tokenizer, chat_template=TEMPLATE)

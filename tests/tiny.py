"""Tiny models and synthetic speech, built in code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

SENTENCES = [
    "He sounds angry, with a loud voice.",
    "She speaks sadly and slowly, in a soft voice.",
    "The speaker sounds calm and steady.",
    "Describe how the speaker sounds.",
    "Kids are talking by the door",
    "Voice: angry, very loud, not calm.",
]


def make_tokenizer(chat: bool = True):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    if chat:
        fast.chat_template = (
            "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant] {% endif %}"
        )
    return fast


def make_llm(vocab: int, tied: bool = True):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=0,
        )
    )


def make_whisper():
    from transformers import WhisperConfig, WhisperModel

    return WhisperModel(
        WhisperConfig(
            d_model=16,
            encoder_layers=3,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            vocab_size=50,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
            init_std=0.3,
        )
    )


def make_model(tied: bool = True, chat: bool = True, seed: int = 0, **options):
    """Tiny AlignCap model and processor with random weights."""
    from transformers import WhisperFeatureExtractor

    from aligncap.models.build import assemble

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(chat)
    options = {"encoder_layer": 2, "projector_hidden": 24} | options
    return assemble(
        make_whisper().encoder,
        WhisperFeatureExtractor(),
        make_llm(len(tokenizer), tied),
        tokenizer,
        **options,
    )


def voice(seconds: float, f0: float = 150.0, seed: int = 0) -> np.ndarray:
    """A harmonic tone with some noise: float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16_000)) / 16_000
    tone = sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 6))
    return (0.1 * tone + 0.005 * rng.standard_normal(len(time))).astype(np.float32)


def save_model(folder, **options):
    """A whole untrained checkpoint in `folder`; `options` are those of `make_model`."""
    from aligncap.models.checkpoints import save_whole

    model, processor = make_model(**options)
    processor.save_pretrained(folder)
    save_whole(model, folder)
    return folder


def save_parts(folder) -> dict[str, str]:
    """Folders of a tiny Whisper and a tiny LLM with random weights, as `--encoder` and `--llm` take them."""
    from transformers import WhisperFeatureExtractor

    torch.manual_seed(0)
    make_whisper().save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    tokenizer = make_tokenizer()
    make_llm(len(tokenizer)).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return {"encoder": str(folder / "whisper"), "llm": str(folder / "llm")}


def with_adapters(model: Any, args: Any, *, projector: bool) -> Any:
    """`model` with the fresh adapters that a trainer gives it."""
    from peft import get_peft_model

    from aligncap.training.adapters import lora_config

    return get_peft_model(model, lora_config(model, args, projector=projector))


def make_trainer(folder: Any, args: Any = None, **options: Any) -> tuple[Any, Any]:
    """A trainer of `train sft` on a tiny student, and a batch of two clips.

    `args` are options of training, `options` those of `make_model`.
    """
    from aligncap.training.collators import SpeechCollator
    from aligncap.training.data import ClipInputs
    from aligncap.training.sft import SpeechSFTConfig, SpeechSFTTrainer

    model, processor = make_model(**options)
    manifest = folder / "m.jsonl"
    manifest.touch()
    paths = {"output_dir": str(folder / "run"), "train_manifest": str(manifest)}
    config = SpeechSFTConfig(**paths, **{"report_to": "none", "precision": "float32"} | (args or {}))
    around, rows = ClipInputs(processor).around(), []
    for seconds, response in ((1.3, [5, 6, 0]), (0.5, [7, 0])):
        samples = voice(seconds)
        audio = [processor.audio_token_id] * processor.num_audio_tokens(len(samples))
        prompt = [*around[0], *audio, *around[1]]
        rows.append({"prompt_ids": prompt, "samples": samples, "response_ids": response})
    trainer = SpeechSFTTrainer(model, config, processing_class=processor, train_dataset=rows)
    return trainer, SpeechCollator(processor)(rows)

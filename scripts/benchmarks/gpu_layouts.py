"""Students of random weights at the shapes of real models, batches for them, and the ways to take a step.

Tests assert the ways equal (tests/training/test_step_layouts.py, test_shared_prefix.py, tests/gpu). Nothing
is read from disk and no weights are needed: a tokenizer of made words has as many as the LLM.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import common  # noqa: F401  (finds tests/training/layouts.py)
import numpy as np
import torch
from shapes import KEYS, Encoder, Shape
from torch import Tensor

from aligncap.inference.captioner import Captioner
from aligncap.inference.sampling import sample_captions
from aligncap.models.build import assemble
from aligncap.models.precision import autocast, suit_half, training_dtype
from aligncap.training.collators import PreferenceCollator, SpeechCollator, response_positions
from aligncap.training.data import ClipInputs
from aligncap.training.distill import DistillConfig, DistillTrainer
from aligncap.training.divergences import most_likely, pack
from aligncap.training.kernels import FLEX, attention, compile_layers
from aligncap.training.packing import language_model
from aligncap.training.sft import SpeechSFTTrainer
from aligncap.training.sharding import adapters_off

RESPONSE, TEACHER, TOP_K, CANDIDATES = 32, 96, 64, 8  # tokens of a caption and of a teacher's prompt


@dataclass
class Way:
    """One way to do the work of a batch.

    run: does it once. tokens: that the LLM reads or writes. flops: of matrices and attention, where counted.
    memory: what `shapes.terms` is asked for, where the formula covers it. rival: the way it is compared with.
    """

    run: Callable[[], object]
    tokens: int
    flops: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)
    rival: str = ""
    clips: int = 0


def tokenizer_of(words: int) -> Any:
    """A tokenizer of `words` made words; the placeholders come on top."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"<eos>": 0, "<pad>": 1} | {f"w{i}": i for i in range(2, words)}
    plain = Tokenizer(models.WordLevel(known, unk_token="w2"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<eos>", pad_token="<pad>", unk_token="w2"
    )


def student(name: str, shape: Shape, encoder: Encoder, device: str) -> tuple[Any, Any]:
    """An AlignCap of random weights on `device`, float32, and its processor; name tells the LLM's family."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    whisper: dict[str, Any] = {"d_model": encoder.width, "encoder_layers": encoder.layers}
    whisper |= {"encoder_ffn_dim": encoder.inner, "encoder_attention_heads": encoder.heads}
    whisper |= {"decoder_layers": 0, "decoder_attention_heads": encoder.heads, "vocab_size": 8}
    whisper |= {"num_mel_bins": encoder.mels, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    numbers = {key: getattr(shape, name) for name, key in KEYS.items()}
    numbers |= {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    qwen = name.startswith("Qwen2")
    torch.manual_seed(0)
    with torch.device(device):
        tower = WhisperModel(WhisperConfig(**whisper, decoder_start_token_id=0)).encoder
        llm: Any = (
            Qwen2ForCausalLM(Qwen2Config(**numbers)) if qwen else LlamaForCausalLM(LlamaConfig(**numbers))
        )
    extractor, tokenizer = WhisperFeatureExtractor(encoder.mels), tokenizer_of(shape.vocab - 2)
    model, processor = assemble(tower.eval(), extractor, llm.eval(), tokenizer, encoder_layer="mix")
    return model.to(device), processor


def samples_of(count: int, seconds: float) -> list[np.ndarray]:
    """Noise at the level of speech, 16 kHz."""
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(round(seconds * 16_000))).astype(np.float32) for _ in range(count)]


def rows_of(
    model: Any, processor: Any, count: int, seconds: float, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Rows with all that any way reads of them; `frames` are the encoder's."""
    rng, words = np.random.default_rng(1), processor.audio_token_id
    before, after = ClipInputs(processor).around()
    audio = [words] * processor.num_audio_tokens(round(seconds * 16_000))
    rows = []
    for samples in samples_of(count, seconds):
        mel = processor.features([samples]).to(model.device)
        with torch.no_grad(), autocast(model.device.type, dtype):
            frames = model.model.encode_audio(**mel).frames[0].cpu()
        row: dict[str, Any] = {"prompt_ids": [*before, *audio, *after], "samples": samples, "frames": frames}
        for name, length in (("teacher_prompt", TEACHER), *((k, RESPONSE) for k in ("response", "chosen"))):
            row[f"{name}_ids"] = rng.integers(2, words, length).tolist()
        row["rejected_ids"] = rng.integers(2, words, RESPONSE).tolist()
        rows.append(row)
    return rows


def move(batch: dict[str, Tensor], device: Any) -> dict[str, Tensor]:
    """The batch on `device`: each way is timed without collation."""
    return {name: value.to(device) for name, value in batch.items()}


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


def distill_ways(
    sizes: tuple[str, Shape, Encoder], device: str, count: int, seconds: float, folder: Path
) -> dict[str, Way]:
    """Of `train teacher` and `train distill`, and ultravox's layout; the last compiles layers for good."""
    layouts = importlib.import_module("layouts")
    _, shape, encoder = sizes
    model, processor = student(*sizes, device)
    options: dict[str, Any] = {"train_manifest": __file__, "report_to": "none", "teacher_top_k": TOP_K}
    args = DistillConfig(output_dir=str(folder), **options)
    dtype, collate = args.compute_dtype, SpeechCollator(processor)
    trainer: Any = DistillTrainer(model, args, train_dataset=[0] * 8, data_collator=collate)  # type: ignore[arg-type]
    rival: Any = layouts.UltravoxLayout(trainer.model, args, train_dataset=[0] * 8, data_collator=collate)
    plain: Any = SpeechSFTTrainer(trainer.model, args, train_dataset=[0] * 8, data_collator=collate)
    if dtype != torch.float32:
        suit_half(trainer.model, dtype)
    rows = rows_of(model, processor, count, seconds, dtype)
    text = collate(rows)
    text = {k: text[f"teacher_{k}"] for k in ("input_ids", "attention_mask", "labels")}
    read = {k: v.to(device) for k, v in text.items() if k != "labels"}
    with torch.no_grad(), adapters_off(trainer.model), autocast(model.device.type, dtype):
        states = model.model.language_model(**read, use_cache=False).last_hidden_state
        hidden = states[response_positions(text["labels"]).to(device)].to(dtype)
        likeliest = pack(*most_likely(model.lm_head(hidden)[:, : processor.audio_token_id], TOP_K))
    for name, found in (("teacher_hidden", hidden), ("teacher_top_k", likeliest)):
        for row, part in zip(rows, found.cpu().split(RESPONSE), strict=True):
            row[name] = part
    cached = ("teacher_hidden", "teacher_top_k")
    live = without(rows, *cached)
    batches = {
        "live": collate(without(live, "frames")),
        "frames, teacher live": collate(live),
        "cached": collate(without(rows, "teacher_prompt_ids", cached[1])),
        "top-k": collate(without(rows, "teacher_prompt_ids", cached[0])),
    }
    if 30 - processor.margin_seconds >= seconds:
        padded = processor.feature_extractor(
            [row["samples"] for row in rows], sampling_rate=16_000, padding="max_length", return_tensors="pt"
        )
        batches["ultravox"] = batches["live"] | {"padded_features": padded["input_features"]}
        del batches["ultravox"]["input_features"]
    adapted = trainer.accelerator.prepare_model(trainer.model).train()
    optimizer = trainer.create_optimizer()

    def step(trainer: Any, batch: dict[str, Tensor]) -> None:
        trainer.training_step(adapted, dict(batch))
        optimizer.step()
        adapted.zero_grad(set_to_none=True)

    length, ours = (
        batches["live"]["input_ids"].shape[1],
        shape.step(count, batches["live"]["input_ids"].shape[1], RESPONSE),
    )
    teacher, heads = shape.flops(count, TEACHER + RESPONSE), shape.head(count * RESPONSE)
    hears = count * encoder.flops(seconds)
    parts = {"encoder": model.model.audio_tower, "projector": model.model.multi_modal_projector}
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    memory = {
        "batch": count,
        "length": length,
        "response": RESPONSE,
        "half": dtype != torch.float32,
        **counted,
    }
    memory["eager"] = device == "cpu" and dtype != torch.float32
    costs = {
        "live": ours + teacher + heads + hears,
        "frames, teacher live": ours + teacher + heads,
        "cached": ours + heads,
        "top-k": ours,
    }
    tokens = count * length
    ways = {
        "teacher": Way(
            partial(step, plain, move(text, device)),
            count * (TEACHER + RESPONSE),
            shape.step(count, TEACHER + RESPONSE, RESPONSE),
        )
    }
    for name, cost in costs.items():
        covered = {} if name == "live" else memory
        run = partial(step, trainer, move(batches[name], device))
        ways[f"distill, {name}"] = Way(run, tokens, cost, covered, "ultravox's layout")
    if "ultravox" in batches:
        run = partial(step, rival, move(batches["ultravox"], device))
        ways["ultravox's layout"] = Way(run, tokens)
    compiled = ways["distill, cached"]

    def run_compiled() -> None:
        if not getattr(model, "are_layers_compiled", False):
            how = "inductor" if device != "cpu" else "eager"  # minutes on a CPU, for nothing
            model.are_layers_compiled = bool(compile_layers(language_model(trainer.model), how))
        compiled.run()

    ways["distill, cached, layers compiled"] = Way(
        run_compiled, tokens, compiled.flops, {}, "distill, cached"
    )
    return ways


def dpo_ways(
    sizes: tuple[str, Shape, Encoder], device: str, count: int, seconds: float, folder: Path
) -> dict[str, Way]:
    """Of `train dpo`, reference live, beside trl's layout: prompts twice, clips encoded in each pass."""
    from trl import DPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    from aligncap.training.dpo import SpeechDPOConfig, SpeechDPOTrainer
    from aligncap.training.shared_prefix import score_responses

    layouts = importlib.import_module("layouts")
    _, shape, _ = sizes
    model, processor = student(*sizes, device)
    options: dict[str, Any] = {"model": str(folder), "train_pairs": __file__, "report_to": "none"}
    args = SpeechDPOConfig(output_dir=str(folder / "run"), **options)
    rows = layouts.Rows(rows_of(model, processor, count, seconds, torch.float32))
    collate = PreferenceCollator(processor)
    trainer: Any = SpeechDPOTrainer(model, args, processor, rows, data_collator=collate)
    if args.compute_dtype != torch.float32:
        suit_half(trainer.model, args.compute_dtype)
    adapted = trainer.accelerator.prepare_model(trainer.model).train()
    optimizer = trainer.create_optimizer()
    names = ("log_probs", "entropy", "mean_logits", "is_top1")
    add_fused_lm_head(model, outputs=names)
    heads = {"trl": model.forward}
    for name, shared in (("plain", False), ("shared", True)):
        score_responses(model, shared)
        heads[name] = model.forward
    ours, theirs = collate(rows), layouts.trl_batch(rows, processor)
    ours, theirs = move(ours, device), move(theirs, device)
    llm = language_model(trainer.model)
    reads = llm.config._attn_implementation

    def step(head: str, kind: str, loss: Callable[[], Tensor]) -> None:
        model.forward = heads[head]
        with attention(llm, kind), trainer.compute_loss_context_manager():
            trainer.accelerator.backward(loss())
        optimizer.step()
        adapted.zero_grad(set_to_none=True)

    def our_loss() -> Tensor:
        return trainer.compute_loss(adapted, dict(ours))

    prompt = len(rows[0]["prompt_ids"])

    def cost(many: int, length: int, response: int) -> float:
        passes = shape.flops(many, length) + shape.head(many * response)
        return shape.step(many, length, response) + passes

    packed, twice = (count, prompt + 2 * RESPONSE, 2 * RESPONSE), (2 * count, prompt + RESPONSE, RESPONSE)
    tokens, rival = count * packed[1], "trl's DPO"
    ways = {
        "dpo, shared": Way(partial(step, "shared", reads, our_loss), tokens, cost(*packed), {}, rival),
        "dpo, plain": Way(partial(step, "plain", reads, our_loss), tokens, cost(*twice), {}, rival),
    }
    parts = {"encoder": model.model.audio_tower, "projector": model.model.multi_modal_projector}
    how = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    how |= dict(zip(("batch", "length", "response"), packed, strict=True))
    half = args.compute_dtype != torch.float32
    ways["dpo, shared"].memory = how | {"half": half, "eager": half and device == "cpu"}
    if device != "cpu":  # torch has no backward pass of it there
        ways["dpo, flex"] = Way(partial(step, "shared", FLEX, our_loss), tokens, cost(*packed), {}, rival)

    def trl_itself() -> Tensor:
        trainer.precompute_ref_logps = False
        return DPOTrainer._compute_loss(trainer, adapted, dict(theirs), False)

    ways["trl's DPO"] = Way(partial(step, "trl", reads, trl_itself), tokens)
    return ways


def generation_ways(
    sizes: tuple[str, Shape, Encoder], device: str, count: int, seconds: float, folder: Path
) -> dict[str, Way]:
    """Captions and candidates of a batch of clips, the log-mel of samples included."""
    model, processor = student(*sizes, device)
    dtype, _ = training_dtype("auto")
    captioner = Captioner(model.to(dtype), processor)
    clips = samples_of(count, seconds)
    ids = [str(i) for i in range(count)]
    fixed: dict[str, Any] = {"max_new_tokens": RESPONSE, "min_new_tokens": RESPONSE, "do_sample": False}

    def captions() -> None:
        captioner.generate(clips, **fixed)

    def candidates() -> None:
        how: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95, "seed": 0, "max_new_tokens": RESPONSE}
        sample_captions(captioner, clips, ids, num=CANDIDATES, **how)

    return {
        "captions, greedy": Way(captions, count * RESPONSE, clips=count),
        f"candidates, {CANDIDATES} a clip": Way(candidates, count * CANDIDATES * RESPONSE, clips=count),
    }


STAGES = {"distill": distill_ways, "dpo": dpo_ways, "generate": generation_ways}

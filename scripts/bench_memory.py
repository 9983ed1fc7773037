"""The memory formula of scripts/memory.py held against measured runs.

    python scripts/bench_memory.py                 # small shapes, below 4 GiB, on a CPU
    python scripts/bench_memory.py --large         # up to the size of Llama-3.2-1B: 12 GiB of a CPU, or a GPU

Each case builds AlignCap with random weights in a process of its own and takes three distillation steps with
AdamW, from cached frames, the teacher read live. On a CPU the peak is that of the resident memory less what
the process held before the model was built; on a GPU `torch.cuda.max_memory_allocated`. No data is needed.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_common import alone
from memory import GIB, SHAPES, Shape, terms

SMALL = [
    ("SmolLM2-135M", {"batch": 2, "length": 64, "response": 16, "half": False}),
    ("SmolLM2-135M", {"batch": 8, "length": 128, "response": 32, "half": False}),
    ("SmolLM2-135M", {"batch": 8, "length": 128, "response": 32, "half": True}),
    ("SmolLM2-135M", {"batch": 4, "length": 256, "response": 64, "half": False}),
    ("SmolLM2-135M", {"batch": 8, "length": 128, "response": 32, "half": False, "checkpointing": True}),
    ("SmolLM2-360M", {"batch": 4, "length": 128, "response": 32, "half": False}),
    ("SmolLM2-360M", {"batch": 4, "length": 128, "response": 32, "half": True}),
]
LARGE = [
    ("Qwen2.5-0.5B", {"batch": 8, "length": 128, "response": 32, "half": True}),
    ("Llama-3.2-1B", {"batch": 4, "length": 128, "response": 32, "half": False}),
    ("Llama-3.2-1B", {"batch": 8, "length": 128, "response": 32, "half": True}),
]


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def build(shape: Shape, half: bool) -> tuple[Any, Any]:
    """AlignCap with random weights: the LLM of `shape`, a two-layer encoder of Whisper base's width."""
    import torch
    from transformers import LlamaConfig, WhisperConfig

    from aligncap.models.configuration_aligncap import AlignCapConfig
    from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration

    text = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    audio = WhisperConfig(
        d_model=512,
        encoder_layers=2,
        encoder_ffn_dim=2048,
        decoder_layers=1,
        vocab_size=8,
        **heads,
        **special,
    )
    config = AlignCapConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=shape.vocab - 2,
        tie_word_embeddings=shape.tied,
        encoder_layer="last",
    )
    model = AlignCapForConditionalGeneration(config)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False), config


def batch_of(model: Any, config: Any, batch: int, length: int, response: int) -> dict[str, Any]:
    """A batch of random frames and tokens: student rows of `length`, teacher rows as long."""
    import torch

    from aligncap.models.modeling_aligncap import PooledFrames

    device = model.device
    frames = torch.randn(batch, 40, 512, device=device)
    mask = torch.ones(batch, 40, dtype=torch.bool, device=device)
    with torch.no_grad():
        audio = int(model.model.get_audio_features(PooledFrames(frames, mask))[1].sum(1)[0])
    ids = torch.randint(0, config.audio_token_id, (batch, length), device=device)
    labels = ids.clone()
    labels[:, : length - response] = -100
    student = ids.clone()
    student[:, 2 : 2 + audio] = config.audio_token_id
    ones = torch.ones_like(ids)
    return {
        "input_ids": student,
        "attention_mask": ones,
        "labels": labels,
        "audio_frames": frames,
        "audio_frames_mask": mask,
        "teacher_input_ids": ids,
        "teacher_attention_mask": ones,
        "teacher_labels": labels,
    }


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Peak bytes of three distillation steps, above what the process held before, and what was counted."""
    import torch

    from aligncap.models.precision import suit_bfloat16
    from aligncap.training.config import DistillConfig
    from aligncap.training.distill import DistillTrainer
    from aligncap.training.trainer import add_adapters

    shape, how = Shape(**case["shape"]), dict(case["how"])
    half, checkpointing = how.pop("half"), how.pop("checkpointing", False)
    with tempfile.TemporaryDirectory() as folder:
        before = resident()
        args = DistillConfig(
            output_dir=folder,
            train_manifest=__file__,
            report_to="none",
            precision="bfloat16" if half else "float32",
            gradient_checkpointing=checkpointing,
        )
        model, config = build(shape, half)
        batch = batch_of(model, config, **how)
        count = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
        encoder = sum(p.numel() for p in model.model.audio_tower.parameters())
        adapted = add_adapters(model, args, projector=True)
        if checkpointing:
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
        trainer = DistillTrainer(model=adapted, args=args, train_dataset=[0] * 8)
        optimizer = trainer.create_optimizer()
        if half:
            suit_bfloat16(adapted)
        adapted = trainer.accelerator.prepare_model(adapted)  # autocast lies around its forward
        for _ in range(3):
            trainer.training_step(adapted.train(), dict(batch))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    on_cpu = not torch.cuda.is_available()
    if not on_cpu:
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"peak": peak, "projector": count, "encoder": encoder, "eager": half and on_cpu}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.case:
        print(json.dumps(measure(json.loads(a.case))))
        return
    print(f"{'LLM':14}{'rows':>5}{'tokens':>7}{'predicted':>10}{'precision':>10}{'checkpoints':>12}", end="")
    print(f"{'formula GiB':>12}{'measured':>9}{'ratio':>7}")
    for name, how in SMALL + (LARGE if a.large else []):
        case = json.dumps({"shape": asdict(SHAPES[name]), "how": how})
        # Freed tensors go back to the system at once, or the peak would count holes in the heap.
        found = alone(["--case", case], MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
        kept = {part: found[part] for part in ("projector", "encoder", "eager")}
        parts = terms(SHAPES[name], **how, **kept)
        total = sum(parts.values())
        print(f"{name:14}{how['batch']:5}{how['length']:7}{how['response']:10}", end="")
        print(
            f"{'bfloat16' if how['half'] else 'float32':>10}{'yes' if how.get('checkpointing') else '-':>12}",
            end="",
        )
        print(f"{total / GIB:12.2f}{found['peak'] / GIB:9.2f}{total / found['peak']:7.2f}", flush=True)


if __name__ == "__main__":
    main()

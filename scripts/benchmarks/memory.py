"""Memory of training by formula and as measured, and processes side by side.

python scripts/benchmarks/memory.py formula            # the table of docs/scaling.md
python scripts/benchmarks/memory.py measure            # the formula against measured runs
python scripts/benchmarks/memory.py savings            # checkpointing, 8 and 4 bits, offloading
python scripts/benchmarks/memory.py plan               # memory and time of a step by plan_run.py
python scripts/benchmarks/memory.py processes RUN      # two processes against one
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import GIB, ROOT, alone, benchmark, machine, main, middle, print_table, ratios
from shapes import KEYS, SHAPES, Shape, choice, peak, read_shape, terms


@benchmark(llm=Path, batch=8, length=128, response=32, device_gib=[24.0, 80.0], float32=False)
def formula(a: argparse.Namespace) -> None:
    """GiB a device by formula, and which launch configuration to choose.

    --llm: a folder with a config.json; --batch: rows a device; --length: tokens of a student's row;
    --response: tokens of a caption.
    """
    shapes = {a.llm.name: read_shape(a.llm)} if a.llm else SHAPES
    how: dict[str, Any] = {"batch": a.batch, "length": a.length, "response": a.response}
    how |= {"half": not a.float32, "encoder": 20_000_000, "projector": 2_000_000}
    print(f"GiB a device: {a.batch} rows of {a.length} tokens, {a.response} predicted, half: {how['half']}")
    parts = list(terms(SHAPES["SmolLM2-135M"], **how))
    rows = []
    for name, shape in shapes.items():
        sizes = [*terms(shape, **how).values(), *(peak(shape, **how, shards=n) for n in (1, 8, 16))]
        sizes.append(4 * shape.weights)
        rows.append([name, *(f"{size / GIB:.2f}" for size in sizes)])
        rows[-1] += [choice(shape, gib * GIB, **how) for gib in a.device_gib]
    on = [f"on {gib:g} GiB" for gib in a.device_gib]
    print_table(["", *parts, "one GPU", "fsdp2 8", "fsdp2 16", "host", *on], rows)
    print("host: float32 weights that each process reads before they are sharded")


# LLM, rows, tokens of a row, tokens that are predicted, precision.
CASES = [
    ("SmolLM2-135M", 2, 64, 16, "float32"),
    ("SmolLM2-135M", 8, 128, 32, "float32"),
    ("SmolLM2-135M", 8, 128, 32, "bfloat16"),
    ("SmolLM2-135M", 4, 256, 64, "float32"),
    ("SmolLM2-135M", 8, 128, 32, "float32, checkpoints"),
    ("SmolLM2-360M", 4, 128, 32, "float32"),
    ("SmolLM2-360M", 4, 128, 32, "bfloat16"),
    ("Qwen2.5-0.5B", 8, 128, 32, "bfloat16"),  # from here on with --large
    ("Llama-3.2-1B", 4, 128, 32, "float32"),
    ("Llama-3.2-1B", 8, 128, 32, "bfloat16"),
]


@benchmark(large=False, only=int)
def measure(a: argparse.Namespace) -> None:
    """The formula against measured runs.

    Each case builds AlignCap with random weights in a process of its own and takes three distillation steps
    with AdamW, from cached frames, the teacher read live. On a CPU the peak is that of the resident memory
    less what the process held before the model was built; on a GPU `torch.cuda.max_memory_allocated`. No data
    is needed. --large: up to the size of Llama-3.2-1B, 12 GiB of a CPU, or a GPU.
    """
    rows = []
    for number, (name, batch, length, response, kind) in enumerate(CASES if a.large else CASES[:7]):
        how: dict[str, Any] = {"batch": batch, "length": length, "response": response}
        how |= {"half": kind == "bfloat16", "checkpointing": "checkpoints" in kind}
        if a.only == number:
            print(json.dumps(peak_of_steps(SHAPES[name], **how)))
        if a.only is not None:
            continue
        # Freed tensors go back to the system at once, or the peak would count holes in the heap.
        limits = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        found = alone(["measure", "--large", "--only", str(number)], **limits)
        total = sum(terms(SHAPES[name], **how, **found["counted"]).values())
        figures = [f"{total / GIB:.2f}", f"{found['peak'] / GIB:.2f}", f"{total / found['peak']:.2f}"]
        rows.append([name, *map(str, (batch, length, response)), kind, *figures])
    if a.only is not None:
        return
    print_table("LLM rows tokens predicted precision formula,_GiB measured ratio".split(), rows)


SAVINGS = ("none", "checkpointing", "int8", "nf4", "offload")


@benchmark(llm="Qwen2.5-0.5B", batch=8, length=128, response=32, only=str)
def savings(a: argparse.Namespace) -> None:
    """What each way to save memory saves in a distillation step, and what it costs in time.

    Random weights of the shape, float32, cached frames, the teacher read live; peaks of resident memory
    during the steps alone, the program's own included. int8 and nf4 need bitsandbytes. offload: the frozen
    layers lie on disk and come one at a time, with checkpointing, or the backward pass would keep them all.
    """
    how: dict[str, Any] = {"batch": a.batch, "length": a.length, "response": a.response, "half": False}
    if a.only:
        checkpointing = a.only in ("checkpointing", "offload")
        print(json.dumps(peak_of_steps(SHAPES[a.llm], **how, checkpointing=checkpointing, saving=a.only)))
        return
    limits = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    names = "llm batch length response".split()
    given = [word for name in names for word in (f"--{name}", str(getattr(a, name)))]
    rows: list[list[str]] = []
    for saving in SAVINGS:
        found = alone(["savings", *given, "--only", saving], **limits)
        first = first if rows else found  # noqa: F821
        figures = [found["in_steps"] / GIB, found["in_steps"] / first["in_steps"], found["step"]]
        rows.append([saving, *(f"{x:.2f}" for x in (*figures, found["step"] / first["step"]))])
    print_table("saving peak_GiB of_none s_a_step times_none".split(), rows)


def peak_of_steps(
    shape: Shape,
    *,
    batch: int,
    length: int,
    response: int,
    half: bool,
    checkpointing: bool,
    steps: int = 3,
    saving: str = "",
) -> dict[str, Any]:
    """Peak bytes of distillation steps above what was held before, and of the process during the steps
    alone; seconds of a step, what was counted."""
    import torch
    from accelerate import disk_offload
    from transformers import LlamaConfig, WhisperConfig

    from aligncap.models.configuration_aligncap import AlignCapConfig
    from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration, PooledFrames
    from aligncap.models.precision import suit_half
    from aligncap.models.quantise import quantise
    from aligncap.training.distill import DistillConfig, DistillTrainer

    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    # Two layers of Whisper base's width.
    sizes = {
        "d_model": 512,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_ffn_dim": 2048,
        "vocab_size": 8,
    }
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 8)
    sizes |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    placeholder = shape.vocab - 2
    config = AlignCapConfig(
        audio_config=WhisperConfig(**sizes),
        text_config=LlamaConfig(**{key: getattr(shape, name) for name, key in KEYS.items()}),
        audio_token_id=placeholder,
        tie_word_embeddings=shape.tied,
        encoder_layer="last",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AlignCapForConditionalGeneration(config).to(device).requires_grad_(False)
    frames = torch.randn(batch, 40, 512, device=device)
    mask = torch.ones(batch, 40, dtype=torch.bool, device=device)
    with torch.no_grad():
        tokens = int(model.model.get_audio_features(PooledFrames(frames, mask))[1].sum(1)[0])
    ids = torch.randint(0, placeholder, (batch, length), device=device)
    student, labels, ones = ids.clone(), ids.clone(), torch.ones_like(ids)
    labels[:, : length - response] = -100
    student[:, 2 : 2 + tokens] = placeholder
    rows = {"input_ids": student, "attention_mask": ones, "labels": labels}
    rows |= {"audio_frames": frames, "audio_frames_mask": mask}
    rows |= {"teacher_input_ids": ids, "teacher_attention_mask": ones, "teacher_labels": labels}
    modules = {"projector": model.model.multi_modal_projector, "encoder": model.model.audio_tower}
    counted: dict[str, Any] = {n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()}
    if saving in ("int8", "nf4"):
        quantise(model, model.model.language_model, saving)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        precision = "bfloat16" if half else "float32"
        options = {"train_manifest": __file__, "report_to": "none", "precision": precision}
        args = DistillConfig(output_dir=folder, gradient_checkpointing=checkpointing, **options)
        trainer: Any = DistillTrainer(model, args, train_dataset=[0] * 8, data_collator=list)  # type: ignore[arg-type]
        if checkpointing:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = trainer.create_optimizer()
        if half:
            suit_half(trainer.model)
        if saving == "offload":  # the frozen matrices, which adapters leave as they are
            for name, layer in trainer.model.named_modules():
                if ".layers." in name and "lora_" not in name and type(layer) is torch.nn.Linear:
                    disk_offload(layer, f"{folder}/{name}", execution_device=torch.device("cpu"))
        whole = saving != "offload"
        adapted = trainer.accelerator.prepare_model(trainer.model, device_placement=whole)  # with autocast
        taken = []
        if saving:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
        for _ in range(steps):
            began = time.process_time()
            trainer.training_step(adapted.train(), dict(rows))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            taken.append(time.process_time() - began)
    found = {"counted": counted, "step": statistics.median(taken[1:])}
    if device == "cuda":
        counted["eager"] = False
        return found | {"peak": torch.cuda.max_memory_allocated()}
    counted["eager"] = half
    if saving:
        found["in_steps"] = (
            int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
        )
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}


@benchmark(batch=4, length=64, response=16, only="")
def plan(a: argparse.Namespace) -> None:
    """What `scripts/plan_run.py` computes with, memory and operations of a step, against measured steps.

    Two sizes, one process and two that share the batch (float32, teacher live, one thread each). Seconds are
    the process's own processor time, so other work on the machine does not count. A step takes its operations
    at the measured rate of a product of its own shape, and the bytes of activations and logits at a rate that
    is taken from the first row; the others are predicted by it.
    """
    how = {"length": a.length, "response": a.response, "half": False, "checkpointing": False}
    if a.only:
        name, count = a.only.split(":")
        found = peak_of_steps(SHAPES[name], **how, batch=a.batch // int(count))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found | {"rate": product_rate(SHAPES[name].width, SHAPES[name].inner)}))
        return
    limits = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    rows, a_byte = [], 0.0
    for name, count in ((name, count) for name in ("SmolLM2-135M", "SmolLM2-360M") for count in (1, 2)):
        sizes = [f"--{key}={getattr(a, key)}" for key in ("batch", "length", "response")]
        words = ["plan", "--only", f"{name}:{count}", *sizes]
        found = alone(words, processes=count, ACCELERATE_USE_CPU="true", **limits)
        shape, batch = SHAPES[name], a.batch // count
        parts = terms(shape, **how, batch=batch, **found["counted"])
        size, flops = sum(parts.values()), shape.step(batch, a.length, a.response)
        flops += shape.flops(batch, a.length) + shape.head(batch * a.response)
        if count > 1:  # DDP hands out the first process's weights in flat copies of 250 MiB, there and here
            size = max(size, parts["weights"] + 500 * 2**20)
        products, made = flops / found["rate"], sum(parts[x] for x in ("activations", "logits", "softmaxes"))
        a_byte = a_byte or (found["step"] - products) / made
        predicted = products + a_byte * made
        row = [f"{size / GIB:.2f}", f"{found['peak'] / GIB:.2f}", f"{size / found['peak']:.2f}"]
        row += [f"{predicted:.2f}", f"{found['step']:.2f}", f"{predicted / found['step']:.2f}"]
        rows.append([name, str(count), *row])
    print(f"{a.batch} rows of {a.length} tokens, {machine()}; {1e9 * a_byte:.2g} s a GB of activations")
    head = "LLM,processes,GiB predicted,measured,ratio,seconds predicted,measured,ratio"
    print_table(head.split(","), rows)


def product_rate(width: int, inner: int) -> float:
    """FLOP/s of the matrix product of a layer's MLP, by this process's own time; best of several."""
    import torch

    a, b, best = torch.randn(1024, width), torch.randn(width, inner), float("inf")
    for _ in range(12):
        began = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - began)
    return 2 * 1024 * width * inner / best


def launch(count: int, *words: object) -> tuple[float, float]:
    """Seconds of `aligncap` in `count` processes of one thread, and GiB of the largest at its peak."""
    config = ("--config_file", ROOT / "configs/accelerate/cpu2.yaml", "--num_processes", count)
    start = ("-m", "accelerate.commands.launch", *config) if count > 1 else ()
    command = [str(word) for word in (sys.executable, *start, "-m", "aligncap", *words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            sys.exit(output.read().decode())
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


FIRST = 2  # steps of distillation that are left out: threads, caches and the optimizer are set up in them
FEW = 4  # clips of a run whose time is taken off that of many: loading


@benchmark(run=Path, rounds=3, captions=128, candidates=64, steps=12, batch=8)
def processes(a: argparse.Namespace) -> None:
    """Work done a second by two processes of one thread each against one process of one thread.

    Captions, candidates and steps of distillation with the same global batch, each started by accelerate as a
    user would. Loading is left out of "a second" and stands in the whole time beside it. Runs take turns; two
    processes must write the file of one, and the losses agree. Nothing else should run on the machine.
    """
    from aligncap.data.manifest import read_manifest, rebase, write_manifest
    from aligncap.data.split import choose_evenly

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def part_of(part: str, count: int) -> Path:
            source, out = a.run / f"data/{part}.jsonl", folder / f"{part}-{count}.jsonl"
            every = read_manifest(source)
            write_manifest(out, rebase([every[i] for i in choose_evenly(every, count, 0)], source, out))
            return out

        def written(command: str, clips: int, count: int) -> tuple[Any, ...]:
            """Clips a second, whole time, peak, the file."""
            out, model = folder / "made.jsonl", ("--model", a.run / "model", "--device", "cpu")
            out.unlink(missing_ok=True)
            loading, _ = launch(count, command, *model, "--manifest", part_of("test", FEW), "--out", out)
            out.unlink()
            total, largest = launch(
                count, command, *model, "--manifest", part_of("test", clips), "--out", out
            )
            return (clips - FEW) / (total - loading), total, largest, out.read_bytes()

        def distilled(count: int) -> tuple[Any, ...]:
            """Steps a second after the first ones, whole time, peak, losses."""
            options = {"llm": a.run / "teacher", "train_manifest": part_of("train", 8 * a.batch)}
            options |= {"output_dir": folder / f"run-{time.time()}", "cache_dir": folder / "cache"}
            options |= {"per_device_train_batch_size": a.batch // count, "max_steps": FIRST + a.steps}
            options |= dict.fromkeys(("align_steps", "lora_dropout", "projector_dropout"), 0)
            options |= {"save_strategy": "no", "teacher_cache": "no", "report_to": "none", "logging_steps": 1}
            options |= {"precision": "float32", "use_cpu": "true"}
            words = [word for key, value in options.items() for word in (f"--{key}", value)]
            total, largest = launch(count, "train", "distill", "--config", "distill", *words)
            lines = (options["output_dir"] / "log.jsonl").read_text().splitlines()
            rows = [row for row in map(json.loads, lines) if "loss" in row]
            seconds = rows[-1]["seconds"] - rows[FIRST - 1]["seconds"]
            return a.steps / seconds, total, largest, [row["loss"] for row in rows]

        kinds: dict[str, Callable[[int], tuple[Any, ...]]] = {
            "captions": lambda count: written("caption", a.captions, count),
            "clips, 8 candidates": lambda count: written("candidates", a.candidates, count),
            "distill steps": distilled,
        }
        found: dict[str, dict[int, list[tuple[Any, ...]]]] = {kind: {1: [], 2: []} for kind in kinds}
        for turn in range(a.rounds):
            for kind, run in kinds.items():
                for count in (1, 2) if turn % 2 else (2, 1):
                    found[kind][count].append(run(count))
                one, two = (found[kind][count][-1][3] for count in (1, 2))
                if kind == "distill steps":
                    assert all(abs(x - y) < 1e-3 * abs(x) for x, y in zip(one, two, strict=True)), (one, two)
                else:
                    assert one == two, f"{kind}: two processes wrote another file"
    print(f"two processes = one: files byte for byte, losses to 1e-3; {machine()}")
    rows = []
    for kind, counts in found.items():
        one, two = ([done[0] for done in counts[n]] for n in (1, 2))
        totals = " and ".join(f"{statistics.median(done[1] for done in counts[n]):.0f}" for n in (1, 2))
        peaks = " and ".join(f"{max(done[2] for done in counts[n]):.1f}" for n in (1, 2))
        rows.append([kind, middle(one, 3), middle(two, 3), middle(ratios(two, one)), totals, peaks])
    print_table(["a second", "one process", "two processes", "ratio", "whole run, s", "GiB each"], rows)


if __name__ == "__main__":
    main(__doc__)

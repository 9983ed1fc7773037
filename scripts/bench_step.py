"""Where the time of our distillation step goes, and what share of the machine's matrix rate it reaches.

    python scripts/bench_step.py runs/ravdess
    python scripts/bench_step.py runs/ravdess --batch 32 --precision float32 --teacher live

The rate is the best of several `torch.mm` of the model's own shapes, in the step's precision. The step is the
whole of training's: batch collated from cached features, forward, backward, clipping, optimizer. A clock
stops at the edges of the model's parts, forward by module hooks and backward by tensor hooks; matrix
multiplications are counted from shapes (scripts/step_flops.py). On CPU and GPU. Nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from bench_parts import arguments, collect_rows, students, with_teacher
from step_flops import step_flops

from aligncap.models.precision import best_dtype
from aligncap.training.collators import SpeechCollator
from aligncap.training.distill import DistillTrainer


class Clock:
    """Seconds by part: each mark ends what ran since the last one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = 0.0

    def start(self) -> None:
        self._wait()
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def watch(base: Any, clock: Clock) -> list[Any]:
    """Hooks at the edges of the model's parts; a pass without gradients is the teacher's."""

    def before(*_: Any) -> None:
        clock.mark("rest")

    def after(student: str, teacher: str) -> Any:
        def hook(*_: Any) -> None:
            clock.mark(student if torch.is_grad_enabled() else teacher)

        return hook

    def llm_before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        clock.mark("rest")
        if torch.is_grad_enabled():
            kwargs["inputs_embeds"].register_hook(lambda _: clock.mark("LLM backward"))

    def llm_after(module: Any, args: Any, output: Any) -> None:
        clock.mark("LLM forward" if torch.is_grad_enabled() else "teacher's LLM")
        if torch.is_grad_enabled():
            output.last_hidden_state.register_hook(lambda _: clock.mark("head and loss"))

    inner = base.model
    hooks = [
        inner.language_model.register_forward_pre_hook(llm_before, with_kwargs=True),
        inner.language_model.register_forward_hook(llm_after),
        inner.multi_modal_projector.register_forward_pre_hook(before),
        inner.multi_modal_projector.register_forward_hook(after("projector", "projector")),
        base.lm_head.register_forward_pre_hook(before),
        base.lm_head.register_forward_hook(after("head and loss", "teacher's head")),
    ]
    return hooks


def one_step(trainer: Any, model: Any, rows: list[Any], optimizer: Any, clock: Clock) -> None:
    """One optimizer step as Trainer makes it."""
    model.train()
    clock.start()
    batch = trainer.data_collator(rows)
    clock.mark("collation")
    batch = trainer._prepare_inputs(batch)
    clock.mark("rest")
    loss = trainer.compute_loss(model, batch)
    clock.mark("head and loss")
    loss.backward()
    clock.mark("projector")
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    clock.mark("optimizer")


def matmul_rates(model: Any, tokens: int, response: int, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of `torch.mm` at the shapes of the LLM's matrices and of the head, best of several each."""
    found = {}
    device = next(model.parameters()).device
    layers = [m for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    shapes = {(tokens, *m.weight.shape) for m in layers if min(m.weight.shape) > 64}  # adapters are small
    shapes.add((response, *model.lm_head.weight.shape))
    for rows, width, depth in sorted(shapes):
        a = torch.randn(rows, depth, device=device).to(dtype)
        b = torch.randn(width, depth, device=device).to(dtype).t()
        best = float("inf")
        for _ in range(8):
            Clock._wait()
            began = time.perf_counter()
            for _ in range(4):
                torch.mm(a, b)
            Clock._wait()
            best = min(best, (time.perf_counter() - began) / 4)
        found[f"{rows} × {depth} × {width}"] = 2 * rows * depth * width / best
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of scripts/quickstart.sh")
    parser.add_argument("--base", type=Path, help="student before training; by default RUN/distill/base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--teacher", default="states", choices=["live", "states", "top-k"])
    parser.add_argument("--top-k", type=int, default=64)
    a = parser.parse_args()
    base, manifest = a.base or a.run / "distill/base", a.run / "data/test.jsonl"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args = arguments(folder, manifest, a.precision, teacher_top_k=a.top_k)
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        real = collect_rows(base, manifest, a.batch, folder)
        if a.teacher != "live":
            with_teacher(real, dtype, a.top_k, folder)[a.teacher]()
        rows = [real.cached[i] for i in range(a.batch)]
        model, trainers = students(base, args, {"ours": DistillTrainer}, half=True)
        trainer, plain = trainers["ours"], model.get_base_model()
        optimizer = trainer.create_optimizer()
        whole: list[float] = []
        clock = Clock()
        parts: dict[str, list[float]] = defaultdict(list)
        for turn in range(a.rounds + 1):  # the first warms up
            unwatched = Clock()
            one_step(trainer, model, rows, optimizer, unwatched)
            hooks = watch(plain, clock)
            clock.seconds.clear()
            one_step(trainer, model, rows, optimizer, clock)
            for hook in hooks:
                hook.remove()
            if turn:
                whole.append(sum(unwatched.seconds.values()))
                for part, seconds in clock.seconds.items():
                    parts[part].append(seconds)
        batch = SpeechCollator(real.processor)(rows)
        flops = step_flops(plain, batch, everywhere=False)
        response = int((batch["labels"] != -100).sum())
        rates = matmul_rates(plain, batch["input_ids"].numel(), response, dtype)
    best = max(rates.values())
    print(
        f"\n{dtype} (training takes {best_dtype()} here), {trainer.args.device}, batch of {a.batch}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {a.rounds} rounds; "
        f"{batch['input_ids'].shape[1]} tokens a row, {response} response tokens in all, teacher {a.teacher}"
    )
    for shape, rate in rates.items():
        print(f"torch.mm {shape:24}{rate / 1e9:10.0f} GFLOP/s")
    total = statistics.median(whole)
    print(f"\n{'':20}{'median s':>10}{'least–most':>16}{'share':>8}{'GFLOP':>8}{'of the best rate':>18}")

    def line(title: str, values: list[float], work: float | None) -> None:
        middle = statistics.median(values)
        reached = f"{work / middle / best:18.0%}" if work else ""
        count = f"{work / 1e9:8.0f}" if work else f"{'':8}"
        span = f"{min(values):.3f}–{max(values):.3f}"
        print(f"{title:20}{middle:10.3f}{span:>16}{middle / total:8.0%}{count}{reached}")

    for part, values in sorted(parts.items(), key=lambda item: -statistics.median(item[1])):
        line(part, values, flops.get(part))
    line("whole step, no clocks", whole, sum(flops.values()))


if __name__ == "__main__":
    main()

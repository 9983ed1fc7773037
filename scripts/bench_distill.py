"""One distillation step, forward and backward, laid out our way and others' ways, on one batch of real rows.

    python scripts/bench_distill.py runs/ravdess
    python scripts/bench_distill.py runs/ravdess --base runs/ravdess/tables/systems/distill-0/run/base

First it asserts that all layouts give one loss and one gradient (float32, the same pooled frames, no
dropout). Then the ways take turns, round by round, each with a step that is not timed and one that is; the
first round warms up; a ratio is of the same round. "Floor" is the ratio of the matrix multiplications,
counted from shapes (scripts/step_flops.py). Peak memory is of each way alone, in a process of its own.
Log-mel is made beforehand for all. In mixed precision our model is laid out for bfloat16
(models/precision.py), the rivals' as transformers' Trainer leaves it; a row shows what that alone is worth.
Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_common import GIB, alone, peak_memory, spread, watch_memory
from bench_parts import arguments, collect, loss_and_gradient, pick, students
from distill_rivals import TrlLayout, UltravoxLayout
from safetensors.torch import load_file, save_file
from step_flops import step_flops

from aligncap.models.precision import best_dtype
from aligncap.training.distill import DistillTrainer, SpeechSFTTrainer

KINDS: dict[str, type] = {
    "ours": DistillTrainer,
    "ultravox": UltravoxLayout,
    "trl": TrlLayout,
    "sft": SpeechSFTTrainer,
}


@dataclass(frozen=True)
class Way:
    """One row of a table; the first of a table is the rival that the others are compared with."""

    table: str
    name: str
    kind: str
    audio: str
    teacher: str
    divergence: str = "forward_kl"
    precision: str = "auto"
    half: bool | None = None  # laid out for bfloat16 as ours, where that is computed in; None: if it is ours

    @property
    def halved(self) -> bool:
        return self.kind in ("ours", "sft") if self.half is None else self.half

    @property
    def title(self) -> str:
        return f"{self.table}: {self.name}"


LOOP, CACHED = "encoder in the loop", "features cached on both sides"
JSD, PRECISION = "jsd, features cached", "ours in two precisions, features cached"
WAYS = [
    Way(LOOP, "ultravox's layout, encoder on 30 s", "ultravox", "padded", "live"),
    Way(LOOP, "ultravox's layout, encoder on the longest", "ultravox", "mel", "live"),
    Way(LOOP, "ours, feature_cache false, teacher live", "ours", "mel", "live"),
    Way(LOOP, "ours, feature_cache false, states cached", "ours", "mel", "states"),
    Way(LOOP, "ours, feature_cache false, top-k cached", "ours", "mel", "top-k"),
    Way(LOOP, "ours, by default", "ours", "frames", "states"),
    Way(CACHED, "ultravox's layout", "ultravox", "frames", "live"),
    Way(CACHED, "ultravox's layout, bfloat16 as ours", "ultravox", "frames", "live", half=True),
    Way(CACHED, "ours, teacher live", "ours", "frames", "live"),
    Way(CACHED, "ours, states cached (default)", "ours", "frames", "states"),
    Way(CACHED, "ours, top-k cached", "ours", "frames", "top-k"),
    Way(CACHED, "no teacher: an SFT step of ours", "sft", "frames", "none"),
    Way(JSD, "trl's generalized_jsd_loss", "trl", "frames", "live", "jsd"),
    Way(JSD, "ours, teacher live", "ours", "frames", "live", "jsd"),
    Way(JSD, "ours, states cached", "ours", "frames", "states", "jsd"),
    Way(PRECISION, "float32", "ours", "frames", "states", precision="float32"),
    Way(PRECISION, "bfloat16", "ours", "frames", "states", precision="bfloat16"),
]


class Bench:
    """Models, trainers and batches, made when a way first asks for them."""

    def __init__(self, base: Path, manifest: Path, folder: Path, top_k: int) -> None:
        self.base, self.manifest, self.folder, self.top_k = base, manifest, folder, top_k
        self.made: dict[tuple[str, str, bool], Any] = {}

    def setup(self, way: Way) -> tuple[Any, Any, dict[str, torch.Tensor]]:
        """Trainer, model and batch of a way."""
        precision = named(way.precision)
        key = (precision, way.divergence, way.halved)
        if key not in self.made:
            args = arguments(
                self.folder, self.manifest, precision, divergence=way.divergence, teacher_top_k=self.top_k
            )
            self.made[key] = students(self.base, args, KINDS, way.halved)
        model, trainers = self.made[key]
        return trainers[way.kind], model, pick(self.everything(precision), way.audio, way.teacher)

    def everything(self, precision: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{precision}.safetensors")


def named(precision: str) -> str:
    """float32 or bfloat16; auto is what training takes on this machine."""
    return str(best_dtype()).removeprefix("torch.") if precision == "auto" else precision


def step(trainer: Any, model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of forward and backward."""
    began = time.perf_counter()
    loss = trainer.training_step(model, dict(batch))
    float(loss)  # waits for the device
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds


def assert_equal(bench: Bench) -> None:
    """All layouts give one loss and one gradient in float32; the top-k loss is not above it."""
    for divergence, rival in (("forward_kl", "ultravox"), ("jsd", "trl")):
        found = {}
        for kind, audio, teacher in (
            (rival, "frames", "live"),
            ("ours", "frames", "live"),
            ("ours", "frames", "states"),
            ("ours", "mel", "states"),
            ("ours", "frames", "top-k"),
        ):
            way = Way("", "", kind, audio, teacher, divergence, "float32")
            found[kind, audio, teacher] = loss_and_gradient(*bench.setup(way))
        top, _ = found.pop(("ours", "frames", "top-k"))
        loss, gradient = found[rival, "frames", "live"]
        gaps = []
        for other, other_gradient in found.values():
            gaps.append(
                (abs(other - loss) / loss, float((other_gradient - gradient).norm() / gradient.norm()))
            )
        assert max(g[0] for g in gaps) < 1e-4 and max(g[1] for g in gaps) < 1e-3, (divergence, gaps)
        assert 0 < top <= loss * (1 + 1e-5), (top, loss)
        print(
            f"{divergence}: {rival}'s layout and ours agree at {loss:.5f}, losses to "
            f"{max(g[0] for g in gaps):.0e}, gradients to {max(g[1] for g in gaps):.0e} of their size; "
            f"top-k {top:.5f}"
        )
    bench.made.clear()


def time_ways(bench: Bench, ways: list[Way], rounds: int) -> dict[Way, list[float]]:
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    ready = {way: bench.setup(way) for way in ways}
    for turn in range(rounds + 1):
        for way in ways:
            torch.manual_seed(turn)
            step(*ready[way])  # a step follows one of its own kind: another way leaves other holes in memory
            taken = step(*ready[way])
            if turn:
                seconds[way].append(taken)
    return seconds


def memory_alone(bench: Bench, way: Way, steps: int = 2) -> None:
    """The child's part: its peak in bytes, and what it held before, as a line of JSON."""
    parts = bench.setup(way)
    held = watch_memory()
    for turn in range(steps):
        torch.manual_seed(turn)
        step(*parts)
    print(json.dumps({"peak": peak_memory(), "held": held}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of scripts/quickstart.sh")
    parser.add_argument("--base", type=Path, help="student before training; by default RUN/distill/base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--tables", default="", help="only tables whose name holds this text")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes for peak memory")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    base, manifest = a.base or a.run / "distill/base", a.run / "data/test.jsonl"
    if a.alone:
        way = next(way for way in WAYS if way.title == a.alone)
        return memory_alone(Bench(base, manifest, a.folder, a.top_k), way)
    ways = [way for way in WAYS if a.tables in way.table]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(base, manifest, folder, a.top_k)
        precisions = sorted({"float32", *(named(way.precision) for way in ways)})
        for precision, batch in collect(base, manifest, a.batch, a.top_k, folder, precisions).items():
            save_file({k: v.contiguous() for k, v in batch.items()}, folder / f"{precision}.safetensors")
        assert_equal(bench)
        seconds = time_ways(bench, ways, a.rounds)
        flops = {}
        for way in ways:
            _, model, batch = bench.setup(way)
            parts = step_flops(model.get_base_model(), batch, way.kind in ("ultravox", "trl"))
            flops[way] = sum(parts.values())
        memory = {}
        for way in [] if a.no_memory else ways:
            memory[way] = alone([*sys.argv[1:], "--alone", way.title, "--folder", str(folder)])
        everything = bench.everything("float32")
    student, teacher = (everything[k].shape[1] for k in ("input_ids", "teacher_input_ids"))
    response = int((everything["labels"] != -100).sum())
    print(
        f"\n{named('auto')}, batch of {a.batch}, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}, {a.rounds} rounds; "
        f"{student} tokens a student row, {teacher} a teacher row, {response} response tokens in all"
    )
    print("memory: GiB at the peak, and above what stood before the step")
    for table in dict.fromkeys(way.table for way in ways):
        mine = [way for way in ways if way.table == table]
        print(
            f"\n{table:44}{'seconds a step':>22}{'rival / way':>22}{'floor':>7}{'GFLOP':>7}"
            f"{'peak':>7}{'above':>7}{'× rival':>9}{'× above':>9}"
        )
        rival = mine[0]
        for way in mine:
            ratios = [r / s for r, s in zip(seconds[rival], seconds[way], strict=True)]
            line = (
                f"{way.name:44}{spread(seconds[way], 2):>22}{spread(ratios, 2):>22}"
                f"{flops[rival] / flops[way]:7.2f}{flops[way] / 1e9:7.0f}"
            )
            if memory:
                peak, held = memory[way]["peak"], memory[way]["held"]
                theirs = memory[rival]["peak"], memory[rival]["peak"] - memory[rival]["held"]
                line += (
                    f"{peak / GIB:7.2f}{(peak - held) / GIB:7.2f}"
                    f"{peak / theirs[0]:9.2f}{(peak - held) / theirs[1]:9.2f}"
                )
            print(line)


if __name__ == "__main__":
    main()

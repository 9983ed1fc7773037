"""Steps of training beside other layouts of them, batches of like length, and where a step's time goes.

    python scripts/benchmarks/training.py distill | dpo | buckets | step runs/ravdess

RUN is a folder of scripts/quickstart.sh. Losses and gradients are asserted equal before anything is timed.
The ways take turns, round by round, each with a step that is not timed and one that is; the first round warms
up; a ratio is of the same round. "Floor" is the ratio of the matrix multiplications, counted from shapes
(tests/training/layouts.py, which also holds the rivals). Peak memory is of each way alone, in a process of
its own. In mixed precision our model is laid out for bfloat16, the rivals' as transformers' Trainer leaves
it. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    GIB,
    alone,
    benchmark,
    in_turns,
    machine,
    main,
    middle,
    peak_memory,
    print_table,
    ratios,
    read_all,
    watch_memory,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from aligncap.models.checkpoints import load_folder
from aligncap.models.precision import best_dtype, training_dtype
from aligncap.training.batches import LengthBuckets, padded_size, padding_share
from aligncap.training.collators import SpeechCollator
from aligncap.training.data import SpeechDataset
from aligncap.training.distill import DistillTrainer
from aligncap.training.sft import SpeechSFTConfig, SpeechSFTTrainer

layouts = importlib.import_module("layouts")  # tests/training, where common.py finds it
# --base: the student before training, by default RUN/distill/base (of dpo: the merged model, RUN/start)
COMMON: dict[str, Any] = {"run": Path, "batch": 8, "rounds": 7, "base": Path, "top_k": 64, "folder": Path}


class Way(NamedTuple):
    """One row of a table; the first of a table is the rival that the others are compared with."""

    table: str
    name: str
    kind: str
    audio: str
    teacher: str
    divergence: str = "forward_kl"
    precision: str = ""  # by default what training takes on this machine
    half: bool | None = None  # laid out for bfloat16 as ours, where that is computed in; None: if it is ours


KINDS: dict[str, type] = {"ours": DistillTrainer, "sft": SpeechSFTTrainer}
KINDS |= {"ultravox": layouts.UltravoxLayout, "trl": layouts.TrlLayout}
LOOP, CACHED = "encoder in the loop", "features cached on both sides"
JSD, PRECISION = "jsd, features cached", "ours in two precisions, features cached"
WAYS = [
    Way(LOOP, "ultravox's layout, encoder on 30 s", "ultravox", "padded", "live"),
    Way(LOOP, "ultravox's layout, encoder on the longest", "ultravox", "mel", "live"),
    Way(LOOP, "ours, feature_cache no, teacher live", "ours", "mel", "live"),
    Way(LOOP, "ours, feature_cache no, states cached", "ours", "mel", "states"),
    Way(LOOP, "ours, feature_cache no, top-k cached", "ours", "mel", "top-k"),
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


class Steps:
    """Models, trainers and batches of the ways, made when one first asks for them."""

    def __init__(self, a: argparse.Namespace, folder: Path) -> None:
        self.a, self.folder, self.made = a, folder, {}  # type: ignore[var-annotated]
        self.base, self.manifest = a.base or a.run / "distill/base", a.run / "data/test.jsonl"

    def batch(self, precision: str) -> dict[str, Tensor]:
        """Everything that any way reads, its teacher's part computed in this precision."""
        path = self.folder / f"{precision}.safetensors"
        if not path.is_file():
            dtype = getattr(torch, precision)
            made = layouts.collect(self.base, self.manifest, self.a.batch, self.a.top_k, dtype, self.folder)
            save_file({name: value.contiguous() for name, value in made.items()}, path)
        return load_file(path)

    def setup(self, way: Way) -> tuple[Any, Any, dict[str, Tensor]]:
        """Trainer, model and batch of a way."""
        precision = way.precision or str(best_dtype()).removeprefix("torch.")
        half = way.kind in ("ours", "sft") if way.half is None else way.half
        encoder = way.kind in ("ultravox", "trl") or way.audio != "frames"
        key = (precision, way.divergence, half, encoder)
        if key not in self.made:
            options = {"divergence": way.divergence, "teacher_top_k": self.a.top_k}
            args = layouts.arguments(self.folder, self.manifest, precision, **options)
            self.made[key] = layouts.students(self.base, args, KINDS, half, encoder)
        model, trainers = self.made[key]
        return trainers[way.kind], model, layouts.pick(self.batch(precision), way.audio, way.teacher)

    def assert_equal(self) -> None:
        for divergence, rival in (("forward_kl", "ultravox"), ("jsd", "trl")):
            ways = [(rival, "frames", "live"), ("ours", "frames", "live"), ("ours", "frames", "states")]
            ways += [("ours", "mel", "states"), ("ours", "frames", "top-k")]
            found = [
                layouts.loss_and_gradient(*self.setup(Way("", "", *w, divergence, "float32"))) for w in ways
            ]
            print(f"{divergence}, {rival}'s layout and ours: {layouts.agreement(*found)}")
        self.made.clear()


def step(trainer: Any, model: Any, batch: dict[str, Tensor], turn: int) -> None:
    """Forward and backward."""
    torch.manual_seed(turn)
    float(trainer.training_step(model, dict(batch)))  # waits for the device
    model.zero_grad(set_to_none=True)


@benchmark(**COMMON, tables="", alone=int)
def distill(a: argparse.Namespace) -> None:
    """One distillation step beside ultravox's layout and trl's, on one batch of real rows.

    All layouts give one loss and one gradient (float32, the same pooled frames, no dropout); a top-k loss is
    not above it. Log-mel is made beforehand for all.
    """
    if a.alone is not None:
        parts = Steps(a, a.folder).setup(WAYS[a.alone])
        held = watch_memory()
        for turn in range(2):
            step(*parts, turn)
        print(json.dumps({"peak": peak_memory(), "held": held}))
        return
    ways = [way for way in WAYS if a.tables in way.table]
    with tempfile.TemporaryDirectory() as name:
        steps = Steps(a, Path(name))
        steps.assert_equal()
        ready = {way: steps.setup(way) for way in ways}
        seconds = in_turns({w: lambda turn, p=p: step(*p, turn) for w, p in ready.items()}, a.rounds, warm=1)  # type: ignore[misc]
        flops, memory = {}, {}
        for way, (_, model, batch) in ready.items():
            everywhere = way.kind in ("ultravox", "trl")
            flops[way] = sum(layouts.step_flops(model.get_base_model(), batch, everywhere).values())
            memory[way] = alone([*sys.argv[1:], "--alone", str(WAYS.index(way)), "--folder", name])
        batch = steps.batch("float32")
    student, teacher = (batch[key].shape[1] for key in ("input_ids", "teacher_input_ids"))
    response = int((batch["labels"] != -100).sum())
    print(
        f"\n{best_dtype()}, batch of {a.batch}, {machine()}, {a.rounds} rounds; tokens: {student} a student "
        f"row, {teacher} a teacher row, {response} of responses; GiB at the peak, and above the model's"
    )
    for table in dict.fromkeys(way.table for way in ways):
        mine = [way for way in ways if way.table == table]
        rival, rows = mine[0], []
        for way in mine:
            row = [way.name, middle(seconds[way]), middle(ratios(seconds[rival], seconds[way]))]
            row += [f"{flops[rival] / flops[way]:.2f}", f"{flops[way] / 1e9:.0f}"]
            (peak, added), (their_peak, their_added) = (
                (memory[w]["peak"] / GIB, (memory[w]["peak"] - memory[w]["held"]) / GIB) for w in (way, rival)
            )
            row += [f"{x:.2f}" for x in (peak, added, peak / their_peak, added / their_added)]
            rows.append(row)
        print()
        head = ["seconds a step", "rival / way", "floor", "GFLOP", "peak", "above", "× rival", "× above"]
        print_table([table, *head], rows)


@benchmark(**COMMON, pairs=Path, seconds=[5.0, 29.0], precision="auto", way=[""])
def dpo(a: argparse.Namespace) -> None:
    """A step of `train dpo` on the CPU, beside the layout of trl's DPOTrainer, on one batch of real pairs.

    Ours: encoder features cached, prompt and audio once a pair, logits of response tokens. The rivals read
    each prompt twice and encode each clip at every pass, for the chosen and for the rejected row: "all
    logits" is trl's layout with logits at all positions and their float32 log-softmax, "trl's head" the
    installed trl itself, its loss and its head. Each with the reference read live and with its
    log-probabilities at hand. Clips are repeated to the wanted length.
    """
    dtype, reason = training_dtype(a.precision)
    bf16 = dtype == torch.bfloat16
    start, file = a.base or a.run / "start", a.pairs or a.run / "pairs.jsonl"
    for seconds in a.seconds:
        with tempfile.TemporaryDirectory() as folder:
            made = partial(layouts.Pairs, start, file, a.batch, seconds, a.precision, folder)
            if a.way[0]:
                pairs = made()
                if a.way[0] == layouts.OURS:
                    pairs.as_trained(bf16)
                held = watch_memory()
                for turn in range(2):
                    pairs.step(tuple(a.way), bf16, turn)
                print(json.dumps({"held": held, "peak": peak_memory()}))
                return
            theirs, ours = made(), made()
            ours.as_trained(bf16)
            ways = {
                way: partial((ours if way[0] == layouts.OURS else theirs).step, way, bf16)
                for way in ours.losses
            }
            print(f"\nclips of {seconds:g} s, {a.batch} pairs, {machine()}, {reason}\n{theirs.check()}")
            times = in_turns(ways, a.rounds, warm=1)
            costs = {way: theirs.flops(*way) for way in ways}
        rows = []
        for way, taken in times.items():
            own = ("ours", way[1])
            memory = alone([*sys.argv[1:], "--way", *way, "--seconds", str(seconds)])
            sizes = [f"{memory['peak'] / GIB:.2f}", f"{(memory['peak'] - memory['held']) / GIB:.2f}"]
            floor = f"{costs[way] / costs[own]:.2f}"
            rows.append([", ".join(way), middle(taken), middle(ratios(taken, times[own])), floor, *sizes])
        print_table(["", "seconds a step", "× ours", "floor", "peak GiB", "above"], rows)


BATCHES = ("fixed rows, shuffled", "fixed rows, buckets", "tokens, buckets")
FRAMES_A_SECOND = 50  # of the encoder, before pooling


def long_rows(manifest: Path, model: Any, processor: Any, cache: Path, count: int) -> list[dict[str, Any]]:
    """`count` rows of the student, every second one of clips joined."""
    rng = np.random.default_rng(0)
    data = SpeechDataset.from_manifest(manifest, processor, model=model, cache_dir=cache, teacher=False)
    clips, inputs = data.rows.clips, data.inputs
    of_speaker: dict[str | None, list[int]] = {}
    for i, u in enumerate(clips.utterances):
        of_speaker.setdefault(u.speaker, []).append(i)
    rows = []
    for number in range(count):
        index = int(rng.integers(len(data)))
        row = data[index]
        if number % 2:
            speaker = clips.utterances[data.rows.places[index, 0]].speaker
            frames, mates = row["frames"], of_speaker[speaker]
            wanted = int(rng.uniform(2, 29) * FRAMES_A_SECOND / processor.pool_size)
            while len(frames) < wanted:
                frames = torch.cat([frames, inputs(clips, int(rng.choice(mates)))["frames"]])
            before, after = inputs.around()
            row["frames"] = frames[:wanted]
            tokens = [processor.audio_token_id] * processor.tokens_of_frames(wanted)
            row["prompt_ids"] = [*before, *tokens, *after]
        rows.append(row)
    return rows


@benchmark(**COMMON, rows=192, tokens=0, only=str)
def buckets(a: argparse.Namespace) -> None:
    """Batches of a fixed number of shuffled rows against buckets of like length and budgets of tokens.

    Rows are real: half of them clips of RUN/data with one of their captions, half longer ones, since those
    corpora hold acted sentences of 1 to 5 s: clips of one speaker joined to 2 to 29 s at their encoder
    frames. The mean loss of a token over all rows must be the same for all ways; then whole epochs of forward
    and backward of SFT, collating included, take turns. The budget is by default the largest shuffled batch,
    so that no way needs more memory at once. "most" is what the ratio would be if a step cost as much as its
    tokens.
    """
    with tempfile.TemporaryDirectory() as made:
        folder, manifest = a.folder or Path(made), a.run / "data/train.jsonl"
        args = SpeechSFTConfig(output_dir=f"{folder}/run", train_manifest=str(manifest), report_to="none")
        model, processor = load_folder(a.base or a.run / "distill/base")
        rows: Any = long_rows(manifest, model.eval(), processor, folder, a.rows)
        trainer: Any = SpeechSFTTrainer(
            model.to(args.device), args, processing_class=processor, train_dataset=rows
        )
        adapted = trainer.model
        lengths = np.array([(len(row["prompt_ids"]), len(row["response_ids"])) for row in rows])

        def batches(way: str, turn: int, budget: int = 0) -> Any:
            if way == BATCHES[0]:
                order = np.random.default_rng(turn).permutation(len(lengths))
                return [order[start : start + a.batch] for start in range(0, len(order), a.batch)]
            found = LengthBuckets(lengths, **({"rows": a.batch} if way == BATCHES[1] else {"tokens": budget}))
            found.set_epoch(turn)
            return list(found)

        budget = a.tokens or max(padded_size(lengths[b]) for b in batches(BATCHES[0], 0))

        def epoch(way: str, turn: int) -> float:
            torch.manual_seed(turn)
            half = bool(args.bf16) and adapted.training
            loader = DataLoader(
                rows, batch_sampler=batches(way, turn, budget), collate_fn=trainer.data_collator
            )
            return read_all(trainer, adapted, loader, args.device, half, int(lengths[:, 1].sum()))

        if a.only:
            adapted.train()
            watch_memory()
            epoch(a.only, 0)
            print(json.dumps(peak_memory()))
            return
        adapted.eval()
        with torch.no_grad():
            losses = {way: epoch(way, 0) for way in BATCHES}
        gap = max(losses.values()) - min(losses.values())
        assert gap < 1e-5 * losses[BATCHES[0]], f"losses differ: {losses}"
        adapted.train()
        seconds = in_turns({way: lambda turn, way=way: epoch(way, turn) for way in BATCHES}, a.rounds)  # type: ignore[misc]
        real, table, sizes = int(lengths.sum()), [], {}
        for way in BATCHES:
            epochs = [batches(way, turn, budget) for turn in range(1, a.rounds + 1)]
            padding = statistics.mean(padding_share(lengths, one) for one in epochs)
            sizes[way] = real / (1 - padding)
            memory = alone([*sys.argv[1:], "--only", way, "--folder", str(folder)])
            rate, ratio = [real / s for s in seconds[way]], ratios(seconds[BATCHES[0]], seconds[way])
            row = [way, str(len(epochs[0])), f"{padding:.1%}", middle(rate, 0), middle(ratio)]
            table.append([*row, f"{sizes[BATCHES[0]] / sizes[way]:.2f}", f"{memory / GIB:.2f}"])
    least, median, most = np.quantile(lengths.sum(1), [0, 0.5, 1]).astype(int)
    print(f"precision {args.precision_reason}; {machine()}, {a.rounds} rounds")
    print(f"{len(lengths)} rows of {least} to {most} tokens, median {median}", end="; ")
    print(f"batches of {a.batch} rows, or of {budget} tokens")
    print(f"mean loss of a token {losses[BATCHES[0]]:.4f}, at most {gap:.1e} apart\n")
    print_table(["", "batches", "padding", "real tokens a second", "ratio", "most", "GiB"], table)


def wait() -> float:
    """The time, once the device has done all."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """Seconds by part of the model `base`: each mark ends what ran since the last one."""

    def __init__(self, base: Any) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = 0.0
        inner = base.model
        self.hooks = [
            inner.language_model.register_forward_pre_hook(self.llm_before, with_kwargs=True),
            inner.language_model.register_forward_hook(self.llm_after),
        ]
        projector, head = ("projector",) * 2, ("head and loss", "teacher's head")
        for module, names in ((inner.multi_modal_projector, projector), (base.lm_head, head)):
            self.hooks.append(module.register_forward_pre_hook(lambda *_: self.mark("rest")))
            self.hooks.append(module.register_forward_hook(lambda *_, own=names: self.by_pass(*own)))

    def mark(self, part: str) -> None:
        now = wait()
        self.seconds[part] += now - self.last
        self.last = now

    def by_pass(self, student: str, teacher: str) -> None:
        """A pass without gradients is the teacher's."""
        self.mark(student if torch.is_grad_enabled() else teacher)

    def llm_before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.mark("rest")
        if torch.is_grad_enabled():
            kwargs["inputs_embeds"].register_hook(lambda _: self.mark("LLM backward"))

    def llm_after(self, module: Any, args: Any, output: Any) -> None:
        self.by_pass("LLM forward", "teacher's LLM")
        if torch.is_grad_enabled():
            output.last_hidden_state.register_hook(lambda _: self.mark("head and loss"))


def one_step(trainer: Any, model: Any, rows: list[Any], optimizer: Any, clock: Clock | None) -> float:
    """One optimizer step as Trainer makes it; its seconds."""
    began = wait()
    mark = clock.mark if clock else lambda part: None
    if clock:
        clock.last = began
    batch = trainer.data_collator(rows)
    mark("collation")
    batch = trainer._prepare_inputs(batch)
    mark("rest")
    loss = trainer.compute_loss(model, batch)
    mark("head and loss")
    loss.backward()
    mark("projector")
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    mark("optimizer")
    return wait() - began


def matmul_rates(model: Any, tokens: int, response: int, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of `torch.mm` at the shapes of the LLM's matrices and of the head, best of several each."""
    layers = [m for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    shapes = {(tokens, *m.weight.shape) for m in layers if min(m.weight.shape) > 64}  # adapters are small
    found = {}
    for rows, width, depth in sorted(shapes | {(response, *model.lm_head.weight.shape)}):
        a, b = torch.randn(rows, depth, device=model.device), torch.randn(width, depth, device=model.device)
        a, b, taken = a.to(dtype), b.to(dtype).t(), []
        for _ in range(8):
            began = wait()
            for _ in range(4):
                torch.mm(a, b)
            taken.append((wait() - began) / 4)
        found[f"{rows} × {depth} × {width}"] = 2 * rows * depth * width / min(taken)
    return found


@benchmark("step", **COMMON, precision="auto", teacher="states")
def step_parts(a: argparse.Namespace) -> None:
    """Where the time of our distillation step goes, and what share of the machine's matrix rate it reaches.

    The rate is the best of several `torch.mm` of the model's own shapes, in the step's precision. The step is
    the whole of training's: batch collated from cached features, forward, backward, clipping, optimizer. A
    clock stops at the edges of the model's parts, forward by module hooks and backward by tensor hooks.
    """
    with tempfile.TemporaryDirectory() as name:
        base, manifest, folder = a.base or a.run / "distill/base", a.run / "data/test.jsonl", Path(name)
        args = layouts.arguments(folder, manifest, a.precision, teacher_top_k=a.top_k)
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        processor, found = layouts.datasets(base, manifest, a.batch, a.top_k, dtype, folder)
        rows = [found[a.teacher][i] for i in range(a.batch)]
        model, trainers = layouts.students(base, args, {"ours": DistillTrainer}, half=True)
        trainer, plain = trainers["ours"], model.get_base_model()
        optimizer = trainer.create_optimizer()
        whole, parts = [], defaultdict(list)
        model.train()
        for turn in range(a.rounds + 1):  # the first warms up
            unwatched = one_step(trainer, model, rows, optimizer, None)
            clock = Clock(plain)
            one_step(trainer, model, rows, optimizer, clock)
            for hook in clock.hooks:
                hook.remove()
            if turn:
                whole.append(unwatched)
                for part, seconds in clock.seconds.items():
                    parts[part].append(seconds)
        batch = SpeechCollator(processor)(rows)
        flops = layouts.step_flops(plain, batch, everywhere=False)
        response = int((batch["labels"] != -100).sum())
        rates = matmul_rates(plain, batch["input_ids"].numel(), response, dtype)
    print(f"{dtype}, {args.device}, batch of {a.batch}, {machine()}, {a.rounds} rounds; teacher {a.teacher}")
    print(f"{batch['input_ids'].shape[1]} tokens a row, {response} response tokens in all\n")
    print_table(["torch.mm", "GFLOP/s"], [[shape, f"{rate / 1e9:.0f}"] for shape, rate in rates.items()])
    rows_out = []
    flops["whole step, no clocks"] = sum(flops.values())
    ordered = sorted(parts.items(), key=lambda item: -statistics.median(item[1]))
    for part, taken in [*ordered, ("whole step, no clocks", whole)]:
        median = statistics.median(taken)
        row = [part, middle(taken, 3), f"{median / statistics.median(whole):.0%}", "", ""]
        if part in flops:
            row[3:] = f"{flops[part] / 1e9:.0f}", f"{flops[part] / median / max(rates.values()):.0%}"
        rows_out.append(row)
    print()
    print_table(["", "seconds", "share", "GFLOP", "of the best rate"], rows_out)


if __name__ == "__main__":
    main(__doc__)

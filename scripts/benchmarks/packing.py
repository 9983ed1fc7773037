"""Padding of a manifest's batches, shuffled, of like length and packed, and how long they take.

    python scripts/benchmarks/packing.py padding data/train.jsonl
    python scripts/benchmarks/packing.py steps data/train.jsonl --rows 32 --batch 8 --rounds 3

Prompts and captions are the manifest's, as a student and its live teacher read them; what a clip's audio
becomes is counted from its length. In `steps` its features are random numbers, which take a step as long as
any. The ways take turns; losses are asserted equal first. On a CPU seconds are those of the process, whatever
else runs; give it one thread.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import benchmark, machine, main, middle, print_table, ratios, read_all

from aligncap.data.clip_files import Keys
from aligncap.data.rows import open_manifest
from aligncap.models.build import build
from aligncap.models.hub import DEFAULT_ENCODER, DEFAULT_LLM
from aligncap.models.precision import suit_half
from aligncap.training.batches import LengthBuckets, padded_size, padding_share, shuffled_batches
from aligncap.training.clips import Clips
from aligncap.training.collators import SpeechCollator
from aligncap.training.data import CaptionRows, ClipInputs
from aligncap.training.distill import DistillConfig, DistillTrainer
from aligncap.training.packing import plan_rows

FRAMES_A_SECOND = 50  # of the encoder, before pooling
# Of each way whether batches are of like length, of a budget of tokens, and packed.
WAYS = {
    "fixed rows, shuffled": (False, False, False),
    "fixed rows, like length": (True, False, False),
    "fixed rows, packed": (False, False, True),
    "tokens, like length": (True, True, False),
    "tokens, packed": (False, True, True),
}
Batches = list[Any]


def rows_of(path: Path, model: Any, processor: Any, seconds: float, count: int = 0) -> list[dict[str, Any]]:
    """`count` rows of the manifest drawn at random (0: all), the audio as random pooled frames.

    Args:
        seconds: length of every clip; 0: their own.
    """
    every: Any = open_manifest(path)
    utterances = every.chosen(np.flatnonzero((every.columns.captions > 0) & (every.columns.p_act > 0)))
    clips = Clips(str(path), utterances, Keys(utterances.columns.sha256), {})  # no sound is read
    rows = CaptionRows.of(clips, processor.tokenizer, max_response_tokens=64)
    inputs, rng = ClipInputs(processor), np.random.default_rng(0)
    shape = [s for s in (model.config.mixed_layers, model.config.audio_width) if s]
    found = []
    for index in rng.permutation(len(rows))[: count or None].tolist():
        place, caption = rows.places[index]
        u = utterances[place]
        heard = seconds or min(u.duration or 5.0, processor.max_seconds)
        frames = math.ceil(heard * FRAMES_A_SECOND / processor.pool_size)
        before, after = inputs.around(u, u.instructions[caption] if u.instructions else "")
        audio = [processor.audio_token_id] * processor.tokens_of_frames(frames)
        row = {"prompt_ids": [*before, *audio, *after], "response_ids": rows.responses[index]}
        row |= {"teacher_prompt_ids": rows.prompt(index), "frames": frames}
        if count:
            row["frames"] = torch.from_numpy(rng.standard_normal([frames, *shape], dtype=np.float32))
        found.append(row)
    return found


def batches_of(way: str, lengths: np.ndarray, rows: int, tokens: int, epoch: int) -> tuple[Batches, int]:
    """The batches of one epoch, and the width that their rows are packed to (0: by batch)."""
    alike, by_tokens, packed = WAYS[way]
    if not alike and not by_tokens:
        return shuffled_batches(len(lengths), -(-len(lengths) // rows), epoch), 0
    limit = {"tokens": tokens} if by_tokens else {"rows": rows}
    buckets = LengthBuckets(lengths, packed=packed, **limit)
    buckets.set_epoch(epoch)
    return list(buckets), buckets.width


def lengths_of(rows: list[dict[str, Any]], prompt: str) -> np.ndarray:
    """(rows, 2): tokens of prompt and response."""
    return np.array([(len(row[prompt]), len(row["response_ids"])) for row in rows])


def shapes(lengths: np.ndarray, batches: Batches, packed: bool, most: int) -> tuple[float, float]:
    """Mean number of the LLM's rows in a batch, and their mean width."""
    sizes = []
    for batch in batches:
        totals = lengths[batch].sum(1).tolist()
        if packed:
            plan = plan_rows(totals, most)
            sizes.append((len(plan), max(sum(totals[i] for i in row) for row in plan)))
        else:
            sizes.append((len(totals), padded_size(lengths[batch]) // len(totals)))
    number, width = np.mean(sizes, axis=0).tolist()
    return number, width


@benchmark(run=Path, batch=[8, 32], seconds=0.0, llm=DEFAULT_LLM, encoder=DEFAULT_ENCODER)
def padding(a: argparse.Namespace) -> None:
    """Share of padding in an epoch of a manifest, of what the student and its live teacher read."""
    model, processor = build(a.encoder, a.llm)
    rows = rows_of(a.run, model, processor, a.seconds)
    student, teacher = (lengths_of(rows, f"{who}prompt_ids") for who in ("", "teacher_"))
    for who, lengths in (("student", student), ("teacher", teacher)):
        least, median, most = np.quantile(lengths.sum(1), [0, 0.5, 1]).astype(int)
        print(f"{who}: {len(lengths)} rows of {least} to {most} tokens, median {median}")
    for count in a.batch:
        budget = max(padded_size(student[b]) for b in shuffled_batches(len(rows), len(rows) // count, 0))
        print(f"\nbatches of {count} rows, or of {budget} tokens (the largest shuffled batch)")
        table = []
        for way, (_, _, packed) in WAYS.items():
            batches, most = batches_of(way, student, count, budget, 1)
            shares = [padding_share(student, batches, packed, most), padding_share(teacher, batches, packed)]
            number, width = shapes(student, batches, packed, most)
            table.append(
                [way, str(len(batches)), *(f"{s:.1%}" for s in shares), f"{number:.1f} × {width:.0f}"]
            )
        print_table(["", "batches", "padding", "the teacher's", "the LLM's rows × width"], table)


OPTIONS: dict[str, Any] = {"batch": 8, "rows": 32, "rounds": 3, "seconds": 0.0, "precision": "auto"}


@benchmark(run=Path, **OPTIONS, llm=DEFAULT_LLM, encoder=DEFAULT_ENCODER, teacher="live", ways=[*WAYS])
def steps(a: argparse.Namespace) -> None:
    """Epochs of forward and backward of distillation, collating included, in turns.

    With `--teacher none` the teacher's states are at hand, as from its cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        args = DistillConfig(
            output_dir=folder,
            train_manifest=str(a.run),
            report_to="none",
            packing=True,
            precision=a.precision,
        )
        model, processor = build(a.encoder, a.llm)
        rows = rows_of(a.run, model, processor, a.seconds, a.rows)
        if a.teacher == "none":
            hidden = model.get_input_embeddings().weight.shape[1]
            for row in rows:
                del row["teacher_prompt_ids"]
                states = torch.randn(len(row["response_ids"]), hidden)
                row["teacher_hidden"] = states.bfloat16() if args.bf16 else states
        trainer: Any = DistillTrainer(
            model.to(args.device), args, processing_class=processor, train_dataset=rows
        )
        adapted, lengths = trainer.model, lengths_of(rows, "prompt_ids")
        budget = max(
            padded_size(lengths[b]) for b in shuffled_batches(len(rows), -(-len(rows) // a.batch), 0)
        )

        def epoch(way: str, half: bool, turn: int) -> float:
            batches, width = batches_of(way, lengths, a.batch, budget, turn)
            collate = SpeechCollator(processor, WAYS[way][2], width)
            made = (collate([rows[i] for i in batch]) for batch in batches)
            return read_all(trainer, adapted, made, args.device, half, int(lengths[:, 1].sum()))

        adapted.eval()
        with torch.no_grad():
            losses = {way: epoch(way, False, 0) for way in a.ways}
        gap = max(losses.values()) - min(losses.values())
        assert gap < 1e-5 * losses[a.ways[0]], f"losses differ: {losses}"
        if args.bf16:
            suit_half(adapted)
        adapted.train()
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        seconds = defaultdict(list)
        for turn in range(a.rounds + 1):  # the first warms up
            for way in a.ways:
                began = clock()
                epoch(way, bool(args.bf16), turn)  # its loss is read, so the device is done
                if turn:
                    seconds[way].append(clock() - began)
    print(f"{a.llm}, {args.precision_reason}; teacher {a.teacher}; {machine()}, {a.rounds} rounds")
    print(f"{len(rows)} rows, batches of {a.batch} or of {budget} tokens", end="; ")
    print(f"mean loss of a token {losses[a.ways[0]]:.4f}, at most {gap:.1e} apart\n")
    table = []
    for way in a.ways:
        (batches, most), packed = batches_of(way, lengths, a.batch, budget, 1), WAYS[way][2]
        share = padding_share(lengths, batches, packed, most)
        number, width = shapes(lengths, batches, packed, most)
        rate = [int(lengths.sum()) / s for s in seconds[way]]
        line = [way, str(len(batches)), f"{share:.1%}", f"{number:.1f} × {width:.0f}", middle(seconds[way])]
        table.append([*line, middle(rate, 0), middle(ratios(seconds[a.ways[0]], seconds[way]))])
    head = ["", "batches", "padding", "rows × width", "seconds an epoch", "real tokens a second", "ratio"]
    print_table(head, table)


if __name__ == "__main__":
    main(__doc__)

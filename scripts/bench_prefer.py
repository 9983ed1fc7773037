"""Time and memory on the CPU of a step of `train prefer`, beside the layout of trl's DPOTrainer.

    python scripts/bench_prefer.py runs/ravdess --threads 2

Ours: encoder features cached, prompt and audio once a pair, logits of response tokens. The rivals read each
prompt twice and encode each clip at every pass, for the chosen and for the rejected row:

    all logits    trl's layout with logits at all positions, and their float32 log-softmax over the vocabulary
    trl's head    the installed trl itself: its loss and its head, which off the GPU scores every position

Each with the reference read live (a second pass) and with its log-probabilities at hand. A step is forward
and backward on one batch of real pairs, whose clips are repeated to the wanted length. First, in float32,
losses must agree to 1e-5 and gradients to 1e-4 of their size, or of a thousandth of the largest where
they are smaller. Ways take turns, round by round, each with a step that is not timed and one that is; the
first round warms up. A ratio is a rival's time by ours in the same round, its floor the ratio of their
matrix multiplications (scripts/step_flops.py). In bfloat16 our model is laid out for it, as in training
(models/precision.py); the rivals' weights are float32, as trl has them. Peak memory
is that of a process of its own for each way. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_common import GIB, alone, peak_memory, watch_memory
from bench_prefer_ways import OURS, Ways

from aligncap.models.precision import suit_bfloat16
from aligncap.training.config import choose_precision


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of scripts/quickstart.sh")
    parser.add_argument("--pairs", type=Path, help="pairs; default: RUN/pairs.jsonl")
    parser.add_argument("--model", type=Path, help="merged model; default: RUN/start, else RUN/model")
    parser.add_argument("--batch", type=int, default=8, help="pairs a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 30.0], help="lengths of the clips")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16, as in training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    bf16, reason = choose_precision(a.precision)
    for wanted in a.seconds:
        # Whisper hears 30 s, the margin of silence among them.
        seconds = min(wanted, 29.0)
        with tempfile.TemporaryDirectory() as folder:
            ways = Ways(a, seconds, folder)
            if a.way:
                if bf16 and a.way[0] == OURS:
                    suit_bfloat16(ways.model)
                loaded = watch_memory()
                for _ in range(2):
                    ways.step(tuple(a.way), bf16)
                print(json.dumps({"loaded": loaded / GIB, "peak": peak_memory() / GIB}))
                return
            print(f"\nclips of {seconds:g} s, {a.batch} pairs, {a.threads} threads, precision {reason}")
            print(f"tokens: {ways.ours['input_ids'].shape[1]} a row, {lengths(ways.rows)}")
            print(ways.check())
            ours = Ways(a, seconds, folder)
            if bf16:
                suit_bfloat16(ours.model)
            times: dict[tuple[str, str], list[float]] = {way: [] for way in ways.losses}
            for turn in range(a.rounds + 1):
                for way in ways.losses:
                    mine = ours if way[0] == OURS else ways
                    mine.step(way, bf16)  # a step follows one of its own kind, as in training
                    began = time.perf_counter()
                    mine.step(way, bf16)
                    if turn:
                        times[way].append(time.perf_counter() - began)
            costs = {way: ways.flops(*way) for way in ways.losses}
            del ways, ours
        print(
            f"{'':32}{'median s':>9}{'least':>8}{'most':>8}{'× ours':>8}{'least':>7}{'most':>7}{'floor':>7}"
            f"{'peak GiB':>10}{'ours by it':>11}{'loaded':>8}"
        )
        memory = {}
        for way in times:
            memory[way] = alone([*sys.argv[1:], "--way", *way, "--seconds", str(wanted)])
        for way, values in times.items():
            own = (OURS, way[1])
            ratios = [value / mine for value, mine in zip(values, times[own], strict=True)]
            print(
                f"{', '.join(way):32}{statistics.median(values):9.2f}{min(values):8.2f}{max(values):8.2f}"
                f"{statistics.median(ratios):8.2f}{min(ratios):7.2f}{max(ratios):7.2f}"
                f"{costs[way] / costs[own]:7.2f}{memory[way]['peak']:10.2f}"
                f"{memory[own]['peak'] / memory[way]['peak']:11.2f}{memory[way]['loaded']:8.2f}"
            )


def lengths(rows: list[dict[str, Any]]) -> str:
    """Mean tokens of prompts and captions."""
    names = {"prompt_ids": "prompt with audio", "chosen_ids": "chosen", "rejected_ids": "rejected"}
    return ", ".join(f"{statistics.mean(len(r[k]) for r in rows):.1f} {name}" for k, name in names.items())


if __name__ == "__main__":
    main()

"""Time of 8 candidates a clip against SECap's loop, and of captions in batches of like length, in one run.

    python scripts/bench_generate.py

SECap writes its eight captions one after another: a clip at a time, `generate` eight times with one sample
each, the encoder run again every time. Ours is one prefill a batch for all. Captions in batches as the
manifest lists the clips are held against batches of like length; below their ratio stand the samples that
are encoded and the tokens of the prompts, padding included.

First the greedy captions of all ways are asserted equal. The ways take turns, round by round, each round on
other clips; the first round warms up. Numbers are the median over rounds (least to most), ratios are of the
same round. Peak memory is of a process of its own for each way. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_candidates import RUN, SETTINGS, clips_of, load
from bench_common import GIB, alone, peak_memory, spread, watch_memory

from aligncap.inference.captioner import Captioner, batches_by_size
from aligncap.inference.sampling import sample_captions

Clips = list[np.ndarray]
Way = Callable[[Clips], list[str]]
LIMIT = {"max_new_tokens": SETTINGS["max_new_tokens"]}


def in_batches(captioner: Captioner, clips: Clips, batches: list[list[int]], **options: Any) -> list[str]:
    """Captions in the order of `clips`."""
    found: dict[int, str] = {}
    for batch in batches:
        made = captioner.generate([clips[i] for i in batch], **LIMIT, **options)
        found |= dict(zip(batch, made, strict=True))
    return [found[i] for i in range(len(clips))]


def as_listed(clips: Clips, size: int) -> list[list[int]]:
    """Batches in the clips' own order."""
    return [list(range(start, min(start + size, len(clips)))) for start in range(0, len(clips), size)]


def candidate_ways(
    captioner: Captioner, num: int, size: int, seed: int = 0, top: bool = False
) -> dict[str, Way]:
    """Ways to `num` candidates a clip, clip by clip; `top`: the likeliest words, one caption a clip."""
    settings = SETTINGS | ({"temperature": 0.0} if top else {})
    sampled: dict[str, Any] = {} if top else {**SETTINGS, "do_sample": True, "top_k": 0}
    num = 1 if top else num

    def ours(clips: Clips) -> list[str]:
        found: dict[int, list[str]] = {}
        for batch in batches_by_size(clips, size):
            names = [str(i) for i in batch]
            made = sample_captions(
                captioner, [clips[i] for i in batch], names, num=num, seed=seed, **settings
            )
            found |= dict(zip(batch, made, strict=True))
        return [caption for i in range(len(clips)) for caption in found[i]]

    def secap(clips: Clips) -> list[str]:
        options = sampled or LIMIT
        return [captioner.generate([clip], **options)[0] for clip in clips for _ in range(num)]

    return {"ours: one prefill": ours, "SECap's loop: one at a time": secap}


def caption_ways(captioner: Captioner, size: int) -> dict[str, Way]:
    """Ways to a greedy caption a clip."""
    return {
        "ours: batches of like length": lambda clips: in_batches(
            captioner, clips, batches_by_size(clips, size)
        ),
        "batches as listed": lambda clips: in_batches(captioner, clips, as_listed(clips, size)),
    }


def padded(counts: list[int], batches: list[list[int]]) -> int:
    """Sum over batches of size times longest."""
    return sum(len(batch) * max(counts[i] for i in batch) for batch in batches)


def compare(
    title: str, ways: Callable[[int], dict[str, Way]], rounds: list[Clips], a: argparse.Namespace
) -> None:
    """Print ours against the rival; the first of the ways is ours, the first of the rounds warms up."""
    seconds: dict[str, list[float]] = {}
    words: dict[str, list[int]] = {}
    for turn, clips in enumerate(rounds):
        for name, way in ways(turn).items():
            torch.manual_seed(turn)
            began = time.perf_counter()
            captions = way(clips)
            if turn:
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                words.setdefault(name, []).extend(len(c.split()) for c in captions)
    base = next(iter(seconds.values()))
    print(
        f"\n{title}: {len(rounds[0])} clips a round, {len(rounds) - 1} rounds, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':30}{'seconds':>26}{'x ours':>24}{'words':>7}{'GiB':>7}")
    for name, values in seconds.items():
        ratios = [v / o for v, o in zip(values, base, strict=True)]
        print(
            f"{name:30}{spread(values, 2):>26}{spread(ratios, 2):>24}"
            f"{statistics.mean(words[name]):7.1f}{alone([*sys.argv[1:], '--only', name]) / GIB:7.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=RUN / "model")
    parser.add_argument("--manifest", type=Path, default=RUN / "data/test.jsonl")
    parser.add_argument("--num", type=int, default=8)
    parser.add_argument(
        "--clips", type=int, default=16, help="a round of candidates; four times it of captions"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    a = parser.parse_args()
    captioner = load(a.model, a.dtype)
    if a.only:
        ways = candidate_ways(captioner, a.num, a.batch) | caption_ways(captioner, a.batch)
        watch_memory()
        ways[a.only](clips_of(a.manifest, a.clips))
        print(json.dumps(peak_memory()))
        return
    clips = clips_of(a.manifest, a.clips * (a.rounds + 1))
    greedy = candidate_ways(captioner, a.num, a.batch, top=True) | caption_ways(captioner, a.batch)
    made = {name: way(clips[: a.clips]) for name, way in greedy.items()}
    first = next(iter(made.values()))
    for name, captions in made.items():
        assert captions == first, f"{name}: greedy captions differ"
    print(f"greedy captions of {a.clips} clips: equal, {len(made)} ways; {torch.get_num_threads()} threads")
    rounds = [clips[i * a.clips : (i + 1) * a.clips] for i in range(a.rounds + 1)]
    compare(
        f"{a.num} candidates a clip, {a.dtype}, ours in batches of {a.batch}",
        lambda turn: candidate_ways(captioner, a.num, a.batch, seed=turn),
        rounds,
        a,
    )
    many = clips_of(a.manifest, 4 * a.clips * (a.rounds + 1))
    wide = [many[i * 4 * a.clips : (i + 1) * 4 * a.clips] for i in range(a.rounds + 1)]
    compare(
        f"greedy captions, {a.dtype}, batches of {a.batch}",
        lambda _: caption_ways(captioner, a.batch),
        wide,
        a,
    )
    for what in ("samples", "tokens"):
        sums = [0, 0]
        for part in wide[1:]:
            counts = [
                len(clip)
                if what == "samples"
                else captioner.processor.captioning_inputs([clip])["input_ids"].shape[1]
                for clip in part
            ]
            for way, plan in enumerate((as_listed, batches_by_size)):
                sums[way] += padded(counts, plan(part, a.batch))
        print(f"{what} with padding: {sums[0]} as listed, {sums[1]} of like length, {sums[0] / sums[1]:.2f}")


if __name__ == "__main__":
    main()

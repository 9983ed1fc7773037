"""Captions and candidates a second, beside the ways that others generate them.

    python scripts/benchmarks/generation.py candidates | captions [--model DIR --manifest M.jsonl]

From samples to captions, on real clips of a quickstart's run. The ways take turns, round by round, each round
on other clips; the first round warms up; numbers are medians (least to most) and ratios are of the same
round. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from common import (
    RUN,
    benchmark,
    clips_of,
    in_turns,
    machine,
    main,
    middle,
    print_table,
    ratios,
)

from aligncap.inference.captioner import Captioner, batches_by_size
from aligncap.inference.sampling import sample_captions

Clips = list[np.ndarray]
Way = Callable[[Clips], list[str]]
COMMON: dict[str, Any] = {"model": RUN / "model", "manifest": RUN / "data/test.jsonl", "rounds": 5}
COMMON |= {"dtype": ["float32", "bfloat16"]}
SETTINGS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 48}
SAMPLED: dict[str, Any] = {**SETTINGS, "do_sample": True, "top_k": 0}
GREEDY: dict[str, Any] = {"max_new_tokens": 48}


def compare(title: str, ways: Mapping[str, Way], clips: Clips, rounds: int) -> None:
    """Print the ways beside the first of them."""
    size = len(clips) // (rounds + 1)
    words: dict[str, list[int]] = {name: [] for name in ways}

    def timed(name: str, turn: int) -> None:
        torch.manual_seed(turn)
        captions = ways[name](clips[turn * size : (turn + 1) * size])
        words[name] += [len(caption.split()) for caption in captions] if turn else []

    seconds = in_turns({name: partial(timed, name) for name in ways}, rounds)
    first = next(iter(seconds.values()))
    rows = []
    for name, taken in seconds.items():
        length = f"{statistics.mean(words[name]):.1f}"
        rows.append([name, middle(taken), middle(ratios(taken, first)), length])
    print(f"\n{title}: {size} clips a round, {rounds} rounds, {machine()}")
    print_table(["", "seconds", "× the first", "words"], rows)


def ours(captioner: Captioner, num: int, clips: Clips, **more: Any) -> list[str]:
    """Our candidates of a batch, clip by clip, drawn by torch's seed."""
    names, seed = [str(i) for i in range(len(clips))], torch.initial_seed()
    return sum(sample_captions(captioner, clips, names, num=num, seed=seed, **(SETTINGS | more)), [])


def one_by_one(captioner: Captioner, num: int, clips: Clips, **options: Any) -> list[str]:
    """SECap's loop: a clip at a time, a candidate at a time, the encoder run again every time."""
    return [captioner.generate([clip], **options)[0] for clip in clips for _ in range(num)]


@benchmark(**COMMON, num=8, batch=[1, 4, 16], loop=False)
def candidates(a: argparse.Namespace) -> None:
    """8 candidates a clip against one, and against other ways to get 8.

    Those of transformers: prompts repeated, and eight calls. With --loop also SECap's, which takes a clip at
    a time, a candidate at a time. Greedy captions of ours and of `generate` are asserted equal first.
    """
    for dtype in a.dtype:
        captioner = Captioner.from_pretrained(a.model, dtype=dtype)

        def generated(
            clips: Clips, *, num: int = 1, calls: int = 1, captioner: Captioner = captioner
        ) -> list[str]:
            made = (captioner.generate(clips, **SAMPLED, num_return_sequences=num) for _ in range(calls))
            return sum(made, [])

        ways: dict[str, Way] = {
            "1, ours": partial(ours, captioner, 1),
            f"{a.num}, ours: one prefill": partial(ours, captioner, a.num),
            "1, generate": generated,
            f"{a.num}, generate: repeated prompts": partial(generated, num=a.num),
            f"{a.num}, generate: {a.num} times": partial(generated, calls=a.num),
        }
        if a.loop:
            ways[f"{a.num}, SECap's loop"] = partial(one_by_one, captioner, a.num, **SAMPLED)
        some = clips_of(a.manifest, 4)
        greedy = ours(captioner, 1, some, temperature=0.0)
        assert greedy == captioner.generate(some, **GREEDY) == one_by_one(captioner, 1, some, **GREEDY)
        for batch in a.batch:
            clips = clips_of(a.manifest, batch * (a.rounds + 1))
            compare(f"candidates, {dtype}, batches of {batch}", ways, clips, a.rounds)


@benchmark(**COMMON, clips=64, batch=16)
def captions(a: argparse.Namespace) -> None:
    """Greedy captions in batches of like length against batches as listed, and clips encoded a second."""
    for dtype in a.dtype:
        captioner = Captioner.from_pretrained(a.model, dtype=dtype)

        def written(clips: Clips, *, sort: bool, captioner: Captioner = captioner) -> list[str]:
            listed = [list(range(i, min(i + a.batch, len(clips)))) for i in range(0, len(clips), a.batch)]
            found: dict[int, str] = {}
            for batch in batches_by_size(clips, a.batch) if sort else listed:
                made = captioner.generate([clips[i] for i in batch], **GREEDY)
                found |= dict(zip(batch, made, strict=True))
            return [found[i] for i in range(len(clips))]

        @torch.no_grad()
        def encode(clips: Clips, captioner: Captioner = captioner) -> list[str]:
            for start in range(0, len(clips), a.batch):
                mel = captioner.processor.features(clips[start : start + a.batch]).to(captioner.model.device)
                float(captioner.model.model.encode_audio(**mel).frames.flatten()[0])  # waits for the device
            return [""]

        clips = clips_of(a.manifest, a.clips * (a.rounds + 1))
        few = clips[: a.clips]
        assert written(few, sort=True) == written(few, sort=False), "captions differ with their batches"
        ways: dict[str, Way] = {
            "ours: batches of like length": partial(written, sort=True),
            "batches as listed": partial(written, sort=False),
            "the encoder alone": encode,
        }
        compare(f"greedy captions, {dtype}, batches of {a.batch}", ways, clips, a.rounds)


if __name__ == "__main__":
    main(__doc__)

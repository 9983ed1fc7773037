"""Time of 8 candidates a clip against one, and against the two other ways to get 8, in one run.

    python scripts/bench_candidates.py --dtype float32 bfloat16 --batch 1 4 16

From samples to captions, on real clips where a manifest is at hand and made ones elsewhere. The ways take
turns, round by round, each round on other clips; each number is the median over rounds with the smallest and
largest beside it, and ratios are of the same round. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import spread

from aligncap.audio.files import load_audio
from aligncap.data.manifest import audio_path, read_manifest
from aligncap.inference.captioner import Captioner
from aligncap.inference.sampling import sample_captions
from aligncap.models.checkpoints import build

RUN = Path("runs/ravdess")
SETTINGS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 48}


def load(model: Path, dtype: str) -> Captioner:
    """The trained model, or an untrained one of the default parts."""
    if model.is_dir():
        return Captioner.from_pretrained(model, dtype=dtype)
    print(f"{model}: no such folder; an untrained model is timed, whose captions seldom end")
    built, processor = build("whisper-base", "smollm2-135m-instruct", encoder_layer=4)
    return Captioner(built.to(getattr(torch, dtype)), processor)


def clips_of(manifest: Path, count: int) -> list[np.ndarray]:
    """`count` clips spread over the manifest, or made ones of 3 to 4 s."""
    if manifest.is_file():
        utterances = read_manifest(manifest)
        order = np.random.default_rng(0).permutation(len(utterances))
        chosen = [utterances[order[i % len(order)]] for i in range(count)]
        return [load_audio(audio_path(manifest, u)) for u in chosen]
    print(f"{manifest}: no such file; made clips are timed")
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(rng.integers(48_000, 64_000)).astype(np.float32) for _ in range(count)]


def ways(captioner: Captioner, num: int, seed: int) -> dict[str, Callable[[list[np.ndarray]], list[str]]]:
    """Each way from clips to captions, in one flat list."""
    sampled = {**SETTINGS, "do_sample": True, "top_k": 0}

    def ours(clips: list[np.ndarray], count: int) -> list[str]:
        ids = [str(i) for i in range(len(clips))]
        return sum(sample_captions(captioner, clips, ids, num=count, seed=seed, **SETTINGS), [])

    return {
        "1, ours": lambda clips: ours(clips, 1),
        f"{num}, ours: one prefill": lambda clips: ours(clips, num),
        "1, generate": lambda clips: captioner.generate(clips, **sampled),
        f"{num}, generate: repeated prompts": lambda clips: captioner.generate(
            clips, **sampled, num_return_sequences=num
        ),
        f"{num}, generate: {num} times": lambda clips: sum(
            (captioner.generate(clips, **sampled) for _ in range(num)), []
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=RUN / "model")
    parser.add_argument("--manifest", type=Path, default=RUN / "data/test.jsonl")
    parser.add_argument("--num", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    for dtype in a.dtype:
        captioner = load(a.model, dtype)
        for batch in a.batch:
            clips = clips_of(a.manifest, batch * (a.rounds + 1))
            seconds: dict[str, list[float]] = {}
            words: dict[str, list[int]] = {}
            for turn in range(a.rounds + 1):  # the first warms up
                for name, way in ways(captioner, a.num, turn).items():
                    torch.manual_seed(turn)
                    began = time.perf_counter()
                    captions = way(clips[turn * batch : (turn + 1) * batch])
                    if turn:
                        seconds.setdefault(name, []).append(time.perf_counter() - began)
                        words.setdefault(name, []).extend(len(c.split()) for c in captions)
            one, many = (seconds[name] for name in ("1, ours", f"{a.num}, ours: one prefill"))
            print(
                f"\n{dtype}, batches of {batch}, {torch.get_num_threads()} threads, "
                f"load {os.getloadavg()[0]:.1f}, {a.rounds} rounds"
            )
            print(f"{'candidates a clip':32}{'seconds a batch':>26}{'× one':>24}{'× ours':>24}{'words':>7}")
            for name, values in seconds.items():
                rival = one if name.startswith("1,") else many
                print(
                    f"{name:32}{spread(values, 2):>26}"
                    f"{spread([v / o for v, o in zip(values, one, strict=True)], 2):>24}"
                    f"{spread([v / o for v, o in zip(values, rival, strict=True)], 2):>24}"
                    f"{statistics.mean(words[name]):7.1f}"
                )


if __name__ == "__main__":
    main()

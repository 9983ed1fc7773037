"""Batches of a fixed number of shuffled rows against buckets of like length and budgets of tokens.

    python scripts/bench_batches.py runs/ravdess

Rows are real: half of them clips of RUN/data with one of their captions, half longer ones, since those
corpora hold acted sentences of 1 to 5 s: clips of one speaker joined to 2 to 29 s at their encoder frames,
with a caption of the first. First the mean loss of a token over all rows, dropout off, must be the same for
all ways. Then whole epochs of forward and backward of SFT, collating included, take turns way by way; round 0
warms up. The budget of tokens is by default the largest shuffled batch, so that no way needs more memory at
once.

"most" is what the ratio would be if a step cost as much as its tokens, padding included: padded tokens of
shuffled batches over those of the way. Peak memory is that of one epoch in a process of its own per way, the
model's weights among it. Nothing else should run on the machine.
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

import numpy as np
import torch
from bench_common import GIB, alone, peak_memory, spread, watch_memory
from torch.utils.data import DataLoader

from aligncap.data.manifest import audio_files, read_manifest
from aligncap.models.checkpoints import load_folder
from aligncap.text.prompts import response_ids
from aligncap.training.caches import feature_cache, fill_features
from aligncap.training.collators import SpeechCollator
from aligncap.training.config import SpeechSFTConfig
from aligncap.training.data import ClipInputs
from aligncap.training.distill import SpeechSFTTrainer
from aligncap.training.trainer import LengthBuckets, add_adapters, padded_size, padding_share, row_lengths
from aligncap.utils.io import read_jsonl

WAYS = ("fixed rows, shuffled", "fixed rows, buckets", "tokens, buckets")
FRAMES_A_SECOND = 50  # of the encoder, before pooling


def make_rows(run: Path, model: Any, processor: Any, cache: Path, count: int) -> list[dict[str, Any]]:
    """`count` rows of the student, every second one of clips joined; at most as many clips are encoded."""
    rng = np.random.default_rng(0)
    keys: list[str] = []
    paths: dict[str, Path] = {}
    clips: list[Any] = []
    for manifest in sorted(run.glob("data/*.jsonl")):
        if not any(row.get("captions") for row in read_jsonl(manifest)):
            continue
        utterances = [u for u in read_manifest(manifest) if u.captions]
        chosen = [utterances[i] for i in rng.permutation(len(utterances))[: count // 3]]
        own_keys, own_paths = audio_files(str(manifest), chosen)
        clips, keys, paths = clips + chosen, keys + own_keys, paths | own_paths
    features = feature_cache(cache, model, processor)
    fill_features(features, model, processor, paths)
    of_speaker: dict[str | None, list[int]] = {}
    for i, u in enumerate(clips):
        of_speaker.setdefault(u.speaker, []).append(i)
    before, after = ClipInputs(processor, None).around(None)
    rows = []
    for number in range(count):
        first = int(rng.integers(len(clips)))
        frames = features[keys[first]]
        if number % 2:
            wanted = int(rng.uniform(2, 29) * FRAMES_A_SECOND / processor.pool_size)
            while len(frames) < wanted:
                frames = torch.cat([frames, features[keys[rng.choice(of_speaker[clips[first].speaker])]]])
            frames = frames[:wanted]
        audio = [processor.audio_token_id] * processor.tokens_of_frames(len(frames))
        rows.append(
            {
                "prompt_ids": [*before, *audio, *after],
                "response_ids": response_ids(processor.tokenizer, rng.choice(clips[first].captions), 64),
                "frames": frames,
            }
        )
    return rows


def batches_of(
    way: str, lengths: np.ndarray, rows: int, tokens: int, turn: int
) -> list[np.ndarray] | list[list[int]]:
    """One epoch of batches of row indices."""
    if way == WAYS[0]:
        order = np.random.default_rng(turn).permutation(len(lengths))
        return [order[start : start + rows] for start in range(0, len(order), rows)]
    buckets = LengthBuckets(lengths, **({"rows": rows} if way == WAYS[1] else {"tokens": tokens}))
    buckets.set_epoch(turn)
    return list(buckets)


class Bench:
    """Student, rows and their batches."""

    def __init__(self, a: argparse.Namespace, folder: str) -> None:
        self.args = SpeechSFTConfig(
            output_dir=f"{folder}/run", train_manifest=str(a.run / "data/test.jsonl"), report_to="none"
        )
        torch.manual_seed(0)
        model, processor = load_folder(a.run / "distill/base")
        self.rows = make_rows(a.run, model.eval(), processor, Path(folder), a.rows)
        self.lengths = row_lengths(self.rows)
        model.requires_grad_(False)
        self.model: Any = add_adapters(model, self.args, projector=True).to(self.args.device)
        self.trainer = SpeechSFTTrainer(
            model=self.model,
            args=self.args,
            train_dataset=self.rows,
            data_collator=SpeechCollator(processor),
        )
        self.batch = a.batch
        shuffled = batches_of(WAYS[0], self.lengths, a.batch, 0, 0)
        self.tokens = a.tokens or max(padded_size(self.lengths[b]) for b in shuffled)

    def batches(self, way: str, turn: int) -> Any:
        return batches_of(way, self.lengths, self.batch, self.tokens, turn)

    def epoch(self, way: str, turn: int) -> float:
        """Read all rows once, backwards too while training; gives the mean loss of a token."""
        rows: Any = self.rows
        loader: DataLoader = DataLoader(
            rows,
            batch_sampler=self.batches(way, turn),
            collate_fn=self.trainer.data_collator,
        )
        total = 0.0
        count = int(self.lengths[:, 1].sum())
        half = bool(self.args.bf16) and self.model.training
        for inputs in loader:
            inputs = {name: value.to(self.args.device) for name, value in inputs.items()}
            with torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=half):
                loss = self.trainer.token_loss(self.model, inputs) / count
            if self.model.training:
                loss.backward()
            total += loss.item()
        self.model.zero_grad(set_to_none=True)
        return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of scripts/quickstart.sh or of the recipes")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--tokens", type=int, default=0, help="budget; 0: the largest shuffled batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = a.folder or made
        bench = Bench(a, folder)
        if a.only:
            bench.model.train()
            watch_memory()
            bench.epoch(a.only, 0)
            print(json.dumps(peak_memory()))
            return
        bench.model.eval()
        with torch.no_grad():
            losses = {way: bench.epoch(way, 0) for way in WAYS}
        gap = max(losses.values()) - min(losses.values())
        assert gap < 1e-5 * losses[WAYS[0]], f"losses differ: {losses}"
        bench.model.train()
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(a.rounds + 1):
            for way in WAYS:
                torch.manual_seed(turn)
                began = time.perf_counter()
                bench.epoch(way, turn)
                if turn:
                    seconds[way].append(time.perf_counter() - began)
        lengths, real = bench.lengths, int(bench.lengths.sum())
        least, middle, most = np.quantile(lengths.sum(1), [0, 0.5, 1]).astype(int)
        print(
            f"precision {bench.args.precision_reason}; {torch.get_num_threads()} threads, {a.rounds} rounds"
        )
        print(f"{len(lengths)} rows of {least} to {most} tokens, median {middle}; {real} in all")
        print(f"batches of {a.batch} rows, or of {bench.tokens} tokens")
        print(f"mean loss of a token {losses[WAYS[0]]:.4f}, at most {gap:.1e} apart\n")
        heads = f"{'batches':>8}{'padding':>9}{'real tokens a second':>27}{'ratio':>22}{'most':>6}{'GiB':>7}"
        print(f"{'':22}{heads}")
        sizes: dict[str, float] = {}
        for way in WAYS:
            epochs = [bench.batches(way, turn) for turn in range(1, a.rounds + 1)]
            padding = statistics.mean(padding_share(lengths, epoch) for epoch in epochs)
            sizes[way] = real / (1 - padding)
            memory = alone([*sys.argv[1:], "--only", way, "--folder", folder])
            print(
                f"{way:22}{len(epochs[0]):8}{padding:9.1%}{spread([real / s for s in seconds[way]], 0):>27}"
                f"{spread([r / s for r, s in zip(seconds[WAYS[0]], seconds[way], strict=True)], 2):>22}"
                f"{sizes[WAYS[0]] / sizes[way]:6.2f}{memory / GIB:7.2f}"
            )


if __name__ == "__main__":
    main()

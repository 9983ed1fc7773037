"""Captions a second from samples in two precisions, the time to encode a clip, and the peak memory.

    python scripts/bench_captions.py runs/ravdess

Real test clips; the precisions take turns, round by round, and the first round warms up. Nothing else should
run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from bench_common import peak_memory, watch_memory

from aligncap.audio.files import load_audio
from aligncap.data.manifest import audio_path, read_manifest
from aligncap.inference.captioner import Captioner


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of scripts/quickstart.sh")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    manifest = a.run / "data/test.jsonl"
    utterances = read_manifest(manifest)
    utterances = utterances[:: max(1, len(utterances) // a.clips)][: a.clips]
    clips = [load_audio(audio_path(manifest, u)) for u in utterances]
    captioners = {
        kind: Captioner.from_pretrained(a.run / "model", dtype=kind) for kind in ("float32", "bfloat16")
    }
    watch_memory()
    seconds: dict[str, list[float]] = {}

    def clock(name: str, began: float) -> None:
        seconds.setdefault(name, []).append(time.perf_counter() - began)

    for _ in range(a.rounds + 1):
        for kind, captioner in captioners.items():
            began = time.perf_counter()
            captioner(clips, batch_size=32)
            clock(f"captions a second, {kind}", began)
            began = time.perf_counter()
            with torch.no_grad():
                mel = captioner.processor.log_mel(clips).to(captioner.model.device)
                pooled = captioner.model.model.encode_audio(**mel)
                float(pooled.frames.flatten()[0])  # waits for the device
            clock(f"clips encoded a second, {kind}", began)
    print(f"{len(clips)} clips, {torch.get_num_threads()} threads, {a.rounds} rounds")
    print(f"{'':36}{'median':>8}{'least':>8}{'most':>8}")
    for name, values in sorted(seconds.items()):
        rates = [len(clips) / s for s in values[1:]]
        print(f"{name:36}{statistics.median(rates):8.2f}{min(rates):8.2f}{max(rates):8.2f}")
    print(f"peak memory, both models: {peak_memory() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()

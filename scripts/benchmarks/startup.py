"""Seconds and memory of a process from the start of a training run to its first step, by phase.

python scripts/benchmarks/startup.py rows --rows 20000 100000     # one process, files one by one
python scripts/benchmarks/startup.py rows --rows 1000000 --sharded --processes 2

Rows are synthetic and as rich as those of a real manifest (cues, hashes, two captions, of which every text is
another), 1.3 kB each. Their sound is 50 short clips under as many names as there are rows: hard links, or
members of tar shards that hold the 50 clips once. The model is tiny; its first step encodes the clips of its
batch from their files, as a run without a feature cache does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import GIB, ROOT, benchmark, machine, main, peak_memory, print_table, watch_memory

SOUNDS = 50
CAPTIONS = 2  # of each row
Phases = dict[str, tuple[float, float, float]]  # seconds, those of the processor, bytes at the peak
LABELS = ("angry", "calm", "sad", "happy", "fearful")


def make_manifest(folder: Path, rows: int, sharded: bool) -> Path:
    """A manifest of so many rows in `folder`, which holds their sound too."""
    import soundfile
    from tiny import voice

    from aligncap.data.manifest import Utterance, write_manifest
    from aligncap.data.rows import open_manifest
    from aligncap.data.shards import write_shards

    sounds = []
    for i in range(SOUNDS):
        path = folder / f"sound{i}.wav"
        soundfile.write(path, voice(0.5 + 0.02 * i, 100 + 4 * i, seed=i), 16_000)
        sounds.append((path, path.stat(), soundfile.info(path).duration))
    audio, manifest = folder / "audio", folder / "train.jsonl"
    if sharded:
        write_manifest(few := folder / "few.jsonl", [Utterance(p.stem, ".", p.name, "c") for p, *_ in sounds])
        (audio := folder / "shards").mkdir()
        write_shards(few, open_manifest(few), audio, 400_000)
        members = [u.audio for u in open_manifest(audio / "few.jsonl")]
        with manifest.open("w", encoding="utf-8") as file:
            for i in range(rows):
                _, stat, seconds = sounds[i % SOUNDS]
                own = row(i, members[i % SOUNDS], stat, seconds) | {"root": "shards", "mtime_ns": None}
                file.write(json.dumps({k: v for k, v in own.items() if v is not None}) + "\n")
        return manifest
    with manifest.open("w", encoding="utf-8") as file:
        for i in range(rows):
            path, stat, seconds = sounds[i % SOUNDS]
            place = audio / f"{i // 1000:04d}"
            if i % 1000 == 0:
                place.mkdir(parents=True)
            os.link(path, place / f"{i}.wav")
            file.write(json.dumps(row(i, f"{place.name}/{i}.wav", stat, seconds)) + "\n")
    return manifest


def row(i: int, audio: str, stat: os.stat_result, seconds: float) -> dict[str, object]:
    """Row `i` of a manifest."""
    label = LABELS[i % 7 % len(LABELS)]
    who, hertz = ("A woman", "A man")[i % 2], 100 + i % 150
    captions = [
        f"{who} sounds {label} in take {i}, with a voice near {hertz} hertz that is {how} and a little "
        f"unsteady towards the end of the sentence."
        for how in ("tense, loud", "soft, slow")[:CAPTIONS]
    ]
    return {
        "id": f"synthetic-{i:07d}", "root": "audio", "audio": audio, "corpus": f"synthetic{i % 3}",
        "language": "en", "speaker": f"synthetic-{i % 4000}", "gender": ("female", "male")[i % 2],
        "transcript": f"Kids are talking by door number {i}.", "emotion": label, "intensity": "normal",
        "duration": seconds, "sha256": hashlib.sha256(str(i).encode()).hexdigest(), "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns, "captions": captions,
        "clues": [[label, "tense", "loud"], [label, "soft", "slow"]][:CAPTIONS],
        "p_act": [f"Voice: {label}, tense, loud.", f"Voice: {label}, soft, slow."][:CAPTIONS],
        "cues": {"f0_median_hz": hertz + 0.25, "f0_range_st": 4.25, "rate_sps": 3.5, "level_db": -23.5},
        "cue_words": {"pitch": "high", "effort": "loud", "rate": "fast"},
        "extra": {"samples_sha256": hashlib.sha256(f"samples {i}".encode()).hexdigest(), "repetition": 1},
    }  # fmt: skip


@contextmanager
def phase(name: str, found: Phases) -> Iterator[None]:
    """Note seconds, and the peak of memory (bytes) while the block runs."""
    watch_memory()
    began, worked = time.perf_counter(), time.process_time()
    yield
    found[name] = time.perf_counter() - began, time.process_time() - worked, peak_memory()


@benchmark("child", manifest=Path, parts=Path, out=Path)
def child(a: argparse.Namespace) -> None:
    """One process of `rows`."""
    from transformers import set_seed

    from aligncap.models.build import build
    from aligncap.training.align import student_language
    from aligncap.training.clips import read_clips
    from aligncap.training.data import CaptionRows, ClipInputs, SpeechDataset
    from aligncap.training.resume import begin, record_run
    from aligncap.training.sft import SpeechSFTConfig, SpeechSFTTrainer
    from aligncap.training.words import emotions_of

    found: Phases = {}
    with phase("imports, model", found):
        config = SpeechSFTConfig(
            output_dir=str(a.out), train_manifest=str(a.manifest), llm=str(a.parts / "llm"), max_steps=1,
            encoder=str(a.parts / "whisper"), report_to="none", use_cpu=True, align_steps=0, logging_steps=1,
            max_response_tokens=128,
        )  # fmt: skip
        run = begin("train sft", config)
        set_seed(0)
        model, processor = build(config.encoder, config.llm, **config.model_options())
    with phase("read, check files", found):
        clips = read_clips(str(a.manifest), p_act=True, group=run.group)
    with phase("language, labels", found):
        student_language(clips.utterances)
        emotions_of(clips.utterances)
    with phase("balance", found):
        balanced = clips.balanced()
    with phase("tokenise", found):
        rows = CaptionRows.of(balanced, processor.tokenizer, max_response_tokens=config.max_response_tokens)
    with phase("record", found):
        if run.group.rank == 0:
            record_run(run, [clips])
    with phase("first step", found):
        dataset = SpeechDataset(rows, ClipInputs(processor))
        SpeechSFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=processor).train()
    found["whole"] = (
        sum(seconds for seconds, *_ in found.values()),
        sum(worked for _, worked, _ in found.values()),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    print(json.dumps({"rows": len(rows), "phases": found}))


@benchmark("rows", rows=[20_000], processes=1, folder=Path, sharded=False, again=False)
def startup(a: argparse.Namespace) -> None:
    """Manifests of so many rows, each in a fresh process. --again: what a second start takes, too."""
    from tiny import save_parts

    with tempfile.TemporaryDirectory(dir=a.folder) as name:
        folder = Path(name)
        save_parts(folder / "parts")
        for rows in a.rows:
            (place := folder / f"{rows}").mkdir()
            began = time.perf_counter()
            manifest = make_manifest(place, rows, a.sharded)
            size, took = manifest.stat().st_size, time.perf_counter() - began
            print(f"{rows:,} rows, {size / 1e6:,.0f} MB, made in {took:.0f} s; {machine()}")
            for start in range(1 + a.again):
                show(launch(a.processes, manifest, folder / "parts", place / f"run{start}"))


def launch(processes: int, manifest: Path, parts: Path, out: Path) -> Phases:
    """Phases of the first of so many processes, with the highest peak of any."""
    words = [__file__, "child", "--manifest", str(manifest), "--parts", str(parts), "--out", str(out)]
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    done = subprocess.run([*start, *words], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found = [json.loads(line)["phases"] for line in done.stdout.splitlines() if line.startswith('{"rows"')]
    # Of each number the worst of all processes.
    return {name: tuple(map(max, zip(*(one[name] for one in found), strict=True))) for name in found[0]}


def show(phases: Phases) -> None:
    """The table of one start."""
    lines = [[n, f"{wall:.1f}", f"{cpu:.1f}", f"{peak / GIB:.2f}"] for n, (wall, cpu, peak) in phases.items()]
    print_table(["phase", "seconds", "processor", "peak GiB"], lines)


if __name__ == "__main__":
    main(__doc__)

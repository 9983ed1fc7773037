"""Work done a second by two processes of one thread each against one process of one thread, in one run.

    python scripts/bench_processes.py runs/ravdess

Captions, candidates and steps of distillation with the same global batch, each started by accelerate as a
user would. Loading the model is left out of "a second" and stands in the whole time beside it; of
distillation the first steps are left out too. Runs take turns, round by round; numbers are the median over
rounds (least to most), ratios are of the same round. First it is asserted that two processes write the file
of one, and that the losses agree. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from bench_common import spread

from aligncap.data.manifest import audio_path, read_manifest, write_manifest
from aligncap.data.split import choose_evenly

ROOT = Path(__file__).resolve().parents[1]
FIRST = 2  # steps that are left out: threads, caches and the optimizer are set up in them


def launch(count: int, *words: str) -> tuple[float, float]:
    """Seconds from start to end, and peak memory (GiB) of the largest process."""
    config = ["--config_file", str(ROOT / "configs/accelerate/cpu2.yaml"), "--num_processes", str(count)]
    start = [sys.executable, "-m", "accelerate.commands.launch", *config] if count > 1 else [sys.executable]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        started = subprocess.Popen(
            [*start, *words],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(started.pid, 0)
        if status:
            said.seek(0)
            sys.exit(said.read().decode())
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


def part_of(manifest: Path, clips: int, out: Path) -> Path:
    """A manifest of `clips` clips, labels as even as they come."""
    every = read_manifest(manifest)
    chosen = [every[i] for i in choose_evenly(every, clips, 0)]
    for u in chosen:
        path = audio_path(manifest, u).resolve()
        u.root, u.audio = str(path.parent), path.name
    write_manifest(out, chosen)
    return out


def work(kind: str, model: Path, manifest: Path, out: Path) -> None:
    """In each process: load, wait for all, work, and let the first say how long the work took."""
    from aligncap.inference.batch import caption_jobs, jobs_of_manifest
    from aligncap.inference.captioner import Captioner
    from aligncap.preferences.candidates import write_candidates
    from aligncap.utils.distributed import Group, launched

    began: list[float] = []
    plain = Group.share_out

    def timed(group: Group, *args: Any, **more: Any) -> None:
        if not began:
            group.gather(None)  # all have loaded
            began.append(time.perf_counter())
        plain(group, *args, **more)

    Group.share_out = timed  # type: ignore[method-assign]
    if kind == "captions":
        group, device = launched("cpu")
        captioner = Captioner.from_pretrained(model, device=device)
        jobs = jobs_of_manifest(manifest)
        caption_jobs(captioner, jobs, out, {}, 16, group=group, max_new_tokens=48)
    else:
        write_candidates(model, manifest, out, num=8, batch_size=8, device="cpu")
    if os.environ.get("RANK", "0") == "0":
        out.with_suffix(".seconds").write_text(str(time.perf_counter() - began[0]))


def distill(count: int, a: argparse.Namespace, manifest: Path, folder: Path, turn: int) -> dict[str, Any]:
    """A short distillation, and the seconds of its steps after the first."""
    out = folder / f"distill-{count}-{turn}"
    config = yaml.safe_load((ROOT / "configs/recipes/distill.yaml").read_text())
    config |= {
        "llm": str(a.run / "teacher"),
        "train_manifest": str(manifest),
        "output_dir": str(out),
        "cache_dir": str(folder / "cache"),
        "per_device_train_batch_size": a.batch // count,
        "max_steps": FIRST + a.steps,
        "align_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "precision": "float32",
        "use_cpu": True,
        "teacher_cache": "no",
        "lora_dropout": 0.0,
        "projector_dropout": 0.0,
        "speaker_dropout": 0.0,
    }
    (folder / "distill.yaml").write_text(yaml.safe_dump(config))
    total, peak = launch(
        count, str(ROOT / "scripts/train.py"), "distill", "--config", str(folder / "distill.yaml")
    )
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    seconds = rows[-1]["seconds"] - rows[FIRST - 1]["seconds"]
    return {"rate": a.steps / seconds, "total": total, "peak": peak, "made": [row["loss"] for row in rows]}


def files(
    kind: str, count: int, a: argparse.Namespace, manifest: Path, folder: Path, turn: int
) -> dict[str, Any]:
    """Captions or candidates, clips a second while at work."""
    out = folder / f"{kind}-{count}-{turn}.jsonl"
    words = ["--worker", kind, "--manifest", str(manifest), "--out", str(out)]
    total, peak = launch(count, __file__, str(a.run), *words)
    seconds = float(out.with_suffix(".seconds").read_text())
    return {
        "rate": len(read_manifest(manifest)) / seconds,
        "total": total,
        "peak": peak,
        "made": out.read_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of scripts/quickstart.sh")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--captions", type=int, default=128, help="clips to caption")
    parser.add_argument("--candidates", type=int, default=64, help="clips to make 8 candidates of")
    parser.add_argument("--steps", type=int, default=12, help="steps of distillation that are timed")
    parser.add_argument("--batch", type=int, default=8, help="global batch of distillation")
    for name in ("--worker", "--manifest", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        work(a.worker, a.run / "model", Path(a.manifest), Path(a.out))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        some = {
            kind: part_of(a.run / f"data/{part}.jsonl", clips, folder / f"{kind}.jsonl")
            for kind, part, clips in (
                ("captions", "test", a.captions),
                ("candidates", "test", a.candidates),
                ("distill", "train", 8 * a.batch),
            )
        }
        found: dict[str, dict[int, list[dict[str, Any]]]] = {kind: {1: [], 2: []} for kind in some}
        for turn in range(a.rounds):
            for kind, counts in found.items():
                for count in (1, 2) if turn % 2 else (2, 1):
                    done = (
                        distill(count, a, some[kind], folder, turn)
                        if kind == "distill"
                        else files(kind, count, a, some[kind], folder, turn)
                    )
                    counts[count].append(done)
                one, two = counts[1][-1]["made"], counts[2][-1]["made"]
                if kind == "distill":
                    assert all(abs(x - y) < 1e-3 * abs(x) for x, y in zip(one, two, strict=True)), (one, two)
                else:
                    assert one == two, f"{kind}: two processes wrote another file"
        print(f"two processes = one: files byte for byte, losses to 1e-3; load {os.getloadavg()[0]:.1f}")
        print(
            f"\n{'a second':26}{'one process':>26}{'two processes':>26}{'ratio':>24}"
            f"{'whole run, s':>16}{'GiB each':>12}"
        )
        units = {"captions": "captions", "candidates": "clips, 8 candidates", "distill": "distill steps"}
        for kind, counts in found.items():
            one, two = ([done["rate"] for done in counts[n]] for n in (1, 2))
            ratios = [y / x for x, y in zip(one, two, strict=True)]
            totals = " and ".join(f"{statistics.median(d['total'] for d in counts[n]):.0f}" for n in (1, 2))
            peaks = " and ".join(f"{max(d['peak'] for d in counts[n]):.1f}" for n in (1, 2))
            print(
                f"{units[kind]:26}{spread(one, 3):>26}{spread(two, 3):>26}{spread(ratios, 2):>24}"
                f"{totals:>16}{peaks:>12}"
            )


if __name__ == "__main__":
    main()

"""Time of a training step and of captioning, side by side in one run, and the peak memory.

    python scripts/bench_train.py runs/ravdess

Steps of SFT, of distillation with the teacher read live and with its states cached are interleaved, round by
round, on the same batches of real rows with cached features; each number is the median over rounds with the
smallest and largest beside it. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from aligncap.audio.files import load_audio
from aligncap.manifest import audio_path
from aligncap.models.captioner import Captioner
from aligncap.models.checkpoints import load_folder
from aligncap.training.arguments import DistillArguments, SpeechArguments
from aligncap.training.caches import feature_cache, fill_features, fill_teacher, teacher_cache
from aligncap.training.collators import SpeechCollator
from aligncap.training.distill import DistillTrainer, SFTTrainer
from aligncap.training.examples import SpeechRows, audio_files, read_captioned
from aligncap.training.runs import add_adapters


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of scripts/quickstart.sh")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    manifest = str(a.run / "data/test.jsonl")
    utterances = read_captioned(manifest, need_p_act=True)[:: max(1, 240 // (2 * a.batch))][: 2 * a.batch]
    keys, paths = audio_files(manifest, utterances)
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder,
            "train_manifest": manifest,
            "per_device_train_batch_size": a.batch,
            "report_to": "none",
        }
        model, processor = load_folder(a.run / "distill/base")
        features = feature_cache(Path(folder), model, processor)
        began = time.perf_counter()
        fill_features(features, model, processor, paths)
        encoding = (time.perf_counter() - began) / len(paths)
        args = DistillArguments(**common)
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        rows = SpeechRows(
            manifest, utterances, processor, teacher=True, limit=64, features=features, keys=keys
        )
        states = teacher_cache(Path(folder), model.model.language_model, dtype)
        fill_teacher(
            states,
            model.model.language_model,
            rows.teacher_pairs(),
            processor.tokenizer.pad_token_id,
            dtype,
        )
        model.requires_grad_(False)
        adapted = add_adapters(model, args, projector=True)
        collate = SpeechCollator(processor)
        chosen = [rows[i] for i in range(0, len(rows), max(1, len(rows) // a.batch))][: a.batch]
        live = collate(chosen)
        rows.states = states
        cached = collate([rows[i] for i in range(0, len(rows), max(1, len(rows) // a.batch))][: a.batch])
        plain = {k: v for k, v in live.items() if not k.startswith("teacher_")}
        distill = DistillTrainer(model=adapted, args=args, train_dataset=rows, data_collator=collate)
        sft = SFTTrainer(
            model=adapted, args=SpeechArguments(**common), train_dataset=rows, data_collator=collate
        )
        cases = {
            "sft step": (sft, plain),
            "distill step, teacher live": (distill, live),
            "distill step, teacher cached": (distill, cached),
        }
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        losses: dict[str, float] = {}
        adapted.train()
        for turn in range(a.rounds + 1):
            for name, (trainer, batch) in cases.items():
                torch.manual_seed(turn)
                began = time.perf_counter()
                losses[name] = float(trainer.training_step(adapted, dict(batch)))
                adapted.zero_grad(set_to_none=True)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        gap = abs(losses["distill step, teacher live"] - losses["distill step, teacher cached"])
        student, teacher = (live[k].shape[1] for k in ("input_ids", "teacher_input_ids"))
        print(f"precision {args.precision_reason}; batch {a.batch}, {torch.get_num_threads()} threads,")
        print(f"{student} tokens a student row, {teacher} a teacher row")
        at = losses["distill step, teacher live"]
        print(f"loss, teacher live against cached: {gap:.1e} apart at {at:.4f}")
        base = statistics.median(seconds["distill step, teacher live"])
        print(f"\n{'':32}{'median s':>9}{'least':>8}{'most':>8}{'ratio':>7}")
        for name, values in seconds.items():
            middle = statistics.median(values)
            print(f"{name:32}{middle:9.2f}{min(values):8.2f}{max(values):8.2f}{base / middle:7.2f}")
        print(f"{'encoding, a clip':32}{encoding:9.3f}")
    del adapted, model, distill, sft
    for kind in ("float32", "bfloat16"):
        captioner = Captioner.from_pretrained(a.run / "model", dtype=kind)
        clips = [load_audio(audio_path(manifest, u)) for u in utterances]
        captioner.generate(clips[:2])
        began = time.perf_counter()
        captioner(clips, batch_size=32)
        rate = len(clips) / (time.perf_counter() - began)
        print(f"{f'captions a second, {kind}':32}{rate:9.2f}")
    print(f"{'peak memory, GiB':32}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:9.2f}")


if __name__ == "__main__":
    main()

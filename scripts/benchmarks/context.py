"""What other clips of a speaker or session do to captions, by their number and the mixture of their moods.

python scripts/benchmarks/context.py harm --model runs/MODEL --manifest CLUED.jsonl
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import benchmark, main, print_table

SKEWS = ("any", "balanced", "own mood")


def drawn(pool: dict[str, list[int]], own: str, skew: str, size: int, rng: random.Random) -> list[int]:
    """Up to `size` places of `pool` (places by mood): any, as many of each mood, or of mood `own` alone."""
    if skew != "balanced":
        places = pool[own] if skew == "own mood" else [i for part in pool.values() for i in part]
        return rng.sample(places, min(size, len(places)))
    piles = [rng.sample(part, len(part)) for part in pool.values() if part]
    rng.shuffle(piles)
    most = max(map(len, piles), default=0)
    return [pile[row] for row in range(most) for pile in piles if row < len(pile)][:size]


@benchmark(
    model=Path,
    manifest=Path,
    labels=["angry", "happy", "neutral", "sad"],
    sizes=[1, 2, 4, 8, 16, 32, 64],
    seed=0,
    batch=16,
    out=Path,
)
def harm(a: argparse.Namespace) -> None:
    """UAR of captions beside 1 to 64 clips of the same speaker or session, less that of the clip alone.

    The clips are drawn from the same manifest, the clip itself left out: any, balanced over moods, or all of
    the clip's own mood ("own mood": one speaker, one mood). Labels choose what is drawn and judge what is
    said; the model does not see them. Captions may name only `--labels`. A clip whose context changes nothing
    keeps its caption. Intervals and p are by speaker; --out keeps the table as JSON.
    """
    from aligncap.audio.files import load_audio
    from aligncap.data.manifest import read_manifest
    from aligncap.inference.captioner import Captioner, batches_by_size
    from aligncap.inference.jobs import job_of
    from aligncap.models.context import Kind, group_of, offset
    from aligncap.text.emotions import emotion_of
    from aligncap.utils.io import write_json
    from aligncap.utils.statistics import Statistic, clusters_of, paired_differences, recall_sums, uar

    captioner = Captioner.from_pretrained(a.model, "cpu")
    utterances = [u for u in read_manifest(a.manifest) if u.emotion in a.labels]
    paths = [job_of(a.manifest, u).path for u in utterances]
    projector = captioner.model.model.multi_modal_projector
    seconds = captioner.processor.max_seconds
    logits: dict[int, torch.Tensor] = {}
    for batch in batches_by_size(paths, a.batch):
        with torch.inference_mode():
            mel = captioner.processor.features([load_audio(paths[i], max_seconds=seconds) for i in batch])
            logits |= zip(
                batch, projector.emotion_logits(*captioner.model.model.encode_audio(**mel)), strict=True
            )
    alone: dict[tuple[int, bytes], str] = {}

    def captions(contexts: Sequence[torch.Tensor]) -> list[str | None]:
        keys = [(i, context.numpy().tobytes()) for i, context in enumerate(contexts)]
        new = [i for i, key in enumerate(keys) if key not in alone]
        for rows in batches_by_size([paths[i] for i in new], a.batch):
            batch = [new[row] for row in rows]
            clips = [load_audio(paths[i], max_seconds=seconds) for i in batch]
            made = captioner.generate(clips, [contexts[i] for i in batch], emotions=a.labels)
            alone.update(zip((keys[i] for i in batch), made, strict=True))
        return [emotion_of(alone[key]) for key in keys]

    truth, units = [u.emotion for u in utterances], clusters_of(utterances)

    def run(said: Sequence[str | None]) -> dict[str, Statistic]:
        return {"uar": Statistic(recall_sums(truth, said, a.labels), uar, 1.0)}

    zero = torch.zeros(len(captioner.model.config.emotions))
    single = run(captions([zero] * len(utterances)))
    rows, usual = [], projector.emotion.usual
    for kind in get_args(Kind):
        pools: dict[object, dict[str, list[int]]] = {}
        for i, u in enumerate(utterances):
            pools.setdefault(group_of(u, kind), {}).setdefault(str(u.emotion), []).append(i)
        for skew in SKEWS:
            for size in a.sizes:
                rng, contexts = random.Random(f"{a.seed} {kind} {skew} {size}"), []
                for i, u in enumerate(utterances):
                    pool = {
                        mood: [j for j in part if j != i] for mood, part in pools[group_of(u, kind)].items()
                    }
                    others = drawn(pool, str(u.emotion), skew, size, rng)
                    contexts.append(
                        offset(torch.stack([logits[j] for j in others]), usual, kind) if others else zero
                    )
                moved = float(np.mean([bool(context.any()) for context in contexts]))
                cell = paired_differences(single, run(captions(contexts)), units)["uar"]
                rows.append({"context": kind, "clips": skew, "size": size, "moved": moved, **cell})
                print(rows[-1], flush=True)
    print(f"{a.model}, {a.manifest}: {len(truth)} clips, {units.note}; alone: UAR {single['uar'].value:.3f}")
    ends = [f"[{row['low']:+.3f}, {row['high']:+.3f}]" for row in rows]
    told = [
        [f"{r['context']}, {r['clips']}", r["size"], f"{r['moved']:.2f}", f"{r['value']:+.3f}"] for r in rows
    ]
    head = ["other clips of the", "at most", "captions moved", "UAR, change", "95 %"]
    print_table(head, [[*row, end] for row, end in zip(told, ends, strict=True)])
    if a.out:
        write_json(a.out, {"alone": single["uar"].value, "units": units.note, "rows": rows})


if __name__ == "__main__":
    main(__doc__)

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
    limit=0,
    seed=0,
    batch=16,
    out=Path,
)
def harm(a: argparse.Namespace) -> None:
    """UAR of captions beside other clips of the same speaker or session, less that of the clip alone.

    The others are drawn from the same manifest: any, balanced over moods, or all of the clip's own mood ("own
    mood": one speaker, one mood), at most --sizes of them. Labels choose what is drawn and judge what is
    said; the model does not see them. Captions may name only --labels. Where the others change nothing a
    clip keeps its caption. --limit: caption so many clips, labels even. Intervals and p are by speaker; --out
    keeps the table as JSON.
    """
    from aligncap.audio.files import load_audio
    from aligncap.data.manifest import read_manifest
    from aligncap.data.split import choose_evenly
    from aligncap.inference.captioner import Captioner, batches_by_size
    from aligncap.inference.jobs import job_of
    from aligncap.models.context import Kind, group_of, offset
    from aligncap.text.emotions import emotion_of
    from aligncap.utils.io import write_json
    from aligncap.utils.statistics import Statistic, clusters_of, paired_differences, recall_sums, uar

    captioner = Captioner.from_pretrained(a.model, "cpu")
    utterances = [u for u in read_manifest(a.manifest) if u.emotion in a.labels]
    moods = [str(u.emotion) for u in utterances]
    paths = [job_of(a.manifest, u).path for u in utterances]
    projector = captioner.model.model.multi_modal_projector
    seconds = captioner.processor.max_seconds
    logits: dict[int, torch.Tensor] = {}
    for batch in batches_by_size(paths, a.batch):
        with torch.inference_mode():
            mel = captioner.processor.features([load_audio(paths[i], max_seconds=seconds) for i in batch])
            read = projector.emotion_logits(*captioner.model.model.encode_audio(**mel))
        logits |= zip(batch, read, strict=True)

    targets = choose_evenly(utterances, a.limit or len(utterances), a.seed)
    truth, units = [moods[i] for i in targets], clusters_of([utterances[i] for i in targets])
    known: dict[tuple[int, bytes], str | None] = {}  # emotions named, by clip and context

    def uar_of(contexts: Sequence[torch.Tensor]) -> dict[str, Statistic]:
        keys = [(i, context.numpy().tobytes()) for i, context in zip(targets, contexts, strict=True)]
        new = [place for place, key in enumerate(keys) if key not in known]
        for rows in batches_by_size([paths[targets[place]] for place in new], a.batch):
            batch = [new[row] for row in rows]
            clips = [load_audio(paths[targets[place]], max_seconds=seconds) for place in batch]
            made = captioner.generate(clips, [contexts[place] for place in batch], emotions=a.labels)
            known.update((keys[place], emotion_of(text)) for place, text in zip(batch, made, strict=True))
        said = [known[key] for key in keys]
        return {"uar": Statistic(recall_sums(truth, said, a.labels), uar, 1.0)}

    zero = torch.zeros(len(captioner.model.config.emotions))
    alone = uar_of([zero] * len(targets))
    print(
        f"{a.manifest}: {len(targets)} clips, {units.note}; alone: UAR {alone['uar'].value:.3f}", flush=True
    )
    rows = []
    for kind in get_args(Kind):
        pools: dict[object, dict[str, list[int]]] = {}
        for i, u in enumerate(utterances):
            pools.setdefault(group_of(u, kind), {}).setdefault(moods[i], []).append(i)
        for skew in SKEWS:
            for size in a.sizes:
                rng, contexts = random.Random(f"{a.seed} {kind} {skew} {size}"), []
                for i in targets:
                    every = pools[group_of(utterances[i], kind)].items()
                    pool = {mood: [j for j in part if j != i] for mood, part in every}
                    others = [logits[j] for j in drawn(pool, moods[i], skew, size, rng)]
                    contexts.append(
                        offset(torch.stack(others), projector.emotion.usual, kind) if others else zero
                    )
                moved = float(np.mean([bool(context.any()) for context in contexts]))
                cell = paired_differences(alone, uar_of(contexts), units)["uar"]
                rows.append({"context": kind, "clips": skew, "size": size, "moved": moved, **cell})
                print(rows[-1], flush=True)
    head = ["other clips of the", "at most", "moved", "UAR, change", "95 %"]
    told = [(f"{row['context']}, {row['clips']}", row["size"], f"{row['moved']:.2f}") for row in rows]
    gaps = [(f"{row['value']:+.3f}", f"[{row['low']:+.3f}, {row['high']:+.3f}]") for row in rows]
    print_table(head, [[*one, *other] for one, other in zip(told, gaps, strict=True)])
    if a.out:
        write_json(a.out, {"alone": alone["uar"].value, "units": units.note, "rows": rows})


if __name__ == "__main__":
    main(__doc__)

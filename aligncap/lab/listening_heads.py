"""Which attention heads listen: what each gives to sound, and what it would do if it gave more.

A head's *pull* is the slope of log p(A) − log p(T) in a bias on its attention from the answer position to the
tokens of sound: by how much listening harder would help the voice. Its *share* is the attention that it gives
sound, and the text that tells T.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aligncap.lab.edits import Attend
from aligncap.lab.patching import told_text
from aligncap.lab.stimuli import Trial
from aligncap.lab.study import Study
from aligncap.utils.distributed import ALONE, Store
from aligncap.utils.io import Row
from aligncap.utils.statistics import Floats, clusters_of, intervals, mean

NAMES = ("pull", "audio share", "text share")


def listen_heads(study: Study, trials: Sequence[Trial], rows: Store) -> None:
    """Put of each trial {"pull", "audio share", "text share": (blocks, heads)} into `rows`."""
    study.listen(t.clip for t in trials)
    by_key = {t.key: t for t in trials}

    def compute(keys: Sequence[str]) -> Row:
        found = head_batch(study, [by_key[k] for k in keys])
        return {k: {name: part[i] for name, part in found.items()} for i, k in enumerate(keys)}

    batches = [[t.key for t in batch] for batch in study.batches(list(by_key.values()))]
    ALONE.share_out(rows, batches, compute, "heads")


def head_batch(study: Study, batch: Sequence[Trial]) -> dict[str, list]:
    """Of a batch the three numbers of every head, (trials, blocks, heads) each."""
    model, prefill = study.model, study.prefill(batch)
    biases = torch.zeros(model.blocks, len(batch), model.heads, device=model.device, requires_grad=True)
    edits = [
        Attend([block], prefill.answer, prefill.audio, biases[block - 1])
        for block in range(1, model.blocks + 1)
    ]
    scores = study.scores(model.run(prefill, edits).logits)
    told = torch.tensor([study.index(str(t.told)) for t in batch], device=scores.device)
    own = torch.tensor([study.index(t.clip.emotion) for t in batch], device=scores.device)
    ahead = scores.gather(1, own[:, None]) - scores.gather(1, told[:, None])
    (slopes,) = torch.autograd.grad(ahead.sum(), biases)
    with torch.no_grad():
        attention = model.run(prefill, attention=True).attention
    assert attention is not None
    shares = {
        "audio share": (attention * prefill.audio[:, None]).sum(-1),
        "text share": (attention * told_text(prefill, batch)[:, None]).sum(-1),
    }
    found = {"pull": slopes, **shares}
    return {name: part.float().transpose(0, 1).cpu().tolist() for name, part in found.items()}


def mean_pull(trials: Sequence[Trial], rows: Store) -> Floats:
    """Mean pull of every head over trials, (blocks, heads)."""
    return np.mean([rows[t.key]["pull"] for t in trials], axis=0)


def heads_table(trials: Sequence[Trial], rows: Store, top: int = 20) -> Row:
    """Means of every head, (blocks, heads), and the `top` heads by pull with intervals over speakers."""
    values = {name: np.array([rows[t.key][name] for t in trials]) for name in NAMES}
    clusters = clusters_of([t.clip for t in trials])
    pull = values["pull"].mean(axis=0)
    best = np.argsort(-pull, axis=None)[:top]
    listed = []
    for place in best:
        block, head = divmod(int(place), pull.shape[1])
        own = {name: mean(part[:, block, head]) for name, part in values.items()}
        listed.append({"block": block + 1, "head": head, **intervals(own, clusters)})
    means = {name: part.mean(axis=0).tolist() for name, part in values.items()}
    about = {"trials": len(trials), "speakers": clusters.speakers, "note": clusters.note}
    return {**about, **means, "best": listed}

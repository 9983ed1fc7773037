"""What makes the voice win: prompts, heads that listen harder, a direction towards the audio; and the price.

Each kind's best is chosen on some speakers by the share of conflicts that follow the audio, and measured on
the others: that share, and what it costs where nothing conflicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from aligncap.lab.behaviour import said, winner
from aligncap.lab.edits import Add, Attend, Edit
from aligncap.lab.lens import States
from aligncap.lab.models import Prefill, Question
from aligncap.lab.stimuli import Trial, remedies
from aligncap.lab.study import Study
from aligncap.utils.distributed import ALONE, Store
from aligncap.utils.io import Row
from aligncap.utils.statistics import Floats, clusters_of, correct, intervals, mean, paired_differences

Edits = Callable[[Prefill], list[Edit]]
HEADS, FACTORS = (4, 16, 48), (4.0, 16.0)
STRENGTHS = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Remedy:
    """One candidate: a prompt of data/conflict.yaml (`prompt`), or edits of every pass."""

    kind: str
    name: str
    prompt: int | None = None
    edits: Edits | None = None

    def trial(self, trial: Trial) -> Trial:
        return trial if self.prompt is None else replace(trial, remedy=self.prompt)


def prompt_remedies() -> list[Remedy]:
    return [Remedy("prompt", f"prompt {i + 1}", prompt=i) for i in range(remedies("en"))]


def head_remedies(pull: Floats) -> list[Remedy]:
    """The heads of highest pull, (blocks, heads), give sound so many times the weight."""
    order = [divmod(int(place), pull.shape[1]) for place in np.argsort(-pull, axis=None)]
    found = []
    for count in sorted({min(count, len(order)) for count in HEADS}):
        chosen: dict[int, list[int]] = {}
        for block, head in order[:count]:
            chosen.setdefault(block + 1, []).append(head)
        for factor in FACTORS:
            found.append(Remedy("heads", f"{count} heads x {factor:g}", edits=_steered(chosen, factor)))
    return found


def _steered(chosen: dict[int, list[int]], factor: float) -> Edits:
    def edits(prefill: Prefill) -> list[Edit]:
        bias = float(np.log(factor))
        return [Attend([b], prefill.answer, prefill.audio, bias, heads) for b, heads in chosen.items()]

    return edits


def direction_remedies(directions: Tensor) -> list[Remedy]:
    """A direction, (layers + 1, width), is added at the answer position of a middle or late layer."""
    blocks = len(directions) - 1
    layers = sorted({max(1, round(blocks * share)) for share in (1 / 3, 1 / 2, 2 / 3)})

    def at(layer: int, strength: float) -> Edits:
        return lambda prefill: [Add(layer, prefill.answer, strength * directions[layer])]

    return [
        Remedy("direction", f"layer {layer} x {strength:g}", edits=at(layer, strength))
        for layer in layers
        for strength in STRENGTHS
    ]


def audio_direction(trials: Sequence[Trial], states: States) -> Tensor:
    """Mean state of the answer position where only the audio counts, less that where T is told of the same
    clips, (layers + 1, width): what the telling takes away."""
    conflict = [i for i, t in enumerate(trials) if t.condition == "conflict"]
    clips = {trials[i].clip.id for i in conflict}
    audio = [i for i, t in enumerate(trials) if t.condition == "audio" and t.clip.id in clips]
    return states.answer[:, audio].mean(1) - states.answer[:, conflict].mean(1)


# ---- trying them


def try_remedy(
    study: Study, remedy: Remedy | None, trials: Sequence[Trial], rows: Store, name: str
) -> list[str]:
    """What is answered to each trial with the remedy (None: as it is); rows {"scores"} by name and trial."""
    asked = [t if remedy is None else remedy.trial(t) for t in trials]
    study.listen(t.clip for t in asked)
    by_key = {f"{name}|{t.key}": t for t in asked}

    def compute(keys: Sequence[str]) -> Row:
        prefill = study.prefill([by_key[k] for k in keys])
        edits = remedy.edits(prefill) if remedy is not None and remedy.edits else []
        found = study.answer(prefill, edits).tolist()
        return {k: {"scores": s} for k, s in zip(keys, found, strict=True)}

    batches = [[f"{name}|{t.key}" for t in batch] for batch in study.batches(asked)]
    ALONE.share_out(rows, batches, compute, name)
    return [said(study.emotions, rows[f"{name}|{t.key}"]["scores"]) for t in asked]


def follows(trials: Sequence[Trial], answers: Sequence[str]) -> Floats:
    """1 where the answer is the voice's emotion, (trials,)."""
    won = [winner(t, a) == "audio" for t, a in zip(trials, answers, strict=True)]
    return np.array(won, dtype=np.float64)


@torch.no_grad()
def divergence(study: Study, remedy: Remedy, trials: Sequence[Trial]) -> float:
    """Mean KL of the next token's distribution after the model's own question, without the remedy from with
    it, in nats: the price on other answers. 0 for prompts, which change no other question."""
    if remedy.edits is None:
        return 0.0
    parts = []
    clips = {t.clip.id: t for t in trials}
    for batch in study.batches(list(clips.values())):
        heard = [study.heard[t.clip.id] for t in batch]
        prefill = study.model.prefill(heard, [Question()] * len(batch))
        plain = study.model.run(prefill).logits.log_softmax(-1)
        moved = study.model.run(prefill, remedy.edits(prefill)).logits.log_softmax(-1)
        parts.append((plain.exp() * (plain - moved)).sum(-1).cpu())
    return float(torch.cat(parts).mean())


def find_remedies(
    study: Study,
    kinds: dict[str, list[Remedy]],
    choose: Sequence[Trial],
    measure: Sequence[Trial],
    rows: Store,
) -> Row:
    """Choose the best remedy of each kind on some trials, measure it on those of other speakers.

    Args:
        choose, measure: trials of all conditions; conflicts are what counts, the audio-only and consistent
            ones the price.

    Returns:
        {"before": {part: interval}, "kinds": {kind: {"candidates": {name: share on the choosing speakers},
        "best", "after": {part: interval}, "gain": {part: difference}, "divergence"}}, "choosing", "measured":
        numbers of speakers, "note"}; parts are "conflict", "audio" and "consistent".
    """
    on = [t for t in choose if t.condition == "conflict"]
    parts = {c: [t for t in measure if t.condition == c] for c in ("conflict", "audio", "consistent")}
    parts = {name: part for name, part in parts.items() if part}
    clusters = {name: clusters_of([t.clip for t in part]) for name, part in parts.items()}
    right = {n: follows(part, try_remedy(study, None, part, rows, "as it is")) for n, part in parts.items()}
    base = follows(on, try_remedy(study, None, on, rows, "as it is"))
    found: Row = {
        "choosing": clusters_of([t.clip for t in on]).speakers,
        "measured": clusters["conflict"].speakers,
        "note": clusters["conflict"].note,
        "choosing before": float(base.mean()),
        "before": {n: intervals({"right": mean(v)}, clusters[n])["right"] for n, v in right.items()},
        "kinds": {},
    }
    for kind, candidates in kinds.items():
        shares = {
            r.name: float(follows(on, try_remedy(study, r, on, rows, r.name)).mean()) for r in candidates
        }
        best = max(candidates, key=lambda r: shares[r.name])
        after, gains = {}, {}
        for name, part in parts.items():
            moved = mean(follows(part, try_remedy(study, best, part, rows, best.name)))
            after[name] = intervals({"right": moved}, clusters[name])["right"]
            gap = paired_differences({"right": mean(right[name])}, {"right": moved}, clusters[name])
            gains[name] = gap["right"]
        found["kinds"][kind] = {
            "candidates": shares,
            "best": best.name,
            "after": after,
            "gain": gains,
            "divergence": divergence(study, best, parts["conflict"]),
        }
    correct({(k, n): cell for k, part in found["kinds"].items() for n, cell in part["gain"].items()})
    return found

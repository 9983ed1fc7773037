"""The offline judge: captions marked against references, measured audio and a small language model.

Deterministic: the same items, data files, language model and precision give the same verdicts, up to the
rounding of bfloat16 in `fluent` where other captions share the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from aligncap.data.manifest import read_manifest
from aligncap.inference.fluency import log_probs
from aligncap.models.hub import DEFAULT_LLM
from aligncap.models.precision import best_dtype
from aligncap.preferences.verdicts import Item, Verdict
from aligncap.text import rubric
from aligncap.utils.distributed import ALONE, Group, Store

NAME = "rubric"


def judge_rubric(
    items: Sequence[Item],
    *,
    fluency_model: str | None = DEFAULT_LLM,
    device: str | None = None,
    batch_tokens: int = 4096,
    store: Store | None = None,
    group: Group = ALONE,
) -> list[Verdict]:
    """One verdict an item, in order.

    A reference is judged by the clip's other references (`Item.references`), so none vouches for itself.
    `acoustics` is left out where the clip has no measured cues, `emotion` where neither label nor
    references tell it.

    Args:
        items: what to judge; labels that their manifests tell apart are read from those.
        fluency_model: text LLM whose log-probabilities make up `fluent`; None for rules alone, which needs
            no model and takes a quarter of a millisecond a caption.
        device: where the LLM runs; the GPU where there is one by default.
        batch_tokens: tokens a batch of the LLM.
        store, group: of the LLM's work, see `log_probs`; all processes return the same.

    Raises:
        UserError: no such model, or an item's manifest is gone.
    """
    captions = [item.caption for item in items]
    fluency: Sequence[float | None] = [None] * len(items)
    if fluency_model is not None and items:
        fluency = log_probs(
            captions, fluency_model, device=device, batch_tokens=batch_tokens, store=store, group=group
        )
    by = f"{fluency_model} in {best_dtype(device)}" if fluency_model else "rules"
    version = f"{rubric.version()}, fluency by {by}"
    verdicts = []
    for item, value in zip(items, fluency, strict=True):
        evidence = rubric.evidence_of(
            item.utterance, item.relative, _labels(item.manifest), references=item.references
        )
        marks = rubric.score(item.caption, evidence, value)
        verdicts.append(
            Verdict(dict(marks.scores), marks.overall, marks.reason, NAME, version, rubric.data_hash())
        )
    return verdicts


@lru_cache(maxsize=8)
def _labels(manifest: Path) -> frozenset[str]:
    """Emotions that a manifest tells apart."""
    return frozenset(u.emotion for u in read_manifest(manifest) if u.emotion)

"""The offline judge: captions marked against references, measured audio and a small language model.

Deterministic: the same items, data files, language model and precision give the same verdicts, up to the
rounding of bfloat16 in `fluent` where other captions share the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from aligncap.inference.fluency import log_probs
from aligncap.models.precision import best_dtype
from aligncap.preferences.judges import Item, Verdict
from aligncap.text import rubric
from aligncap.utils.distributed import ALONE, Group, Store


def judge_rubric(
    items: Sequence[Item],
    fluency_model: str | None,
    *,
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
        fluency_model: text LLM whose log-probabilities make up `fluent`; None for rules alone, which needs
            no model and takes a quarter of a millisecond a caption.
        device: where the LLM runs; the GPU where there is one by default.
        batch_tokens: tokens a batch of the LLM.
        store, group: of the LLM's work, see `log_probs`; all processes return the same.

    Raises:
        UserError: no such model.
    """
    fluency: Sequence[float | None] = [None] * len(items)
    version = f"{rubric.version()}, fluency by rules"
    if fluency_model is not None and items:
        captions = [item.caption for item in items]
        fluency = log_probs(
            captions, fluency_model, device=device, batch_tokens=batch_tokens, store=store, group=group
        )
        version = f"{rubric.version()}, fluency by {fluency_model} in {best_dtype(device)}"
    verdicts = []
    for item, value in zip(items, fluency, strict=True):
        known = rubric.evidence_of(item.utterance, item.relative, item.labels, references=item.references)
        marks = rubric.score(item.caption, known, value)
        scores = dict(marks.scores)
        verdicts.append(Verdict(scores, marks.overall, marks.reason, "rubric", version, rubric.data_hash()))
    return verdicts

"""SECap's protocol: several sampled captions a clip, the odd ones out dropped, the others scored one by one.

Xu et al. (AAAI 2024) sample eight captions of each clip, drop the three that are least similar, and average
the scores of the five that remain. What is dropped here depends on the captions alone, not on the references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aligncap.data.manifest import Utterance
from aligncap.evaluation.evaluate import evaluate_captions
from aligncap.evaluation.metrics.ngram import common_subsequence, tokenize
from aligncap.evaluation.metrics.similarity import REMEDY, foreign, require_encoder
from aligncap.evaluation.systems import pooled
from aligncap.utils.errors import UserError, UserErrors

Alike = Literal["encoder", "words"]
Matrix = Callable[[Sequence[str]], NDArray[np.float64]]

SAMPLES, DROPPED = 8, 3  # as in the paper


def secap_scores(
    rows: Sequence[Mapping[str, Any]],
    references: Sequence[Utterance],
    *,
    similarity: Alike = "encoder",
    samples: int = SAMPLES,
    dropped: int = DROPPED,
    **options: Any,
) -> dict[str, Any]:
    """Scores of `aligncap candidates` output by SECap's protocol.

    Each kept sample of every clip makes one set of captions (the first kept ones, the second, …), which is
    scored by `evaluate_captions` with `options`; each score is the mean over these sets.

    Returns:
        {"name": {"value", "low", "high", "spread", "runs"}} as `pooled` gives it, where `spread` is over the
        kept samples, and "signature", of the first set, with "protocol".

    Raises:
        UserErrors: rows without id, candidate or caption, or another number of them than `samples` a clip.
        UserError: the sentence encoder is asked for and not to be had; or as `evaluate_captions`.
    """
    runs = secap_runs(rows, similarity=similarity, samples=samples, dropped=dropped)
    results = [evaluate_captions(run, references, **options) for run in runs]
    scores: dict[str, Any] = {**pooled(results)}
    scores["signature"] = {**results[0]["signature"], "protocol": protocol(similarity, samples, dropped)}
    return scores


def secap_runs(
    rows: Sequence[Mapping[str, Any]],
    *,
    similarity: Alike = "encoder",
    samples: int = SAMPLES,
    dropped: int = DROPPED,
) -> list[list[dict[str, Any]]]:
    """The kept captions as `samples` - `dropped` caption files: run r holds the r-th kept one of each clip.

    Similarity of two captions is the cosine by the sentence encoder, or with "words" the share of words that
    they have in common order, 2 · LCS / (both lengths); that of a caption is its mean to the clip's others.
    Kept captions stay in the order they were sampled in; of two equally alike the earlier one is kept.

    Raises:
        UserErrors, UserError: as `secap_scores`.
    """
    if not 0 <= dropped < samples:
        raise UserError(f"of {samples} samples {dropped} cannot be dropped; drop 0 to {samples - 1}")
    clips = _by_clip(rows, samples)
    alike = _measure(similarity, [str(row["caption"]) for group in clips for row in group])
    runs: list[list[dict[str, Any]]] = [[] for _ in range(samples - dropped)]
    for group in clips:
        texts = [str(row["caption"]) for row in group]
        for run, place in zip(runs, kept(alike(texts), dropped), strict=True):
            run.append(dict(group[place]))
    return runs


def kept(alike: NDArray[np.float64], dropped: int) -> list[int]:
    """Places of the captions that stay, in order; `alike` is their similarity (captions, captions).

    All are judged against all others once, before any is dropped.
    """
    others = alike.sum(axis=1) - np.diag(alike)
    # rounded: equal captions must tie, whatever the order of their sums
    order = np.argsort(-np.round(others, 9), kind="stable")
    return sorted(order[: len(order) - dropped].tolist())


def protocol(similarity: Alike, samples: int = SAMPLES, dropped: int = DROPPED) -> str:
    """The protocol in words, for a signature or the note of a system."""
    by = require_encoder().name if similarity == "encoder" else "words in common order"
    return (
        f"SECap's: {samples} sampled captions a clip, the {dropped} least similar to the others dropped "
        f"(by {by}), mean over the {samples - dropped} kept; ± is over them"
    )


def _by_clip(rows: Sequence[Mapping[str, Any]], samples: int) -> list[list[Mapping[str, Any]]]:
    errors: list[str] = []
    clips: dict[str, dict[int, Mapping[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        name, place, caption = row.get("id"), row.get("candidate"), row.get("caption")
        if not isinstance(name, str) or not isinstance(place, int) or not isinstance(caption, str):
            errors.append(
                f'row {number}: no "id", "candidate" and "caption"; give what `aligncap candidates` wrote'
            )
        elif place in clips.setdefault(name, {}):
            errors.append(f"row {number}: candidate {place} of {name!r} was there before; keep one")
        else:
            clips[name][place] = row
    errors += [
        f"id {name!r}: {len(group)} candidates, not {samples}; run `aligncap candidates --num {samples}`"
        for name, group in clips.items()
        if len(group) != samples
    ]
    if errors:
        raise UserErrors(errors)
    return [[group[place] for place in sorted(group)] for group in clips.values()]


def _measure(similarity: Alike, texts: Sequence[str]) -> Matrix:
    if similarity == "words":
        return _words_alike
    if similarity != "encoder":
        raise UserError(f"similarity is {similarity!r}; choose among encoder, words")
    instead = "or compare by words (--protocol secap-words)"
    if foreign(texts):
        raise UserError(
            f"the sentence encoder reads English only, and there are captions in another script; {instead}"
        )
    try:
        encoder = require_encoder()
    except UserError as error:
        raise UserError(
            f"SECap's protocol compares captions by a sentence encoder: {REMEDY}, {instead}"
        ) from error
    encoder.encode(texts)  # all at once: it remembers them

    def cosine(group: Sequence[str]) -> NDArray[np.float64]:
        vectors = encoder.encode(group).astype(np.float64)
        result: NDArray[np.float64] = vectors @ vectors.T
        return result

    return cosine


def _words_alike(texts: Sequence[str]) -> NDArray[np.float64]:
    words = [tokenize(text) for text in texts]
    result = np.eye(len(words))
    for i, one in enumerate(words):
        for j, other in enumerate(words[:i]):
            length = len(one) + len(other)
            result[i, j] = result[j, i] = 2 * common_subsequence(one, other) / length if length else 1.0
    return result

"""How close in meaning captions are, by a sentence encoder that runs offline; and SECap's protocol.

SECap (Xu et al., AAAI 2024) samples eight captions of each clip, drops the three that are least similar to
the others, and averages the scores of the five that remain. What is dropped depends on the captions alone,
not on the references.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from aligncap.evaluation.metrics.ngram import common_subsequence
from aligncap.evaluation.metrics.tokens import tokenize
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, cache_folder
from aligncap.utils.statistics import Floats

Choice = Literal["auto", "require", "none"]
Alike = Literal["encoder", "words"]
Encode = Callable[[Sequence[str]], NDArray[np.float32]]

ENCODER = "all-minilm-l6-v2"  # of data/models.yaml
REMEDY = f"run `aligncap models fetch {ENCODER}`"
_BATCH = 64
_LONGEST = 256  # tokens; what the encoder was trained with
_LATIN = 0x24F  # last letter of Latin Extended-B
SAMPLES, DROPPED = 8, 3  # of SECap's paper


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder; `encode` gives unit vectors (texts, size) and remembers texts of this process."""

    name: str
    encode: Encode


def find_encoder() -> Encoder | None:
    """The sentence encoder, or None where it was not fetched."""
    from aligncap.models.hub import defaults, is_ready

    known = ENCODER in defaults() and is_ready(ENCODER)
    return load_encoder(cache_folder() / ENCODER) if known else None


@cache
def load_encoder(folder: Path) -> Encoder:
    """A BERT-like encoder of a local folder, with the mean over its tokens as the sentence's vector.

    That is the pooling all-MiniLM-L6-v2 was trained with (Reimers & Gurevych 2019; Wang et al. 2020). The
    name of the encoder is the folder's, with the package that it came from.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from aligncap.models.hub import load_pretrained

    tokenizer = load_pretrained(AutoTokenizer, folder, local_files_only=True)
    model: Any = load_pretrained(AutoModel, folder, local_files_only=True, dtype=torch.float32).eval()
    known: dict[str, NDArray[np.float32]] = {}

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        # alike in length side by side, for little padding
        new = sorted({text for text in texts if text not in known}, key=len)
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")
            with torch.inference_mode():
                states = model(**inputs).last_hidden_state
                mask = inputs["attention_mask"].unsqueeze(-1)
                vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
            known.update(zip(batch, vectors.numpy(), strict=True))
        return np.stack([known[text] for text in texts])

    source = folder / "source.json"
    packages = json.loads(source.read_text(encoding="utf-8"))["packages"] if source.is_file() else []
    wheels = " + ".join(f"{p['package']}=={p['version']}" for p in packages)
    return Encoder(f"{folder.name} of {wheels}" if wheels else folder.name, encode)


def sentence_encoder(choice: Choice, texts: Sequence[str]) -> Encoder | str:
    """The encoder for these texts, or in words why there is none.

    Raises:
        UserError: `choice` is "require", and there is none.
    """
    if choice == "none":
        return "not asked for"
    reason = f"no sentence encoder on this machine; {REMEDY}"
    if foreign(texts):
        reason = f"texts in another script than {ENCODER} reads, which is English"
    elif encoder := find_encoder():
        return encoder
    if choice == "require":
        raise UserError(f"similarity is required, but not to be had: {reason}")
    return reason


def foreign(texts: Sequence[str]) -> bool:
    """Whether there are letters beyond Latin, which the encoder knows singly and without their meaning."""
    return any(char.isalpha() and ord(char) > _LATIN for text in texts for char in text)


def cosines(captions: Sequence[str], references: Sequence[Sequence[str]], encoder: Encoder) -> Floats:
    """Cosine of each caption with its references, the mean over them (clips,), -1 to 1.

    The mean, not the best: it depends less on which wordings the references happen to have (as in FENSE, Zhou
    et al. 2022). An empty caption scores 0.
    """
    flat = [text for texts in references for text in texts]
    clip_of = np.repeat(np.arange(len(references)), [len(texts) for texts in references])
    vectors = encoder.encode([*captions, *flat]).astype(np.float64)
    said, targets = vectors[: len(captions)], vectors[len(captions) :]
    products = (said[clip_of] * targets).sum(axis=1)
    scores: Floats = np.bincount(clip_of, products, len(captions)) / np.bincount(clip_of)
    scores[[not caption.strip() for caption in captions]] = 0.0
    return scores


def secap_runs(
    rows: Sequence[Row], *, similarity: Alike, samples: int = SAMPLES, dropped: int = DROPPED
) -> list[list[Row]]:
    """What `aligncap candidates` wrote as `samples` - `dropped` lists of captions, by SECap's protocol.

    List r holds the r-th kept caption of each clip. Similarity of two captions is the cosine by the sentence
    encoder, or with "words" the share of words that they have in common order, 2 · LCS / (both lengths); that
    of a caption is its mean to the clip's others. Kept captions stay in the order they were sampled in; of
    two equally alike the earlier one is kept.

    Raises:
        UserErrors: rows without id, candidate or caption, or another number of them than `samples` a clip.
        UserError: the sentence encoder is asked for and not to be had.
    """
    if not 0 <= dropped < samples:
        raise UserError(f"of {samples} samples {dropped} cannot be dropped; drop 0 to {samples - 1}")
    if similarity not in get_args(Alike):
        raise UserError(f"similarity is {similarity!r}; choose among {', '.join(get_args(Alike))}")
    clips = _by_clip(rows, samples)
    encoder: Encoder | None = None
    if similarity == "encoder":
        texts = [str(row["caption"]) for row in rows]
        found = sentence_encoder("auto", texts)
        if isinstance(found, str):
            raise UserError(
                f"SECap's protocol compares captions by a sentence encoder: {found}; or compare by words "
                "(protocol secap-words)"
            )
        encoder = found
        encoder.encode(texts)  # all at once: it remembers them
    runs: list[list[Row]] = [[] for _ in range(samples - dropped)]
    for group in clips:
        texts = [str(row["caption"]) for row in group]
        if encoder is None:
            alike = _words_alike(texts)
        else:
            vectors = encoder.encode(texts).astype(np.float64)
            alike = vectors @ vectors.T
        for run, place in zip(runs, kept(alike, dropped), strict=True):
            run.append(dict(group[place]))
    return runs


def kept(alike: Floats, dropped: int) -> list[int]:
    """Places of the captions that stay, in order; `alike` is their similarity (captions, captions).

    All are judged against all others once, before any is dropped.
    """
    others = alike.sum(axis=1) - np.diag(alike)
    # rounded: equal captions must tie, whatever the order of their sums
    order = np.argsort(-np.round(others, 9), kind="stable")
    return sorted(order[: len(order) - dropped].tolist())


def secap_note(similarity: Alike) -> str:
    """The protocol in words, for the note of a system."""
    encoder = find_encoder() if similarity == "encoder" else None
    by = encoder.name if encoder else "words in common order"
    return (
        f"SECap's: {SAMPLES} sampled captions a clip, the {DROPPED} least similar to the others dropped "
        f"(by {by}), mean over the {SAMPLES - DROPPED} kept; ± is over them"
    )


def _by_clip(rows: Sequence[Row], samples: int) -> list[list[Row]]:
    errors: list[str] = []
    clips: dict[str, dict[int, Row]] = {}
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


def _words_alike(texts: Sequence[str]) -> NDArray[np.float64]:
    words = [tokenize(text) for text in texts]
    result = np.eye(len(words))
    for i, one in enumerate(words):
        for j, other in enumerate(words[:i]):
            length = len(one) + len(other)
            result[i, j] = result[j, i] = 2 * common_subsequence(one, other) / length if length else 1.0
    return result

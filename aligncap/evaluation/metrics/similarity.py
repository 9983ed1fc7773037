"""How close in meaning a caption is to its references, by a sentence encoder that runs offline."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aligncap.utils.errors import UserError

Floats = NDArray[np.float64]
Choice = Literal["auto", "require", "none"]
Encode = Callable[[Sequence[str]], NDArray[np.float32]]

ENCODER = "all-minilm-l6-v2"  # of data/models.yaml
REMEDY = f"run `aligncap models fetch {ENCODER}`"
_BATCH = 64
_LONGEST = 256  # tokens; what the encoder was trained with
_LATIN = 0x24F  # last letter of Latin Extended-B


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder; `encode` gives unit vectors (texts, size) and remembers texts of this process."""

    name: str
    encode: Encode


def find_encoder() -> Encoder | None:
    """The sentence encoder, or None where it was not fetched."""
    home = os.environ.get("ALIGNCAP_HOME")
    folder = (Path(home).expanduser() if home else Path.home() / ".cache" / "aligncap") / "models" / ENCODER
    if not folder.is_dir():  # asked first, since the models' room takes seconds to import
        return None
    from aligncap.models.hub import defaults, is_ready

    return load_encoder(folder) if ENCODER in defaults() and is_ready(ENCODER) else None


def require_encoder() -> Encoder:
    """The sentence encoder.

    Raises:
        UserError: it was not fetched; the message says how.
    """
    encoder = find_encoder()
    if encoder is None:
        raise UserError(f"the sentence encoder {ENCODER} is not on this machine: {REMEDY}, or do without")
    return encoder


@cache
def load_encoder(folder: Path) -> Encoder:
    """A BERT-like encoder of a local folder, with the mean over its tokens as the sentence's vector.

    That is the pooling all-MiniLM-L6-v2 was trained with (Reimers & Gurevych 2019; Wang et al. 2020). The
    name of the encoder is the folder's, with the package that it came from.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
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


def sentence_encoder(
    choice: Choice, captions: Sequence[str], references: Sequence[Sequence[str]]
) -> Encoder | str:
    """The encoder for these texts, or in words why there is none.

    Raises:
        UserError: `choice` is "require", and there is none.
    """
    if choice == "none":
        return "not asked for"
    if choice == "require":
        require_encoder()
    if foreign(captions) or any(map(foreign, references)):
        reason = f"texts in another script than {ENCODER} reads, which is English"
        if choice == "require":
            raise UserError(f"similarity is required, but there are {reason}")
        return reason
    return find_encoder() or f"no sentence encoder on this machine; {REMEDY}"


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

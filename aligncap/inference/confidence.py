"""How sure a caption is of the emotion that it names, from the caption's own distribution.

Where it is named, the model has weighed its word against those of all others. A word's mass is that of its
first token; a token that begins words of several emotions belongs to none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aligncap.models.checkpoints import CALIBRATION
from aligncap.models.model_card import read_record
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.text.emotions import emotion_of, emotion_words, english_forms, labels
from aligncap.text.prompts import Language, templates
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row


class Named(NamedTuple):
    """A caption's emotion, how likely it is, and every other; None: its words' tokens belong to no label."""

    emotion: str
    confidence: float | None
    probabilities: dict[str, float] | None


@dataclass(frozen=True)
class Calibration:
    """What makes probabilities of masses: softmax of (log mass - log prior) / temperature.

    `prior` is the share of each of `text.emotions.labels` when there is nothing to hear; empty: all alike.

    Raises:
        UserError: a number is out of its range, or labels are missing or unknown.
    """

    temperature: float = 1.0
    prior: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = self.prior.values() if isinstance(self.prior, Mapping) else [0]
        numbers = (self.temperature, *shares)
        if not all(isinstance(x, (int, float)) and x is not True and 0 < x < math.inf for x in numbers):
            raise UserError("calibration: temperature and every prior must be finite numbers above 0")
        if self.prior and (wrong := {*self.prior} ^ {*labels()}):
            raise UserError(f"calibration: prior of labels missing or unknown: {', '.join(sorted(wrong))}")

    @classmethod
    def read(cls, folder: str | Path) -> Calibration:
        """That of a model's folder; without the file the default, which changes nothing.

        Raises:
            UserError: the file is damaged or of other labels.
        """
        path = Path(folder) / CALIBRATION
        if not path.exists():
            return cls()
        found, remedy = read_record(path), "run `aligncap calibrate` again or delete the file"
        if not {"temperature", "prior"} <= {*found}:
            raise UserError(f'{path}: "temperature" and "prior" are needed; {remedy}')
        try:
            return cls(found["temperature"], found["prior"])
        except UserError as error:
            raise UserError(f"{path}: {error}; {remedy}") from error

    def probabilities(self, masses: np.ndarray, own: Sequence[str]) -> np.ndarray:
        """(…, labels) log-masses of the labels `own`, to probabilities of the same shape."""
        prior = np.log([self.prior.get(label, 1.0) for label in own])
        scores = (np.asarray(masses, dtype=np.float64) - prior) / self.temperature
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)


def spellings(tokenizer: PreTrainedTokenizerBase, words: Collection[str]) -> list[list[list[int]]]:
    """Token ids of each word as a caption may have it: with and without space, capitalised and not."""
    texts = [start + form for word in words for form in (word, word.capitalize()) for start in (" ", "")]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [ids[place : place + 4] for place in range(0, len(ids), 4)]


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Tokens that begin words of one label alone, by label, in any of their `spellings`."""
    begun: dict[int, set[str]] = {}
    forms = english_forms()
    for rows, label in zip(spellings(tokenizer, forms), forms.values(), strict=True):
        for row in rows:
            begun.setdefault(row[0], set()).add(label)
    return {label: [token for token, own in begun.items() if own == {label}] for label in labels()}


def log_masses(logits: Tensor, tokens: Mapping[str, list[int]]) -> np.ndarray:
    """`masses` as an array."""
    return masses(logits, tokens).cpu().numpy()


def masses(logits: Tensor, tokens: Mapping[str, list[int]]) -> Tensor:
    """Log-mass of each label up to a constant, (…, labels), of next-token logits (…, vocabulary).

    Args:
        tokens: of each label, as `first_tokens` gives them.
    """
    most = max(1, *map(len, tokens.values()))
    ids = torch.tensor([own + [-1] * (most - len(own)) for own in tokens.values()], device=logits.device)
    found = logits[..., ids.clamp(min=0).flatten()].float().unflatten(-1, ids.shape)
    return found.masked_fill(ids < 0, -math.inf).logsumexp(-1)


def named_emotions(
    model: AlignCapForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    tokens: Tensor,
    own: Mapping[str, list[int]],
    tokenizer: PreTrainedTokenizerBase,
    calibration: Calibration,
) -> list[Named | None]:
    """`named_emotion` of each caption of a batch, by one pass over prompts and captions.

    Args:
        inputs: what the captions were made of; tokens: (clips, steps), of the captions.
        own: the labels that captions may name, with the tokens of `first_tokens`.
    """
    mask = inputs["attention_mask"]
    whole = {
        "input_ids": torch.cat([inputs["input_ids"], tokens], 1),
        "attention_mask": torch.cat([mask, mask.new_ones(tokens.shape)], 1),
    }
    logits = model(**{**inputs, **whole}, logits_to_keep=tokens.shape[1] + 1).logits[:, :-1]
    masses = log_masses(logits, own)
    return [
        named_emotion(t, m, own, tokenizer, calibration) for t, m in zip(tokens.tolist(), masses, strict=True)
    ]


def named_emotion(
    tokens: list[int],
    masses: np.ndarray,
    own: Mapping[str, list[int]],
    tokenizer: PreTrainedTokenizerBase,
    calibration: Calibration,
) -> Named | None:
    """The emotion that a caption names, and how sure it is where it names it; None: it names none.

    Args:
        tokens: of the caption; masses: (steps, labels), `log_masses` where each token was chosen.
        own: the labels that captions may name, with the tokens of `first_tokens`.
    """
    begun = [tokens[:end] for end in range(1, len(tokens) + 1)]
    texts = [" ".join(t.split()) for t in tokenizer.batch_decode(begun, skip_special_tokens=True)]
    emotion = emotion_of(texts[-1])
    if emotion is None:
        return None
    for mention in emotion_words(texts[-1]):
        step = next(i for i, text in enumerate(texts) if len(text) > mention.start)
        first = own.get(emotion, []) if mention.label == emotion and not mention.negated else []
        if tokens[step] in first:
            shares = calibration.probabilities(masses[step], list(own)).tolist()
            found = dict(zip(own, shares, strict=True))
            return Named(emotion, found[emotion], found)
    return Named(emotion, None, None)


def confidence_row(
    caption: str, named: Named | None = None, least: float | None = None, language: Language = "en"
) -> Row:
    """What a caption's row says: "caption", "emotion" and "confidence", None each where there is none.

    Below `least` the caption leaves the emotion open, "unsure" is true, and "guess" is what was said.
    """
    row: Row = {"caption": caption, "emotion": None, "confidence": None}
    if named is not None:
        row |= {"emotion": named.emotion, "confidence": named.confidence}
        if least is not None and (named.confidence is None or named.confidence < least):
            row |= {"caption": templates(language)["unsure"], "unsure": True, "guess": caption}
    return row

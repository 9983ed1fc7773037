"""Asking a speech model: answers, greedy or sampled, with the first step's log-probabilities of labels.

`Subject` is all that the diagnosis needs of a model, so that tests can put one in its place whose faults are
known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from aligncap.lab.families import AlignCapSpeech
from aligncap.lab.label_words import label_logits, label_tokens
from aligncap.lab.models import Prefill, Question, SpeechModel
from aligncap.models.encoders import FeatureExtractor
from aligncap.text.prompts import Language, end_token_id
from aligncap.utils.statistics import Floats


@dataclass(frozen=True)
class Asked:
    """One question to a batch of clips.

    questions: of each clip. None: the model's own; "": none at all. new_tokens: of an answer at most.
    samples: drawn answers a clip, at temperature 1, beside the greedy one. begun: how the answer begins.
    """

    questions: Sequence[str | None]
    new_tokens: int
    samples: int = 0
    begun: str = ""


@dataclass(frozen=True)
class Reply:
    """What a model said of one clip: greedily, in samples, and its log-probability of each label's words at
    the first step, (labels,), natural logarithm over the whole vocabulary."""

    said: str
    samples: list[str]
    scores: Floats


class Subject(Protocol):
    """A model that is diagnosed for certain labels."""

    labels: list[str]

    @property
    def max_seconds(self) -> float: ...

    @property
    def language(self) -> Language:
        """In which the model describes a voice by itself."""
        ...

    def ask(self, clips: Sequence[np.ndarray], asked: Sequence[Asked]) -> list[list[Reply]]:
        """Of each clip (samples at 16 kHz) the reply to each question, [clip][question].

        Raises:
            UserError: the model's prompt has no place for another question than its own.
        """
        ...

    def features(self) -> tuple[FeatureExtractor, int | None, int | None]:
        """Feature extractor; the mel bins and positions that the encoder takes (None: not known)."""
        ...

    def with_hop(self, share: float) -> AbstractContextManager[None] | None:
        """A context in which mel frames are `share` of the usual time apart; None where that cannot be."""
        ...


class SpeechSubject:
    """A `SpeechModel` as a subject.

    Raises:
        UserError: the tokenizer cannot tell a label by the first token of its words.
    """

    def __init__(self, model: SpeechModel, labels: Sequence[str], seed: int = 0) -> None:
        self.model = model
        self.labels = list(labels)
        self.tokens = label_tokens(model.tokenizer, self.labels)
        self.seed = seed

    @property
    def max_seconds(self) -> float:
        return self.model.max_seconds

    @property
    def language(self) -> Language:
        return self.model.processor.language if isinstance(self.model, AlignCapSpeech) else "en"

    @torch.no_grad()
    def ask(self, clips: Sequence[np.ndarray], asked: Sequence[Asked]) -> list[list[Reply]]:
        heard = self.model.listen(clips)
        columns = []
        for one in asked:
            questions = [Question(question, begun=one.begun) for question in one.questions]
            prefill = self.model.prefill(heard, questions)
            said, logits = self._generate(prefill, one.new_tokens)
            drawn: list[list[str]] = [[] for _ in clips]
            if one.samples:
                texts, _ = self._generate(prefill, one.new_tokens, one.samples)
                drawn = [texts[i * one.samples : (i + 1) * one.samples] for i in range(len(clips))]
            scores = label_logits(logits.log_softmax(-1), self.tokens)
            rows = np.asarray(scores, dtype=np.float64)
            columns.append([Reply(*row) for row in zip(said, drawn, rows, strict=True)])
        return [list(row) for row in zip(*columns, strict=True)]

    def _generate(self, prefill: Prefill, new_tokens: int, samples: int = 0) -> tuple[list[str], Tensor]:
        """Answers and the first step's logits, float32; with `samples`, so many drawn answers a clip."""
        tokenizer = self.model.tokenizer
        ends = {end_token_id(tokenizer), tokenizer.eos_token_id} - {None}
        pad = tokenizer.pad_token_id
        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        if samples:
            torch.manual_seed(self.seed)
        out = self.model.model.generate(
            inputs_embeds=prefill.embeddings,
            attention_mask=prefill.mask.long(),
            max_new_tokens=new_tokens,
            num_beams=1,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.eos_token_id if pad is None else pad,
            return_dict_in_generate=True,
            output_logits=True,
            **(drawn | {"num_return_sequences": samples} if samples else {"do_sample": False}),
        )
        texts = tokenizer.batch_decode(out.sequences, skip_special_tokens=True)
        logits = out.logits[0].float()
        if self.model.audio_from is not None:  # placeholders are no words
            logits[..., self.model.audio_from :] = torch.finfo(logits.dtype).min
        return [" ".join(text.split()) for text in texts], logits

    def features(self) -> tuple[FeatureExtractor, int | None, int | None]:
        model: Any = self.model
        tower = model.model.model.audio_tower.config
        bins, positions = (getattr(tower, name, None) for name in ("num_mel_bins", "max_source_positions"))
        return model.processor.feature_extractor, bins, positions

    def with_hop(self, share: float) -> AbstractContextManager[None] | None:
        fits = isinstance(self.model, AlignCapSpeech) and self.model.processor.family.reads == "log-mel"
        return _hop(self.features()[0], share) if fits else None


@contextmanager
def _hop(extractor: FeatureExtractor, share: float) -> Iterator[None]:
    usual = extractor.hop_length
    extractor.hop_length = round(usual * share)
    try:
        yield
    finally:
        extractor.hop_length = usual

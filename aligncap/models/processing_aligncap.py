"""Turn clips and prompts into model inputs: what the encoder reads, and placeholders expanded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.audio_utils import AudioInput

from aligncap.audio.files import SAMPLE_RATE
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.encoders import FAMILIES, FRAME_SAMPLES, Family, FeatureExtractor
from aligncap.models.projectors import token_count
from aligncap.text.prompts import Language, control_tokens, measured_cues, templates
from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUDIO_TOKEN = "<|audio|>"
SPEAKER_TOKEN = "<|speaker|>"  # where a model with `speakers` is told who speaks
CUES_MARK = "<|cues|>"  # in the prompt, never in a model's input


class AlignCapProcessor(ProcessorMixin):
    """Feature extractor and tokenizer of an AlignCap checkpoint.

    `encoder` is the encoder's model type, `language` that of the captions. `prompt` is the whole text that
    the model was trained to answer, with one audio placeholder in it, and one for the speaker where the model
    has words for it; `show_cues` puts a clip's measured cues into it. The other arguments mirror
    `AlignCapConfig`; they fix how many placeholders a clip takes.
    """

    audio_kwargs = {"sampling_rate": SAMPLE_RATE}
    model_input_names = ["input_ids", "attention_mask", "input_features", "input_features_mask"]
    tokenizer: PreTrainedTokenizerBase
    feature_extractor: FeatureExtractor

    def __init__(
        self,
        feature_extractor: FeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        audio_token: str = AUDIO_TOKEN,
        prompt: str = AUDIO_TOKEN,
        pool_size: int = 16,
        stack_size: int = 4,
        clip_tokens: int = 1,
        show_cues: bool = False,
        margin_seconds: float = 1.0,
        max_seconds: float = 29.0,
        encoder: str = "whisper",
        queries: int = 0,
        language: Language = "en",
    ) -> None:
        self.language = language
        self.queries = queries
        self.encoder = encoder
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        self.prompt = prompt
        self.pool_size = pool_size
        self.stack_size = stack_size
        self.clip_tokens = clip_tokens
        self.show_cues = show_cues
        self.margin_seconds = margin_seconds
        self.max_seconds = max_seconds
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    def num_audio_tokens(self, samples: int) -> int:
        """Placeholders for a clip of `samples` samples at 16 kHz."""
        return self.tokens_of_frames(math.ceil(math.ceil(samples / FRAME_SAMPLES) / self.pool_size))

    def tokens_of_frames(self, pooled_frames: int) -> int:
        """Placeholders for a clip of `pooled_frames` pooled encoder frames."""
        return token_count(pooled_frames, self.stack_size, self.clip_tokens, self.queries)

    @property
    def family(self) -> Family:
        """What the encoder reads."""
        return FAMILIES[self.encoder]

    def features(self, clips: Sequence[np.ndarray]) -> BatchFeature:
        """What the encoder reads of clips of 16 kHz samples, each followed by its own margin of silence.

        Returns:
            input_features: float32, see `encode_frames`;
            input_features_mask: (batch, positions in time), 1 on the clip, 2 on its margin, 0 on padding.

        Raises:
            UserError: a clip is empty or longer than `max_seconds`.
        """
        family = self.family
        margin = round(self.margin_seconds * SAMPLE_RATE / FRAME_SAMPLES)  # in frames
        parts, spans = [], []  # features of each clip, and its own frames
        for index, clip in enumerate(clips):
            clip = np.asarray(clip, dtype=np.float32)
            if clip.ndim != 1 or clip.size == 0:
                raise UserError(f"clip {index}: a non-empty mono array is needed, its shape is {clip.shape}")
            if clip.size > self.max_seconds * SAMPLE_RATE:
                raise UserError(
                    f"clip {index}: {clip.size / SAMPLE_RATE:.1f} s is longer than the model's "
                    f"{self.max_seconds:g} s; cut it into utterances"
                )
            spans.append(math.ceil(clip.size / FRAME_SAMPLES))
            length = (spans[-1] + margin) * FRAME_SAMPLES + family.tail
            if family.reads == "waveform":  # its level is that of the clip without silence
                clip = self.feature_extractor(clip, sampling_rate=SAMPLE_RATE)["input_values"][0]
            parts.append(np.pad(clip, (0, length - clip.size)))
        if family.reads == "waveform":
            features = torch.nn.utils.rnn.pad_sequence(list(map(torch.from_numpy, parts)), batch_first=True)
        else:
            features = self.feature_extractor(
                parts,
                sampling_rate=SAMPLE_RATE,
                padding="longest",
                return_tensors="pt",
                **({"truncation": False} if family.reads == "log-mel" else {}),
            )["input_features"]
        positions = features.shape[1 if family.reads == "filter bank" else -1]
        mask = torch.zeros(len(clips), positions, dtype=torch.long)
        for row, span in enumerate(spans):
            mask[row, : span * family.step] = 1
            mask[row, span * family.step : (span + margin) * family.step] = 2
        return BatchFeature({"input_features": features, "input_features_mask": mask})

    def _process_audio(self, audio: AudioInput, **kwargs: object) -> tuple[BatchFeature, list[str]]:
        """Called by `ProcessorMixin.__call__`: features, and the placeholders of each clip."""
        if kwargs.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
            remedy = "read it with aligncap.audio.files.load_audio"
            raise UserError(f"audio must come at {SAMPLE_RATE} Hz; {remedy}")
        clips = [audio] if isinstance(audio, np.ndarray) and audio.ndim == 1 else list(audio)
        placeholders = [self.audio_token * self.num_audio_tokens(len(clip)) for clip in clips]
        return self.features(clips), placeholders

    def prompt_of(self, cues: str | None = None, instruction: str = "") -> str:
        """The prompt of one clip.

        Args:
            cues: with `show_cues`, what was measured (`text.prompts.measured_cues`); None: not measured.
            instruction: what is asked, in place of the description that the model was trained to give.

        Raises:
            UserError: the instruction holds a control token, or the prompt none that it could replace.
        """
        prompt = self.prompt
        if instruction:
            own = str(templates(self.language)["instruction"])
            if own not in prompt:
                raise UserError(f"the model's prompt does not ask {own!r}, so no other instruction fits it")
            if held := [token for token in control_tokens(self.tokenizer) if token in instruction]:
                raise UserError(f"instruction: {held[0]!r} is a control token of the LLM; take it out")
            prompt = prompt.replace(own, instruction, 1)
        if not self.show_cues:
            return prompt
        return prompt.replace(CUES_MARK, measured_cues(None) if cues is None else cues)

    def captioning_inputs(
        self, clips: Sequence[np.ndarray], cues: Sequence[str | None] | None = None, instruction: str = ""
    ) -> BatchFeature:
        """Inputs of `generate` for clips of 16 kHz samples, left-padded: input_ids and attention_mask (batch,
        length), and what `features` gives; `instruction` is that of all."""
        return self(
            text=[self.prompt_of(c, instruction) for c in cues or [None] * len(clips)],
            audio=list(clips),
            return_tensors="pt",
            text_kwargs={"padding": True, "padding_side": "left", "add_special_tokens": False},
        )


AutoProcessor.register(AlignCapConfig, AlignCapProcessor)

"""The families of speech LLMs that the lab opens: AlignCap's own models and Qwen2-Audio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from aligncap.audio.files import SAMPLE_RATE
from aligncap.inference.captioner import Captioner
from aligncap.lab.models import Clip, Question, SpeechModel
from aligncap.lab.waveform import aligncap_features, padded_log_mel
from aligncap.models.checkpoints import is_adapter
from aligncap.models.hub import load_config, load_pretrained, resolve
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.precision import pick_device
from aligncap.models.processing_aligncap import AUDIO_TOKEN, SPEAKER_TOKEN, AlignCapProcessor
from aligncap.text.lexicon import is_chinese
from aligncap.text.prompts import templates
from aligncap.utils.errors import UserError


class AlignCapSpeech(SpeechModel):
    """AlignCap's own models; each clip is heard alone."""

    def __init__(self, model: AlignCapForConditionalGeneration, processor: AlignCapProcessor) -> None:
        first = model.config.audio_token_id
        super().__init__(model, processor.tokenizer, range(first, first + 2), first)
        self.processor = processor
        self._shows_speaker = SPEAKER_TOKEN in processor.prompt

    @property
    def max_seconds(self) -> float:
        return self.processor.max_seconds

    def _hear(self, clips: Sequence[Clip]) -> list[Tensor]:
        if isinstance(clips[0], Tensor):
            read = aligncap_features([c for c in clips if isinstance(c, Tensor)], self.processor)
        else:
            read = dict(self.processor.features([np.asarray(clip) for clip in clips]))
        pooled = self.model.model.encode_audio(**{name: part.to(self.device) for name, part in read.items()})
        tokens, mask = self.model.model.get_audio_features(pooled)
        return [row[own] for row, own in zip(tokens, mask, strict=True)]

    def _prompt(self, question: Question, count: int) -> tuple[str, str]:
        prompt = self.processor.prompt_of(instruction=question.instruction or "")
        words = templates(self.processor.language)
        if question.instruction == "":
            prompt = prompt.replace(str(words["instruction"]), "", 1)
        told = _quoted(question.transcript)
        if told and self._shows_speaker:  # where the teacher reads it: 'A woman says: "…"'
            line = str(words["speaker"]).format(speaker=SPEAKER_TOKEN)
            prompt = prompt.replace(line, line.rstrip("…") + told, 1)
        elif told:
            line = str(words["speech"]).format(audio=AUDIO_TOKEN)
            prompt = prompt.replace(line, f"{told}\n{line}", 1)
        sound = AUDIO_TOKEN * (count - self._shows_speaker)
        return prompt.replace(AUDIO_TOKEN, sound, 1), told


class Qwen2AudioSpeech(SpeechModel):
    """Models of transformers' Qwen2AudioForConditionalGeneration, asked as its chat template has it."""

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        super().__init__(model, processor.tokenizer, [processor.audio_token_id])
        self.processor = processor
        self.extractor = processor.feature_extractor

    @property
    def max_seconds(self) -> float:
        return float(self.extractor.n_samples / SAMPLE_RATE)

    def _hear(self, clips: Sequence[Clip]) -> list[Tensor]:
        tensors = [torch.as_tensor(clip, dtype=torch.float32) for clip in clips]
        mel, frames = padded_log_mel(tensors, self.extractor)
        if not isinstance(clips[0], Tensor):
            arrays = [np.asarray(clip, dtype=np.float32) for clip in clips]
            options = {"sampling_rate": SAMPLE_RATE, "padding": "max_length", "return_tensors": "pt"}
            mel = self.extractor(arrays, **options)["input_features"]
        tower = self.model.model.audio_tower
        convolved, counts = tower._get_feat_extract_output_lengths(frames)
        # As Qwen2AudioModel.forward: padding is masked in attention and its tokens are left out.
        width = (mel.shape[-1] - 2) // 2 + 1
        seen = torch.arange(width)[None] < convolved[:, None]
        bias = torch.zeros(len(mel), 1, 1, width, dtype=tower.dtype)
        bias = bias.masked_fill(~seen[:, None, None], torch.finfo(tower.dtype).min).expand(-1, -1, width, -1)
        found = tower(mel.to(self.device, tower.dtype), attention_mask=bias.to(self.device))
        tokens = self.model.model.multi_modal_projector(found.last_hidden_state)
        return [row[:count] for row, count in zip(tokens, counts.tolist(), strict=True)]

    def _prompt(self, question: Question, count: int) -> tuple[str, str]:
        told = _quoted(question.transcript)
        chinese = is_chinese(question.instruction or question.transcript or "")
        said = ("说话人说：" if chinese else "The speaker says: ") + told if told else ""
        asked = "\n".join(part for part in (said, question.instruction or "") if part)
        content: list[dict[str, str]] = [{"type": "audio", "audio_url": ""}]
        content += [{"type": "text", "text": asked}] if asked else []
        chat = [{"role": "user", "content": content}]
        text = str(self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        return text.replace(self.processor.audio_token, self.processor.audio_token * count, 1), told


def model_folder(name: str | Path) -> Path:
    """The folder of a run as it is, with its adapter; else what `models.hub.resolve` finds."""
    return Path(name) if is_adapter(name) else resolve(str(name))


def load_speech_model(
    folder: str | Path, device: str = "auto", dtype: Literal["float32", "bfloat16"] = "float32"
) -> SpeechModel:
    """The model of a folder (or hub name): AlignCap's, merged or with its adapter, or a Qwen2-Audio.

    Raises:
        UserError: no such folder or device, or a model of another family.
    """
    path = model_folder(folder)
    if not is_adapter(path):
        known = "the lab takes AlignCap's models and Qwen2-Audio"
        kind = load_config(path, known).model_type
        if kind == "qwen2_audio":
            from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

            load = load_pretrained(Qwen2AudioForConditionalGeneration, path, dtype=getattr(torch, dtype))
            return Qwen2AudioSpeech(load.to(pick_device(device)), load_pretrained(AutoProcessor, path))
        if kind != "aligncap":
            raise UserError(f"{folder}: a model of type {kind!r}; {known}")
    captioner = Captioner.from_pretrained(path, device, dtype, prior="equal")
    return AlignCapSpeech(captioner.model, captioner.processor)


def _quoted(transcript: str | None) -> str:
    return f'"{transcript.strip()}"' if transcript and transcript.strip() else ""

"""From a waveform to what an encoder reads in torch alone, so that gradients come back to the samples.

The numbers are those of the feature extractors, which go through numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aligncap.audio.files import SAMPLE_RATE
from aligncap.models.encoders import FRAME_SAMPLES
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.utils.errors import UserError


def log_mel(samples: Tensor, extractor: Any) -> Tensor:
    """Whisper's log-mel spectrogram (Radford et al. 2022) of padded clips, (batch, samples) at 16 kHz.

    Args:
        extractor: a WhisperFeatureExtractor; only its settings are used.

    Returns:
        (batch, mel bins, samples // hop), each clip floored at 8 (log10) below its own maximum.
    """
    window = torch.hann_window(extractor.n_fft, device=samples.device, dtype=samples.dtype)
    spectrum = torch.stft(samples, extractor.n_fft, extractor.hop_length, window=window, return_complex=True)
    power = torch.view_as_real(spectrum[..., :-1]).square().sum(-1)
    filters = torch.as_tensor(extractor.mel_filters, dtype=samples.dtype, device=samples.device)
    found = (filters.T @ power).clamp(min=1e-10).log10()
    found = torch.maximum(found, found.amax((1, 2), keepdim=True) - 8.0)
    return (found + 4.0) / 4.0


def aligncap_features(clips: Sequence[Tensor], processor: AlignCapProcessor) -> dict[str, Tensor]:
    """As `AlignCapProcessor.features`, of 1-D tensors of 16 kHz samples, differentiable.

    Raises:
        UserError: a clip is empty, not 1-D or too long, or the encoder reads a filter bank.
    """
    family = processor.family
    if family.reads == "filter bank":
        raise UserError(f"{processor.encoder}: its filter bank has no gradients; use a Whisper or wav2vec2")
    margin = round(processor.margin_seconds * SAMPLE_RATE / FRAME_SAMPLES)  # in frames
    parts, spans = [], []
    for clip in clips:
        check_clip(clip, processor.max_seconds)
        spans.append(math.ceil(len(clip) / FRAME_SAMPLES))
        if family.reads == "waveform" and getattr(processor.feature_extractor, "do_normalize", False):
            clip = (clip - clip.mean()) / (clip.var(correction=0) + 1e-7).sqrt()
        length = (spans[-1] + margin) * FRAME_SAMPLES + family.tail
        parts.append(nn.functional.pad(clip, (0, length - len(clip))))
    features = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    if family.reads == "log-mel":
        features = log_mel(features, processor.feature_extractor)
    mask = torch.zeros(len(clips), features.shape[-1], dtype=torch.long, device=features.device)
    for row, span in enumerate(spans):
        mask[row, : span * family.step] = 1
        mask[row, span * family.step : (span + margin) * family.step] = 2
    return {"input_features": features, "input_features_mask": mask}


def padded_log_mel(clips: Sequence[Tensor], extractor: Any) -> tuple[Tensor, Tensor]:
    """Log-mel of clips padded to the extractor's length (30 s), and how many mel frames each has.

    Raises:
        UserError: a clip is empty, not 1-D or too long.
    """
    for clip in clips:
        check_clip(clip, extractor.n_samples / SAMPLE_RATE)
    padded = [nn.functional.pad(clip, (0, extractor.n_samples - len(clip))) for clip in clips]
    # transformers takes every `hop`-th value of its mask of samples
    frames = torch.tensor([math.ceil(len(clip) / extractor.hop_length) for clip in clips])
    return log_mel(torch.stack(padded), extractor), frames


def check_clip(clip: Tensor, max_seconds: float) -> None:
    """
    Raises:
        UserError: the clip is empty, not 1-D, or longer than `max_seconds`.
    """
    if clip.dim() != 1 or not len(clip):
        raise UserError(f"a clip must be a non-empty row of samples; its shape is {tuple(clip.shape)}")
    if len(clip) > max_seconds * SAMPLE_RATE:
        seconds = len(clip) / SAMPLE_RATE
        raise UserError(f"a clip of {seconds:.1f} s is longer than the model's {max_seconds:g} s; cut it")

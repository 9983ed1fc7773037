"""Speech encoders: one way in for every family, and a clip's frames do not depend on its batch.

Each family gives one frame for every 20 ms of a clip at 16 kHz, by layer. An encoder of another family is an
entry of `FAMILIES`, if it reads what one of these reads.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

FeatureExtractor = Any  # transformers' base class declares no call
FRAME_SAMPLES = 320  # at 16 kHz: the 20 ms of a frame


@dataclass(frozen=True)
class Family:
    """What the encoders of one model type read.

    reads: "log-mel" of Whisper (mel frames of 10 ms), the "waveform", or the "filter bank" of w2v-BERT.
    step: how many positions of that make a frame.
    tail: samples after a clip without which its last frame would be missing.
    margin_seconds: of silence, which it needs after a clip.
    adapts: linear layers that LoRA changes (`--encoder_lora`): the feed-forward ones where attention reads
        weights and not layers.
    """

    reads: Literal["log-mel", "waveform", "filter bank"]
    step: int
    tail: int = 0
    margin_seconds: float = 0.0
    adapts: tuple[str, ...] = ("q_proj", "v_proj")


_MEL, _WAVE = Family("log-mel", 2, margin_seconds=1.0), Family("waveform", FRAME_SAMPLES, tail=80)
FAMILIES = {
    "whisper": _MEL,
    "qwen2_audio_encoder": _MEL,
    "wav2vec2": _WAVE,
    "hubert": _WAVE,
    "wavlm": replace(_WAVE, adapts=("intermediate_dense", "output_dense")),
    "data2vec-audio": _WAVE,
    "emotion2vec": _WAVE,
    "wav2vec2-bert": Family("filter bank", 1, tail=240, adapts=("linear_q", "linear_v")),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of an encoder's configuration.

    Raises:
        UserError: it is none, or its frames are not of 20 ms.
    """
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"model_type {config.model_type!r} is no known speech encoder; known are {known}")
    strides = getattr(config, "conv_stride", None)
    if strides is not None and math.prod(strides) != FRAME_SAMPLES or getattr(config, "add_adapter", False):
        raise UserError(f"this {config.model_type} encoder has frames of another length than 20 ms")
    return FAMILIES[config.model_type]


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder alone, where a model has a decoder too."""
    return cast("PreTrainedModel", model.encoder) if hasattr(model, "decoder") else model


def layer_index(encoder_layer: int | str, num_layers: int) -> int | None:
    """Number of layers to run for `encoder_layer`; None means all of them.

    Raises:
        UserError: the layer does not exist in an encoder of `num_layers` layers.
    """
    if encoder_layer in ("last", "mix"):
        return None
    if isinstance(encoder_layer, str) and encoder_layer.isdigit():
        encoder_layer = int(encoder_layer)
    if not isinstance(encoder_layer, int) or not 0 <= encoder_layer <= num_layers:
        ways = f"last, mix or a number from 0 to {num_layers}"
        raise UserError(f"encoder_layer={encoder_layer!r}: choose {ways}")
    return encoder_layer


def last_layers(encoder: PreTrainedModel, encoder_layer: int | str, count: int) -> list[str]:
    """Names, within the encoder, of the last `count` layers among those that `encoder_layer` runs.

    Raises:
        UserError: it runs fewer.
    """
    place = "layers" if hasattr(encoder, "layers") else "encoder.layers"
    total = len(cast(nn.ModuleList, encoder.get_submodule(place)))
    stop = layer_index(encoder_layer, total)
    run = total if stop is None else stop
    if count > run:
        whole = f"the encoder has {total} layers, of which encoder_layer={encoder_layer} runs {run}"
        raise UserError(f"encoder_tuned={count}: {whole}; choose up to {run}")
    return [f"{place}.{number}" for number in range(run - count, run)]


def encode_frames(
    encoder: PreTrainedModel, features: Tensor, mask: Tensor, encoder_layer: int | str
) -> tuple[Tensor, Tensor]:
    """Hidden states of an encoder over clips of different lengths, of each clip those that it has alone.

    Args:
        encoder: of one of `FAMILIES`, without dropout.
        features: what it reads, padded: log-mel (batch, mel bins, mel frames), filter bank (batch, frames,
            bins) or samples (batch, samples).
        mask: (batch, positions in time), 1 where the clip or its margin of silence is.
        encoder_layer: see `AlignCapConfig`.

    Returns:
        frames: (batch, frames of 20 ms, width), or (batch, frames, layers + 1, width) for "mix"; 0 on
            padding. frame_mask: (batch, frames), bool.
    """
    family = family_of(encoder.config)
    if family.reads == "log-mel":
        return _encode_log_mel(cast("WhisperEncoder", encoder), features, mask, encoder_layer)
    stop = layer_index(encoder_layer, encoder.config.num_hidden_layers)
    lengths = (mask.sum(1) // family.step).tolist()
    rows: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        rows[length].append(row)
    parts: list[Tensor] = [features] * len(features)
    # Group normalisation over time and convolutions of positions would mix padding into the frames, so the
    # clips of a pass are of one length.
    for length, chosen in rows.items():
        own = features[chosen, : length * family.step + (family.tail if family.reads == "waveform" else 0)]
        out = encoder(own, output_hidden_states=encoder_layer != "last")
        if encoder_layer == "last":
            found = out.last_hidden_state
        elif stop is None:
            found = torch.stack([*out.hidden_states[:-1], out.last_hidden_state], 2)
        else:
            found = out.hidden_states[stop]
        for row, frames in zip(chosen, found, strict=True):
            parts[row] = frames
    count = torch.tensor([len(frames) for frames in parts], device=mask.device)
    frame_mask = torch.arange(int(count.max()), device=mask.device) < count[:, None]
    return nn.utils.rnn.pad_sequence(parts, batch_first=True), frame_mask


def _encode_log_mel(
    encoder: WhisperEncoder, mel: Tensor, mel_mask: Tensor, encoder_layer: int | str
) -> tuple[Tensor, Tensor]:
    """`encode_frames` of Whisper and of what is built like it.

    The stock forward accepts 30 s only and does not mask. Here convolution inputs are zeroed past each
    clip's end (as a lone clip's own zero padding would be) and attention is masked, so that a batch gives
    what single clips give.
    """
    stop = layer_index(encoder_layer, len(encoder.layers))
    odd = mel.shape[-1] % _MEL.step
    mel, mel_mask = (nn.functional.pad(part, (0, odd)) for part in (mel, mel_mask))
    mel_mask = mel_mask.to(mel.dtype)
    hidden = nn.functional.gelu(encoder.conv1(mel * mel_mask[:, None])) * mel_mask[:, None]
    hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    frame_mask = mel_mask[:, :: _MEL.step].bool()
    count, limit = hidden.shape[1], encoder.embed_positions.num_embeddings
    if count > limit:
        raise ValueError(f"{count} frames exceed the encoder's {limit} positions")
    hidden = hidden + encoder.embed_positions.weight[:count].to(hidden.dtype)
    attention_mask = create_bidirectional_mask(
        config=encoder.config, inputs_embeds=hidden, attention_mask=frame_mask.long()
    )
    states = [hidden]
    for layer in encoder.layers[:stop]:
        hidden = layer(hidden, attention_mask)
        states.append(hidden)
    if encoder_layer == "mix":
        return torch.stack([*states[:-1], encoder.layer_norm(hidden)], dim=2), frame_mask
    if encoder_layer == "last":
        hidden = encoder.layer_norm(hidden)
    return hidden, frame_mask


def own_frames(mask: Tensor, family: Family, count: int) -> Tensor:
    """Which of `count` frames are of the clip and not of its margin, (batch, count), bool.

    Args:
        mask: (batch, positions), 1 on the clip, as `AlignCapProcessor.features` gives it.
    """
    own = (mask == 1)[:, :: family.step][:, :count]
    return nn.functional.pad(own, (0, count - own.shape[1]))


def pool_frames(frames: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean of each run of `size` frames, over the frames that exist.

    Args:
        frames: (batch, frames, ...); mask: (batch, frames), bool.

    Returns:
        (batch, ceil(frames / size), ...) and its mask. A partly filled run counts as existing.
    """
    batch, count = mask.shape
    extra = -count % size
    if extra:
        frames = torch.cat([frames, frames.new_zeros(batch, extra, *frames.shape[2:])], 1)
        mask = nn.functional.pad(mask, (0, extra))
    number = mask.view(batch, -1, size).sum(-1)
    ones = [1] * (frames.dim() - 2)
    weight = mask.to(frames.dtype).view(batch, -1, *ones)
    total = (frames * weight).view(batch, -1, size, *frames.shape[2:]).sum(2)
    return total / number.clamp(min=1).to(frames.dtype).view(batch, -1, *ones), number > 0

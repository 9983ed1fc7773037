"""Speech encoders: short clips cost short passes, and a clip's frames do not depend on its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

MEL_PER_FRAME = 2  # Whisper's second convolution halves the 10 ms mel frames to 20 ms encoder frames


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


def encode_frames(
    encoder: WhisperEncoder, mel: Tensor, mel_mask: Tensor, encoder_layer: int | str
) -> tuple[Tensor, Tensor]:
    """Hidden states of a Whisper encoder over clips of different lengths, padding masked at every step.

    The stock forward accepts 30 s only and does not mask. Here convolution inputs are zeroed past each
    clip's end (as a lone clip's own zero padding would be) and attention is masked, so that a batch gives
    what single clips give.

    Args:
        encoder: of any Whisper.
        mel: (batch, mel bins, mel frames of 10 ms).
        mel_mask: (batch, mel frames), 1 where the clip or its margin of silence is.
        encoder_layer: see `AlignCapConfig`.

    Returns:
        frames: (batch, frames of 20 ms, width), or (batch, frames, layers + 1, width) for "mix".
        frame_mask: (batch, frames), bool.
    """
    stop = layer_index(encoder_layer, len(encoder.layers))
    odd = mel.shape[-1] % MEL_PER_FRAME
    mel, mel_mask = (nn.functional.pad(part, (0, odd)) for part in (mel, mel_mask))
    mel_mask = mel_mask.to(mel.dtype)
    hidden = nn.functional.gelu(encoder.conv1(mel * mel_mask[:, None])) * mel_mask[:, None]
    hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    frame_mask = mel_mask[:, ::MEL_PER_FRAME].bool()
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

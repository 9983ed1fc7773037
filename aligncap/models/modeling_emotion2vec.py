"""emotion2vec (Ma et al. 2023, arXiv 2312.15185) as a transformers model, for encoding alone.

It is built like data2vec 2.0: convolutions over the waveform and over positions, learnt tokens before the
frames, and attention that falls off with distance (ALiBi, Press et al. 2022) by a learnt scale. FunASR's own
class is not used: it needs 26 packages, and its weights are a pickle, which
`aligncap models convert` reads once (funasr.py). What it computes is computed here to 1e-5
(tests/models/test_emotion2vec.py).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from aligncap.models.configuration_emotion2vec import Emotion2vecConfig


class WaveLayer(nn.Module):
    """A convolution over the waveform: (batch, channels, samples) to fewer positions of more channels."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, after, kernel, stride, bias=False)
        self.norm = nn.LayerNorm(after)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(hidden).transpose(1, 2)).transpose(1, 2))


class PositionLayer(nn.Module):
    """A convolution over frames, (batch, width, frames), as many as before, from which they get a place."""

    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.conv_pos_kernel_size
        groups = config.num_conv_pos_embedding_groups
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)

    def forward(self, hidden: Tensor) -> Tensor:
        found = self.conv(hidden)[:, :, : hidden.shape[2]].transpose(1, 2)
        return F.gelu(F.layer_norm(found, found.shape[-1:])).transpose(1, 2)


class Emotion2vecAttention(nn.Module):
    """Self-attention to which a bias by distance is added."""

    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: (batch, positions, width); bias: (1, heads, positions, positions)."""
        query, key, value = (
            part(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return cast(Tensor, self.out_proj(read.transpose(1, 2).flatten(2)))


class Emotion2vecLayer(nn.Module):
    """Attention and a feed-forward network, each normalised after it was added."""

    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention, self.attention_norm = Emotion2vecAttention(config), nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.final_norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self.attention(hidden, bias))
        return cast(Tensor, self.final_norm(hidden + self.fc2(F.gelu(self.fc1(hidden)))))


class Emotion2vecModel(PreTrainedModel):
    """Frames of 20 ms of clips of one length. It has no dropout, and no masking, of pretraining.

    `layers` are those that data2vec 2.0 calls the prenet, and those after it: they are alike.
    """

    config: Emotion2vecConfig
    config_class = Emotion2vecConfig
    base_model_prefix = "emotion2vec"
    main_input_name = "input_values"
    _no_split_modules = ["Emotion2vecLayer"]
    _supports_sdpa = True

    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__(config)
        width, dims = config.hidden_size, config.conv_dim
        shapes = zip((1, *dims), dims, config.conv_kernel, config.conv_stride, strict=False)
        self.wave_layers = nn.ModuleList(WaveLayer(*shape) for shape in shapes)
        self.wave_norm, self.projection = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], width)
        self.position_layers = nn.ModuleList(
            PositionLayer(config) for _ in range(config.num_conv_pos_embeddings)
        )
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Emotion2vecLayer(config) for _ in range(config.num_hidden_layers))
        self.extra_tokens = nn.Parameter(torch.zeros(1, config.extra_tokens, width))
        layers, heads = config.alibi_scales
        self.alibi_scale = nn.Parameter(torch.ones(layers, 1, heads, 1, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Emotion2vecModel):
            init.normal_(module.extra_tokens)
            init.ones_(module.alibi_scale)

    def distances(self, frames: int) -> Tensor:
        """What is added to attention before it is scaled, (1, heads, positions, positions): minus the frames
        between two, times the head's slope; 0 where one of the two is an extra token."""
        place = torch.arange(frames, device=self.alibi_scale.device, dtype=torch.float32)
        slopes = torch.tensor(alibi_slopes(self.config.num_attention_heads), device=place.device)
        bias = -(place[:, None] - place).abs() * slopes[None, :, None, None]
        return F.pad(bias, (self.config.extra_tokens, 0) * 2)

    def forward(
        self, input_values: Tensor, output_hidden_states: bool = False, **_: object
    ) -> BaseModelOutput:
        """
        Args:
            input_values: (batch, samples), each of mean 0 and variance 1, none padded.

        Returns:
            last_hidden_state: (batch, frames, width); hidden_states: that before the first layer and after
            each, all without the extra tokens.
        """
        hidden = input_values[:, None]
        for layer in self.wave_layers:
            hidden = layer(hidden)
        frames = self.projection(self.wave_norm(hidden.transpose(1, 2)))
        places = frames.transpose(1, 2)
        for layer in self.position_layers:
            places = layer(places)
        extra, skipped = self.extra_tokens.expand(len(frames), -1, -1), self.config.extra_tokens
        hidden = self.norm(torch.cat([extra.to(frames.dtype), frames + places.transpose(1, 2)], 1))
        distances, scales = self.distances(frames.shape[1]), self.alibi_scale.float().clamp_min(0)
        states = [hidden[:, skipped:]]
        for layer, scale in zip(self.layers, scales.expand(len(self.layers), -1, -1, -1, -1), strict=True):
            hidden = layer(hidden, distances * scale)
            states.append(hidden[:, skipped:])
        return BaseModelOutput(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if output_hidden_states else None,
        )


def alibi_slopes(heads: int) -> list[float]:
    """Slopes of ALiBi: of 8 heads 1/2, 1/4, … 1/256; of a number that is no power of 2 those of the next
    lower power, then every second of the next higher one.

    >>> alibi_slopes(3)
    [0.0625, 0.00390625, 0.25]
    """
    power: int = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 / power * (i + 1)) for i in range(power)]
    return slopes + (alibi_slopes(2 * power)[::2][: heads - power] if heads > power else [])


AutoModel.register(Emotion2vecConfig, Emotion2vecModel)

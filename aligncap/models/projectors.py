"""From pooled encoder frames to audio tokens of the language model's width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def token_count(pooled_frames: int, stack_size: int, summary_token: bool) -> int:
    """Audio tokens that `pooled_frames` frames become."""
    return math.ceil(pooled_frames / stack_size) + int(summary_token)


class StackMLPProjector(nn.Module):
    """Standardise, stack `stack_size` frames into one, two linear layers, scale to the LLM's embeddings.

    Whisper's middle layers carry a few dimensions of huge size that drown the rest, so features are
    standardised by the mean and spread of the training features (`fit`), kept as buffers.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(
        self,
        audio_width: int,
        text_width: int,
        *,
        hidden: int,
        stack_size: int,
        dropout: float,
        summary_token: bool,
        mix_layers: int = 0,
    ) -> None:
        super().__init__()
        self.stack_size = stack_size
        self.mix = nn.Parameter(torch.zeros(mix_layers)) if mix_layers else None
        width = (max(mix_layers, 1), audio_width) if mix_layers else (audio_width,)
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_scale", torch.ones(width))
        self.dropout = nn.Dropout(dropout)
        self.linear_1 = nn.Linear(audio_width * stack_size, hidden)
        self.linear_2 = nn.Linear(hidden, text_width)
        self.summary = nn.Linear(2 * audio_width, hidden) if summary_token else None
        self.norm = nn.LayerNorm(text_width)

    @torch.no_grad()
    def fit(self, mean: Tensor, spread: Tensor, embedding_rms: float | None = None) -> None:
        """Set the standardisation, and the size of the tokens to that of the LLM's own embeddings.

        Args:
            mean, spread: per-dimension mean and standard deviation of pooled training frames, (width,) or
                (layers, width).
            embedding_rms: root mean square of the LLM's embedding matrix.
        """
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(1.0 / spread.clamp(min=1e-5))
        if embedding_rms is not None:
            self.norm.weight.fill_(embedding_rms)

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            frames: (batch, pooled frames, width) or (batch, pooled frames, layers, width).
            mask: (batch, pooled frames), bool.

        Returns:
            tokens: (batch, tokens, text width); token mask: (batch, tokens), bool.
        """
        frames = ((frames.to(self.feature_mean.dtype) - self.feature_mean) * self.feature_scale).to(
            frames.dtype
        )
        if self.mix is not None:
            frames = (frames * self.mix.softmax(0).to(frames.dtype)[:, None]).sum(2)
        frames = frames * mask[..., None]
        batch, count, width = frames.shape
        hidden_states = []
        masks = []
        if self.summary is not None:
            number = mask.sum(1, keepdim=True).clamp(min=1).to(frames.dtype)
            mean = frames.sum(1) / number
            variance = ((frames - mean[:, None]) ** 2 * mask[..., None]).sum(1) / number
            hidden_states.append(
                self.summary(self.dropout(torch.cat([mean, (variance + 1e-5).sqrt()], -1)))[:, None]
            )
            masks.append(mask.any(1, keepdim=True))
        extra = -count % self.stack_size
        if extra:
            frames = nn.functional.pad(frames, (0, 0, 0, extra))
            mask = nn.functional.pad(mask, (0, extra))
        hidden_states.append(self.linear_1(self.dropout(frames.reshape(batch, -1, self.stack_size * width))))
        masks.append(mask.view(batch, -1, self.stack_size).any(-1))
        hidden = self.dropout(nn.functional.gelu(torch.cat(hidden_states, 1)))
        return self.norm(self.linear_2(hidden)), torch.cat(masks, 1)

"""From pooled encoder frames to audio tokens of the language model's width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SPEAKER_WORDS = 2  # "woman" and "man", data/templates.yaml


def token_count(pooled_frames: int, stack_size: int, summary_token: bool) -> int:
    """Audio tokens that `pooled_frames` frames become, the speaker's token not among them."""
    return math.ceil(pooled_frames / stack_size) + int(summary_token)


class StackMLPProjector(nn.Module):
    """Standardise, stack `stack_size` frames into one, two linear layers, scale to the LLM's embeddings.

    Whisper's middle layers carry a few dimensions of huge size that drown the rest, so features are
    standardised by the mean and spread of the training features (`fit`), kept as buffers.

    With `speaker_relative` a clip is heard against its speaker's own mean, as its measured cues are, and a
    token of its own says who speaks: what a voice is like and what it does now are kept apart. That token
    is a mixture of the LLM's own words for speakers ("woman", "man"), so that a faint voice of another
    corpus is still a word that the LLM knows. A clip whose speaker is not known is heard against the mean
    of all training speakers.

    Tokens: [speaker] [summary] frames.
    """

    speaker_words: Tensor
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
        speaker_relative: bool = False,
        speaker_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stack_size = stack_size
        self.speaker_dropout = speaker_dropout
        self.mix = nn.Parameter(torch.zeros(mix_layers)) if mix_layers else None
        width = (max(mix_layers, 1), audio_width) if mix_layers else (audio_width,)
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_scale", torch.ones(width))
        self.dropout = nn.Dropout(dropout)
        self.linear_1 = nn.Linear(audio_width * stack_size, hidden)
        self.linear_2 = nn.Linear(hidden, text_width)
        self.summary = nn.Linear(2 * audio_width, hidden) if summary_token else None
        self.speaker = (
            nn.Sequential(nn.Linear(audio_width, hidden), nn.GELU(), nn.Linear(hidden, SPEAKER_WORDS))
            if speaker_relative
            else None
        )
        if speaker_relative:
            self.register_buffer("speaker_words", torch.zeros(SPEAKER_WORDS, text_width))
        self.norm = nn.LayerNorm(text_width)

    @property
    def clip_tokens(self) -> int:
        """Tokens that stand before those of the frames."""
        return int(self.speaker is not None) + int(self.summary is not None)

    @torch.no_grad()
    def fit(self, mean: Tensor, spread: Tensor, embedding_rms: float | None = None) -> None:
        """Set the standardisation, and the size of the tokens to that of the LLM's own embeddings.

        Args:
            mean, spread: per-dimension mean of pooled training frames and their standard deviation (about
                the speakers' means with `speaker_relative`), (width,) or (layers, width).
            embedding_rms: root mean square of the LLM's embedding matrix.
        """
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(1.0 / spread.clamp(min=1e-5))
        if embedding_rms is not None:
            self.norm.weight.fill_(embedding_rms)

    def _about_speaker(
        self, frames: Tensor, mask: Tensor, speaker_means: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Standardised frames less their speaker's mean, and how the speaker differs from the mean of all."""
        own = (frames * mask.view(*mask.shape, *[1] * (frames.dim() - 2))).sum(1)
        own = own / mask.sum(1).clamp(min=1).view(-1, *[1] * (own.dim() - 1))
        if speaker_means is None:
            speaker_means = torch.full_like(own, torch.nan)
        speaker_means = speaker_means.float()
        known = ~speaker_means.isnan().flatten(1).any(1)
        if self.training and self.speaker_dropout:
            known = known & (torch.rand(known.shape, device=known.device) >= self.speaker_dropout)
        known = known.view(-1, *[1] * (own.dim() - 1))
        centre = torch.where(known, speaker_means, self.feature_mean)
        who = torch.where(known, speaker_means, own) - self.feature_mean
        frames, who = (frames - centre[:, None]) * self.feature_scale, who * self.feature_scale
        if self.mix is not None:
            who = (who * self.mix.softmax(0)[:, None]).sum(1)
        return frames, who

    def speaker_logits(self, frames: Tensor, mask: Tensor, speaker_means: Tensor | None = None) -> Tensor:
        """Logits of the words for speakers, (batch, SPEAKER_WORDS); needs `speaker_relative`."""
        _, who = self._about_speaker(frames.float(), mask, speaker_means)
        logits: Tensor = self.speaker(self.dropout(who.to(frames.dtype)))  # type: ignore[misc]
        return logits

    def forward(
        self, frames: Tensor, mask: Tensor, speaker_means: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            frames: (batch, pooled frames, width) or (batch, pooled frames, layers, width).
            mask: (batch, pooled frames), bool.
            speaker_means: mean frame of each clip's speaker, (batch, width) or (batch, layers, width); a row
                of nan: unknown. Without `speaker_relative` it is not used.

        Returns:
            tokens: (batch, tokens, text width); token mask: (batch, tokens), bool.
        """
        dtype, who = frames.dtype, None
        frames = frames.float()  # a few dimensions are huge, and what is left after the mean is small
        if self.speaker is None:
            frames = (frames - self.feature_mean) * self.feature_scale
        else:
            frames, who = self._about_speaker(frames, mask, speaker_means)
        frames = frames.to(dtype)
        if self.mix is not None:
            frames = (frames * self.mix.softmax(0).to(dtype)[:, None]).sum(2)
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
        tokens = self.norm(self.linear_2(hidden))
        if self.speaker is not None and who is not None:
            share = self.speaker(self.dropout(who.to(dtype))).softmax(-1)
            tokens = torch.cat([(share @ self.speaker_words.to(dtype))[:, None].to(tokens.dtype), tokens], 1)
            masks.insert(0, mask[:, :1].any(1, keepdim=True))
        return tokens, torch.cat(masks, 1)

"""From pooled encoder frames to audio tokens of the language model's width.

A projector of your own is a subclass of `Projector`, entered in `PROJECTORS` under the name that
`AlignCapConfig.projector_type` then takes. Whoever loads the checkpoint must import it first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.utils.errors import UserError

SPEAKER_WORDS = 2  # "woman" and "man", data/templates.yaml


def token_count(pooled_frames: int, stack_size: int, summary_token: bool) -> int:
    """Audio tokens that `pooled_frames` frames become, the speaker's token not among them."""
    return math.ceil(pooled_frames / stack_size) + int(summary_token)


class Projector(nn.Module):
    """What every projector has: the standardisation of frames, and the stacking that fixes the token count.

    Whisper's middle layers carry a few dimensions of huge size that drown the rest, so frames are
    standardised by the mean and standard deviation of the training frames (`fit`), kept as buffers.

    Tokens are [speaker] [summary] frames: one token for every `stack_size` pooled frames, before them the
    clip's summary with `config.summary_token`, and before that the speaker with `config.speaker_relative`.
    """

    feature_mean: Tensor
    feature_scale: Tensor
    speaker_words: Tensor

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__()
        self.stack_size = config.stack_size
        layers, width = config.mixed_layers, config.audio_width
        self.mix = nn.Parameter(torch.zeros(layers)) if layers else None
        shape = (layers, width) if layers else (width,)
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_scale", torch.ones(shape))
        if config.speaker_relative:  # the LLM's embeddings of the words for speakers
            self.register_buffer("speaker_words", torch.zeros(SPEAKER_WORDS, text_width))
        self.clip_tokens = int(config.speaker_relative) + int(config.summary_token)  # before those of frames

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor, embedding_rms: float | None = None) -> None:
        """Set the standardisation, and the size of the tokens where the projector has one.

        Args:
            mean, std: per-dimension mean of pooled training frames and their standard deviation (about
                the speakers' means with `speaker_relative`), (width,) or (layers, width).
            embedding_rms: root mean square of the LLM's embedding matrix.
        """
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(1.0 / std.clamp(min=1e-5))

    def mix_layers(self, frames: Tensor) -> Tensor:
        """(…, layers, width) to (…, width) by the learnt weights, or frames of a single layer as they are."""
        if self.mix is None:
            return frames
        return (frames * self.mix.softmax(0).to(frames.dtype)[:, None]).sum(-2)

    def stack(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Every `stack_size` frames side by side, (batch, tokens, stack_size · width), and the mask of them.

        Frames that the mask leaves out must be 0.
        """
        batch, count, width = frames.shape
        extra = -count % self.stack_size
        frames, mask = nn.functional.pad(frames, (0, 0, 0, extra)), nn.functional.pad(mask, (0, extra))
        stacked = frames.reshape(batch, -1, self.stack_size * width)
        return stacked, mask.view(batch, -1, self.stack_size).any(-1)

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
        raise NotImplementedError


class StackMLPProjector(Projector):
    """Standardise, stack `stack_size` frames into one, two linear layers, scale to the LLM's embeddings.

    With `speaker_relative` a clip is read against its speaker's own mean, as its measured cues are, and a
    token of its own says who speaks: what a voice is like and what it does now are kept apart. That token
    is a mixture of the LLM's own words for speakers ("woman", "man"), so that an atypical voice of another
    corpus is still a word that the LLM knows. A clip whose speaker is not known is read against the mean
    of all training speakers.
    """

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        width, hidden = config.audio_width, config.projector_hidden
        self.speaker_dropout = config.speaker_dropout
        self.dropout = nn.Dropout(config.projector_dropout)
        self.linear_1 = nn.Linear(width * config.stack_size, hidden)
        self.linear_2 = nn.Linear(hidden, text_width)
        self.summary = nn.Linear(2 * width, hidden) if config.summary_token else None
        self.speaker = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, SPEAKER_WORDS))
            if config.speaker_relative
            else None
        )
        self.norm = nn.LayerNorm(text_width)

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor, embedding_rms: float | None = None) -> None:
        super().fit(mean, std)
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
        return frames, self.mix_layers(who)

    def speaker_logits(self, frames: Tensor, mask: Tensor, speaker_means: Tensor | None = None) -> Tensor:
        """Logits of the words for speakers, (batch, SPEAKER_WORDS); needs `speaker_relative`."""
        _, who = self._about_speaker(frames.float(), mask, speaker_means)
        logits: Tensor = self.speaker(self.dropout(who.to(frames.dtype)))  # type: ignore[misc]
        return logits

    def forward(
        self, frames: Tensor, mask: Tensor, speaker_means: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        dtype, who = frames.dtype, None
        frames = frames.float()  # a few dimensions are huge, and what is left after the mean is small
        if self.speaker is None:
            frames = (frames - self.feature_mean) * self.feature_scale
        else:
            frames, who = self._about_speaker(frames, mask, speaker_means)
        frames = self.mix_layers(frames.to(dtype)) * mask[..., None]
        hidden_states, masks = [], []
        if self.summary is not None:
            number = mask.sum(1, keepdim=True).clamp(min=1).to(frames.dtype)
            mean = frames.sum(1) / number
            variance = ((frames - mean[:, None]) ** 2 * mask[..., None]).sum(1) / number
            statistics = torch.cat([mean, (variance + 1e-5).sqrt()], -1)
            hidden_states.append(self.summary(self.dropout(statistics))[:, None])
            masks.append(mask.any(1, keepdim=True))
        stacked, stacked_mask = self.stack(frames, mask)
        hidden_states.append(self.linear_1(self.dropout(stacked)))
        masks.append(stacked_mask)
        hidden = self.dropout(nn.functional.gelu(torch.cat(hidden_states, 1)))
        tokens = self.norm(self.linear_2(hidden))
        if self.speaker is not None and who is not None:
            share = self.speaker(self.dropout(who.to(dtype))).softmax(-1)
            tokens = torch.cat([(share @ self.speaker_words.to(dtype))[:, None].to(tokens.dtype), tokens], 1)
            masks.insert(0, mask[:, :1].any(1, keepdim=True))
        return tokens, torch.cat(masks, 1)


PROJECTORS: dict[str, type[Projector]] = {"mlp": StackMLPProjector}


def make_projector(config: AlignCapConfig, text_width: int) -> Projector:
    """A fresh projector of this configuration.

    Raises:
        UserError: nothing of the name `config.projector_type` is in `PROJECTORS`.
    """
    if config.projector_type not in PROJECTORS:
        raise UserError(
            f"projector_type {config.projector_type!r}: known are {', '.join(PROJECTORS)}; import the module "
            "that enters this projector in aligncap.models.projectors.PROJECTORS"
        )
    return PROJECTORS[config.projector_type](config, text_width)

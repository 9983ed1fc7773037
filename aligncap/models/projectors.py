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


def token_count(pooled_frames: int, stack_size: int, clip_tokens: int) -> int:
    """Audio tokens that `pooled_frames` frames become, the speaker's token not among them.

    Args:
        clip_tokens: tokens that stand for the whole clip (`AlignCapConfig.clip_tokens`).
    """
    return math.ceil(pooled_frames / stack_size) + clip_tokens


class WordToken(nn.Module):
    """One token that names a property of the whole clip: a mixture of the LLM's embeddings of words for it.

    The words' shares come from a logistic regression on the encoder's hidden states, averaged over the clip
    (`training.words.fit_words`). It is not trained further: a linear reading of several layers carries over
    to corpora that were not trained on, where hidden layers that are trained with the rest do not
    (docs/log.md).

    Args:
        inputs: width of the means that it reads; words: number of words.
    """

    weight: Tensor
    bias: Tensor
    usual: Tensor
    words: Tensor

    def __init__(self, inputs: int, words: int, text_width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(words, inputs))
        self.register_buffer("bias", torch.zeros(words))
        self.register_buffer("usual", torch.zeros(words))  # mean logits of training clips
        self.register_buffer("words", torch.zeros(words, text_width))

    def logits(self, means: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, words) of the means of clips (`clip_means`), less their `context`, in float32."""
        logits = means.float() @ self.weight.float().T + self.bias.float()
        return logits if context is None else logits - context.to(logits)

    def forward(self, logits: Tensor) -> Tensor:
        """The token, (batch, 1, text width), of logits (batch, words)."""
        return (logits.softmax(-1) @ self.words.float())[:, None]


def clip_means(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean over time of pooled frames, (batch, width); of several layers, the middle ones side by side.

    The first hidden state knows no context and the last is made for the decoder, so both are left out where
    there are others.

    Args:
        frames: (batch, pooled frames, width) or (batch, pooled frames, layers, width);
        mask: (batch, pooled frames), bool.
    """
    if frames.dim() == 4 and frames.shape[2] > 2:
        frames = frames[:, :, 1:-1]
    frames = frames.float() * mask.view(*mask.shape, *[1] * (frames.dim() - 2))
    number = mask.sum(1).clamp(min=1).view(-1, *[1] * (frames.dim() - 2))
    return (frames.sum(1) / number).flatten(1)


class Projector(nn.Module):
    """What every projector has: the standardisation of frames, the tokens that are words, and the stacking
    that fixes the token count.

    Whisper's middle layers carry a few dimensions of huge size that drown the rest, so frames are
    standardised by the mean and standard deviation of the training frames (`fit`), kept as buffers.

    Tokens are [speaker] [emotion] [summary] frames: one token for every `stack_size` pooled frames, before
    them the clip's summary with `config.summary_token`, before that the emotion where `config.emotions` are
    known, and first who speaks with `config.speaker_token`.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__()
        self.stack_size = config.stack_size
        layers, width = config.mixed_layers, config.audio_width
        self.mix = nn.Parameter(torch.zeros(layers)) if layers else None
        shape = (layers, width) if layers else (width,)
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_scale", torch.ones(shape))
        inputs = width * (layers - 2 if layers > 2 else max(layers, 1))
        speakers = len(config.speakers)
        self.speaker = WordToken(inputs, speakers, text_width) if speakers else None
        self.emotion = WordToken(inputs, len(config.emotions), text_width) if config.emotions else None
        self.word_tokens = int(self.speaker is not None) + int(self.emotion is not None)
        self.clip_tokens = self.word_tokens + int(config.summary_token)  # before those of frames

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor, embedding_rms: float | None = None) -> None:
        """Set the standardisation, and the size of the tokens where the projector has one.

        Args:
            mean, std: per-dimension mean and standard deviation of pooled training frames, (width,) or
                (layers, width).
            embedding_rms: root mean square of the LLM's embedding matrix.
        """
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(1.0 / std.clamp(min=1e-5))

    def standardise(self, frames: Tensor) -> Tensor:
        """Frames less the training frames' mean, by their standard deviation; computed in float32."""
        return ((frames.float() - self.feature_mean) * self.feature_scale).to(frames.dtype)

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

    def emotion_logits(self, frames: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits of the emotions, (batch, emotions), float32; needs `emotion`. Arguments as `forward`."""
        assert self.emotion is not None
        return self.emotion.logits(clip_means(frames, mask), context)

    def clip_words(self, frames: Tensor, mask: Tensor, context: Tensor | None = None) -> list[Tensor]:
        """The tokens that are words, (batch, 1, text width) each: who speaks, which emotion."""
        if not self.word_tokens:
            return []
        means, tokens = clip_means(frames, mask), []
        if self.speaker is not None:
            tokens.append(self.speaker(self.speaker.logits(means)))
        if self.emotion is not None:
            tokens.append(self.emotion(self.emotion.logits(means, context)))
        return tokens

    def forward(self, frames: Tensor, mask: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            frames: (batch, pooled frames, width) or (batch, pooled frames, layers, width).
            mask: (batch, pooled frames), bool.
            context: by how much the emotion logits of clips recorded alike exceed those of training clips,
                (batch, emotions); see `models.context`. None: nothing is known but the clip.

        Returns:
            tokens: (batch, tokens, text width); token mask: (batch, tokens), bool.
        """
        raise NotImplementedError


class StackMLPProjector(Projector):
    """Standardise, stack `stack_size` frames into one, two linear layers, scale to the LLM's embeddings."""

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        width, hidden = config.audio_width, config.projector_hidden
        self.dropout = nn.Dropout(config.projector_dropout)
        self.linear_1 = nn.Linear(width * config.stack_size, hidden)
        self.linear_2 = nn.Linear(hidden, text_width)
        self.summary = nn.Linear(2 * width, hidden) if config.summary_token else None
        self.norm = nn.LayerNorm(text_width)

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor, embedding_rms: float | None = None) -> None:
        super().fit(mean, std)
        if embedding_rms is not None:
            self.norm.weight.fill_(embedding_rms)

    def forward(self, frames: Tensor, mask: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        words = self.clip_words(frames, mask, context)
        exists = mask.any(1, keepdim=True)
        masks = [exists] * len(words)
        frames = self.mix_layers(self.standardise(frames)) * mask[..., None]
        hidden_states = []
        if self.summary is not None:
            number = mask.sum(1, keepdim=True).clamp(min=1).to(frames.dtype)
            mean = frames.sum(1) / number
            variance = ((frames - mean[:, None]) ** 2 * mask[..., None]).sum(1) / number
            statistics = torch.cat([mean, (variance + 1e-5).sqrt()], -1)
            hidden_states.append(self.summary(self.dropout(statistics))[:, None])
            masks.append(exists)
        stacked, stacked_mask = self.stack(frames, mask)
        hidden_states.append(self.linear_1(self.dropout(stacked)))
        masks.append(stacked_mask)
        hidden = self.dropout(nn.functional.gelu(torch.cat(hidden_states, 1)))
        tokens = self.norm(self.linear_2(hidden))
        return torch.cat([*(word.to(tokens.dtype) for word in words), tokens], 1), torch.cat(masks, 1)


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

"""From pooled encoder frames to audio tokens of the language model's width.

A projector of your own is a subclass of `Projector` with a method `project`, entered in `PROJECTORS` under
the name that `AlignCapConfig.projector_type` (`--projector`) then takes. Whoever loads the checkpoint must
import it first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.utils.errors import UserError


def token_count(pooled_frames: int, stack_size: int, clip_tokens: int, queries: int = 0) -> int:
    """Audio tokens that `pooled_frames` frames become, the speaker's token not among them.

    Args:
        clip_tokens: tokens that stand for the whole clip (`AlignCapConfig.clip_tokens`).
        queries: tokens that every clip becomes, however long; 0: one for every `stack_size` frames.
    """
    return (queries or math.ceil(pooled_frames / stack_size)) + clip_tokens


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
    """What every projector has: the standardisation of frames, the tokens that are words, the clip's summary,
    and the size of its tokens.

    Whisper's middle layers carry a few dimensions of huge size that drown the rest, so frames are
    standardised by the mean and standard deviation of the training frames (`fit`), kept as buffers.

    Tokens are [speaker] [emotion] [summary] frames: first who speaks with `config.speaker_token`, then the
    emotion where `config.emotions` are known, then the clip's mean and deviation with `config.summary_token`,
    and what `project` makes of the frames. All but the words are brought to the size of the LLM's embeddings.

    mixes: whether `project` is given one state a frame, that of `config.encoder_layer` or the learnt mixture
    of all, or all of them.
    """

    mixes = True
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__()
        self.stack_size = config.stack_size
        layers, width = config.mixed_layers, config.audio_width
        self.mix = nn.Parameter(torch.zeros(layers)) if layers and self.mixes else None
        shape = (layers, width) if layers else (width,)
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_scale", torch.ones(shape))
        inputs = width * (layers - 2 if layers > 2 else max(layers, 1))
        speakers = len(config.speakers)
        self.speaker = WordToken(inputs, speakers, text_width) if speakers else None
        self.emotion = WordToken(inputs, len(config.emotions), text_width) if config.emotions else None
        self.word_tokens = int(self.speaker is not None) + int(self.emotion is not None)
        self.clip_tokens = self.word_tokens + int(config.summary_token)  # before those of frames
        self.summary: nn.Module | None = None
        self.norm = nn.LayerNorm(text_width)
        self.dropout = nn.Dropout(config.projector_dropout)

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor, embedding_rms: float | None = None) -> None:
        """Set the standardisation, and the size of the tokens.

        Args:
            mean, std: per-dimension mean and standard deviation of pooled training frames, (width,) or
                (layers, width).
            embedding_rms: root mean square of the LLM's embedding matrix.
        """
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(1.0 / std.clamp(min=1e-5))
        if embedding_rms is not None:
            self.norm.weight.fill_(embedding_rms)

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
        words = self.clip_words(frames, mask, context)
        frames = self.standardise(frames)
        if self.mixes:
            frames = self.mix_layers(frames)
        tokens, token_mask = self.project(frames * mask.view(*mask.shape, *[1] * (frames.dim() - 2)), mask)
        tokens = self.norm(tokens)
        masks = [mask.any(1, keepdim=True)] * len(words) + [token_mask]
        return torch.cat([*(word.to(tokens.dtype) for word in words), tokens], 1), torch.cat(masks, 1)

    def project(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, tokens, text width) of standardised frames, 0 where the mask is, and their mask.

        There must be `token_count` of them; with `config.summary_token` the first one is the summary.
        Arguments as `forward`.
        """
        raise NotImplementedError

    def with_summary(
        self, frames: Tensor, mask: Tensor, tokens: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`tokens` with the clip's mean and deviation through `summary` before them, where there is one."""
        if self.summary is None:
            return tokens, token_mask
        first = self.summary(self.dropout(clip_statistics(frames, mask)))[:, None]
        return torch.cat([first, tokens], 1), torch.cat([mask.any(1, keepdim=True), token_mask], 1)


def clip_statistics(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean and standard deviation over time, (batch, 2 · width), of frames that are 0 where the mask is."""
    number = mask.sum(1, keepdim=True).clamp(min=1).to(frames.dtype)
    mean = frames.sum(1) / number
    variance = ((frames - mean[:, None]) ** 2 * mask[..., None]).sum(1) / number
    return torch.cat([mean, (variance + 1e-5).sqrt()], -1)


class MLPProjector(Projector):
    """Every `stack_size` frames side by side through two linear layers; the summary shares the second."""

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        width, hidden = config.audio_width, config.projector_hidden
        self.linear_1 = nn.Linear(width * config.stack_size, hidden)
        self.linear_2 = nn.Linear(hidden, text_width)
        self.summary = nn.Linear(2 * width, hidden) if config.summary_token else None
        self.norm = self._modules.pop("norm")  # type: ignore[assignment] # last, as optimizers of old runs have it

    def project(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # The summary's dropout is drawn before that of the frames, as ever; `with_summary` draws it after.
        first = None if self.summary is None else self.summary(self.dropout(clip_statistics(frames, mask)))
        stacked, token_mask = self.stack(frames, mask)
        hidden = self.linear_1(self.dropout(stacked))
        if first is not None:
            hidden = torch.cat([first[:, None], hidden], 1)
            token_mask = torch.cat([mask.any(1, keepdim=True), token_mask], 1)
        return self.linear_2(self.dropout(nn.functional.gelu(hidden))), token_mask


class LinearProjector(Projector):
    """Every `stack_size` frames side by side through one matrix."""

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        self.linear = nn.Linear(config.audio_width * config.stack_size, text_width)
        self.summary = nn.Linear(2 * config.audio_width, text_width) if config.summary_token else None

    def project(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        stacked, token_mask = self.stack(frames, mask)
        return self.with_summary(frames, mask, self.linear(self.dropout(stacked)), token_mask)


class ConvProjector(Projector):
    """A convolution over three frames, and one with stride `stack_size` that makes the tokens."""

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        width, hidden, size = config.audio_width, config.projector_hidden, config.stack_size
        self.conv_1 = nn.Conv1d(width, hidden, 3, padding=1)
        self.conv_2 = nn.Conv1d(hidden, text_width, size, stride=size)
        self.summary = nn.Linear(2 * width, text_width) if config.summary_token else None

    def project(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = nn.functional.gelu(self.conv_1(self.dropout(frames).transpose(1, 2)))
        # What lies beyond a clip's end is zero for it alone, so it must be zero beside longer ones.
        hidden = self.dropout(hidden) * mask[:, None]
        extra = -mask.shape[1] % self.stack_size
        tokens = self.conv_2(nn.functional.pad(hidden, (0, extra))).transpose(1, 2)
        token_mask = nn.functional.pad(mask, (0, extra)).view(len(mask), -1, self.stack_size).any(-1)
        return self.with_summary(frames, mask, tokens, token_mask)


class QFormerProjector(Projector):
    """`config.queries` learnt queries read all frames of all layers by cross-attention (BLIP-2's Q-Former, Li
    et al. 2023, arXiv 2301.12597), in two layers; a clip becomes as many tokens, however long it is."""

    mixes = False

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        # Not at the top: transformers imports this module while its own Auto classes are half loaded.
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        super().__init__(config, text_width)
        hidden, layers = config.projector_hidden, config.mixed_layers
        former = Blip2QFormerConfig(
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=math.gcd(hidden, 8),
            intermediate_size=2 * hidden,
            encoder_hidden_size=config.audio_width,
            cross_attention_frequency=1,
            hidden_dropout_prob=config.projector_dropout,
            attention_probs_dropout_prob=0.0,
        )
        self.queries = nn.Parameter(0.02 * torch.randn(config.queries, hidden))
        # Which layer a state is of, and where in the clip it stands, by sines (Vaswani et al. 2017).
        self.layer = nn.Parameter(0.02 * torch.randn(layers, config.audio_width)) if layers else None
        self.former = Blip2QFormerModel(former)
        self.linear = nn.Linear(hidden, text_width)
        self.summary = nn.Linear(2 * config.audio_width, text_width) if config.summary_token else None

    def project(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states, state_mask = frames + self.places(frames), mask
        if self.layer is not None:
            states = (states + self.layer.to(frames.dtype)).flatten(1, 2)
            state_mask = mask.repeat_interleave(len(self.layer), 1)
            frames = frames.mean(2)
        queries = self.queries.to(frames.dtype).expand(len(frames), -1, -1)
        hidden = self.former(
            query_embeds=queries, encoder_hidden_states=states, encoder_attention_mask=state_mask.long()
        ).last_hidden_state
        token_mask = mask.any(1, keepdim=True).expand(-1, hidden.shape[1])
        return self.with_summary(frames, mask, self.linear(hidden), token_mask)

    @staticmethod
    def places(frames: Tensor) -> Tensor:
        """Sines and cosines at falling rates of where in the clip frames stand, of the shape of one clip."""
        length, width = frames.shape[1], frames.shape[-1]
        rates = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2) / width)
        angles = torch.arange(length)[:, None] * rates
        found = torch.cat([angles.sin(), angles.cos()], 1)[:, :width].to(frames)
        return found[:, None] if frames.dim() == 4 else found


PROJECTORS: dict[str, type[Projector]] = {
    "mlp": MLPProjector,
    "linear": LinearProjector,
    "conv": ConvProjector,
    "qformer": QFormerProjector,
}


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

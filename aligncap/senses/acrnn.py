"""ACRNN v3: convolutions with attention, a recurrent layer and attention over time, on log-mel of 3 seconds.

Log-mel (1, 128, 130) → stem convolution → four residual blocks of w, 2w, 4w and 8w channels (w = 64), each
with CBAM (Woo et al. 2018) and pooling → projection → BiLSTM of two layers → multi-head attention → mean
over time → MLP. What the source does not say is ours: the stem's stride, pooling by 2 × 2 in the first block
and by 2 in frequency alone after it, so that 33 steps of 93 ms are left; that no step of padding is attended
to; a shortcut around the BiLSTM and batch normalisation before the MLP. Without the last two, states differ
little from clip to clip at first, and learning stands still for hundreds of steps
(docs/senses-text-voice.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from aligncap.audio.files import SAMPLE_RATE

MELS = 128
WINDOW = 3 * SAMPLE_RATE  # 48,000 samples
HOP = 372  # samples, 23 ms: 1 + 48,000 // 372 = 130 frames a window, as 512 at 22,050 Hz give
FRAMES = 1 + WINDOW // HOP
_SPAN, _FFT = 1488, 2048  # samples that a frame spans, 93 ms; with zeros around them in the transform
_FLOOR = 1e-6  # added to the power before the logarithm
STRIDE = 4  # frames in a step of the recurrent layer


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are the source's where it names them."""

    width: int = 64  # channels of the stem and of the first block; the others have 2, 4 and 8 times as many
    hidden: int = 128  # of each direction of the BiLSTM
    heads: int = 4
    dropout: float = 0.3
    classes: int = 7


@cache
def _filters() -> tuple[Tensor, Tensor]:
    """Hann window (_SPAN,) and mel filters (MELS, _FFT // 2 + 1), up to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank

    bins = _FFT // 2 + 1
    bank = mel_filter_bank(bins, MELS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.hann_window(_SPAN), torch.from_numpy(bank.T.astype(np.float32)).contiguous()


def log_mel(samples: np.ndarray) -> Tensor:
    """Log of the mel power of (n,) samples at 16 kHz, float32 (128, 1 + n // 372).

    Frames are centred, with zeros beyond both ends.
    """
    window, bank = _filters()
    wave = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    spectrum = torch.stft(wave, _FFT, HOP, _SPAN, window, pad_mode="constant", return_complex=True)
    return torch.log(bank @ spectrum.abs().square() + _FLOOR)


class Cut(NamedTuple):
    """Windows of a clip."""

    mel: Tensor  # (windows, 128, 130)
    frames: Tensor  # (windows,): how many of each are the clip's own
    repeated: list[int]  # of each, how many frames the window before holds too


def windows(mel: Tensor) -> Cut:
    """A clip's log-mel (128, n) cut into windows of 130 frames that overlap by half.

    The last window ends where the clip ends; a clip of one window or less is padded with zeros.
    """
    count = mel.shape[1]
    if count <= FRAMES:
        return Cut(functional.pad(mel, (0, FRAMES - count))[None], torch.tensor([count]), [0])
    starts = [*range(0, count - FRAMES, FRAMES // 2), count - FRAMES]
    repeated = [0, *(FRAMES - (b - a) for a, b in pairwise(starts))]
    cut = torch.stack([mel[:, s : s + FRAMES] for s in starts])
    return Cut(cut, torch.full((len(starts),), FRAMES), repeated)


class Cbam(nn.Module):
    """Attention over channels, then over places (Woo, Park, Lee & Kweon 2018): (n, c, h, w) to the same."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(4, channels // reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))
        self.place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        by_channel = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        x = x * by_channel.sigmoid()[..., None, None]
        by_place = self.place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        return x * by_place.sigmoid()


class Block(nn.Module):
    """Two convolutions with CBAM beside a shortcut, then max-pooling: (n, i, h, w) to (n, o, h/p, w/q)."""

    def __init__(self, inputs: int, outputs: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            Cbam(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.pool = nn.MaxPool2d(pool, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu(self.body(x) + self.shortcut(x)))


class Acrnn(nn.Module):
    """The network; `mean` and `std` (128,) standardise the log-mel and are set from training clips."""

    mean: Tensor
    std: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, width = shape, shape.width
        self.register_buffer("mean", torch.zeros(MELS))
        self.register_buffer("std", torch.ones(MELS))
        stem = nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        pools = [(2, 2), (2, 1), (2, 1), (2, 1)]
        self.blocks = nn.Sequential(*(Block(sizes[i], sizes[i + 1], pools[i]) for i in range(4)))
        states = 2 * shape.hidden
        self.projection = nn.Sequential(
            nn.Linear(8 * width * (MELS // 32), states),
            nn.LayerNorm(states),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
        )
        self.recurrent = nn.LSTM(
            states, shape.hidden, 2, batch_first=True, dropout=shape.dropout, bidirectional=True
        )
        self.attention = nn.MultiheadAttention(states, shape.heads, shape.dropout, batch_first=True)
        self.norm = nn.LayerNorm(states)
        self.head = nn.Sequential(
            nn.BatchNorm1d(states),
            nn.Linear(states, shape.hidden),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
            nn.Linear(shape.hidden, shape.classes),
        )

    def standardised(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Log-mel (n, 128, 130) less its mean by its standard deviation; 0 from frame `frames` (n,) on."""
        own = torch.arange(mel.shape[2], device=mel.device) < frames[:, None]
        return (mel - self.mean[:, None]) / self.std[:, None] * own[:, None]

    def states(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """States (n, 33, 2 x hidden) of `standardised` windows, and which of them are of sound (n, 33)."""
        x = self.blocks(self.stem(x[:, None].contiguous(memory_format=torch.channels_last)))
        x = self.projection(x.permute(0, 3, 1, 2).flatten(2))
        steps = (frames + STRIDE - 1) // STRIDE
        own = torch.arange(x.shape[1], device=x.device) < steps[:, None]
        packed = pack_padded_sequence(x, steps.cpu(), batch_first=True, enforce_sorted=False)
        later = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        x = x + later
        heard, _ = self.attention(x, x, x, key_padding_mask=~own, need_weights=False)
        return self.norm(x + heard), own

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Logits (n, classes) of windows (n, 128, 130) of which so many `frames` (n,) are sound."""
        return self.classify(*self.states(self.standardised(mel, frames), frames))

    def classify(self, states: Tensor, own: Tensor) -> Tensor:
        """Logits (n, classes) of `states`: their mean over time, through the MLP."""
        weight = own[..., None].to(states.dtype)
        return self.head((states * weight).sum(1) / weight.sum(1))

"""Whether anybody speaks in a clip: the gate before the model, which else would caption silence and music.

The network is silero-vad's (https://github.com/snakers4/silero-vad, MIT), its weights read from the wheel's
safetensors and its layers those of the wheel's `tinygrad_model.py`. All frames go through it at once; nothing
of the package is imported, which would set torch's threads to one. The package's `silero_vad.jit` is another
release of the network: on one RAVDESS clip .0008 apart (median of frames), .24 at the end of the speech.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from typing import TYPE_CHECKING

import numpy as np

from aligncap.audio.files import SAMPLE_RATE, SILENCE_DBFS
from aligncap.audio.level import level_dbfs, normalise_level

if TYPE_CHECKING:
    import torch

FRAME = 512  # samples, 32 ms: what silero-vad hears at a time at 16 kHz
CONTEXT = 64  # samples before each frame that it hears too
MARGIN = 8 * FRAME  # of silence around the clip, so that the network's state settles before a short word
THRESHOLD = 0.5  # probability from which a frame is speech: silero-vad's own default
MIN_SECONDS = 0.064  # of speech in a clip in which somebody speaks: two frames
# Single notes of music are taken for speech now and then: less than half a second of speech counts only where
# it is a share of the clip. Chosen on made music and six corpora (docs/log.md, 2026-11-28).
SURE_SECONDS, MIN_SHARE = 0.5, 0.08


def speech_probabilities(samples: np.ndarray) -> np.ndarray:
    """Probability of speech in each frame of 32 ms, (frames,) float32; none for silence.

    The clip's level does not matter, unless all of it is below -75 dBFS. 0.26 s of silence on either side
    are counted as frames.

    Args:
        samples: (n,) at 16 kHz, mono.
    """
    import torch
    from torch.nn import functional as F

    if not level_dbfs(samples) >= SILENCE_DBFS:
        return np.zeros(0, dtype=np.float32)
    x = normalise_level(samples)
    x = np.pad(x, (CONTEXT + MARGIN, MARGIN + -len(x) % FRAME))
    w = _weights()
    with torch.inference_mode():
        frames = torch.from_numpy(x).unfold(0, CONTEXT + FRAME, FRAME)[:, None]
        waves = F.conv1d(F.pad(frames, (0, 64), "reflect"), w["stft_conv.weight"], stride=128)
        real, imaginary = waves.chunk(2, dim=1)
        h = (real**2 + imaginary**2).sqrt()
        for i, stride in enumerate((1, 2, 2, 1), start=1):
            h = F.conv1d(h, w[f"conv{i}.weight"], w[f"conv{i}.bias"], stride, padding=1).relu()
        start = torch.zeros(1, 1, 128)
        gates = [w[f"lstm_cell.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h = torch.lstm(h[None, :, :, 0], (start, start), gates, True, 1, 0.0, False, False, True)[0][0].relu()
        return (h @ w["final_conv.weight"][0, :, 0] + w["final_conv.bias"]).sigmoid().numpy()


def speech_seconds(samples: np.ndarray) -> float:
    """Seconds in which silero-vad hears speech; samples (n,) at 16 kHz, mono."""
    return float((speech_probabilities(samples) >= THRESHOLD).sum() * FRAME / SAMPLE_RATE)


def has_speech(samples: np.ndarray) -> bool:
    """Whether speech is heard for half a second, or for 64 ms and 8 % of a clip; samples (n,) at 16 kHz."""
    seconds = speech_seconds(samples)
    return seconds >= min(SURE_SECONDS, max(MIN_SECONDS, MIN_SHARE * len(samples) / SAMPLE_RATE))


@cache
def _weights() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    path = distribution("silero-vad").locate_file("silero_vad/data/silero_vad_16k.safetensors")
    return load_file(str(path))

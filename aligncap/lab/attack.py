"""Perturbations of a waveform that turn a decision: projected gradient descent within bounds that are stated.

Madry et al. 2018 (PGD with restarts), Carlini & Wagner 2018 (speech, SNR), Qin et al. 2019 (psychoacoustic
weighting). The decision is any function of the samples with gradients; see `lab.attack_clips` for models'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aligncap.audio.files import SAMPLE_RATE

WINDOW = 512  # samples, 32 ms: frames of the masking threshold
OFFSET_DB = 12.0  # that a masked sound lies below its masker
SLOPES_DB = (27.0, 10.0)  # by which masking falls per bark towards lower and higher frequencies
QUIET_DB = -96.0  # of full scale: below it nothing is heard


@dataclass(frozen=True)
class Bounds:
    """What a perturbation must keep to.

    snr_db: least ratio of the clip's energy to the perturbation's. limit: largest sample (L∞), full scale 1.
    """

    snr_db: float | None = None
    limit: float = math.inf

    def radius(self, clip: Tensor) -> float:
        """Largest Euclidean length of a perturbation of `clip`."""
        return math.inf if self.snr_db is None else float(clip.norm()) * 10 ** (-self.snr_db / 20)

    def project(self, delta: Tensor, clip: Tensor) -> Tensor:
        """The perturbation pulled into the bounds; the sum stays within full scale."""
        radius, length = self.radius(clip), float(delta.norm())
        if length > radius:
            delta = delta * (radius / length)
        delta = delta.clamp(-self.limit, self.limit)
        return (clip + delta).clamp(-1.0, 1.0) - clip


@dataclass(frozen=True)
class Aim:
    """How far a decision has been turned: `margin` above 0 when it is the attacker's; `price` is added to
    what is minimised (a second term: what the words lose). Both scalars with gradients."""

    margin: Tensor
    price: Tensor | None = None


@dataclass(frozen=True)
class Attack:
    """The best perturbation that was found; `margin` and `snr_db` are its own, `passes` its cost."""

    delta: Tensor
    margin: float
    passes: int
    snr_db: float

    @property
    def success(self) -> bool:
        return self.margin > 0


def pgd(
    aim: Callable[[Tensor], Aim],
    clip: Tensor,
    bounds: Bounds,
    *,
    steps: int = 20,
    restarts: int = 1,
    price: float = 0.0,
    threshold: Tensor | None = None,
    audible: float = 0.0,
    start: Tensor | None = None,
    seed: int = 0,
    confidence: float = 0.0,
) -> Attack:
    """Projected gradient descent on -margin + price · (second term) + audible · (energy above masking).

    Steps go along the gradient where the SNR is the tighter bound, along its sign where only L∞ bounds, and
    become shorter (2.5 / steps of the bound, falling linearly). Of a linear decision w·x + b this needs
    |w·x + b| / ‖w‖₂ of Euclidean length, or |w·x + b| / ‖w‖₁ of L∞, and no less is enough.

    Args:
        aim: of perturbed samples (n,).
        clip: samples (n,), full scale 1.
        restarts: tries; the first begins at `start` or at 0, the others at random within the bounds.
        threshold: masking threshold of the clip, of `masking_threshold`.
        confidence: margin at which the search stops.

    Raises:
        ValueError: neither bound is finite.
    """
    radius = bounds.radius(clip)
    if math.isinf(radius) and math.isinf(bounds.limit):
        raise ValueError("an attack needs a bound: snr_db or limit")
    by_length = radius <= bounds.limit * math.sqrt(clip.numel())
    draw = torch.Generator().manual_seed(seed)
    best, most, passes = torch.zeros_like(clip), -math.inf, 0
    for turn in range(restarts):
        delta = torch.zeros_like(clip) if start is None else bounds.project(start, clip)
        if turn:
            noise = torch.randn(clip.shape, generator=draw).to(clip)
            scale = radius / float(noise.norm()) if by_length else bounds.limit
            delta = bounds.project(noise * scale * 0.5, clip)
        for step in range(steps + 1):
            delta = delta.detach().requires_grad_(True)
            found = aim(clip + delta)
            passes += 1
            if (margin := found.margin.item()) > most:
                best, most = delta.detach().clone(), margin
            if most > confidence or step == steps:
                break
            loss = -found.margin
            if price and found.price is not None:
                loss = loss + price * found.price
            if audible and threshold is not None:
                loss = loss + audible * excess(delta, threshold)
            (gradient,) = torch.autograd.grad(loss, delta)
            size = 2.5 / steps * (1 - step / (steps + 1))
            length = float(gradient.norm())
            if not math.isfinite(length) or length == 0:
                break
            move = gradient * (radius / length) if by_length else gradient.sign() * bounds.limit
            delta = bounds.project((delta - size * move).detach(), clip)
        if most > confidence:
            break
    return Attack(best, most, passes, snr_db(clip, best))


def snr_db(clip: Tensor, delta: Tensor) -> float:
    """Energy of the clip by that of the perturbation, dB; infinite without one."""
    noise = float(delta.double().square().sum())
    return 10 * math.log10(float(clip.double().square().sum()) / noise) if noise else math.inf


def least_budget(
    attacked: Callable[[float], bool], low: float, high: float, tolerance: float = 0.01
) -> float | None:
    """The least budget from `low` to `high` at which an attack succeeds, by bisection; None: not even `high`.

    `attacked` must not fail with more where it succeeds with less.
    """
    if not attacked(high):
        return None
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if attacked(middle) else (middle, high)
    return high


# ---- what is masked


def masking_threshold(clip: Tensor) -> Tensor:
    """Power below which a sound beside the clip is not heard, (bins, frames), by the clip's own frames.

    A plain form of simultaneous masking: every bin masks those around it, OFFSET_DB below itself, falling by
    27 dB a bark towards low and 10 dB a bark towards high frequencies; summed over maskers; at least
    QUIET_DB of full scale.
    """
    power = _spectrum(clip)
    hertz = torch.linspace(0, SAMPLE_RATE / 2, power.shape[0])
    bark = 13 * torch.atan(0.00076 * hertz) + 3.5 * torch.atan((hertz / 7500) ** 2)
    away = bark[:, None] - bark[None]  # of what is masked from its masker
    fall = torch.where(away < 0, -away * SLOPES_DB[0], away * SLOPES_DB[1])
    spread = 10 ** (-(fall + OFFSET_DB) / 10)
    # what a band of a bark may hold is shared among its bins
    share = torch.gradient(bark)[0].clamp(max=1.0).to(power)[:, None]
    return (share * (spread.to(power) @ power)).clamp(min=10 ** (QUIET_DB / 10))


def excess(delta: Tensor, threshold: Tensor) -> Tensor:
    """Mean over bins and frames of log(1 + power of the perturbation by the threshold), with gradients."""
    return torch.log1p(_spectrum(delta) / threshold.to(delta)).mean()


def audible_share(delta: Tensor, threshold: Tensor) -> float:
    """Share of the perturbation's energy that lies in bins and frames where it is above the threshold."""
    power = _spectrum(delta).double()
    total = float(power.sum())
    return float(power[power > threshold.to(power)].sum()) / total if total else 0.0


def _spectrum(samples: Tensor) -> Tensor:
    """Power (bins, frames) of which a sine of full scale has 1/2 at its peak, with gradients."""
    window = torch.hann_window(WINDOW).to(samples)
    padded = torch.nn.functional.pad(samples, (0, max(0, WINDOW - samples.numel())))
    found = torch.stft(padded, WINDOW, WINDOW // 2, window=window, center=False, return_complex=True)
    return torch.view_as_real(found).square().sum(-1) * (2 / float(window.sum()) ** 2)


# ---- defences


def resampled_with_noise(
    samples: np.ndarray, seed: int = 0, rate: int = 8_000, noise_db: float = 30.0
) -> np.ndarray:
    """Through `rate` Hz and back, with white noise that far below the clip, (n,) float32."""
    import soxr

    x = np.asarray(samples, dtype=np.float32)
    low = soxr.resample(soxr.resample(x, SAMPLE_RATE, rate, quality="HQ"), rate, SAMPLE_RATE, quality="HQ")
    low = np.pad(low, (0, max(0, len(x) - len(low))))[: len(x)]
    return with_noise(low, noise_db, seed)


def with_noise(samples: np.ndarray, snr: float, seed: int) -> np.ndarray:
    """The clip with white noise `snr` dB below it, (n,) float32."""
    x = np.asarray(samples, dtype=np.float64)
    noise = np.random.default_rng(seed).standard_normal(len(x))
    gain = np.sqrt(np.mean(x**2)) * 10 ** (-snr / 20)
    return (x + gain * noise).astype(np.float32)


def noisy_copies(samples: np.ndarray, number: int = 5, snr: float = 20.0, seed: int = 0) -> list[np.ndarray]:
    """Copies of a clip in different noise, for a vote (randomised smoothing, Cohen et al. 2019)."""
    return [with_noise(samples, snr, seed + i) for i in range(number)]

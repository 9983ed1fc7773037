"""Attacks keep to their bounds, and need of a linear decision exactly its margin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import voice

from aligncap.lab.attack import (
    Aim,
    Bounds,
    audible_share,
    excess,
    least_budget,
    masking_threshold,
    noisy_copies,
    pgd,
    resampled_with_noise,
    snr_db,
)

N = 1600


@pytest.fixture(scope="module")
def linear():
    """A clip, weights and an offset: the decision is 1 nat on the wrong side."""
    torch.manual_seed(0)
    clip, weights = 0.1 * torch.randn(N), torch.randn(N)
    offset = -1.0 - float(weights @ clip)

    def aim(samples: torch.Tensor) -> Aim:
        return Aim(weights @ samples + offset)

    return clip, weights, aim


def test_a_linear_decision_needs_its_margin_by_the_dual_norm_of_l_infinity(linear):
    clip, weights, aim = linear
    exact = 1.0 / float(weights.abs().sum())

    def turned(limit: float) -> bool:
        found = pgd(aim, clip, Bounds(limit=limit), steps=20)
        assert float(found.delta.abs().max()) <= limit * 1.0001
        return found.success

    assert least_budget(turned, 0.0, 4 * exact, 1e-3) == pytest.approx(exact, rel=5e-3)
    assert not turned(0.999 * exact) and turned(1.001 * exact)


def test_a_linear_decision_needs_its_margin_by_euclidean_length_where_the_snr_bounds(linear):
    clip, weights, aim = linear
    exact = 20 * math.log10(float(clip.norm()) * float(weights.norm()))  # radius of 1 / ‖w‖

    def turned(snr: float) -> bool:
        found = pgd(aim, clip, Bounds(snr_db=snr), steps=20)
        assert found.snr_db >= snr - 1e-3 or not found.passes
        return found.success

    assert turned(exact - 0.02) and not turned(exact + 0.02)
    assert least_budget(lambda loss: turned(100 - loss), 0.0, 100.0, 1e-3) == pytest.approx(
        100 - exact, abs=0.1
    )


def test_both_bounds_hold_at_once(linear):
    clip, _, aim = linear
    found = pgd(aim, clip, Bounds(snr_db=20, limit=1e-3), steps=10, restarts=2)
    assert float(found.delta.abs().max()) <= 1e-3 + 1e-9 and snr_db(clip, found.delta) >= 20
    with pytest.raises(ValueError, match="bound"):
        pgd(aim, clip, Bounds())


def test_restarts_find_what_one_start_does_not():
    """At 0 the gradient vanishes; only a start elsewhere leaves it."""
    clip = 0.1 * torch.ones(64)

    def aim(samples: torch.Tensor) -> Aim:
        return Aim(((samples - clip) ** 2).sum() * 1e4 - 1)

    assert not pgd(aim, clip, Bounds(limit=0.01), steps=10).success
    assert pgd(aim, clip, Bounds(limit=0.01), steps=10, restarts=2).success


def test_the_price_of_the_second_term_is_kept_low():
    """Two directions turn the decision, one of them at a price: with the second term it is left alone."""
    clip = 0.1 * torch.ones(2)

    def aim(samples: torch.Tensor) -> Aim:
        first, second = samples - clip
        return Aim(10 * (first + second) - 1, price=20 * second.abs())

    free = pgd(aim, clip, Bounds(limit=0.2), steps=20, confidence=3)
    kept = pgd(aim, clip, Bounds(limit=0.2), steps=20, confidence=0.5, price=1.0)
    assert free.delta[1] > 0.05
    assert kept.success and abs(float(kept.delta[1])) < 0.02


def test_masking_is_below_a_tone_and_falls_away_from_it():
    time = torch.arange(8000) / 16_000
    threshold = masking_threshold(0.5 * torch.sin(2 * math.pi * 1000 * time)).mean(1)
    at = [round(hz / 16_000 * 512) for hz in (300, 1000, 2000, 4000)]
    low, tone, above, far = (float(10 * threshold[i].log10()) for i in at)
    assert -30 < tone < -23  # the tone's power of -9 dB, 12 dB below, a bark's share among four bins
    assert low < tone - 30 and tone > above > far > -97


def test_a_weighted_perturbation_is_less_audible():
    clip = torch.from_numpy(voice(0.3, 200))
    threshold = masking_threshold(clip)
    torch.manual_seed(1)
    weights = torch.randn(len(clip))

    def aim(samples: torch.Tensor) -> Aim:
        return Aim(weights @ (samples - clip) * 100 - 20)

    plain = pgd(aim, clip, Bounds(snr_db=20), steps=20, confidence=math.inf)
    shaped = pgd(
        aim, clip, Bounds(snr_db=20), steps=20, audible=30.0, threshold=threshold, confidence=math.inf
    )
    assert shaped.success and plain.success
    assert float(excess(shaped.delta, threshold)) < float(excess(plain.delta, threshold))
    assert audible_share(torch.zeros(4800), threshold) == 0


def test_defences_keep_length_and_level():
    clip = voice(0.5)
    heard = resampled_with_noise(clip)
    assert len(heard) == len(clip) and np.corrcoef(heard, clip)[0, 1] > 0.98
    copies = noisy_copies(clip, 3, 20)
    noise = copies[0] - clip
    assert 10 * np.log10(np.sum(clip**2) / np.sum(noise**2)) == pytest.approx(20, abs=0.3)
    assert len(copies) == 3 and not np.allclose(copies[0], copies[1])

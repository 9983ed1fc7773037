import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aligncap.training.divergences import (
    chunked,
    coarsen,
    divergence,
    most_likely,
    top_k_divergence,
)

NAMES = ("forward_kl", "reverse_kl", "jsd")

P = torch.tensor([[0.5, 0.5]]).log()
Q = torch.tensor([[0.25, 0.75]]).log()


def test_forward_kl_by_hand():
    # ½ ln(½ / ¼) + ½ ln(½ / ¾) = ½ ln 4/3
    assert divergence(Q, P).item() == pytest.approx(0.5 * math.log(4 / 3))


def test_reverse_kl_by_hand():
    # ¼ ln(¼ / ½) + ¾ ln(¾ / ½)
    assert divergence(Q, P, "reverse_kl").item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_jsd_by_hand():
    # m = ½p + ½q = (3/8, 5/8)
    p = 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    q = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
    assert divergence(Q, P, "jsd").item() == pytest.approx(0.5 * p + 0.5 * q)


def test_temperature_by_hand():
    # At T = 2 logits halve: p' ∝ √p = (½, ½), q' ∝ (½, √3/2), normalised by (1 + √3)/2
    q = [1 / (1 + math.sqrt(3)), math.sqrt(3) / (1 + math.sqrt(3))]
    wanted = 0.5 * math.log(0.5 / q[0]) + 0.5 * math.log(0.5 / q[1])
    assert divergence(Q, P, temperature=2.0).item() == pytest.approx(wanted)


@pytest.mark.parametrize("name", NAMES)
def test_chunked_equals_plain_in_value_and_gradient(name):
    torch.manual_seed(0)
    student = torch.randn(23, 11, requires_grad=True)
    teacher = torch.randn(23, 11)
    plain = divergence(student, teacher, name, 1.7, 0.3)
    (wanted,) = torch.autograd.grad(plain, student)
    found = chunked(divergence, student, teacher, chunk=5, name=name, temperature=1.7, beta=0.3)
    (given_,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(given_, wanted)


def test_forward_kl_is_cross_entropy_when_the_teacher_is_certain():
    student = torch.tensor([[1.0, 2.0, 3.0]])
    teacher = torch.tensor([[0.0, 1000.0, 0.0]])
    wanted = torch.nn.functional.cross_entropy(student, torch.tensor([1]))
    torch.testing.assert_close(divergence(student, teacher), wanted)


@given(st.integers(0, 1000), st.sampled_from(NAMES))
def test_divergences_are_zero_only_between_equals(seed, name):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 4, 7, generator=generator)
    assert divergence(a, a, name).item() == pytest.approx(0, abs=1e-5)
    assert divergence(a, b, name).item() > 0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="forward_kl"):
        divergence(P, Q, "kl")


def test_empty_batches_keep_the_graph():
    student = torch.randn(0, 5, requires_grad=True)
    chunked(divergence, student, torch.randn(0, 5)).backward()


@pytest.mark.parametrize("name", NAMES)
def test_top_k_by_hand(name):
    # Of p = (½, ¼, ¼) and q = (¼, ½, ¼) the first token is kept: p' = (½, ½), q' = (¼, ¾), worked out above.
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    ids, log_probs = most_likely(p, 1)
    assert ids.tolist() == [[0]] and log_probs.exp().tolist() == [[0.5, 0.5]]
    torch.testing.assert_close(top_k_divergence(q, ids, log_probs, name), divergence(Q, P, name))


def test_top_k_at_a_temperature_by_hand():
    # At T = 2: p ∝ √(½, ¼, ¼) ∝ (√2, 1, 1), bucket 2; q ∝ √(¼, ½, ¼) ∝ (1, √2, 1), bucket 1 + √2
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    root = math.sqrt(2)
    wanted = root / (2 + root) * math.log(root) + 2 / (2 + root) * math.log(2 / (1 + root))
    found = top_k_divergence(q, *most_likely(p, 1, 2.0), temperature=2.0)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_top_k_of_the_whole_vocabulary_is_the_exact_divergence(name):
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 9, 13)
    exact = divergence(student, teacher, name, 1.7, 0.3)
    found = top_k_divergence(student, *most_likely(teacher, 13, 1.7), name, 1.7, 0.3)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 10_000), st.sampled_from(NAMES), st.floats(0.1, 8), st.floats(0.5, 4))
def test_top_k_bounds_the_divergence_from_below_and_rises_with_k(seed, name, scale, temperature):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, 3, 17, generator=generator)
    exact = divergence(student, teacher, name, temperature, 0.3).item()
    found = [
        top_k_divergence(student, *most_likely(teacher, k, temperature), name, temperature, 0.3).item()
        for k in (1, 2, 5, 11, 16)
    ]
    slack = 1e-5 * (1 + exact)
    assert -slack <= found[0] and found[-1] <= exact + slack
    assert all(less <= more + slack for less, more in zip(found, found[1:]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gaps", [(60.0, 60.0), (-60.0, -60.0), (60.0, -60.0), (1e4, 1e4), (-1e4, -1e4)])
def test_gradients_are_finite_when_the_bucket_holds_nothing_or_everything(name, gaps):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 9)
    student[:, :3] += gaps[0]
    teacher[:, :3] += gaps[1]
    student.requires_grad_()
    ids = torch.tensor([[0, 1, 2]]).expand(5, 3)
    loss = top_k_divergence(student, ids, coarsen(teacher, ids).log_softmax(-1), name)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_the_bucket_keeps_its_digits_where_one_minus_the_mass_has_none():
    logits = torch.tensor([[30.0, 29.0, 0.0, 1.0]])
    ids = torch.tensor([[0, 1]])
    found = coarsen(logits, ids).log_softmax(-1)[0, -1].item()
    mass = logits.double().softmax(-1)[0]
    assert found == pytest.approx((mass[2] + mass[3]).log().item(), rel=1e-6)
    assert 1 - logits.softmax(-1)[0, :2].sum() < 1e-7  # of about 2.5e-13, float32 keeps no digit


@pytest.mark.parametrize("name", NAMES)
def test_top_k_in_chunks_equals_one_minus_the_mass_in_value_and_gradient(name):
    torch.manual_seed(0)
    student = torch.randn(23, 11, dtype=torch.float64, requires_grad=True)
    ids, log_probs = most_likely(torch.randn(23, 11), 4, 1.7)
    mass = (student / 1.7).softmax(-1).gather(1, ids)
    events = torch.cat([mass, 1 - mass.sum(1, keepdim=True)], 1)
    plain = divergence(events.log(), log_probs, name, 1.0, 0.3)
    (wanted,) = torch.autograd.grad(plain, student)
    value = chunked(top_k_divergence, student, ids, log_probs, chunk=5, name=name, temperature=1.7, beta=0.3)
    (found,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aligncap.errors import UserError
from aligncap.training.divergences import NAMES, chunked_divergence, divergence

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
    chunked = chunked_divergence(student, teacher, chunk=5, name=name, temperature=1.7, beta=0.3)
    (given_,) = torch.autograd.grad(chunked, student)
    torch.testing.assert_close(chunked, plain)
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
    with pytest.raises(UserError, match="forward_kl"):
        divergence(P, Q, "kl")


def test_empty_batches_keep_the_graph():
    student = torch.randn(0, 5, requires_grad=True)
    chunked_divergence(student, torch.randn(0, 5)).backward()

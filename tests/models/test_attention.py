"""Attention in float32 inside bfloat16 training."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from aligncap.models.attention import sdpa_float32


def inputs(dtype):
    torch.manual_seed(0)
    query = torch.randn(2, 4, 7, 8).to(dtype)
    key, value = (torch.randn(2, 2, 7, 8).to(dtype) for _ in range(2))  # two heads share one key
    seen = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    seen[1, :, :, :2] = False
    seen[1, :, range(7), range(7)] = True
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    return module, [t.requires_grad_() for t in (query, key, value)], seen


def gradients(output, tensors):
    (output.float() * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return [t.grad for t in tensors]


@pytest.mark.parametrize("mixed", [False, True])
def test_bfloat16_tensors_are_attended_to_as_if_they_were_float32(mixed):
    module, half, seen = inputs(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        output, _ = sdpa_float32(module, *half, seen)
    whole = [t.detach().float().requires_grad_() for t in half]
    wanted, _ = sdpa_attention_forward(module, *whole, seen)
    assert output.dtype == torch.float32
    assert torch.equal(output, wanted)
    for found, exact in zip(gradients(output, half), gradients(wanted, whole), strict=True):
        assert torch.equal(found, exact.bfloat16())


def test_without_gradients_the_output_is_the_same():
    module, half, seen = inputs(torch.bfloat16)
    output, _ = sdpa_float32(module, *half, seen)
    with torch.no_grad():
        again, _ = sdpa_float32(module, *half, seen)
    assert torch.equal(output, again)
